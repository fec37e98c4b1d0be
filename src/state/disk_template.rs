//! The templates of disks: one empty ext4 file system for each size, in the cache directory.
//!
//! ```text
//! <paths.cache_dir>/disks-v1/          mode 0700; locked with flock(2) to make a template
//! ├── ext4-<options>-<MiB>.img         a template; <options> is a hash of the options of mkfs.ext4
//! └── ext4-<options>-<MiB>.img.new     becomes a template by a rename
//! ```
//!
//! `mkfs.ext4` writes into memory first. There it cannot run out of space halfway, and it leaves
//! holes on every host, because a tmpfs has them. Only its data is copied to the cache.
//!
//! # Invariants
//!
//! - A template is complete: it is synced, and then renamed. A killed shim or a host that goes down
//!   leaves only a draft, which the next shim that makes a template removes.
//! - A template is never changed. Its modification time is the time of its last use.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use a3s_box_oci::{Digest, check_parents, copy_contents, private_directory};
use a3s_box_sys::HostError;
use nix::fcntl::OFlag;
use rustix::fs::{MemfdFlags, SeekFrom, memfd_create, seek};

use crate::host::command;
use crate::state::disk::{self, DiskError};

/// Directory of the templates, in the cache directory. The number is the version of its layout.
const DIRECTORY: &str = "disks-v1";

/// Digits of the hash in the name of a template. Two sets of options differ in them.
const HASH_DIGITS: usize = 12;

/// Most templates that are kept. A host needs one for each `resources.disk_mib` in use, and making
/// one takes milliseconds, so that a host with more sizes loses little.
const MAX_TEMPLATES: usize = 16;

/// Longest wait for another shim that makes a template. It is longer than the time limit of a
/// helper program, so that this shim can go on if the other one gives up.
const LOCK_TIMEOUT: Duration = Duration::from_secs(70);

/// Time between two attempts to take the lock. Most templates are made in some tens of
/// milliseconds.
const LOCK_RETRY: Duration = Duration::from_millis(2);

/// Features of the file system. The list is complete (`none` removes the defaults), so that the
/// host's `mke2fs.conf` cannot add one that the guest kernel lacks. Each is in Linux 3.16 or newer.
///
/// - `has_journal`: a kept disk is consistent after a crash. With it, the kernel also merges the
///   discards of a transaction (decision 0015).
/// - `metadata_csum`: needed to leave block groups uninitialized, which is why most of the file
///   system is a hole. `64bit` gives it room for whole checksums.
/// - `flex_bg`: needed to put the metadata of all groups together.
/// - `sparse_super2`: with `num_backup_sb=0` it saves the copies of the group descriptors, of which
///   a disk of 8 TiB would have 100 MiB.
/// - The others are defaults of ext4 for attributes, directories, and large files and disks.
/// - `resize_inode` is left out, because it reserves blocks for a growth that never happens.
const FEATURES: &str = "none,has_journal,ext_attr,dir_index,filetype,extent,64bit,flex_bg,\
    sparse_super2,large_file,huge_file,dir_nlink,extra_isize,metadata_csum";

/// Extended options.
///
/// - `discard`: `mkfs.ext4` then knows that the file reads as zeros, and marks the inode tables as
///   initialized. Otherwise, a guest would write zeros to all of them in the background.
/// - `lazy_itable_init=1`, `lazy_journal_init=1`: the inode tables and the journal stay holes even
///   if the discard fails.
/// - `root_owner=0:0`: the root belongs to root of the guest, even if an ordinary user makes it.
/// - `packed_meta_blocks=1`: the bitmaps are next to each other, so few blocks of them are in use,
///   and the files of the box are together behind them.
const EXTENDED: &str = "discard,lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0,\
    num_backup_sb=0,packed_meta_blocks=1";

/// Returns the options of `mkfs.ext4` for a disk of this size.
fn options(mib: u32) -> Vec<String> {
    let fixed = [
        // No blocks are reserved for root, because the workload is often root.
        ["-m", "0"],
        // The size of a page, so that the guest reads and writes whole pages. `mkfs.ext4` would
        // choose 1024 for a small disk.
        ["-b", "4096"],
        // Room for times in nanoseconds and short extended attributes.
        ["-I", "256"],
        ["-O", FEATURES],
        ["-E", EXTENDED],
    ];
    // Each number is one of the defaults of e2fsprogs: more inodes on small disks, which hold small
    // files, and fewer on very large ones, where the inode tables fill whole groups.
    let bytes_per_inode = match mib {
        0..512 => 4096,
        512..1_048_576 => 16384,
        _ => 65536,
    };
    // A journal of 16 MiB merges the discards of a thousand deleted files (decision 0015), and a
    // larger one would only take more space of the host. A small disk has the smallest journal that
    // ext4 allows, of 1024 blocks.
    let journal_mib = if mib < 128 { 4 } else { 16 };
    let sized = [format!("-i{bytes_per_inode}"), format!("-Jsize={journal_mib}")];
    fixed.into_iter().flatten().map(str::to_owned).chain(sized).collect()
}

