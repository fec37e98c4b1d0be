//! Mounts a block root by the kernel, as one disk.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};
use std::process::Command;

use a3s_box_oci::{BlockRoot, DiskPart};

/// Mounts the disk of a block root from a loop device at `target`, an empty directory. The disk is
/// a file in `directory`. A detached mount frees the device.
pub(crate) fn mount_disk(directory: &Path, root: &BlockRoot, target: &Path) {
    mount_loop(&write_disk(directory, root), target);
}

/// Writes the disk of a block root in a directory: all parts, one behind the other.
pub(crate) fn write_disk(directory: &Path, root: &BlockRoot) -> PathBuf {
    let path = directory.join("disk.img");
    let mut disk = File::create(&path).unwrap();
    for (number, DiskPart { file, bytes }) in root.parts.iter().enumerate() {
        assert_eq!(bytes % 4096, 0, "part {number}");
        let mut part = file;
        part.rewind().unwrap();
        assert_eq!(io::copy(&mut part.take(*bytes), &mut disk).unwrap(), *bytes, "part {number}");
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
