//! Copies of trees out of a box, and into one.

use std::fs::DirBuilder;
use std::io::{self, BufRead, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use a3s_box_oci::{Limits, Unpacked, remove_path, unpack_untrusted};
use a3s_box_proto::files::{Finish, PackRequest, UnpackRequest, UnpackStart, unpack_request};
use nix::fcntl::{AT_FDCWD, OFlag, RenameFlags, open, renameat2};
use nix::sys::stat::Mode;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tonic::codegen::tokio_stream::wrappers::ReceiverStream;

use super::client::{BoxFiles, MESSAGES, bytes};
use super::error::FilesError;
use super::pack::pack;

/// Name of the copied file in the archive, and in the staging directory. The guest is told the
/// name, so that no name of the guest becomes one of the host.
const CONTENT: &str = "content";

/// Limits on a copy out of a box.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyLimits {
    /// Number of files and directories.
    pub entries: u64,
    /// Bytes of files, with their holes.
    pub bytes: u64,
    /// Number of levels of directories.
    pub depth: usize,
}

impl Default for CopyLimits {
    fn default() -> Self {
        let Limits { entries, unpacked_bytes, path_depth, .. } = Limits::default();
        Self { entries, bytes: unpacked_bytes, depth: path_depth }
    }
}

/// The figures of a copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// Number of files and directories.
    pub entries: u64,
    /// Bytes of files.
    pub bytes: u64,
    /// Number of devices and named pipes that were left out.
    pub skipped: u64,
}

/// A part of the archive on its way to the thread that unpacks it.
enum Part {
    Data(Vec<u8>),
    /// The guest has reported that the archive is complete.
    End,
}

impl BoxFiles {
    /// Copies a file or a tree of the box to `destination`, which must not exist.
    ///
    /// The copy belongs to the user of this process. It keeps permissions without set-user-id,
    /// set-group-id and sticky bits, and the times of the last modification. Devices, sockets,
    /// named pipes and extended attributes are left out. Symbolic links are copied as they are:
    /// they may lead anywhere on this host, so that a reader of the copy must not follow them.
    ///
    /// The copy is made in a directory beside `destination` and takes its name at the end. After an
    /// error, or if the future is dropped, nothing is left.
    ///
    /// # Errors
    ///
    /// [`FilesError`]. It is `Failed` with `Changed` if files changed meanwhile.
    pub async fn copy_out(
        &self,
        source: impl AsRef<std::ffi::OsStr>,
        destination: &Path,
        limits: &CopyLimits,
    ) -> Result<Copied, FilesError> {
        let name = CONTENT.as_bytes().to_vec();
        let request = PackRequest { scope: self.scope(), path: bytes(source), name };
        let answer = self.connect().await?.pack(request).await.map_err(FilesError::of_status)?;
        let mut archive = answer.into_inner();
        let (sender, parts) = mpsc::channel(MESSAGES);
        let limits = Limits {
            entries: limits.entries,
            unpacked_bytes: limits.bytes,
            path_depth: limits.depth,
            ..Limits::default()
        };
        let destination = destination.to_owned();
        // The thread ends by itself if this future is dropped, because `parts` then ends early.
        let unpacking = spawn_blocking(move || receive(parts, &destination, &limits));
        let failure = loop {
            let part = match archive.message().await {
                Ok(Some(answer)) => Part::Data(answer.data),
                Ok(None) => Part::End,
                Err(status) => break Some(FilesError::of_status(status)),
            };
            let is_end = matches!(part, Part::End);
            // The thread has ended if it takes nothing any more. It knows why.
            if sender.send(part).await.is_err() || is_end {
                break None;
            }
        };
        drop(sender);
        let unpacked = unpacking.await.map_err(FilesError::Interrupted)?;
        // An archive that the guest has given up looks cut off, but the status is the reason.
        failure.map_or(unpacked, Err)
    }

    /// Copies a file or a tree of this host into the box, as `destination`. The directory above it
    /// must exist.
    ///
    /// The files belong to the client's user. They keep their permissions without set-user-id and
    /// set-group-id bits, and the times of their last modification. Symbolic links are copied as
    /// links. A file that exists is replaced, and directories are merged.
    ///
    /// # Errors
    ///
    /// [`FilesError`]. A part of the tree may be in the box then. It is `Host` for devices, sockets
    /// and named pipes.
    pub async fn copy_in(
        &self,
        source: &Path,
        destination: impl AsRef<std::ffi::OsStr>,
    ) -> Result<Copied, FilesError> {
        let path = bytes(destination);
        let (directory, name) = split(&path)
            .ok_or_else(|| FilesError::protocol("a path without a name", "the path of a file"))?;
        let start =
            UnpackStart { scope: self.scope(), path: directory.to_vec(), keep_owners: false };
        let request = |message| UnpackRequest { message: Some(message) };
        let (sender, requests) = mpsc::channel(MESSAGES);
        let (source, name) = (source.to_owned(), name.to_vec());
        let packing = spawn_blocking(move || {
            // The channel has room for it.
            let _sent = sender.try_send(request(unpack_request::Message::Start(start)));
            let data = |data| {
                let message = request(unpack_request::Message::Data(data));
                sender.blocking_send(message).map_err(|_ended| io::ErrorKind::BrokenPipe.into())
            };
            let bytes = pack(&source, &name, data)?;
            // It fails if the call has ended, and then the answer says why.
            let finish = request(unpack_request::Message::Finish(Finish { bytes }));
            drop(sender.blocking_send(finish));
            Ok(())
        });
        let mut client = self.connect().await?;
        let answer = client.unpack(ReceiverStream::new(requests)).await;
        let packed = packing.await.map_err(FilesError::Interrupted)?;
        match (answer, packed) {
            // The call fails, too, because there is no `finish`.
            (_, Err(error @ FilesError::Host { .. })) => Err(error),
            (Err(status), _) => Err(FilesError::of_status(status)),
            (Ok(_), Err(error)) => Err(error),
            (Ok(answer), Ok(())) => {
                let answer = answer.into_inner();
                Ok(Copied { entries: answer.entries, bytes: answer.bytes, skipped: 0 })
            }
        }
    }
}

