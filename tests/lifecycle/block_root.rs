//! The root of a running box as the guest sees it: the disk of its image, mounted on the host.

use std::fs;
use std::path::Path;

use nix::mount::{MntFlags, umount2};

use crate::image_disk;
use crate::scratch::run;
use crate::tree::{self, Tree};

/// Reads the image of the box whose shim has this pid. `disk` is the path of a temporary file.
pub(crate) fn read(pid: u32, disk: &Path) -> Tree {
    image_disk::copy(pid, disk);
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
