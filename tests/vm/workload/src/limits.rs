//! Prints which uncommon operations the file system of a directory offers.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{
    CWD, FileType, Mode, OFlags, RenameFlags, XattrFlags, makedev, mknodat, openat, renameat_with,
};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::attempts::print_line;

/// Tries each operation in the new directory `directory`, and prints `limit NAME OUTCOME`.
pub(crate) fn print_all(directory: &Path) -> Result<()> {
    fs::create_dir(directory).context("mkdir")?;
    let outcome = |name: &str, result: Result<String, io::Error>| {
        let text = result.unwrap_or_else(|error| {
            error.raw_os_error().map_or_else(|| error.to_string(), |errno| format!("errno {errno}"))
        });
        print_line(&format!("limit {name} {text}"));
    };
    outcome("device", make_device(&directory.join("device")));
    outcome("tmpfile", make_unnamed_file(directory));
    outcome("overlay-upper", mount_overlay(&directory.join("overlay")));
    outcome("rename-whiteout", rename_with_whiteout(directory));
    outcome("default-acl", inherit_acl(&directory.join("acl")));
    Ok(())
}

fn make_device(path: &Path) -> io::Result<String> {
    mknodat(CWD, path, FileType::CharacterDevice, Mode::RUSR, makedev(1, 3))?;
    Ok("made".to_owned())
}

fn make_unnamed_file(directory: &Path) -> io::Result<String> {
    openat(CWD, directory, OFlags::TMPFILE | OFlags::WRONLY, Mode::RUSR)?;
    Ok("made".to_owned())
}

/// Mounts an overlay whose upper directory is in `directory`.
fn mount_overlay(directory: &Path) -> io::Result<String> {
    let path = |name: &str| directory.join(name);
    for name in ["lower", "upper", "work", "merged"] {
        fs::create_dir_all(path(name))?;
    }
    let options =
        format!("lowerdir={0}/lower,upperdir={0}/upper,workdir={0}/work", directory.display());
    let options = std::ffi::CString::new(options)?;
    mount("overlay", path("merged"), "overlay", MountFlags::empty(), options.as_c_str())?;
    unmount(path("merged"), UnmountFlags::empty())?;
    Ok("mounted".to_owned())
}

/// Renames a file and asks for a whiteout in its old place. A file system that cannot make one must
/// refuse, because a program that combines directories (fuse-overlayfs) relies on it.
fn rename_with_whiteout(directory: &Path) -> io::Result<String> {
    let (from, to) = (directory.join("from"), directory.join("to"));
    fs::write(&from, "")?;
    renameat_with(CWD, &from, CWD, &to, RenameFlags::WHITEOUT)?;
    Ok(if from.symlink_metadata().is_ok() { "whiteout" } else { "no-whiteout" }.to_owned())
}

/// Makes a file in a directory with a default ACL that gives user 1000 all rights, with umask 022.
/// acl(5): the umask does not count then, so that the mask of the file's ACL is `rw-`.
fn inherit_acl(directory: &Path) -> io::Result<String> {
    /// Version of the format, and tags of its entries (`linux/posix_acl_xattr.h`, `linux/posix_acl.h`).
    const VERSION: u32 = 2;
    const TAGS: [(u16, u16, u32); 5] = [
        (0x01, 7, u32::MAX),
        (0x02, 7, 1000),
        (0x04, 7, u32::MAX),
        (0x10, 7, u32::MAX),
        (0x20, 5, u32::MAX),
    ];
    fs::create_dir(directory)?;
    let mut acl = VERSION.to_le_bytes().to_vec();
    for (tag, permissions, id) in TAGS {
        acl.extend(tag.to_le_bytes());
        acl.extend(permissions.to_le_bytes());
        acl.extend(id.to_le_bytes());
    }
    rustix::fs::setxattr(directory, "system.posix_acl_default", &acl, XattrFlags::empty())?;
    let old = rustix::process::umask(Mode::from_raw_mode(0o022));
    let made = File::create(directory.join("file"));
    rustix::process::umask(old);
    // With an ACL, the permissions of the group are the mask of the ACL.
    let mode = made?.metadata()?.permissions().mode();
    Ok(format!("mask-{:o}", mode >> 3 & 7))
}
