//! Reads and writes the content of regular files.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use a3s_box_proto::files::{
    FailureKind, Finish, ReadRequest, ReadResponse, WriteRequest, WriteResponse, WriteStart,
    read_response, write_request,
};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, RenameFlags, Stat, Uid, fchmod, fchown, openat,
    renameat_with, unlinkat,
};
use rustix::io::Errno;

use super::channel::{CHUNK_BYTES, Channel};
use super::failure::{FileError, Outcome, failed, io_failed};
use super::scope::{MODE_BITS, Place, Root, entry, mode};

/// Attempts to find an unused name for a temporary file.
const NAMES: u32 = 100;

/// Sends a part of a file.
pub(super) fn read(request: ReadRequest, channel: &mut Channel) -> Outcome<()> {
    let ReadRequest { scope, path, mut offset, length } = request;
    let root = Root::enter(scope)?;
    let (file, stat) = root.open_regular(&path)?;
    let message = Some(read_response::Message::Entry(entry(b"", &stat, Vec::new())));
    channel.send(&ReadResponse { message })?;
    let mut left = length.unwrap_or(u64::MAX);
    let mut buffer = vec![0; CHUNK_BYTES];
    while left > 0 {
        let wanted = usize::try_from(left).map_or(CHUNK_BYTES, |left| left.min(CHUNK_BYTES));
        let count = match file.read_at(&mut buffer[..wanted], offset) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(io_failed("read", &path, &error)),
        };
        let message = Some(read_response::Message::Data(buffer[..count].to_vec()));
        channel.send(&ReadResponse { message })?;
        left -= count as u64;
        offset = offset.saturating_add(count as u64);
    }
    Ok(())
}

/// Receives a file, and gives it its name once it is complete.
pub(super) fn write(channel: &mut Channel) -> Outcome<()> {
    let Some(write_request::Message::Start(start)) = channel.receive::<WriteRequest>()?.message
    else {
        return Err(FileError::invalid(b"", "expected `start` as the first message"));
    };
    let root = Root::enter(start.scope.clone())?;
    let path = &start.path;
    mode(start.mode, 0, path)?;
    let place = root.place(path)?;
    let replaced = place.stat(path)?;
    match replaced.as_ref().map(|found| FileType::from_raw_mode(found.st_mode)) {
        Some(_) if start.keep_existing => {
            return Err(FileError::system("write", path, Errno::EXIST));
        }
        Some(FileType::Directory) => return Err(FileError::system("write", path, Errno::ISDIR)),
        _ => {}
    }
    let replaced =
        replaced.filter(|found| FileType::from_raw_mode(found.st_mode) == FileType::RegularFile);
    let mut temporary = Temporary::make(&place, path)?;
    let bytes = receive_content(&mut temporary.file, path, channel)?;
    set_metadata(&temporary.file, &start, replaced.as_ref())?;
    temporary.publish(&start)?;
    channel.send(&WriteResponse { bytes })
}

fn receive_content(file: &mut File, path: &[u8], channel: &mut Channel) -> Outcome<u64> {
    let mut bytes = 0;
    loop {
        match channel.receive::<WriteRequest>()?.message {
            Some(write_request::Message::Data(data)) => {
                file.write_all(&data).map_err(|error| io_failed("write", path, &error))?;
                bytes += data.len() as u64;
            }
            Some(write_request::Message::Finish(finish)) => {
                check_finish(finish, bytes)?;
                return Ok(bytes);
            }
            Some(write_request::Message::Start(_)) | None => {
                return Err(FileError::invalid(path, "expected `data` or `finish`"));
            }
        }
    }
}

/// Checks that all messages of a stream have come.
pub(super) fn check_finish(finish: Finish, bytes: u64) -> Outcome<()> {
    if finish.bytes == bytes {
        return Ok(());
    }
    let message = format!("received {bytes} bytes, expected {} as `finish` says", finish.bytes);
    Err(FileError::invalid(b"", &message))
}

/// Sets owner and mode. The owner is first, because its change clears the bits set-user-id and
/// set-group-id.
fn set_metadata(file: &File, start: &WriteStart, replaced: Option<&Stat>) -> Outcome<()> {
    if let Some(owner) = start.owner {
        set_owner(file, owner.uid, owner.gid, &start.path)?;
    } else if let Some(found) = replaced {
        match set_owner(file, found.st_uid, found.st_gid, &start.path) {
            // Only root may give files away. Another user becomes the owner of the new file.
            Err(error) if error.0.kind() == FailureKind::PermissionDenied => {}
            outcome => outcome?,
        }
    }
    // A new owner does not get the bits set-user-id and set-group-id of the old one.
    let default = replaced.map_or(0o644, |found| found.st_mode & 0o777);
    fchmod(file, mode(start.mode, default & MODE_BITS, &start.path)?)
        .map_err(failed("set the mode of", &start.path))
}

fn set_owner(file: &File, uid: u32, gid: u32, path: &[u8]) -> Outcome<()> {
    // The kernel reads -1 as "no change", which is no id.
    if uid == u32::MAX || gid == u32::MAX {
        return Err(FileError::invalid(path, "expected an owner below 4294967295"));
    }
    fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
        .map_err(failed("set the owner of", path))
}

/// A file without its final name, which is removed when it is dropped.
struct Temporary<'a> {
    parent: &'a OwnedFd,
    target: &'a [u8],
    name: String,
    file: File,
    is_published: bool,
}

impl<'a> Temporary<'a> {
    fn make(place: &'a Place<'a>, path: &[u8]) -> Outcome<Self> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let pid = std::process::id();
        // The PID is unique among the calls that run, and the number is for what a crash has left.
        for number in 0..NAMES {
            let name = format!(".a3s-box-write-{pid}-{number}");
            match openat(&place.parent, name.as_str(), flags, Mode::RUSR | Mode::WUSR) {
                Ok(file) => {
                    return Ok(Self {
                        parent: &place.parent,
                        target: place.name,
                        name,
                        file: File::from(file),
                        is_published: false,
                    });
                }
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(FileError::system("make a file beside", path, errno)),
            }
        }
        Err(FileError::system("make a file beside", path, Errno::EXIST))
    }

    fn publish(mut self, start: &WriteStart) -> Outcome<()> {
        let flags = if start.keep_existing { RenameFlags::NOREPLACE } else { RenameFlags::empty() };
        let (name, target) = (self.name.as_str(), self.target);
        renameat_with(self.parent, name, self.parent, target, flags)
            .map_err(failed("replace", &start.path))?;
        self.is_published = true;
        Ok(())
    }
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        if !self.is_published {
            // The error of the call is more useful than one about the temporary file.
            let _ignored = unlinkat(self.parent, self.name.as_str(), AtFlags::empty());
        }
    }
}
