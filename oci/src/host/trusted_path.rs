//! Resolves a path one component at a time, and checks that no other user decides where it leads.
//!
//! A process of root that uses a path of another user acts for that user. Whoever can put a symbolic
//! link on the way could lead it to a file that only root can reach. There are two levels:
//!
//! | level | rule | use |
//! |---|---|---|
//! | protected | nobody but root and the user of this process can change the way or its end | stores, files that this process writes |
//! | safe | another user can change the way, but cannot lead it to a directory of root or of the user of this process | shares |
//!
//! Each component is opened once and checked by its fd. A second lookup by path could find a
//! different file.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use a3s_box_sys::HostError;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use nix::unistd::Uid;

/// Flags to open a component of a path: enough to check it, and without following it.
const LOOK: OFlag = OFlag::O_PATH.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// Limit on symbolic links in one path. The kernel follows the same number (`path_resolution(7)`).
const SYMLINKS_LIMIT: usize = 40;

/// Default of `/proc/sys/kernel/overflowuid`, the user id that a user namespace shows for all ids
/// that are not mapped in it (`proc_sys_kernel(5)`).
const OVERFLOW_UID: u32 = 65534;

/// A path on which other users decide, or that cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file, or a component of its path, belongs to another user or is writable by others.
    #[error("`{}`: found {found}, expected {expected}", path.display())]
    Exposed {
        /// Path of the directory or link.
        path: PathBuf,
        /// Its owner and mode.
        found: String,
        /// The required owner and mode, and how to set them.
        expected: String,
    },
    /// A system call failed.
    #[error(transparent)]
    Host(#[from] HostError),
}

/// An open directory that was reached without a second lookup of any component of its path.
#[derive(Debug)]
pub struct ReachedDirectory {
    /// The directory, opened by `O_PATH`.
    pub directory: OwnedFd,
    /// Its path without symbolic links, as it was when the directory was reached.
    pub path: PathBuf,
    /// Whether other users can make files in it. With [`open_protected`] it then has the sticky bit,
    /// so that they cannot replace the files of this user.
    pub is_shared: bool,
}

/// Who may change the way to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    Protected,
    Safe,
}

/// Checks that only root and the user of this process can replace the file or directory at `path`.
/// The path does not need to exist yet.
///
/// # Errors
///
/// When another user could replace it. The error names the component of the path and its owner and
/// mode. Also when a component cannot be opened.
pub fn check_parents(path: &Path) -> Result<(), StoreError> {
    Walk::start(path, Level::Protected)?.finish().map(drop)
}

/// Opens the directory at `path` for files that this process writes.
///
/// # Errors
///
/// When another user could replace the directory or a file of this user in it. The error names the
/// component of the path and its owner and mode. Also when the directory cannot be opened.
pub fn open_protected(path: &Path) -> Result<ReachedDirectory, StoreError> {
    let walk = Walk::start(path, Level::Protected)?;
    let trusted = walk.trusted;
    let reached = existing(walk, path)?;
    trusted.check_directory(&reached.directory, &reached.path)?;
    Ok(reached)
}

/// Opens the directory at `path`, which other users may own. Like systemd with `CHASE_SAFE`, this
/// follows only symbolic links of root and of the user of this process, and enters no file of these
/// two from a directory of another user.
///
/// # Errors
///
/// When another user could have led the path to its end. The error names the component of the path
/// and its owner. Also when the directory cannot be opened.
pub fn open_safely(path: &Path) -> Result<ReachedDirectory, StoreError> {
    existing(Walk::start(path, Level::Safe)?, path)
}

/// Returns the directory at the end of a walk, which must exist.
fn existing(walk: Walk, path: &Path) -> Result<ReachedDirectory, StoreError> {
    let failed = |errno: Errno| StoreError::from(HostError::at("open", path)(errno));
    let Some((directory, path)) = walk.finish()? else { return Err(failed(Errno::ENOENT)) };
    let found = fstat(&directory).map_err(HostError::at("look at", &path))?;
    if !is(&found, SFlag::S_IFDIR) {
        return Err(failed(Errno::ENOTDIR));
    }
    Ok(ReachedDirectory { directory, path, is_shared: permissions(&found) & 0o022 != 0 })
}

/// A path on the way to its end.
struct Walk {
    trusted: Trusted,
    level: Level,
    directory: OwnedFd,
    /// Path of `directory` without symbolic links.
    at: PathBuf,
    /// Components that are left, the last one first.
    left: Vec<OsString>,
    symlinks: usize,
}

impl Walk {
    fn start(path: &Path, level: Level) -> Result<Self, StoreError> {
        let path = std::path::absolute(path).map_err(HostError::at("find", path))?;
        let (directory, at) = open_root()?;
        let left = steps_of(&path);
        Ok(Self { trusted: Trusted::of_process(), level, directory, at, left, symlinks: 0 })
    }

