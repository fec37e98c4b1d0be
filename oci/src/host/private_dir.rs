//! Directories whose content no other user may reach or replace.
//!
//! Image trees hold files that are setuid, of any owner and with any content, and what boxes run
//! comes from them. So a store is a directory of our own with mode 0700, and nobody else can put another
//! one in its place: every directory on the way to it, symbolic links and all, belongs to us or to root,
//! and is writable by others only with the sticky bit, as `/tmp` is. Once that holds, the path of the
//! store means the same directory for as long as we do not change it ourselves.
//!
//! Everything is looked at through an open fd, never twice by a path.

use std::ffi::OsString;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use a3s_box_sys::HostError;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, open, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, mkdirat};
use nix::unistd::Uid;

use crate::host::directory::OPEN_DIR;

/// How what is on the way to a store is opened: to be looked at only, and not followed.
const LOOK: OFlag = OFlag::O_PATH.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// Most symbolic links on one path: as many as the kernel follows (`path_resolution(7)`).
const SYMLINKS_LIMIT: usize = 40;

/// The user that a namespace shows for all whom it does not know, unless the machine says otherwise
/// (`/proc/sys/kernel/overflowuid`, `proc_sys_kernel(5)`).
const OVERFLOW_UID: u32 = 65534;

/// A store that other users could reach or replace, or that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The store, or a directory or link on the way to it, is somebody else's or open to others.
    #[error("`{}`: found {found}, expected {expected}", path.display())]
    Exposed {
        /// What is exposed.
        path: PathBuf,
        /// Owner and mode.
        found: String,
        /// What they have to be, and what to do.
        expected: String,
    },
    /// A system call failed.
    #[error(transparent)]
    Host(#[from] HostError),
}

/// Opens a directory that only we can enter, and makes it if only that is missing. The way to it is not
/// looked at; see [`check_parents`].
///
/// # Errors
///
/// When it is a symbolic link or a file, belongs to another user, or gives others any permission.
pub fn private_directory(path: &Path) -> Result<OwnedFd, StoreError> {
    private_directory_in(AT_FDCWD, path, path)
}

/// The same for the directory `name` in an open one; `path` is for errors.
pub(crate) fn private_directory_in(
    parent: BorrowedFd<'_>,
    name: &Path,
    path: &Path,
) -> Result<OwnedFd, StoreError> {
    match mkdirat(parent, name, Mode::S_IRWXU) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(errno) => return Err(HostError::at("make", path)(errno).into()),
    }
    let user = Uid::effective().as_raw();
    let exposed = |found| StoreError::Exposed {
        path: path.to_owned(),
        found,
        expected: format!("a directory of user {user} with mode 0700"),
    };
    let directory = match openat(parent, name, OPEN_DIR, Mode::empty()) {
        Err(Errno::ENOTDIR | Errno::ELOOP) => {
            return Err(exposed("a symbolic link or a file".to_owned()));
        }
        opened => opened.map_err(HostError::at("open", path))?,
    };
    let found = fstat(&directory).map_err(HostError::at("look at", path))?;
    if found.st_uid == user && found.st_mode & 0o077 == 0 {
        return Ok(directory);
    }
    Err(exposed(format!(
        "a directory of user {} with mode {:04o}",
        found.st_uid,
        permissions(&found)
    )))
}

