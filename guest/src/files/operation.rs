//! The operations of a call on names and directories, which its child executes.

use std::os::fd::OwnedFd;

use a3s_box_proto::files::{
    Entry, ListRequest, ListResponse, MakeDirectoryRequest, MakeDirectoryResponse, PackRequest,
    ReadRequest, RemoveRequest, RemoveResponse, RenameRequest, RenameResponse, StatRequest,
    StatResponse,
};
use prost::Message;
use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, RenameFlags, fchmod, fstat, mkdirat, renameat_with,
    statat, unlinkat,
};
use rustix::io::Errno;

use super::channel::{CHUNK_BYTES, Channel};
use super::directory::{MAX_DEPTH, next_name, open_directory, too_deep};
use super::failure::{FileError, Outcome, failed};
use super::scope::{Root, check, entry, mode, target};
use super::{content, pack, unpack};

/// Bytes of an entry in a page, beyond those of the entry itself: its tag and its length.
const ENTRY_OVERHEAD: usize = 4;

/// A call with its request. The requests of `Write` and `Unpack` come through the channel.
#[derive(Debug)]
pub(super) enum Call {
    Stat(StatRequest),
    List(ListRequest),
    Read(ReadRequest),
    Write,
    MakeDirectory(MakeDirectoryRequest),
    Remove(RemoveRequest),
    Rename(RenameRequest),
    Pack(PackRequest),
    Unpack,
}

/// Executes a call in its child, and sends the answers.
pub(super) fn run(call: Call, channel: &mut Channel) {
    let outcome = match call {
        Call::Stat(request) => stat(request, channel),
        Call::List(request) => list(request, channel),
        Call::Read(request) => content::read(request, channel),
        Call::Write => content::write(channel),
        Call::MakeDirectory(request) => make_directory(request, channel),
        Call::Remove(request) => remove(request, channel),
        Call::Rename(request) => rename(request, channel),
        Call::Pack(request) => pack::pack(request, channel),
        Call::Unpack => unpack::unpack(channel),
    };
    channel.end(outcome);
}

fn stat(request: StatRequest, channel: &mut Channel) -> Outcome<()> {
    let StatRequest { scope, path, follow } = request;
    let root = Root::enter(scope)?;
    let link = if follow { OFlags::empty() } else { OFlags::NOFOLLOW };
    let file = root.open(&path, OFlags::PATH | OFlags::CLOEXEC | link)?;
    let found = fstat(&file).map_err(failed("look at", &path))?;
    let link = target(&file, b"", &found).map_err(failed("read the link", &path))?;
    channel.send(&StatResponse { entry: Some(entry(b"", &found, link)) })
}

fn list(request: ListRequest, channel: &mut Channel) -> Outcome<()> {
    let ListRequest { scope, path } = request;
    let root = Root::enter(scope)?;
    let directory = root.open(&path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC)?;
    let mut directory = Dir::new(directory).map_err(failed("read", &path))?;
    let mut page = ListResponse::default();
    let mut bytes = 0;
    while let Some(entry) = next_entry(&mut directory, &path)? {
        let cost = entry.encoded_len() + ENTRY_OVERHEAD;
        if bytes + cost > CHUNK_BYTES {
            channel.send(&page)?;
            page.entries.clear();
            bytes = 0;
        }
        bytes += cost;
        page.entries.push(entry);
        channel.beat()?;
    }
    // An empty directory has one page, which is empty.
    channel.send(&page)
}

fn next_entry(directory: &mut Dir, path: &[u8]) -> Outcome<Option<Entry>> {
    while let Some(name) = next_name(directory).map_err(failed("read", path))? {
        let fd = directory.fd().map_err(failed("read", path))?;
        let found = statat(fd, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW)
            .and_then(|found| Ok((found, target(fd, &name, &found)?)));
        match found {
            Ok((found, link)) => return Ok(Some(entry(&name, &found, link))),
            // The file was removed, or the link was replaced, since its name was read.
            Err(Errno::NOENT | Errno::INVAL) => {}
            Err(errno) => return Err(FileError::system("look at a file in", path, errno)),
        }
    }
    Ok(None)
}

