//! The contents of a file: shared where the file system can, else copied without its holes.

use std::io;
use std::os::fd::BorrowedFd;

use rustix::fs::{SeekFrom, copy_file_range, ftruncate, ioctl_ficlone, seek};
use rustix::io::{Errno, pread, pwrite};

/// Size of a copy by hand: large against a system call, small against a file.
const BUFFER_BYTES: usize = 256 * 1024;

/// Most bytes of one `copy_file_range(2)`: the kernel takes no more than 2 GiB less a page.
const RANGE_BYTES: u64 = 1 << 30;

/// How the contents of files came into the copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    /// All share their blocks with the layers.
    Reflink,
    /// Some are copies.
    Copy,
}

/// Copies contents, and remembers what the file systems can.
#[derive(Debug, Default)]
pub(super) struct Contents {
    no_reflinks: bool,
    no_ranges: bool,
    /// Of all files so far.
    method: Option<Method>,
}

impl Contents {
    /// How all files so far came to be. If none has contents, nothing is shared.
    pub(super) fn method(&self) -> Method {
        self.method.unwrap_or(Method::Copy)
    }

    /// Gives an empty file the `size_bytes` of another.
    pub(super) fn copy(
        &mut self,
        source: BorrowedFd<'_>,
        target: BorrowedFd<'_>,
        size_bytes: i64,
    ) -> io::Result<()> {
        let size_bytes = u64::try_from(size_bytes).unwrap_or_default();
        if size_bytes == 0 {
            return Ok(());
        }
        if !self.no_reflinks {
            match ioctl_ficlone(target, source) {
                Ok(()) => {
                    self.method.get_or_insert(Method::Reflink);
                    return Ok(());
                }
                // The file system cannot, or these are two.
                Err(Errno::NOTSUP | Errno::XDEV | Errno::NOTTY | Errno::NOSYS) => {
                    self.no_reflinks = true;
                }
                // This file cannot be shared: it is inline, or one of the two must not be.
                Err(Errno::INVAL | Errno::PERM | Errno::TXTBSY) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        self.method = Some(Method::Copy);
        // First, as a file may end with a hole.
        ftruncate(target, size_bytes)?;
        let mut done = 0;
        while let Some((begin, end)) = next_data(source, done, size_bytes)? {
            self.copy_range(source, target, begin, end)?;
            done = end;
        }
        Ok(())
    }

    fn copy_range(
        &mut self,
        source: BorrowedFd<'_>,
        target: BorrowedFd<'_>,
        begin: u64,
        end: u64,
    ) -> io::Result<()> {
        let mut done = begin;
        while done < end && !self.no_ranges {
            let (mut from, mut to) = (done, done);
            let length = usize::try_from((end - done).min(RANGE_BYTES)).unwrap_or(BUFFER_BYTES);
            match copy_file_range(source, Some(&mut from), target, Some(&mut to), length) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(copied) => done += copied as u64,
                Err(Errno::INTR) => {}
                Err(Errno::XDEV | Errno::INVAL | Errno::NOTSUP | Errno::NOSYS | Errno::PERM) => {
                    self.no_ranges = true;
                }
                Err(errno) => return Err(errno.into()),
            }
        }
        copy_by_hand(source, target, done, end)
    }
}

fn copy_by_hand(
    source: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    begin: u64,
    end: u64,
) -> io::Result<()> {
    if begin >= end {
        return Ok(());
    }
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut done = begin;
    while done < end {
        let length = usize::try_from(end - done).unwrap_or(BUFFER_BYTES).min(BUFFER_BYTES);
        let read = pread(source, buffer.get_mut(..length).unwrap_or_default(), done)?;
        let mut rest = buffer.get(..read).unwrap_or_default();
        if rest.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        while !rest.is_empty() {
            let written = pwrite(target, rest, done)?;
            rest = rest.get(written..).unwrap_or_default();
            done += written as u64;
        }
    }
    Ok(())
}

/// Finds the next range of a file that is no hole; a file system that knows no holes has none.
fn next_data(source: BorrowedFd<'_>, from: u64, size_bytes: u64) -> io::Result<Option<(u64, u64)>> {
    if from >= size_bytes {
        return Ok(None);
    }
    match seek(source, SeekFrom::Data(from)) {
        Ok(begin) => {
            let end = seek(source, SeekFrom::Hole(begin))?;
            Ok(Some((begin, end.min(size_bytes))).filter(|(begin, end)| begin < end))
        }
        Err(Errno::NXIO) => Ok(None),
        Err(Errno::INVAL) => Ok(Some((from, size_bytes))),
        Err(errno) => Err(errno.into()),
    }
}