    /// Goes to the end of the path. Returns `None` if a component does not exist.
    fn finish(mut self) -> Result<Option<(OwnedFd, PathBuf)>, StoreError> {
        while let Some(step) = self.left.pop() {
            // A directory is checked before a name in it is used, because a user who can write to
            // it could replace the name at any time.
            if self.level == Level::Protected {
                self.trusted.check_directory(&self.directory, &self.at)?;
            }
            let here = match step.to_str() {
                Some("..") => self.at.parent().unwrap_or(Path::new("/")).to_owned(),
                _ => self.at.join(&step),
            };
            let found = match openat(&self.directory, step.as_os_str(), LOOK, Mode::empty()) {
                Err(Errno::ENOENT) => return Ok(None),
                found => found.map_err(HostError::at("open", &here))?,
            };
            let stat = fstat(&found).map_err(HostError::at("look at", &here))?;
            let is_symlink = is(&stat, SFlag::S_IFLNK);
            if is_symlink {
                self.trusted.check_symlink(&stat, &here)?;
            }
            if self.level == Level::Safe {
                self.check_entering(&stat, &here)?;
            }
            if is_symlink {
                self.follow(&found, &here)?;
            } else {
                (self.directory, self.at) = (found, here);
            }
        }
        Ok(Some((self.directory, self.at)))
    }

    /// Puts the components of a link's target before those that are left.
    fn follow(&mut self, link: &OwnedFd, here: &Path) -> Result<(), StoreError> {
        self.symlinks += 1;
        if self.symlinks > SYMLINKS_LIMIT {
            return Err(HostError::at("follow", here)(Errno::ELOOP).into());
        }
        // With an empty path, `readlinkat(2)` reads the link that the fd stands for. A relative
        // target starts at the directory of the link, which is still open.
        let target = PathBuf::from(readlinkat(link, "").map_err(HostError::at("read", here))?);
        if target.is_absolute() {
            (self.directory, self.at) = open_root()?;
        }
        self.left.extend(steps_of(&target));
        Ok(())
    }

    /// Refuses a file of root or of this user in a directory of another user, who could have renamed
    /// it to this name.
    fn check_entering(&self, found: &FileStat, here: &Path) -> Result<(), StoreError> {
        let parent = fstat(&self.directory).map_err(HostError::at("look at", &self.at))?;
        let (from, to) = (parent.st_uid, found.st_uid);
        if self.trusted.includes(from) || !self.trusted.includes(to) {
            return Ok(());
        }
        Err(StoreError::Exposed {
            path: here.to_owned(),
            found: format!(
                "a file of user {to} in `{}`, a directory of user {from}, who can put other files \
                 in its place",
                self.at.display()
            ),
            expected: format!(
                "one of user {from}, or a directory above it of root or of user {}: `chown` one of \
                 them, or choose another place",
                self.trusted.user
            ),
        })
    }
}

/// The users that can own components of the path of a store.
#[derive(Clone, Copy)]
struct Trusted {
    user: u32,
    /// The overflow id, if this process is in a user namespace. It stands for all ids that are not
    /// mapped, often including root, which cannot be distinguished inside the namespace. The
    /// process that creates the namespace must check the path before.
    overflow: Option<u32>,
}

impl Trusted {
    fn of_process() -> Self {
        let number = |text: String| text.trim().parse().ok();
        let overflow = std::fs::read_to_string("/proc/sys/kernel/overflowuid").ok();
        let overflow = overflow.and_then(number).unwrap_or(OVERFLOW_UID);
        // The initial user namespace has the map `0 0 4294967295` (`user_namespaces(7)`).
        let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        let is_initial = map.split_ascii_whitespace().eq(["0", "0", "4294967295"]);
        Self { user: Uid::effective().as_raw(), overflow: (!is_initial).then_some(overflow) }
    }

    fn includes(self, user: u32) -> bool {
        user == 0 || user == self.user || Some(user) == self.overflow
    }

    fn check_directory(self, directory: &OwnedFd, path: &Path) -> Result<(), StoreError> {
        let stat = fstat(directory).map_err(HostError::at("look at", path))?;
        let mode = permissions(&stat);
        // In a sticky directory, only the owner of a file or of the directory can rename or remove
        // the file.
        let is_protected = mode & 0o022 == 0 || mode & 0o1000 != 0;
        if self.includes(stat.st_uid) && is_protected {
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

    fn check_symlink(self, stat: &FileStat, path: &Path) -> Result<(), StoreError> {
        if self.includes(stat.st_uid) {
            return Ok(());
        }
        Err(StoreError::Exposed {
            path: path.to_owned(),
            found: format!("a symbolic link of user {}", stat.st_uid),
            expected: format!(
                "a directory, or a link of root or of user {}: name the directory that the link \
                 leads to, or `chown -h` the link",
                self.user
            ),
        })
    }
}

fn open_root() -> Result<(OwnedFd, PathBuf), StoreError> {
    let path = PathBuf::from("/");
    let root = open(&path, LOOK, Mode::empty()).map_err(HostError::at("open", &path))?;
    Ok((root, path))
}

/// Returns the components of a path in reverse order, for use as a stack. The root and `.` are
/// omitted.
fn steps_of(path: &Path) -> Vec<OsString> {
    // `..` is opened like a name, so that it leads to the parent of the directory that was opened,
    // even after a symbolic link.
    let is_step =
        |step: &Component<'_>| matches!(step, Component::Normal(_) | Component::ParentDir);
    let steps = path.components().filter(is_step).map(|step| step.as_os_str().to_owned());
    steps.collect::<Vec<_>>().into_iter().rev().collect()
}

fn is(stat: &FileStat, kind: SFlag) -> bool {
    stat.st_mode & SFlag::S_IFMT.bits() == kind.bits()
}

pub(crate) fn permissions(stat: &FileStat) -> u32 {
    stat.st_mode & 0o7777
}
