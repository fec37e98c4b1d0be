//! Fuzzes the archive of a guest, which is unpacked for the caller of a copy with small limits.

#![no_main]
#![allow(clippy::unwrap_used, reason = "a failed setup must end the fuzzer")]

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::LazyLock;

use a3s_box_oci::{Limits, StepLimits, unpack_untrusted};
use libfuzzer_sys::fuzz_target;
use scratch::{Scratch, check_error};

static SCRATCH: LazyLock<Scratch> = LazyLock::new(Scratch::build);

/// Returns limits that an input of some kilobytes can exceed.
fn limits() -> Limits {
    Limits {
        entries: 200,
        unpacked_bytes: 4 << 20,
        remembered_bytes: 16 << 10,
        steps: StepLimits { floor: 1 << 14, ..StepLimits::default() },
        ..Limits::default()
    }
}

fuzz_target!(|archive: &[u8]| {
    let parent = SCRATCH.path("copies");
    let directory = parent.join("copy");
    fs::create_dir_all(&directory).unwrap();
    let opened = OwnedFd::from(File::open(&directory).unwrap());
    let outcome = unpack_untrusted(archive, opened, &limits());
    match &outcome {
        Ok(unpacked) => assert!(unpacked.entries <= 200 && unpacked.bytes <= 4 << 20),
        Err(error) => check_error(error),
    }
    let names: Vec<_> =
        fs::read_dir(&parent).unwrap().map(|name| name.unwrap().file_name()).collect();
    assert_eq!(names, ["copy"], "{outcome:?}");
    check_tree(&directory);
    fs::remove_dir_all(&parent).unwrap();
    SCRATCH.clear();
});

/// Checks that all files are plain ones of the caller.
fn check_tree(directory: &Path) {
    let own = fs::metadata(directory.parent().unwrap()).unwrap();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let found = fs::symlink_metadata(&path).unwrap();
        let kind = found.file_type();
        assert!(kind.is_file() || kind.is_dir() || kind.is_symlink(), "{path:?}");
        assert!(kind.is_symlink() || found.mode() & 0o7000 == 0, "{path:?}");
        assert_eq!((found.uid(), found.gid()), (own.uid(), own.gid()), "{path:?}");
        if kind.is_dir() {
            check_tree(&path);
        }
    }
}
