//! Fuzzes the blob of a layer, which is unpacked with small limits: alone, and on top of another
//! layer if it depends on that one.

#![no_main]
#![allow(clippy::unwrap_used, reason = "a failed setup must end the fuzzer")]

use std::fs;
use std::io::Read;
use std::ops::ControlFlow;
use std::sync::LazyLock;

use a3s_box_oci::{CacheError, Compression, Digest, Layer, LayerCache, Layout, Limits, StepLimits};
use libfuzzer_sys::fuzz_target;
use scratch::base_layer::base;
use scratch::{Scratch, check_error};

static SCRATCH: LazyLock<Scratch> = LazyLock::new(Scratch::build);

/// Returns limits that an input of some kilobytes can exceed.
fn limits() -> Limits {
    Limits {
        entries: 200,
        unpacked_bytes: 4 << 20,
        remembered_bytes: 16 << 10,
        ratio_floor_bytes: 1 << 20,
        // The default allows a layer some seconds of lookups.
        steps: StepLimits { floor: 1 << 14, ..StepLimits::default() },
        ..Limits::default()
    }
}

fuzz_target!(|blob: &[u8]| {
    let layers = [base(), blob.to_vec()].map(|blob| {
        let (digest, _) = SCRATCH.blob(&blob);
        Layer {
            digest,
            // The DiffID must match: with another one, the layer is refused before its whiteouts
            // are applied.
            diff_id: Digest::of(&archive(&blob)),
            size_bytes: blob.len() as u64,
            compression: Compression::None,
        }
    });
    let layout = Layout::open(&SCRATCH.path("layout")).unwrap();
    let cache = LayerCache::open(&SCRATCH.path("cache")).unwrap().with_limits(limits());
    let outcome = cache.compose(&layout, &layers, &mut |_, _| ControlFlow::Continue(()));
    match &outcome {
        Ok(_) => {}
        Err(error @ CacheError::Layer { .. }) => check_error(error),
        Err(error) => panic!("an error of the cache itself: {error:?}"),
    }
    let files = |name: &str| -> Vec<String> {
        fs::read_dir(SCRATCH.path("cache/layers-v5").join(name))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    };
    // An error may leave no partial layer, no layer on top of another one, and no stack behind.
    assert!(files("staging").is_empty(), "{outcome:?}");
    if outcome.is_err() {
        assert!(files("ready").iter().all(|name| !name.starts_with("on-")), "{outcome:?}");
        assert!(files("stacks").is_empty(), "{outcome:?}");
    }
    // Closes all fds and releases all leases before the cleanup, which checks for open files.
    drop((outcome, cache, layout));
    // The lower layer is the same for all inputs, so it stays in the cache to save time.
    let kept = format!("sha256-{}", layers[0].diff_id.hex());
    for name in files("ready").iter().filter(|name| **name != kept) {
        fs::remove_dir_all(SCRATCH.path("cache/layers-v5/ready").join(name)).unwrap();
    }
    for (directory, name) in ["stacks", "locks"]
        .into_iter()
        .flat_map(|directory| files(directory).into_iter().map(move |name| (directory, name)))
    {
        fs::remove_file(SCRATCH.path("cache/layers-v5").join(directory).join(name)).unwrap();
    }
    SCRATCH.clear();
});

/// Returns the decompressed archive of a blob, up to the limits. An uncompressed blob is the
/// archive.
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
    // A blob that does not decompress is refused, so its DiffID does not matter.
    read.map(|_| archive).unwrap_or_default()
}
