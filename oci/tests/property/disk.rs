//! Mounts a block root by the kernel, from a loop device with one disk.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;

use a3s_box_oci::{BlockImage, DiskPart};

/// Writes the disk of a block root in `directory`, and mounts it at `target`, an empty directory.
/// A detached mount frees its loop device.
pub(crate) fn mount_disk(directory: &Path, image: &BlockImage, target: &Path) {
    let path = directory.join("disk.img");
    let mut disk = File::create(&path).unwrap();
    for DiskPart { name, bytes } in std::iter::once(&image.metadata).chain(&image.data) {
        assert_eq!(bytes % 4096, 0, "{name}");
        let part = File::open(directory.join(name)).unwrap();
        assert_eq!(io::copy(&mut part.take(*bytes), &mut disk).unwrap(), *bytes, "{name}");
    }
    let mount = Command::new("mount")
        .args(["-t", "erofs", "-o", "loop,ro"])
        .args([&path, target])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&mount.stderr);
    assert!(mount.status.success(), "cannot mount a disk: {text}");
}

/// Opens a new directory for a block root.
pub(crate) fn new_directory(path: &Path) -> impl AsFd {
    fs::create_dir(path).unwrap();
    File::open(path).unwrap()
}
