//! Attempts to change a read-only directory by every call that could.
//!
//! The directory must have two files `file` and `other`, the first with the extended attribute
//! `user.kept`, a symbolic link `link` with `trusted.kept`, and an empty directory `empty`.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::Path;

use anyhow::Result;
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, RenameFlags, Timespec, Timestamps, UTIME_NOW, Uid,
    XattrFlags, chmodat, chownat, lremovexattr, lsetxattr, makedev, mknodat, openat, removexattr,
    renameat_with, setxattr, utimensat,
};
use rustix::mount::{MountFlags, mount, mount_remount};

use crate::attempts::{attempt, print_line};

/// Makes all attempts three times: on the mount as it is, after an attempt to remount it writable,
/// and on a second mount of the virtio-fs device `tag`.
pub(crate) fn try_all(directory: &Path, tag: &str) -> Result<()> {
    change("as-mounted", directory);
    let remounted = mount_remount(directory, MountFlags::empty(), c"");
    // Remounting does not count as an attempt, because the guest kernel controls its mounts and may
    // allow it. Only changes to files of the host count.
    print_line(&format!("remount {remounted:?}"));
    change("remounted", directory);
    let elsewhere = Path::new("/mounted-again");
    fs::create_dir(elsewhere)?;
    mount(tag, elsewhere, "virtiofs", MountFlags::empty(), None)?;
    change("mounted-again", elsewhere);
    Ok(())
}

/// Attempts to change files and names. `how` prefixes the names of the attempts.
fn change(how: &str, directory: &Path) {
    let (file, other, new) =
        (directory.join("file"), directory.join("other"), directory.join("new"));
    let link = directory.join("link");
    let named = |what: &str| format!("{how}/{what}");
    let open = |options: &mut OpenOptions| options.open(&file).map(drop);
    attempt(&named("write"), open(OpenOptions::new().write(true)));
    attempt(&named("read-write"), open(OpenOptions::new().read(true).write(true)));
    attempt(&named("append"), open(OpenOptions::new().append(true)));
    attempt(&named("truncate"), open(OpenOptions::new().write(true).truncate(true)));
    // O_RDONLY | O_TRUNC is unspecified by POSIX, but Linux truncates the file.
    let truncate_read = OFlags::TRUNC.bits().cast_signed();
    attempt(
        &named("truncate-read"),
        open(OpenOptions::new().read(true).custom_flags(truncate_read)),
    );
    attempt(&named("create"), File::create(&new));
    let unnamed = openat(CWD, directory, OFlags::TMPFILE | OFlags::RDWR, Mode::RUSR);
    attempt(&named("create-unnamed"), unnamed.map_err(io::Error::from));
    attempt(&named("mkdir"), fs::create_dir(&new));
    attempt(&named("rmdir"), fs::remove_dir(directory.join("empty")));
    attempt(&named("unlink"), fs::remove_file(&file));
    attempt(&named("rename"), fs::rename(&file, &new));
    attempt(&named("rename-over"), fs::rename(&file, &other));
    let exchanged = renameat_with(CWD, &file, CWD, &other, RenameFlags::EXCHANGE);
    attempt(&named("exchange"), exchanged.map_err(io::Error::from));
    attempt(&named("link"), fs::hard_link(&file, &new));
    attempt(&named("symlink"), symlink("/etc", &new));
    for (kind, name) in [(FileType::Fifo, "fifo"), (FileType::Socket, "socket")] {
        attempt(&named(name), mknodat(CWD, &new, kind, Mode::RUSR, 0).map_err(io::Error::from));
    }
    let whiteout = mknodat(CWD, &new, FileType::CharacterDevice, Mode::RUSR, makedev(0, 0));
    attempt(&named("whiteout"), whiteout.map_err(io::Error::from));
    change_metadata(&named, [directory, &file, &link]);
}

/// Attempts to change modes, owners, times and extended attributes.
fn change_metadata(named: &impl Fn(&str) -> String, [directory, file, link]: [&Path; 3]) {
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    let times = Timestamps { last_access: now, last_modification: now };
    let (owner, group) = (Some(Uid::from_raw(1000)), Some(Gid::from_raw(1000)));
    let nofollow = AtFlags::SYMLINK_NOFOLLOW;
    for (what, path) in [("directory", directory), ("file", file)] {
        let outcomes = [
            ("chmod", chmodat(CWD, path, Mode::RWXU, AtFlags::empty())),
            ("chown", chownat(CWD, path, owner, group, nofollow)),
            ("utimes", utimensat(CWD, path, &times, nofollow)),
            ("setxattr", setxattr(path, c"user.new", b"1", XattrFlags::empty())),
        ];
        for (call, outcome) in outcomes {
            attempt(&named(&format!("{call}-{what}")), outcome.map_err(io::Error::from));
        }
    }
    let kept = removexattr(file, c"user.kept");
    attempt(&named("removexattr"), kept.map_err(io::Error::from));
    let outcomes = [
        ("chown-link", chownat(CWD, link, owner, group, nofollow)),
        ("utimes-link", utimensat(CWD, link, &times, nofollow)),
        ("setxattr-link", lsetxattr(link, c"trusted.new", b"1", XattrFlags::empty())),
        ("removexattr-link", lremovexattr(link, c"trusted.kept")),
    ];
    for (call, outcome) in outcomes {
        attempt(&named(call), outcome.map_err(io::Error::from));
    }
}
