//! The disk of the image of a running box, read from outside. The suite in `tests/lifecycle` uses this
//! module as well.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Size of the sectors that a VMDK counts.
const SECTOR_BYTES: u64 = 512;

/// Copies the disk of the box whose shim has this pid into the new file `disk`. A VMDK in the memory
/// of the shim lists the parts of the disk.
pub(crate) fn copy(pid: u32, disk: &Path) {
    let fds = PathBuf::from(format!("/proc/{pid}/fd"));
    let is_list = |fd: &PathBuf| {
        fs::read_link(fd).is_ok_and(|name| name.to_string_lossy().contains("disk of the image"))
    };
    let list = fs::read_dir(&fds).unwrap().map(|fd| fd.unwrap().path()).find(is_list).unwrap();
    let text = fs::read_to_string(list).unwrap();
    let mut output = File::create_new(disk).unwrap();
    for line in text.lines().filter(|line| line.contains("FLAT")) {
        // RDONLY <sectors> FLAT "/proc/self/fd/<fd>" 0
        let sectors: u64 = line.split(' ').nth(1).unwrap().parse().unwrap();
        let fd = line.split('"').nth(1).unwrap().rsplit('/').next().unwrap();
        let part = File::open(fds.join(fd)).unwrap();
        let bytes = sectors * SECTOR_BYTES;
        let copied = io::copy(&mut part.take(bytes), &mut output).unwrap();
        assert_eq!(copied, bytes, "a part of the disk is too short: {line}");
    }
}
