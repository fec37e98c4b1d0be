//! Uses every operation on files that a program can ask for. Each must succeed.
//!
//! For each operation, the virtio-fs server makes system calls on the host, which the seccomp
//! filter of the shim must allow.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, Write};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::fs::{
    Access, AtFlags, CWD, FallocateFlags, FileType, FlockOperation, Gid, Mode, OFlags, RenameFlags,
    SeekFrom, StatxFlags, Timespec, Timestamps, UTIME_NOW, Uid, XattrFlags, accessat, chmodat,
    chownat, copy_file_range, fallocate, fcntl_lock, fdatasync, fgetxattr, flistxattr, flock,
    fremovexattr, fsetxattr, fsync, ftruncate, futimens, lgetxattr, llistxattr, lremovexattr,
    lsetxattr, makedev, mknodat, openat, readlinkat, renameat_with, seek, statfs, statx, syncfs,
    utimensat,
};
use rustix::thread::{set_thread_res_gid, set_thread_res_uid};

use crate::attempts::print_line;

/// Entries of a directory. With their long names, they do not fit into one answer of the server.
const ENTRIES: usize = 50;

/// Makes `directory` and uses all operations in it.
pub(crate) fn use_all(directory: &Path) -> Result<()> {
    fs::create_dir(directory).context("mkdir")?;
    contents(directory).context("contents")?;
    attributes(directory).context("attributes")?;
    links(directory).context("links")?;
    names(directory).context("names")?;
    as_another_user(directory).context("as another user")?;
    print_line("all operations are done");
    Ok(())
}

fn contents(directory: &Path) -> Result<()> {
    let path = directory.join("file");
    let mut file =
        OpenOptions::new().create(true).truncate(true).read(true).write(true).open(&path)?;
    file.write_all(&[1; 300_000])?;
    file.write_all_at(&[2; 4096], 8192)?;
    file.read_exact_at(&mut [0; 4096], 4096)?;
    OpenOptions::new().append(true).open(&path)?.write_all(b"more")?;
    fallocate(&file, FallocateFlags::empty(), 0, 500_000)?;
    fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, 4096)?;
    seek(&file, SeekFrom::Data(0))?;
    seek(&file, SeekFrom::Hole(0))?;
    file.rewind()?;
    let copy = File::create(directory.join("copy"))?;
    // The guest kernel copies the data itself if the file system does not support the operation.
    ensure!(copy_file_range(&file, None, &copy, None, 4096)? == 4096, "copy_file_range");
    ftruncate(&file, 1000)?;
    OpenOptions::new().write(true).truncate(true).open(directory.join("copy"))?;
    fsync(&file)?;
    fdatasync(&file)?;
    fsync(File::open(directory)?)?;
    syncfs(&file)?;
    flock(&file, FlockOperation::LockExclusive)?;
    flock(&file, FlockOperation::Unlock)?;
    fcntl_lock(&file, FlockOperation::LockExclusive)?;
    let direct = OpenOptions::new().read(true).custom_flags_of(OFlags::DIRECT).open(&path)?;
    direct.read_at(&mut [0; 512], 0).or_else(|error| match error.kind() {
        // O_DIRECT may require an aligned buffer (open(2)), and this one need not be aligned.
        io::ErrorKind::InvalidInput => Ok(0),
        _ => Err(error),
    })?;
    Ok(())
}

/// Sets flags of `open(2)` from the type of rustix.
trait CustomFlags {
    fn custom_flags_of(&mut self, flags: OFlags) -> &mut Self;
}

impl CustomFlags for OpenOptions {
    fn custom_flags_of(&mut self, flags: OFlags) -> &mut Self {
        std::os::unix::fs::OpenOptionsExt::custom_flags(self, flags.bits().cast_signed())
    }
}

fn attributes(directory: &Path) -> Result<()> {
    let path = directory.join("attributes");
    let file = File::create(&path)?;
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    let times = Timestamps { last_access: now, last_modification: now };
    let (owner, group) = (Some(Uid::from_raw(1000)), Some(Gid::from_raw(1000)));
    file.set_permissions(fs::Permissions::from_mode_bits(0o640))?;
    chmodat(CWD, &path, Mode::RWXU, AtFlags::empty())?;
    chownat(CWD, &path, owner, group, AtFlags::empty())?;
    futimens(&file, &times)?;
    utimensat(CWD, &path, &times, AtFlags::empty())?;
    fsetxattr(&file, c"user.a", b"1", XattrFlags::empty())?;
    fgetxattr(&file, c"user.a", &mut [0_u8; 16])?;
    flistxattr(&file, &mut [0_u8; 256])?;
    fremovexattr(&file, c"user.a")?;
    accessat(CWD, &path, Access::READ_OK, AtFlags::empty())?;
    statx(CWD, &path, AtFlags::empty(), StatxFlags::ALL)?;
    statfs(directory)?;
    Ok(())
}