/// Checks that nobody but us and root can put something else in the place of what is at `path`, or
/// will be: it need not exist.
///
/// # Errors
///
/// Names the directory or link on the way to it that makes that possible.
pub fn check_parents(path: &Path) -> Result<(), StoreError> {
    let path = std::path::absolute(path).map_err(HostError::at("find", path))?;
    let trusted = Trusted::of_process();
    let mut at = PathBuf::from("/");
    let mut directory = open_root(&at)?;
    let mut steps = steps_of(&path);
    let mut symlinks = 0;
    while let Some(step) = steps.pop() {
        trusted.check_directory(&directory, &at)?;
        let here = at.join(&step);
        let found = match openat(&directory, step.as_os_str(), LOOK, Mode::empty()) {
            // It will be made in a directory that is in order.
            Err(Errno::ENOENT) => return Ok(()),
            found => found.map_err(HostError::at("open", &here))?,
        };
        let stat = fstat(&found).map_err(HostError::at("look at", &here))?;
        if !is(&stat, SFlag::S_IFLNK) {
            (directory, at) = (found, here);
            continue;
        }
        trusted.check_symlink(&stat, &here)?;
        symlinks += 1;
        if symlinks > SYMLINKS_LIMIT {
            return Err(HostError::at("follow", &here)(Errno::ELOOP).into());
        }
        let target = PathBuf::from(readlinkat(&found, "").map_err(HostError::at("read", &here))?);
        if target.is_absolute() {
            at = PathBuf::from("/");
            directory = open_root(&at)?;
        }
        steps.extend(steps_of(&target));
    }
    Ok(())
}

/// The users that may be owners of what is on the way to a store.
struct Trusted {
    user: u32,
    /// Stands for root, and for all others, in a user namespace that does not know them: they cannot
    /// be told apart there. Who makes such a namespace has to check before.
    overflow: Option<u32>,
}

impl Trusted {
    fn of_process() -> Self {
        let number = |text: String| text.trim().parse().ok();
        let overflow = std::fs::read_to_string("/proc/sys/kernel/overflowuid").ok();
        let overflow = overflow.and_then(number).unwrap_or(OVERFLOW_UID);
        // All ids are as they are outside: `0 0 4294967295` (`user_namespaces(7)`).
        let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        let is_initial = map.split_ascii_whitespace().eq(["0", "0", "4294967295"]);
        Self { user: Uid::effective().as_raw(), overflow: (!is_initial).then_some(overflow) }
    }

    fn includes(&self, user: u32) -> bool {
        user == 0 || user == self.user || Some(user) == self.overflow
    }

    fn check_directory(&self, directory: &OwnedFd, path: &Path) -> Result<(), StoreError> {
        let stat = fstat(directory).map_err(HostError::at("look at", path))?;
        let mode = permissions(&stat);
        // What is in a sticky directory can be renamed by the owners of both only.
        let is_kept = mode & 0o022 == 0 || mode & 0o1000 != 0;
        if self.includes(stat.st_uid) && is_kept {
            return Ok(());
        }
        Err(StoreError::Exposed {
            path: path.to_owned(),
            found: format!("a parent directory of user {} with mode {mode:04o}", stat.st_uid),
            expected: format!(
                "one of root or of user {} that nobody else can write to, or with the sticky bit: \
                 `chmod go-w` it, or choose another place",
                self.user
            ),
        })
    }

    fn check_symlink(&self, stat: &FileStat, path: &Path) -> Result<(), StoreError> {
        if self.includes(stat.st_uid) {
            return Ok(());
        }
        Err(StoreError::Exposed {
            path: path.to_owned(),
            found: format!("a symbolic link of user {}", stat.st_uid),
            expected: format!("a directory, or a link of root or of user {}", self.user),
        })
    }
}

fn open_root(path: &Path) -> Result<OwnedFd, StoreError> {
    Ok(open(path, LOOK, Mode::empty()).map_err(HostError::at("open", path))?)
}

/// The names on a path, the last one first. Where it begins is not among them.
fn steps_of(path: &Path) -> Vec<OsString> {
    let is_step =
        |step: &Component<'_>| matches!(step, Component::Normal(_) | Component::ParentDir);
    let steps = path.components().filter(is_step).map(|step| step.as_os_str().to_owned());
    steps.collect::<Vec<_>>().into_iter().rev().collect()
}

fn is(stat: &FileStat, kind: SFlag) -> bool {
    stat.st_mode & SFlag::S_IFMT.bits() == kind.bits()
}

fn permissions(stat: &FileStat) -> u32 {
    stat.st_mode & 0o7777
}
