//! A file that grows up to a bound: it and the one before it.
//!
//! ```text
//! name     what was appended last, at most half of the bound
//! name.1   what came before, renamed when `name` had its half
//! ```
//!
//! Both are reached through the directory's fd, wherever this process changes its root to later. The
//! file is locked (flock), so that a second writer is refused: each would rename the other's file.
//! Nobody else may rotate it either. What is appended survives this process, but not the host.
//!
//! A process that is to give up its rights to the directory renames nothing. It opens `name.1`, too, while
//! it can, lets go of the directory, and copies `name` over `name.1`.

use std::ffi::{OsStr, OsString};
use std::fs::{File, TryLockError};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use a3s_box_core::config::ConfinementLevel;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

/// Bytes that are copied at once.
const COPY_BYTES: usize = 256 * 1024;

/// The file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RotatedFileError {
    #[error("cannot open `{}`", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("`{}`: found {found}, expected a regular file", path.display())]
    NotRegular { path: PathBuf, found: &'static str },
    #[error("`{}` is in use: another shim, or another part of this one, writes it", path.display())]
    InUse { path: PathBuf },
}

/// A file to append to, and the one before it.
#[derive(Debug)]
pub(crate) struct RotatedFile {
    path: PathBuf,
    /// Absent for a process that is to reach nothing through it: it copies.
    directory: Option<OwnedFd>,
    name: OsString,
    previous_name: OsString,
    /// Absent after a rotation that could not open the next file.
    file: Option<File>,
    current: Extent,
    previous: Extent,
    max_bytes: u64,
    /// `name.1`, if it is not to be renamed to.
    open_previous: Option<File>,
}

/// How a file makes room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rotation {
    /// It is renamed.
    Rename,
    /// It is copied, and emptied.
    Copy,
}

impl Rotation {
    /// What is left to a shim of this level, for a file that is not in the box's own directory.
    pub(crate) fn of(level: ConfinementLevel) -> Self {
        if level == ConfinementLevel::None { Self::Rename } else { Self::Copy }
    }
}

/// What a file holds.
#[derive(Clone, Copy, Debug, Default)]
struct Extent {
    bytes: u64,
    /// Those of them that were appended here, and not by an earlier process.
    own_bytes: u64,
}

/// Bytes that are not in the files, or no longer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Loss {
    /// Appended earlier through the same value, and fallen out since.
    pub(crate) old_bytes: u64,
    /// Just given, and not taken by the disk.
    pub(crate) new_bytes: u64,
}

impl RotatedFile {
    /// Continues the file, or begins it. A file that is over the whole bound already is dropped.
    pub(crate) fn open(path: &Path, max_bytes: u64) -> Result<Self, RotatedFileError> {
        let failed = |source| RotatedFileError::Open { path: path.to_owned(), source };
        let (parent, name) = path
            .parent()
            .zip(path.file_name())
            .ok_or_else(|| failed(io::ErrorKind::IsADirectory.into()))?;
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = open(parent, flags, Mode::empty()).map_err(|error| failed(error.into()))?;
        let mut previous_name = name.to_owned();
        previous_name.push(".1");
        let previous = regular_bytes(&directory, &previous_name);
        let mut this = Self {
            path: path.to_owned(),
            directory: Some(directory),
            name: name.to_owned(),
            previous_name,
            file: None,
            current: Extent::default(),
            previous: Extent { bytes: previous, own_bytes: 0 },
            max_bytes,
            open_previous: None,
        };
        this.open_current()?;
        this.bring_within_bound().map_err(failed)?;
        Ok(this)
    }

    /// The same, in the way that is left to this process later.
    pub(crate) fn open_for(
        path: &Path,
        max_bytes: u64,
        rotation: Rotation,
    ) -> Result<Self, RotatedFileError> {
        let mut this = Self::open(path, max_bytes)?;
        if rotation == Rotation::Copy
            && let Some(directory) = this.directory.take()
        {
            let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
            let owner_only = Mode::S_IRUSR | Mode::S_IWUSR;
            let opened =
                openat(directory, &*this.previous_name, flags | OFlag::O_CLOEXEC, owner_only);
            // Without it the current file has to do.
            this.open_previous = opened
                .ok()
                .map(File::from)
                .filter(|file| file.metadata().is_ok_and(|m| m.is_file()));
        }
        Ok(this)
    }

