//! Locks on open files that belong to the open file description (`fcntl_locking(2)`,
//! `F_OFD_SETLK`).
//!
//! The kernel releases a lock when the last fd of the description is closed, at the latest when the
//! process ends. Two descriptions exclude each other also in one process. A lock of flock(2) on the
//! same file is another lock, which these do not see.

use std::fs::File;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

/// A kind of lock on a whole file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileLock {
    /// Excludes exclusive locks. The file must be open for reading.
    Shared,
    /// Excludes all locks. The file must be open for writing: this is why the holder of a file that
    /// is open for reading only can never take it.
    Exclusive,
}

impl FileLock {
    /// Takes this lock on `file`. Returns `false` if another description has a lock that excludes it.
    pub(crate) fn try_take(self, file: &File) -> nix::Result<bool> {
        match fcntl(file, FcntlArg::F_OFD_SETLK(&self.whole_file())) {
            Ok(_) => Ok(true),
            // POSIX allows both errors.
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    /// Returns whether another description has a lock on `file` that excludes this one. It takes no
    /// lock, and does not depend on how `file` is open.
    pub(crate) fn is_excluded(self, file: &File) -> nix::Result<bool> {
        let mut lock = self.whole_file();
        fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock))?;
        Ok(i32::from(lock.l_type) != libc::F_UNLCK)
    }

    #[expect(clippy::cast_possible_truncation, reason = "the kinds of locks are 0 and 1")]
    fn whole_file(self) -> libc::flock {
        let kind = match self {
            Self::Shared => libc::F_RDLCK,
            Self::Exclusive => libc::F_WRLCK,
        };
        // A length of 0 means up to the end, wherever that is. These locks require a pid of 0.
        libc::flock {
            l_type: kind as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;

    use super::*;
    use FileLock::{Exclusive, Shared};

    #[test]
    fn file_that_is_open_for_reading_only_takes_no_exclusive_lock() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let [reader, other] = [(); 2].map(|()| File::open(file.path()).unwrap());
        let writer = OpenOptions::new().write(true).open(file.path()).unwrap();
        assert_eq!(Exclusive.try_take(&reader), Err(Errno::EBADF), "without any lock");
        assert!(Shared.try_take(&reader).unwrap());
        assert!(Shared.try_take(&other).unwrap(), "shared locks do not exclude each other");
        assert_eq!(Exclusive.try_take(&reader), Err(Errno::EBADF), "with a shared lock");
        assert!(!Exclusive.try_take(&writer).unwrap());
        drop((reader, other));
        assert!(Exclusive.try_take(&writer).unwrap());
    }

    #[test]
    fn excluding_locks_are_found_and_not_taken() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let [reader, other] = [(); 2].map(|()| File::open(file.path()).unwrap());
        assert!(Shared.try_take(&reader).unwrap());
        assert!(!Exclusive.is_excluded(&reader).unwrap(), "its own lock excludes nothing");
        assert!(Exclusive.is_excluded(&other).unwrap());
        assert!(!Shared.is_excluded(&other).unwrap());
        drop(reader);
        assert!(!Exclusive.is_excluded(&other).unwrap());
        assert!(Exclusive.try_take(file.as_file()).unwrap(), "a question takes no lock");
        assert!(Shared.is_excluded(&other).unwrap());
    }

    #[test]
    fn duplicate_of_an_fd_keeps_the_lock() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let reader = File::open(file.path()).unwrap();
        assert!(Shared.try_take(&reader).unwrap());
        let duplicate = reader.try_clone().unwrap();
        drop(reader);
        assert!(!Exclusive.try_take(file.as_file()).unwrap());
        drop(duplicate);
        assert!(Exclusive.try_take(file.as_file()).unwrap());
    }
}
