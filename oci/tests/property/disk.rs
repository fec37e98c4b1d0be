//! Mounts a block root by the kernel, as one disk.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use a3s_box_oci::{BlockImage, DiskPart};

/// Mounts the disk of a block root from a loop device at `target`, an empty directory. A detached
/// mount frees the device.
pub(crate) fn mount_disk(directory: &Path, image: &BlockImage, target: &Path) {
    mount_loop(&write_disk(directory, image), target);
}

/// Writes the disk of a block root in its directory: the metadata image, and the data behind it.
pub(crate) fn write_disk(directory: &Path, image: &BlockImage) -> PathBuf {
    let path = directory.join("disk.img");
    let mut disk = File::create(&path).unwrap();
    for DiskPart { name, bytes } in std::iter::once(&image.metadata).chain(&image.data) {
        assert_eq!(bytes % 4096, 0, "{name}");
        let part = File::open(directory.join(name)).unwrap();
        assert_eq!(io::copy(&mut part.take(*bytes), &mut disk).unwrap(), *bytes, "{name}");
    }
    path
}

/// Mounts a disk from a loop device.
pub(crate) fn mount_loop(disk: &Path, target: &Path) {
    let mount = Command::new("mount")
        .args(["-t", "erofs", "-o", "loop,ro"])
        .args([disk, target])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&mount.stderr);
    assert!(mount.status.success(), "cannot mount a disk: {text}");
}

/// Creates and opens a directory for a block root.
pub(crate) fn new_directory(path: &Path) -> impl AsFd {
    fs::create_dir(path).unwrap();
    File::open(path).unwrap()
}
