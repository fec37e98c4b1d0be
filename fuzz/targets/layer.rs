//! The bytes of a layer's blob, unpacked with small limits: alone, and above another layer if it
//! depends on that.

#![no_main]
#![allow(clippy::unwrap_used, reason = "what cannot be set up ends the fuzzer")]

use std::fs;
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::sync::LazyLock;

use a3s_box_oci::{CacheError, Compression, Digest, Layer, LayerCache, Layout, Limits};
use ground::{Ground, check_error};
use libfuzzer_sys::fuzz_target;
use tar::{EntryType, Header};

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
    let layers = [base(), blob.to_vec()].map(|blob| {
        let (digest, _) = GROUND.blob(&blob);
        Layer {
            digest,
            // Whiteouts are applied when the archive is the right one, so it has to be.
            diff_id: Digest::of(&archive(&blob)),
            size_bytes: blob.len() as u64,
            compression: Compression::None,
        }
    });
    let layout = Layout::open(&GROUND.path("layout")).unwrap();
    let cache = LayerCache::open(&GROUND.path("cache")).unwrap().with_limits(limits());
    let outcome = cache.compose(&layout, &layers, &mut |_, _| ControlFlow::Continue(()));
    match &outcome {
        Ok(_) => {}
        Err(error @ CacheError::Layer { .. }) => check_error(error),
        Err(error) => panic!("an error of the cache itself: {error:?}"),
    }
    let files = |name: &str| -> Vec<String> {
        fs::read_dir(GROUND.path("cache/layers-v2").join(name))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    };
    assert!(files("staging").is_empty(), "{outcome:?}");
    if outcome.is_err() {
        assert!(files("ready").iter().all(|name| !name.starts_with("on-")), "{outcome:?}");
        assert!(files("stacks").is_empty(), "{outcome:?}");
    }
    drop((outcome, cache, layout));
    // All but the lower layer is made anew each time.
    let kept = format!("sha256-{}", layers[0].diff_id.hex());
    for name in files("ready").iter().filter(|name| **name != kept) {
        fs::remove_dir_all(GROUND.path("cache/layers-v2/ready").join(name)).unwrap();
    }
    for (directory, name) in ["stacks", "locks"]
        .into_iter()
        .flat_map(|directory| files(directory).into_iter().map(move |name| (directory, name)))
    {
        fs::remove_file(GROUND.path("cache/layers-v2").join(directory).join(name)).unwrap();
    }
    GROUND.clear();
});

/// Returns the lower layer: what the corpus and the property test like to meet.
fn base() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let entries = [
        ("a/", EntryType::Directory, ""),
        ("a/x", EntryType::Regular, ""),
        ("d/", EntryType::Directory, ""),
        ("s", EntryType::Symlink, "/mnt/canary"),
        ("l", EntryType::Symlink, "d"),
        ("h", EntryType::Link, "a/x"),
        ("f", EntryType::Regular, ""),
        ("hidden", EntryType::Fifo, ""),
    ];
    for (name, kind, link) in entries {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_size(0);
        header.set_cksum();
        tar.append(&header, io::empty()).unwrap();
    }
    tar.into_inner().unwrap()
}

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
