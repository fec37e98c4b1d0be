//! A file of bounded size that is rotated: the current file and the previous one.
//!
//! ```text
//! name     the latest bytes, at most half of the bound
//! name.1   the bytes before them: `name` is renamed to it when it has reached its half
//! ```
//!
//! Both are opened and renamed relative to an fd of the directory ([`OutputPlace`]), so that they
//! stay reachable after this process has changed its root, and no other user can lead them to
//! another file. The file is locked with flock(2), and a second writer is refused,
//! because each would rename the file of the other. No other program may rotate the file either.
//! The lock of the box directory keeps other shims away from a file in it, so a new current file
//! there needs no lock of its own. A confined process cannot lock a file any more.
//! Appended bytes survive this process, but not a crash of the host, because they are not synced.
//!
//! A confined process cannot keep the fd of a directory outside of the box, because it leads out of
//! every root. Such a process opens `name.1` early, closes the directory, and rotates by copying
//! `name` over `name.1`.

use std::ffi::{OsStr, OsString};
use std::fs::{File, TryLockError};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use a3s_box_core::config::ConfinementLevel;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{Mode, SFlag, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::output_place::{OutputError, OutputPlace, description, file_type};

/// Size of the buffer for copies.
const COPY_BYTES: usize = 256 * 1024;

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RotatedFileError {
    #[error(transparent)]
    Place(#[from] OutputError),
    #[error("cannot use `{}`", path.display())]
    Use { path: PathBuf, source: io::Error },
    #[error("`{}`: found {found}, expected a regular file", path.display())]
    NotRegular { path: PathBuf, found: &'static str },
    #[error("`{}` is in use: another shim, or another part of this one, writes it", path.display())]
    InUse { path: PathBuf },
}

/// A file to append to, and the previous one.
#[derive(Debug)]
pub(crate) struct RotatedFile {
    path: PathBuf,
    /// Absent in a process that may not keep it, and therefore rotates by copying.
    place: Option<OutputPlace>,
    previous_name: OsString,
    /// Absent if the last rotation could not open a new file.
    file: Option<File>,
    current: Extent,
    previous: Extent,
    max_bytes: u64,
    /// `name.1`, if this process rotates by copying.
    open_previous: Option<File>,
    /// Whether a current file that replaces a renamed one is locked.
    locks_replacement: bool,
}

/// How the current file becomes the previous one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rotation {
    /// By a rename.
    Rename,
    /// By a copy, after which the current file is truncated.
    Copy,
}

impl Rotation {
    /// Returns the rotation that a shim of this confinement level can do outside of the box
    /// directory.
    pub(crate) fn of(level: ConfinementLevel) -> Self {
        if level == ConfinementLevel::None { Self::Rename } else { Self::Copy }
    }
}

/// Size of a file.
#[derive(Clone, Copy, Debug, Default)]
struct Extent {
    bytes: u64,
    /// Number of the bytes that this process has appended.
    own_bytes: u64,
}

/// Numbers of bytes that an append has lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Loss {
    /// Bytes that this process had appended before, and that were dropped to make space.
    pub(crate) old_bytes: u64,
    /// Bytes of this append that the disk did not take.
    pub(crate) new_bytes: u64,
}

impl RotatedFile {
    /// Opens or creates the file, to append to it. Files that exceed the bound already are dropped.
    pub(crate) fn open(path: &Path, max_bytes: u64) -> Result<Self, RotatedFileError> {
        Self::open_at(OutputPlace::find(path)?, max_bytes)
    }

    fn open_at(place: OutputPlace, max_bytes: u64) -> Result<Self, RotatedFileError> {
        let path = place.path.clone();
        let mut previous_name = place.name.clone();
        previous_name.push(".1");
        let previous = regular_bytes(&place, &previous_name);
        // The size of `name.1` is needed for the bound, even if its file is never opened.
        let mut this = Self {
            path: path.clone(),
            place: Some(place),
            previous_name,
            file: None,
            current: Extent::default(),
            previous: Extent { bytes: previous, own_bytes: 0 },
            max_bytes,
            open_previous: None,
            locks_replacement: true,
        };
        let file = this.open_current()?;
        this.lock(&file)?;
        this.file = Some(file);
        this.bring_within_bound().map_err(|source| RotatedFileError::Use { path, source })?;
        Ok(this)
    }

    /// Opens the file as [`open`](Self::open) does, and prepares it for `rotation`.
    pub(crate) fn open_for(
        place: OutputPlace,
        max_bytes: u64,
        rotation: Rotation,
    ) -> Result<Self, RotatedFileError> {
        let mut this = Self::open_at(place, max_bytes)?;
        if rotation == Rotation::Copy
            && let Some(place) = this.place.take()
        {
            let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
            let owner_only = Mode::S_IRUSR | Mode::S_IWUSR;
            let opened = openat(&place, &*this.previous_name, flags | OFlag::O_CLOEXEC, owner_only);
            // If it cannot be used, a rotation drops the old bytes, and only the current file
            // remains.
            let is_usable = |file: &File| {
                fstat(file)
                    .is_ok_and(|found| file_type(&found) == SFlag::S_IFREG && place.is_own(&found))
            };
            this.open_previous = opened.ok().map(File::from).filter(is_usable);
        }
        Ok(this)
    }

    /// Opens or creates the file in the locked box directory, and drops the content of both files.
    pub(crate) fn create(path: &Path, max_bytes: u64) -> Result<Self, RotatedFileError> {
        let mut this = Self::open(path, max_bytes)?;
        this.truncate()
            .and_then(|_own| this.remove_previous())
            .map_err(|source| RotatedFileError::Use { path: path.to_owned(), source })?;
        this.locks_replacement = false;
        Ok(this)
    }

    /// Appends a line feed if the last line has none, because a process was killed while it wrote
    /// it.
    pub(crate) fn complete_line(&mut self) -> Result<(), RotatedFileError> {
        let failed = |source| RotatedFileError::Use { path: self.path.clone(), source };
        if self.current.bytes == 0 {
            return Ok(());
        }
        let Some(file) = &self.file else { return Ok(()) };
        let mut last = [0];
        file.read_exact_at(&mut last, self.current.bytes - 1).map_err(failed)?;
        if last != *b"\n" {
            // On a full disk the write fails, and later lines fail as well.
            let _lost = self.write(b"\n");
        }
        Ok(())
    }

    /// Appends a line as a whole, to one of the files, or not at all.
    pub(crate) fn append_line(&mut self, line: &[u8]) -> io::Result<()> {
        let bytes = line.len() as u64;
        // A file holds at most half of the bound, so a longer line fits into no file.
        if bytes > self.max_bytes / 2 {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.reopen()?;
        if bytes > self.space() {
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

    /// Appends as many bytes as the disk takes, and rotates the files to make space.
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

    /// Appends as many bytes as fit into the current file, which is rotated first if it is full.
    /// Adds the number of own bytes that were dropped for this to `dropped`.
    fn append_some(&mut self, bytes: &[u8], dropped: &mut u64) -> io::Result<usize> {
        self.reopen()?;
        if self.space() == 0 {
            *dropped += self.rotate()?;
        }
        let space = usize::try_from(self.space()).unwrap_or(usize::MAX);
        self.write(bytes.get(..space).unwrap_or(bytes))
    }

    /// Returns the number of bytes that still fit into the current file.
    fn space(&self) -> u64 {
        // `name.1` of an earlier process with a larger bound may take more than its half.
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

    /// Removes the last bytes from the file, because they are a part of a line.
    fn undo(&mut self, bytes: u64) -> io::Result<()> {
        let Some(file) = self.file.as_ref().filter(|_| bytes > 0) else { return Ok(()) };
        // The size is read again, because another process may have truncated the file.
        let found = file.metadata()?.len();
        file.set_len(found.saturating_sub(bytes))?;
        self.current.bytes = found.saturating_sub(bytes);
        self.current.own_bytes = self.current.own_bytes.saturating_sub(bytes);
        Ok(())
    }

    /// Rotates as [`rotate`](Self::rotate) does, by copying. Without `name.1` the bytes are
    /// dropped.
    fn copy_to_previous(&mut self) -> io::Result<u64> {
        let (Some(file), Some(previous)) = (&self.file, &mut self.open_previous) else {
            return self.truncate();
        };
        let dropped = std::mem::take(&mut self.previous).own_bytes;
        // The old content must be gone before the copy, so that both together stay within the
        // bound.
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
        Ok(dropped)
    }

    /// Makes the current file the previous one, and returns how many own bytes were dropped with
    /// the old previous file.
    fn rotate(&mut self) -> io::Result<u64> {
        let Some(place) = &self.place else { return self.copy_to_previous() };
        let dropped = match renameat(place, &*place.name, place, &*self.previous_name) {
            Ok(()) => {
                let dropped = self.previous.own_bytes;
                self.previous = self.current;
                dropped
            }
            // Another process has removed the current file.
            Err(Errno::ENOENT) => self.current.own_bytes,
            // This process may not rename in the directory, or `name.1` is a directory.
            Err(_) => return self.copy_to_previous(),
        };
        // Closing the file also releases its lock.
        self.file = None;
        self.current = Extent::default();
        // The bytes are dropped even if this fails, so their number must be returned. The next
        // append opens the file again.
        let _reopened = self.reopen();
        Ok(dropped)
    }

    /// Truncates the current file, and returns how many own bytes were dropped.
    fn truncate(&mut self) -> io::Result<u64> {
        if let Some(file) = &self.file {
            file.set_len(0)?;
        }
        Ok(std::mem::take(&mut self.current).own_bytes)
    }

    /// Rotates or removes files of an earlier process that had a larger bound.
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
        let Some(place) = &self.place else { return Ok(()) };
        match unlinkat(place, &*self.previous_name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => self.previous = Extent::default(),
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Opens the current file if a rotation has left none.
    fn reopen(&mut self) -> io::Result<()> {
        if self.file.is_none() {
            let file = self.open_current().map_err(io::Error::other)?;
            if self.locks_replacement {
                self.lock(&file).map_err(io::Error::other)?;
            }
            self.file = Some(file);
        }
        Ok(())
    }

    fn lock(&self, file: &File) -> Result<(), RotatedFileError> {
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => RotatedFileError::InUse { path: self.path.clone() },
            TryLockError::Error(source) => {
                RotatedFileError::Use { path: self.path.clone(), source }
            }
        })
    }

    /// Opens or creates the current file, and takes its size over.
    fn open_current(&mut self) -> Result<File, RotatedFileError> {
        let failed = |source| RotatedFileError::Use { path: self.path.clone(), source };
        let regular = |kind: SFlag| match kind {
            SFlag::S_IFREG => Ok(()),
            kind => Err(RotatedFileError::NotRegular {
                path: self.path.clone(),
                found: description(kind),
            }),
        };
        let Some(place) = &self.place else { return Err(failed(io::ErrorKind::NotFound.into())) };
        // The type is checked before the open, because opening a device can have an effect.
        place.kind()?.map_or(Ok(()), regular)?;
        // The type is checked again, should a device have replaced the file after the check.
        let file = place.open(OFlag::O_RDWR | OFlag::O_CREAT)?;
        let found = fstat(&file).map_err(|errno| failed(errno.into()))?;
        regular(file_type(&found))?;
        self.current = Extent { bytes: u64::try_from(found.st_size).unwrap_or(0), own_bytes: 0 };
        Ok(file)
    }
}

/// Returns the size of a regular file, or 0 if there is none.
fn regular_bytes(directory: impl AsFd, name: &OsStr) -> u64 {
    let found = fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW).ok();
    let found = found.filter(|found| file_type(found) == SFlag::S_IFREG);
    found.and_then(|found| u64::try_from(found.st_size).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests;
