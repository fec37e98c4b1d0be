//! The root of a running box as the guest sees it: the disk of its image, mounted on the host.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, umount2};

use crate::scratch::run;
use crate::tree::{self, Tree};

/// Size of the sectors that a VMDK counts.
const SECTOR_BYTES: u64 = 512;

/// Reads the image of the box whose shim has this pid. `disk` is the path of a temporary file.
pub(crate) fn read(pid: u32, disk: &Path) -> Tree {
    copy_disk(pid, disk);
    let target = disk.with_extension("root");
    fs::create_dir(&target).unwrap();
    let paths = [disk.to_str().unwrap(), target.to_str().unwrap()];
    run("mount", &[&["-t", "erofs", "-o", "ro,loop"][..], &paths].concat());
    let tree = tree::read(&target);
    umount2(&target, MntFlags::empty()).unwrap();
    fs::remove_dir(&target).unwrap();
    fs::remove_file(disk).unwrap();
    tree
}

/// Copies the parts of the disk, which the VMDK in the memory of the shim lists, into a file.
fn copy_disk(pid: u32, disk: &Path) {
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