/// Splits a path of the guest into the directory, which is `.` or ends with a slash, and the name.
fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = path.iter().rposition(|byte| *byte != b'/')? + 1;
    let start = path[..end].iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    let (directory, name) = (&path[..start], &path[start..end]);
    let directory = if directory.is_empty() { b"." } else { directory };
    (!matches!(name, b"." | b"..")).then_some((directory, name))
}

/// Unpacks the archive, and moves the copy to its destination.
fn receive(
    parts: mpsc::Receiver<Part>,
    destination: &Path,
    limits: &Limits,
) -> Result<Copied, FilesError> {
    let staging = Staging::make(destination)?;
    let mut stream = Stream { parts, data: Vec::new(), used: 0, is_complete: false };
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let directory = open(&staging.path, flags, Mode::empty())
        .map_err(|errno| FilesError::host("open", &staging.path)(errno.into()))?;
    let unpacked = unpack_untrusted(&mut stream, directory, limits)?;
    stream.expect_end()?;
    staging.publish(destination)?;
    let Unpacked { entries, bytes, skipped } = unpacked;
    Ok(Copied { entries, bytes, skipped })
}

/// A new directory beside the destination, which is removed when it is dropped.
struct Staging {
    path: PathBuf,
}

impl Staging {
    fn make(destination: &Path) -> Result<Self, FilesError> {
        static MADE: AtomicU64 = AtomicU64::new(0);
        let without_name = || io::Error::other("expected a path that ends with a name");
        let name = destination
            .file_name()
            .ok_or_else(|| FilesError::host("copy to", destination)(without_name()))?;
        if std::fs::symlink_metadata(destination).is_ok() {
            let exists = io::Error::from(io::ErrorKind::AlreadyExists);
            return Err(FilesError::host("copy to", destination)(exists));
        }
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let mut staged = std::ffi::OsString::from(".");
        staged.push(name);
        staged.push(format!(".a3s-box-copy-{}-{number}", std::process::id()));
        let path = destination.with_file_name(staged);
        DirBuilder::new().mode(0o700).create(&path).map_err(FilesError::host("make", &path))?;
        Ok(Self { path })
    }

    fn publish(&self, destination: &Path) -> Result<(), FilesError> {
        let content = self.path.join(CONTENT);
        let flags = RenameFlags::RENAME_NOREPLACE;
        let renamed = renameat2(AT_FDCWD, &content, AT_FDCWD, destination, flags);
        match renamed {
            Ok(()) => Ok(()),
            Err(nix::errno::Errno::ENOENT) => Err(FilesError::protocol(
                "an archive without the requested file",
                "an archive of the file",
            )),
            Err(errno) => Err(FilesError::host("rename a copy to", destination)(errno.into())),
        }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // The error of the copy is more useful than one about the directory.
        drop(remove_path(&self.path));
    }
}

/// The archive as it comes from the connection.
struct Stream {
    parts: mpsc::Receiver<Part>,
    data: Vec<u8>,
    /// Number of bytes of `data` that were read.
    used: usize,
    is_complete: bool,
}

impl Stream {
    /// Waits for the end that the guest reports. An archive without it may be cut off.
    fn expect_end(&mut self) -> Result<(), FilesError> {
        let cut_off = |_error| FilesError::protocol("an archive that is cut off", "all of it");
        match self.fill_buf().map_err(cut_off)? {
            [] => Ok(()),
            _ => Err(FilesError::protocol("bytes after the archive", "the end of the stream")),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}

impl BufRead for Stream {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.used == self.data.len() && !self.is_complete {
            match self.parts.blocking_recv() {
                Some(Part::Data(data)) => (self.data, self.used) = (data, 0),
                Some(Part::End) => self.is_complete = true,
                None => return Err(io::ErrorKind::ConnectionAborted.into()),
            }
        }
        Ok(&self.data[self.used..])
    }

    fn consume(&mut self, count: usize) {
        self.used += count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_in_the_box_has_a_directory_and_a_name() {
        let cases: [(&str, Option<(&str, &str)>); 8] = [
            ("/a/b", Some(("/a/", "b"))),
            ("/a/b//", Some(("/a/", "b"))),
            ("a", Some((".", "a"))),
            ("/a", Some(("/", "a"))),
            ("/", None),
            ("", None),
            ("a/..", None),
            (".", None),
        ];
        for (path, expected) in cases {
            let expected = expected.map(|(a, b)| (a.as_bytes(), b.as_bytes()));
            assert_eq!(split(path.as_bytes()), expected, "{path}");
        }
    }
}