/// Opens the template of this size, and makes it first if the cache lacks it.
pub(super) fn open(cache_dir: &Path, mib: u32) -> Result<File, DiskError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(cache_dir);
    made.map_err(HostError::at("make the cache directory", cache_dir))?;
    // Another user who can rename a parent directory could put other templates in their place.
    check_parents(cache_dir)?;
    // `private_directory` refuses a path that is a symbolic link. The links that `check_parents`
    // accepts are therefore resolved first.
    let cache_dir =
        cache_dir.canonicalize().map_err(HostError::at("find the cache directory", cache_dir))?;
    private_directory(&cache_dir)?;
    let directory = cache_dir.join(DIRECTORY);
    let lock = File::from(private_directory(&directory)?);
    let path = directory.join(name(mib));
    if find(&path, mib)?.is_none() {
        take(&lock, &directory, LOCK_TIMEOUT)?;
        // Another process may have made the template before the lock was taken.
        if find(&path, mib)?.is_none() {
            publish(&directory, &path, mib)?;
        }
    }
    drop(lock);
    match find(&path, mib)? {
        Some(template) if has_holes(&template, mib) => {
            // An error only makes the template look older than it is.
            let _used = template.set_modified(SystemTime::now());
            Ok(template)
        }
        // Another process may have removed the template, because it was not used for long. On a
        // file system that reports no holes, a copy would read the whole size of the disk.
        _ => make_in_memory(mib),
    }
}

/// Returns the name of a template. Another set of options has other names.
fn name(mib: u32) -> String {
    let hash: String =
        Digest::of(options(mib).join(" ").as_bytes()).hex().chars().take(HASH_DIGITS).collect();
    format!("ext4-{hash}-{mib}.img")
}

/// Opens a template, if it is there and has its size.
fn find(path: &Path, mib: u32) -> Result<Option<File>, DiskError> {
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(HostError::at("open", path))?,
    };
    let found = file.metadata().map_err(HostError::at("look at", path))?;
    Ok((found.is_file() && found.len() == u64::from(mib) << 20).then_some(file))
}

/// Returns whether the file system of a template reports holes. Each template has some, and a file
/// system that does not keep track of them reports the whole file as data (`lseek(2)`).
fn has_holes(template: &File, mib: u32) -> bool {
    seek(template, SeekFrom::Hole(0)).is_ok_and(|hole| hole < u64::from(mib) << 20)
}

/// Locks the directory of the templates. The lock ends when the file is closed.
fn take(lock: &File, directory: &Path, timeout: Duration) -> Result<(), DiskError> {
    let deadline = Instant::now() + timeout;
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => thread::sleep(LOCK_RETRY),
            Err(TryLockError::WouldBlock) => {
                return Err(DiskError::TemplateBusy { directory: directory.to_owned() });
            }
            Err(TryLockError::Error(error)) => {
                return Err(HostError::at("lock", directory)(error).into());
            }
        }
    }
}

/// Makes a template, and removes what is of no use in the directory. The caller holds the lock.
fn publish(directory: &Path, path: &Path, mib: u32) -> Result<(), DiskError> {
    let template = make_in_memory(mib)?;
    remove_superfluous(directory).map_err(HostError::at("clear", directory))?;
    let draft = path.with_added_extension("new");
    let written = write(&template, &draft, mib)
        .and_then(|()| fs::rename(&draft, path).map_err(HostError::at("rename to", path)));
    if written.is_err() {
        // On a full disk, the draft takes space. The next shim that makes a template removes it.
        let _best_effort = fs::remove_file(&draft);
    }
    Ok(written?)
}

fn write(template: &File, draft: &Path, mib: u32) -> Result<(), HostError> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(draft);
    let file = file.map_err(HostError::at("make", draft))?;
    copy_contents(template.as_fd(), file.as_fd(), u64::from(mib) << 20)
        .and_then(|()| file.sync_all())
        .map_err(HostError::at("write", draft))
}

/// Removes drafts of dead processes, and the templates that were not used for the longest time if
/// there are too many. A process that copies one of them has it open.
fn remove_superfluous(directory: &Path) -> io::Result<()> {
    let mut templates: Vec<(SystemTime, PathBuf)> = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let path = entry.path();
        if path.extension().is_some_and(|extension| extension == "img") {
            templates.push((entry.metadata()?.modified()?, path));
        } else {
            fs::remove_file(path)?;
        }
    }
    templates.sort();
    // One more is about to be made.
    let superfluous = (templates.len() + 1).saturating_sub(MAX_TEMPLATES);
    templates.iter().take(superfluous).try_for_each(|(_, path)| fs::remove_file(path))
}

/// Makes an empty file system of this size in memory. It takes less than 10 MiB.
fn make_in_memory(mib: u32) -> Result<File, DiskError> {
    // The child inherits the file, because it is not closed by its `execve(2)`.
    let made = memfd_create("ext4", MemfdFlags::empty()).map(File::from).map_err(io::Error::from);
    let file = made
        .and_then(|file| file.set_len(u64::from(mib) << 20).map(|()| file))
        .map_err(HostError::of("make a file in memory"))?;
    let mut command = command::new("mkfs.ext4");
    // Without a config of the host, the result depends on the options alone.
    command.env("MKE2FS_CONFIG", "/nonexistent");
    command
        .args(["-q", "-F"])
        .args(options(mib))
        .arg(format!("/proc/self/fd/{}", file.as_raw_fd()));
    disk::run("mkfs.ext4", "e2fsprogs", "a block root", command)?;
    Ok(file)
}

#[cfg(test)]
mod tests;
