//! The bytes of a layer's blob, unpacked into an empty cache with small limits.

#![no_main]
#![allow(clippy::unwrap_used, reason = "what cannot be set up ends the fuzzer")]

use std::fs;
use std::io::Read;
use std::ops::ControlFlow;
use std::sync::LazyLock;

use a3s_box_oci::{CacheError, Compression, Digest, Layer, LayerCache, Layout, Limits};
use ground::{Ground, check_error};
use libfuzzer_sys::fuzz_target;

static GROUND: LazyLock<Ground> = LazyLock::new(Ground::build);

/// Bounds that inputs of some kilobytes can exceed.
fn limits() -> Limits {
    Limits {
        entries: 200,
        unpacked_bytes: 4 << 20,
        remembered_bytes: 16 << 10,
        ratio_floor_bytes: 1 << 20,
        ..Limits::default()
    }
}

fuzz_target!(|blob: &[u8]| {
    let (digest, _) = GROUND.blob(blob);
    let layer = Layer {
        digest,
        // Whiteouts are applied when the archive is the right one, so it has to be.
        diff_id: Digest::of(&archive(blob)),
        size_bytes: blob.len() as u64,
        compression: Compression::None,
    };
    let cache_folder = GROUND.path("cache");
    let layout = Layout::open(&GROUND.path("layout")).unwrap();
    let cache = LayerCache::open(&cache_folder).unwrap().with_limits(limits());
    let outcome = cache.compose(&layout, &[layer], &mut |_, _| ControlFlow::Continue(()));
    match &outcome {
        Ok(_) | Err(CacheError::Layer { .. }) => {}
        Err(error) => panic!("an error of the cache itself: {error:?}"),
    }
    if let Err(error) = &outcome {
        check_error(error);
    }
    let count = |name| fs::read_dir(cache_folder.join("layers-v2").join(name)).unwrap().count();
    assert!(outcome.is_ok() || count("ready") == 0, "{outcome:?}");
    assert_eq!(count("staging"), 0, "{outcome:?}");
    drop((outcome, cache, layout));
    fs::remove_dir_all(cache_folder).unwrap();
    GROUND.clear();
});

/// Returns the archive in a blob, so far as the limits allow, or the blob.
fn archive(blob: &[u8]) -> Vec<u8> {
    let limit = limits().unpacked_bytes + 1;
    let mut archive = Vec::new();
    let read = match blob {
        [0x1f, 0x8b, ..] => {
            flate2::read::MultiGzDecoder::new(blob).take(limit).read_to_end(&mut archive)
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            zstd::Decoder::with_buffer(blob).unwrap().take(limit).read_to_end(&mut archive)
        }
        _ => return blob.to_vec(),
    };
    // What does not decompress has no archive, and is refused.
    read.map(|_| archive).unwrap_or_default()
}