/// Makes permissions from the bits of a mode.
trait FromModeBits {
    fn from_mode_bits(bits: u32) -> Self;
}

impl FromModeBits for fs::Permissions {
    fn from_mode_bits(bits: u32) -> Self {
        std::os::unix::fs::PermissionsExt::from_mode(bits)
    }
}

fn links(directory: &Path) -> Result<()> {
    let (file, link) = (directory.join("file"), directory.join("link"));
    symlink("file", &link)?;
    readlinkat(CWD, &link, Vec::new())?;
    fs::hard_link(&file, directory.join("hard"))?;
    let nofollow = AtFlags::SYMLINK_NOFOLLOW;
    chownat(CWD, &link, Some(Uid::from_raw(1000)), None, nofollow)?;
    // Whether a symbolic link can have extended attributes depends on the file system of the host.
    // The server makes the calls in any case.
    let _refused = lsetxattr(&link, c"trusted.a", b"1", XattrFlags::empty());
    let _none = lgetxattr(&link, c"trusted.a", &mut [0_u8; 16]);
    let _none = llistxattr(&link, &mut [0_u8; 256]);
    let _none = lremovexattr(&link, c"trusted.a");
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    let times = Timestamps { last_access: now, last_modification: now };
    let _refused = utimensat(CWD, &link, &times, nofollow);
    Ok(())
}

/// Uses files as an ordinary user of the guest.
///
/// The server must create files with the ids of that user, and must clear the set-user-id bit of a
/// file that the user truncates and writes.
fn as_another_user(directory: &Path) -> Result<()> {
    let open = Mode::from_raw_mode(0o777);
    chmodat(CWD, directory, open, AtFlags::empty())?;
    let setuid = directory.join("setuid");
    File::create(&setuid)?;
    chmodat(CWD, &setuid, Mode::from_raw_mode(0o4777), AtFlags::empty())?;
    let own = directory.join("of-a-user");
    let as_user = || -> Result<()> {
        let (user, group) = (Uid::from_raw(1000), Gid::from_raw(1000));
        set_thread_res_gid(group, group, group)?;
        set_thread_res_uid(user, user, user)?;
        fs::create_dir(&own)?;
        fs::write(own.join("file"), "1")?;
        OpenOptions::new().write(true).truncate(true).open(&setuid)?.write_all(b"1")?;
        Ok(())
    };
    // Linux has ids per thread. The thread ends as that user, and the caller stays root.
    std::thread::scope(|scope| scope.spawn(as_user).join())
        .map_err(|_panic| anyhow::anyhow!("a panic"))??;
    let owner = |path: &Path| path.metadata().map(|found| found.uid());
    ensure!(owner(&own)? == 1000, "the directory does not belong to the user");
    ensure!(setuid.metadata()?.mode() & 0o4000 == 0, "the set-user-id bit is still set");
    Ok(())
}

fn names(directory: &Path) -> Result<()> {
    let many = directory.join("many");
    fs::create_dir(&many)?;
    for i in 0..ENTRIES {
        File::create(many.join(format!("{i:0200}")))?;
    }
    ensure!(fs::read_dir(&many)?.count() == ENTRIES, "readdir");
    let (one, other) = (directory.join("one"), directory.join("other"));
    mknodat(CWD, &one, FileType::Fifo, Mode::RUSR, 0)?;
    mknodat(CWD, &other, FileType::Socket, Mode::RUSR, 0)?;
    renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE)?;
    let taken = renameat_with(CWD, &one, CWD, &other, RenameFlags::NOREPLACE);
    ensure!(taken.is_err(), "NOREPLACE");
    fs::rename(&one, &other)?;
    // Overlayfs refuses this in the box's root, because such a device is its own whiteout.
    let _refused = mknodat(CWD, &one, FileType::CharacterDevice, Mode::RUSR, makedev(0, 0));
    // The file is removed while it is open.
    let open = openat(CWD, directory.join("gone"), OFlags::CREATE | OFlags::RDWR, Mode::RWXU)?;
    fs::remove_file(directory.join("gone"))?;
    drop(open);
    fs::remove_dir_all(&many)?;
    Ok(())
}