    /// Begins the file, and drops what an earlier process left in it and in the one before.
    pub(crate) fn create(path: &Path, max_bytes: u64) -> Result<Self, RotatedFileError> {
        let mut this = Self::open(path, max_bytes)?;
        this.empty()
            .and_then(|_own| this.remove_previous())
            .map_err(|source| RotatedFileError::Open { path: path.to_owned(), source })?;
        Ok(this)
    }

    /// Ends the last line, if a process was killed while it wrote it.
    pub(crate) fn complete_line(&mut self) -> Result<(), RotatedFileError> {
        let failed = |source| RotatedFileError::Open { path: self.path.clone(), source };
        if self.current.bytes == 0 {
            return Ok(());
        }
        let Some(file) = &self.file else { return Ok(()) };
        let mut last = [0];
        file.read_exact_at(&mut last, self.current.bytes - 1).map_err(failed)?;
        if last != *b"\n" {
            // A full disk takes no line either.
            let _lost = self.write(b"\n");
        }
        Ok(())
    }

    /// Appends a line, whole or not at all, and never in parts to two files.
    pub(crate) fn append_line(&mut self, line: &[u8]) -> io::Result<()> {
        let bytes = line.len() as u64;
        if bytes > self.max_bytes / 2 {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.reopen()?;
        if bytes > self.room() {
            self.rotate()?;
        }
        let mut written = 0;
        while let Some(rest) = line.get(written..).filter(|rest| !rest.is_empty()) {
            match self.write(rest) {
                Ok(count) => written += count,
                Err(error) => {
                    self.undo(written as u64)?;
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Appends bytes, as many as the disk takes, and makes room for them.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> Loss {
        let mut loss = Loss::default();
        let mut rest = bytes;
        while !rest.is_empty() {
            match self.append_some(rest, &mut loss.old_bytes) {
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(_full) => break,
            }
        }
        loss.new_bytes = rest.len() as u64;
        loss
    }

    fn append_some(&mut self, bytes: &[u8], fallen_out: &mut u64) -> io::Result<usize> {
        self.reopen()?;
        if self.room() == 0 {
            *fallen_out += self.rotate()?;
        }
        let room = usize::try_from(self.room()).unwrap_or(usize::MAX);
        self.write(bytes.get(..room).unwrap_or(bytes))
    }

    /// Bytes that the current file may still take.
    fn room(&self) -> u64 {
        let half = self.max_bytes / 2;
        let left = self.max_bytes.saturating_sub(self.previous.bytes);
        half.min(left).saturating_sub(self.current.bytes)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(file) = &mut self.file else { return Err(io::ErrorKind::NotFound.into()) };
        loop {
            match file.write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    self.current.bytes += count as u64;
                    self.current.own_bytes += count as u64;
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes back the last bytes, which are part of a line.
    fn undo(&mut self, bytes: u64) -> io::Result<()> {
        let Some(file) = self.file.as_ref().filter(|_| bytes > 0) else { return Ok(()) };
        // Asked, as somebody may have emptied the file meanwhile.
        let found = file.metadata()?.len();
        file.set_len(found.saturating_sub(bytes))?;
        self.current.bytes = found.saturating_sub(bytes);
        self.current.own_bytes = self.current.own_bytes.saturating_sub(bytes);
        Ok(())
    }

    /// The same as [`rotate`](Self::rotate) without a change of names. Without `name.1` one file has
    /// to do.
    fn copy_to_previous(&mut self) -> io::Result<u64> {
        let (Some(file), Some(previous)) = (&self.file, &mut self.open_previous) else {
            return self.empty();
        };
        let fallen_out = std::mem::take(&mut self.previous).own_bytes;
        previous.set_len(0)?;
        let (mut from, mut at) = (vec![0; COPY_BYTES], 0);
        loop {
            let count = file.read_at(&mut from, at)?;
            if count == 0 {
                break;
            }
            previous.write_all_at(from.get(..count).unwrap_or_default(), at)?;
            at += count as u64;
        }
        file.set_len(0)?;
        self.previous = std::mem::take(&mut self.current);
        Ok(fallen_out)
    }

    /// Makes the current file the previous one; says how many own bytes fell out.
    fn rotate(&mut self) -> io::Result<u64> {
        let Some(directory) = &self.directory else { return self.copy_to_previous() };
        let fallen_out = match renameat(directory, &*self.name, directory, &*self.previous_name) {
            Ok(()) => {
                let fallen_out = self.previous.own_bytes;
                self.previous = self.current;
                fallen_out
            }
            // Somebody removed it.
            Err(Errno::ENOENT) => self.current.own_bytes,
            // A directory that is not ours to change, or a directory as `name.1`.
            Err(_) => return self.copy_to_previous(),
        };
        self.file = None;
        self.current = Extent::default();
        // Bytes have fallen out whether or not this succeeds; the next append tries it again.
        let _reopened = self.open_current();
        Ok(fallen_out)
    }

    /// Empties the current file; says how many own bytes fell out.
    fn empty(&mut self) -> io::Result<u64> {
        if let Some(file) = &self.file {
            file.set_len(0)?;
        }
        Ok(std::mem::take(&mut self.current).own_bytes)
    }

    fn bring_within_bound(&mut self) -> io::Result<()> {
        if self.current.bytes > self.max_bytes / 2 {
            self.rotate()?;
        }
        if self.current.bytes + self.previous.bytes > self.max_bytes {
            self.remove_previous()?;
        }
        Ok(())
    }

    fn remove_previous(&mut self) -> io::Result<()> {
        let Some(directory) = &self.directory else { return Ok(()) };
        match unlinkat(directory, &*self.previous_name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => self.previous = Extent::default(),
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn reopen(&mut self) -> io::Result<()> {
        if self.file.is_none() {
            self.open_current().map_err(io::Error::other)?;
        }
        Ok(())
    }

    fn open_current(&mut self) -> Result<(), RotatedFileError> {
        let failed = |source| RotatedFileError::Open { path: self.path.clone(), source };
        let regular = |found: &FileStat| match kind(found) {
            None => Ok(()),
            Some(found) => Err(RotatedFileError::NotRegular { path: self.path.clone(), found }),
        };
        let Some(directory) = &self.directory else {
            return Err(failed(io::ErrorKind::NotFound.into()));
        };
        // Looked at before it is opened, as opening some devices does something.
        if let Ok(found) = fstatat(directory, &*self.name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            regular(&found)?;
        }
        let flags = OFlag::O_RDWR
            | OFlag::O_APPEND
            | OFlag::O_CREAT
            | OFlag::O_NOFOLLOW
            | OFlag::O_NONBLOCK
            | OFlag::O_CLOEXEC;
        let owner_only = Mode::S_IRUSR | Mode::S_IWUSR;
        let file = openat(directory, &*self.name, flags, owner_only)
            .map_err(|error| failed(error.into()))?;
        let found = fstat(&file).map_err(|error| failed(error.into()))?;
        regular(&found)?;
        let file = File::from(file);
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(RotatedFileError::InUse { path: self.path.clone() });
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        self.current = Extent { bytes: u64::try_from(found.st_size).unwrap_or(0), own_bytes: 0 };
        self.file = Some(file);
        Ok(())
    }
}

/// Size of a regular file; 0 if there is none.
fn regular_bytes(directory: impl AsFd, name: &OsStr) -> u64 {
    let found = fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW).ok();
    let found = found.filter(|found| kind(found).is_none());
    found.and_then(|found| u64::try_from(found.st_size).ok()).unwrap_or(0)
}

/// What it is, if it is not a regular file.
fn kind(found: &FileStat) -> Option<&'static str> {
    match SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT {
        SFlag::S_IFREG => None,
        SFlag::S_IFLNK => Some("a symlink"),
        SFlag::S_IFDIR => Some("a directory"),
        SFlag::S_IFIFO => Some("a FIFO"),
        SFlag::S_IFSOCK => Some("a socket"),
        SFlag::S_IFCHR | SFlag::S_IFBLK => Some("a device"),
        _ => Some("something else"),
    }
}

#[cfg(test)]
mod tests;
