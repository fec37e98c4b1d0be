//! Copies the contents of files: by reflink if the file system supports it, and otherwise by
//! copying the data between the holes.

use std::io;
use std::os::fd::BorrowedFd;

use rustix::fs::{SeekFrom, copy_file_range, ftruncate, ioctl_ficlone, seek};
use rustix::io::{Errno, pread, pwrite};

/// Size of the buffer for `pread(2)` and `pwrite(2)`. It is large enough that system calls cost
/// little.
const BUFFER_BYTES: usize = 256 * 1024;

/// Largest length for one `copy_file_range(2)`. The kernel's limit is 2 GiB less one page
/// (`MAX_RW_COUNT`).
const RANGE_BYTES: u64 = 1 << 30;

/// The method by which the contents of all files were copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    /// All files share their blocks with the layers.
    Reflink,
    /// At least one file was copied.
    Copy,
}

/// Copies the first `size_bytes` of `source` to the empty file `target`. Holes stay holes, and the
/// blocks are shared if the file system supports that.
///
/// # Errors
///
/// When a system call fails, or when `source` is shorter.
pub fn copy_contents(
    source: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    size_bytes: u64,
) -> io::Result<()> {
    Contents::default().copy(source, target, size_bytes)
}

/// Copies contents, and records which system calls the file systems support.
#[derive(Debug, Default)]
pub(super) struct Contents {
    no_reflinks: bool,
    no_ranges: bool,
    /// The method for all files so far.
    method: Option<Method>,
}

impl Contents {
    /// Returns the method for all files so far. Without any contents it is `Copy`.
    pub(super) fn method(&self) -> Method {
        self.method.unwrap_or(Method::Copy)
    }

    /// Copies the first `size_bytes` of `source` to the empty file `target`.
    pub(super) fn copy(
        &mut self,
        source: BorrowedFd<'_>,
        target: BorrowedFd<'_>,
        size_bytes: u64,
    ) -> io::Result<()> {
        if size_bytes == 0 {
            return Ok(());
        }
        if !self.no_reflinks {
            match ioctl_ficlone(target, source) {
                Ok(()) => {
                    self.method.get_or_insert(Method::Reflink);
                    return Ok(());
                }
                // The file system has no reflinks, or the files are on two file systems. No later
                // file can be shared either.
                Err(Errno::NOTSUP | Errno::XDEV | Errno::NOTTY | Errno::NOSYS) => {
                    self.no_reflinks = true;
                }
                // Only this file cannot be shared: for example, its data is inline in the inode, or
                // it is a swap file.
                Err(Errno::INVAL | Errno::PERM | Errno::TXTBSY) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        self.method = Some(Method::Copy);
        // The size is set before the data, because the copy writes no hole at the end of the file.
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
                // The rest is copied by `pread` and `pwrite`.
                Err(Errno::XDEV | Errno::INVAL | Errno::NOTSUP | Errno::NOSYS | Errno::PERM) => {
                    self.no_ranges = true;
                }
                Err(errno) => return Err(errno.into()),
            }
        }
        copy_by_buffer(source, target, done, end)
    }
}

fn copy_by_buffer(
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

/// Returns the next range of data from the offset `from`, or `None` if only a hole is left.
///
/// On a file system without `SEEK_DATA` (`EINVAL`), the whole rest of the file is data.
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
