//! `fcntl(2)` with `F_DUPFD_CLOEXEC` for an fd that is known by its number only.
//!
//! `nix` and `rustix` duplicate an fd only if they can borrow it. An fd that belongs to a library
//! without an accessor cannot be borrowed.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Returns a new fd for the open file of the fd with this number. The new one is closed on exec.
///
/// # Errors
///
/// `EBADF` if no fd with this number is open, `EMFILE` if the process has no number left.
pub fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the arguments are numbers. The host kernel returns EBADF for a number that is no fd.
    let new = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0) };
    if new < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the fd must be open and have no other owner. The host kernel has just made it for
    // this call.
    Ok(unsafe { OwnedFd::from_raw_fd(new) })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn duplicate_refers_to_the_same_open_file() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let copy = duplicate(theirs.as_raw_fd()).unwrap();
        assert_ne!(copy.as_raw_fd(), theirs.as_raw_fd());
        drop(theirs);
        UnixStream::from(copy).write_all(b"x").unwrap();
        let mut text = String::new();
        ours.read_to_string(&mut text).unwrap();
        assert_eq!(text, "x");
    }

    #[test]
    fn number_that_is_no_fd_is_refused() {
        assert_eq!(duplicate(-1).unwrap_err().raw_os_error(), Some(libc::EBADF));
    }
}