fn make_directory(request: MakeDirectoryRequest, channel: &mut Channel) -> Outcome<()> {
    let MakeDirectoryRequest { scope, path, mode: requested, parents } = request;
    let root = Root::enter(scope)?;
    let mode = mode(requested, 0o755, &path)?;
    check(&path)?;
    if parents {
        make_parents(&root, &path)?;
    }
    let place = root.place(&path)?;
    match mkdirat(&place.parent, place.name, mode) {
        // The kernel makes no directory that is set-group-id.
        Ok(()) if mode.intersects(Mode::SUID | Mode::SGID) => {
            let made = open_directory(&place.parent, place.name).map_err(failed("open", &path))?;
            let fd = made.fd().map_err(failed("open", &path))?;
            fchmod(fd, mode).map_err(failed("set the mode of", &path))?;
        }
        Ok(()) => {}
        Err(Errno::EXIST) if parents => {
            // A file of another type is refused, and a link to a directory is a directory.
            root.open(&path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC)?;
        }
        Err(errno) => return Err(FileError::system("make the directory", &path, errno)),
    }
    channel.send(&MakeDirectoryResponse {})
}

/// Makes the missing directories above the last name of a path.
fn make_parents(root: &Root, path: &[u8]) -> Outcome<()> {
    for end in path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at) {
        let parent = &path[..end];
        let is_name =
            !matches!(parent.rsplit(|byte| *byte == b'/').next(), None | Some(b"" | b"." | b".."));
        if !is_name {
            continue;
        }
        let place = root.place(parent)?;
        match mkdirat(&place.parent, place.name, Mode::from_bits_truncate(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(FileError::system("make the directory", parent, errno)),
        }
    }
    Ok(())
}

fn rename(request: RenameRequest, channel: &mut Channel) -> Outcome<()> {
    let RenameRequest { scope, from, to, keep_existing } = request;
    let root = Root::enter(scope)?;
    let (old, new) = (root.place(&from)?, root.place(&to)?);
    let flags = if keep_existing { RenameFlags::NOREPLACE } else { RenameFlags::empty() };
    renameat_with(&old.parent, old.name, &new.parent, new.name, flags).map_err(|errno| {
        // The error is more often about the new name, except that the old one must exist.
        let path = if errno == Errno::NOENT { &from } else { &to };
        FileError::system("rename to or from", path, errno)
    })?;
    channel.send(&RenameResponse {})
}

fn remove(request: RemoveRequest, channel: &mut Channel) -> Outcome<()> {
    let RemoveRequest { scope, path, recursive } = request;
    let root = Root::enter(scope)?;
    let place = root.place(&path)?;
    let found =
        place.stat(&path)?.ok_or_else(|| FileError::system("remove", &path, Errno::NOENT))?;
    let is_directory = FileType::from_raw_mode(found.st_mode) == FileType::Directory;
    if is_directory && recursive {
        remove_content(&place.parent, place.name, &path, channel)?;
    }
    let flags = if is_directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
    unlinkat(&place.parent, place.name, flags).map_err(failed("remove", &path))?;
    channel.send(&RemoveResponse {})
}

/// Removes what is in a directory. Each directory is open while its content is removed, so that no
/// rename of a directory above can lead elsewhere.
fn remove_content(
    parent: &OwnedFd,
    name: &[u8],
    path: &[u8],
    channel: &mut Channel,
) -> Outcome<()> {
    let error = |errno| FileError::system("remove a file below", path, errno);
    let mut levels = vec![(name.to_vec(), open_directory(parent, name).map_err(error)?)];
    while let Some((_, directory)) = levels.last_mut() {
        channel.beat()?;
        let Some(name) = next_name(directory).map_err(error)? else {
            let Some((name, _)) = levels.pop() else { break };
            // The caller removes the first directory itself.
            let Some((_, above)) = levels.last() else { break };
            let fd = above.fd().map_err(error)?;
            unlinkat(fd, name.as_slice(), AtFlags::REMOVEDIR).map_err(error)?;
            continue;
        };
        let fd = directory.fd().map_err(error)?;
        match unlinkat(fd, name.as_slice(), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            // Linux returns EISDIR for a directory, and POSIX allows EPERM.
            Err(Errno::ISDIR | Errno::PERM) => {
                let below = open_directory(fd, &name).map_err(error)?;
                if levels.len() == MAX_DEPTH {
                    return Err(too_deep(path));
                }
                levels.push((name, below));
            }
            Err(errno) => return Err(error(errno)),
        }
    }
    Ok(())
}
