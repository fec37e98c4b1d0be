//! [`BoxFiles`]: the client of the service for the files of one box.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use a3s_box_core::BoxDir;
use a3s_box_proto::files::files_client::FilesClient;
use a3s_box_proto::files::{
    Entry, FileType, Finish, ListRequest, MakeDirectoryRequest, Owner, ReadRequest, RemoveRequest,
    RenameRequest, Scope, StatRequest, WriteRequest, WriteStart, read_response, write_request,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tonic::codegen::tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use super::error::FilesError;
use crate::connection;

/// Maximum number of bytes of content in a message.
pub(super) const CHUNK_BYTES: usize = 64 * 1024;

/// Maximum length of an answer that is decoded: a chunk with its other fields. The guest is hostile
/// and may send without end.
const MAX_ANSWER_BYTES: usize = CHUNK_BYTES + 8 * 1024;

/// Maximum number of entries in a list. They take about 200 MiB at most for usual names.
const MAX_ENTRIES: usize = 1_000_000;

/// Maximum number of bytes of names and links in a list.
const MAX_NAME_BYTES: usize = 64 << 20;

/// Messages that wait between a reader and the connection.
pub(super) const MESSAGES: usize = 2;

/// A client of the files of a box. Clones are independent of each other.
///
/// Paths start at the root of the box, or at the directory of [`below`](Self::below). No link and
/// no `..` leads out of it. Calls act as root, or as the user of [`user`](Self::user).
///
/// ```no_run
/// # async fn example(directory: &a3s_box_core::BoxDir) -> Result<(), Box<dyn std::error::Error>> {
/// use a3s_box_runtime::files::{BoxFiles, WriteOptions};
///
/// let files = BoxFiles::of(directory).user("app");
/// files.write("/srv/config.toml", &b"port = 80\n"[..], WriteOptions::default()).await?;
/// assert_eq!(files.read("/srv/config.toml", 1024).await?, b"port = 80\n");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct BoxFiles {
    socket: PathBuf,
    user: String,
    root: Vec<u8>,
}

/// The type of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileKind {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A device, a socket or a named pipe.
    Special,
}

/// The metadata of a file. All values are from the guest, which may be hostile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileInfo {
    /// Name in its directory. Only lists have it. It may contain any bytes, also `/` and `..` if
    /// the guest is hostile, and must not become a path of the host.
    pub name: Vec<u8>,
    /// Type of the file.
    pub kind: FileKind,
    /// Permissions, with set-user-id, set-group-id and sticky bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Time of the last modification: seconds since 1970, and nanoseconds.
    pub modified: (i64, u32),
    /// Target of a symbolic link.
    pub link: Vec<u8>,
}

/// How a file is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteOptions {
    /// Permissions. `None`: those of the file that is replaced, or 0644.
    pub mode: Option<u32>,
    /// User and group. `None`: those of the file that is replaced, or of the client's user.
    pub owner: Option<(u32, u32)>,
    /// Fail if the file exists.
    pub keep_existing: bool,
}

impl BoxFiles {
    /// Makes a client of the box with this directory, without connecting.
    #[must_use]
    pub fn of(directory: &BoxDir) -> Self {
        Self { socket: directory.exec_socket(), user: String::new(), root: Vec::new() }
    }

    /// Sets the user, `user[:group]` with names or numbers of the guest.
    #[must_use]
    pub fn user(self, user: impl Into<String>) -> Self {
        Self { user: user.into(), ..self }
    }

    /// Sets the directory of the guest in which paths start, and which no path leaves.
    #[must_use]
    pub fn below(self, root: impl AsRef<OsStr>) -> Self {
        Self { root: bytes(root), ..self }
    }

    /// Returns the metadata of a file. A symbolic link is followed if `follow` is true.
    ///
    /// # Errors
    ///
    /// [`FilesError`].
    pub async fn stat(
        &self,
        path: impl AsRef<OsStr>,
        follow: bool,
    ) -> Result<FileInfo, FilesError> {
        let request = StatRequest { scope: self.scope(), path: bytes(path), follow };
        let answer = self.connect().await?.stat(request).await.map_err(FilesError::of_status)?;
        let entry = answer.into_inner().entry;
        entry.map(info).ok_or_else(|| FilesError::protocol("no metadata", "the metadata of a file"))
    }

    /// Returns the entries of a directory, in no particular order.
    ///
    /// # Errors
    ///
    /// [`FilesError`]. It is `Limit` for more than a million entries.
    pub async fn list(&self, path: impl AsRef<OsStr>) -> Result<Vec<FileInfo>, FilesError> {
        let request = ListRequest { scope: self.scope(), path: bytes(path) };
        let answer = self.connect().await?.list(request).await.map_err(FilesError::of_status)?;
        let mut pages = answer.into_inner();
        let (mut found, mut name_bytes) = (Vec::new(), 0);
        while let Some(page) = pages.message().await.map_err(FilesError::of_status)? {
            name_bytes += page.entries.iter().map(|e| e.name.len() + e.link.len()).sum::<usize>();
            found.extend(page.entries.into_iter().map(info));
            if found.len() > MAX_ENTRIES || name_bytes > MAX_NAME_BYTES {
                return Err(FilesError::Limit { what: "entries", limit: MAX_ENTRIES as u64 });
            }
        }
        Ok(found)
    }

    /// Returns the content of a regular file of at most `limit` bytes.
    ///
    /// # Errors
    ///
    /// [`FilesError`]. It is `Limit` for a larger file.
    pub async fn read(&self, path: impl AsRef<OsStr>, limit: u64) -> Result<Vec<u8>, FilesError> {
        let mut content = Vec::new();
        let length = Some(limit.saturating_add(1));
        if self.read_to(path, 0, length, &mut content).await? > limit {
            return Err(FilesError::Limit { what: "bytes", limit });
        }
        Ok(content)
    }

    /// Copies a part of a regular file to a writer: from `offset`, `length` bytes, or all up to the
    /// end. Returns the number of bytes, which is smaller than `length` at the end of the file
    /// only.
    ///
    /// # Errors
    ///
    /// [`FilesError`]. It is `Stream` if the writer fails.
    pub async fn read_to(
        &self,
        path: impl AsRef<OsStr>,
        offset: u64,
        length: Option<u64>,
        writer: &mut (impl AsyncWrite + Unpin),
    ) -> Result<u64, FilesError> {
        let request = ReadRequest { scope: self.scope(), path: bytes(path), offset, length };
        let answer = self.connect().await?.read(request).await.map_err(FilesError::of_status)?;
        let mut parts = answer.into_inner();
        let mut copied: u64 = 0;
        while let Some(part) = parts.message().await.map_err(FilesError::of_status)? {
            let Some(read_response::Message::Data(data)) = part.message else { continue };
            copied = copied.saturating_add(data.len() as u64);
            if length.is_some_and(|length| copied > length) {
                return Err(FilesError::protocol(
                    "more bytes than requested",
                    "the requested part",
                ));
            }
            writer.write_all(&data).await.map_err(FilesError::Stream)?;
        }
        writer.flush().await.map_err(FilesError::Stream)?;
        Ok(copied)
    }

    /// Writes a regular file, which replaces the name once all of the content is there. Returns the
    /// number of bytes.
    ///
    /// If the future is dropped, the name stays as it is.
    ///
    /// # Errors
    ///
    /// [`FilesError`]. It is `Stream` if the reader fails.
    pub async fn write(
        &self,
        path: impl AsRef<OsStr>,
        content: impl AsyncRead,
        options: WriteOptions,
    ) -> Result<u64, FilesError> {
        let WriteOptions { mode, owner, keep_existing } = options;
        let owner = owner.map(|(uid, gid)| Owner { uid, gid });
        let (scope, path) = (self.scope(), bytes(path));
        let start = WriteStart { scope, path, mode, owner, keep_existing };
        let (sender, requests) = mpsc::channel(MESSAGES);
        let mut client = self.connect().await?;
        let mut call = std::pin::pin!(client.write(ReceiverStream::new(requests)));
        let answer = tokio::select! {
            // The guest answers early if it fails. The reader may never have another byte.
            answer = &mut call => answer,
            sent = send_content(sender, start, content) => {
                sent.map_err(FilesError::Stream)?;
                call.await
            }
        };
        Ok(answer.map_err(FilesError::of_status)?.into_inner().bytes)
    }

    /// Makes a directory with a mode, and its missing parents if `parents` is true. It may then
    /// exist already.
    ///
    /// # Errors
    ///
    /// [`FilesError`].
    pub async fn make_directory(
        &self,
        path: impl AsRef<OsStr>,
        mode: u32,
        parents: bool,
    ) -> Result<(), FilesError> {
        let (scope, path) = (self.scope(), bytes(path));
        let request = MakeDirectoryRequest { scope, path, mode: Some(mode), parents };
        self.connect().await?.make_directory(request).await.map_err(FilesError::of_status)?;
        Ok(())
    }

    /// Removes a file or an empty directory, or a directory with its content if `recursive` is
    /// true.
    ///
    /// # Errors
    ///
    /// [`FilesError`]. A part of a directory may be removed then.
    pub async fn remove(&self, path: impl AsRef<OsStr>, recursive: bool) -> Result<(), FilesError> {
        let request = RemoveRequest { scope: self.scope(), path: bytes(path), recursive };
        self.connect().await?.remove(request).await.map_err(FilesError::of_status)?;
        Ok(())
    }

    /// Renames a file. Replaces a file of the new name, unless `keep_existing` is true.
    ///
    /// # Errors
    ///
    /// [`FilesError`].
    pub async fn rename(
        &self,
        from: impl AsRef<OsStr>,
        to: impl AsRef<OsStr>,
        keep_existing: bool,
    ) -> Result<(), FilesError> {
        let (scope, from, to) = (self.scope(), bytes(from), bytes(to));
        let request = RenameRequest { scope, from, to, keep_existing };
        self.connect().await?.rename(request).await.map_err(FilesError::of_status)?;
        Ok(())
    }

    pub(super) fn scope(&self) -> Option<Scope> {
        Some(Scope { user: self.user.clone(), root: self.root.clone() })
    }

    /// Opens a connection. Each call has its own, so that a slow one stops no other.
    pub(super) async fn connect(&self) -> Result<FilesClient<Channel>, FilesError> {
        let channel = connection::connect(&self.socket).await.map_err(|source| {
            FilesError::Unreachable { socket: self.socket.clone(), source: Arc::new(source) }
        })?;
        Ok(FilesClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES))
    }
}

/// Sends the messages of a write. Returns early, without an error, if the call has ended.
async fn send_content(
    sender: mpsc::Sender<WriteRequest>,
    start: WriteStart,
    content: impl AsyncRead,
) -> std::io::Result<()> {
    let request = |message| WriteRequest { message: Some(message) };
    let mut content = std::pin::pin!(content);
    let mut is_open = sender.send(request(write_request::Message::Start(start))).await.is_ok();
    let mut bytes: u64 = 0;
    let mut buffer = vec![0; CHUNK_BYTES];
    while is_open {
        let count = content.read(&mut buffer).await?;
        let message = match count {
            0 => write_request::Message::Finish(Finish { bytes }),
            _ => write_request::Message::Data(buffer[..count].to_vec()),
        };
        bytes += count as u64;
        is_open = sender.send(request(message)).await.is_ok() && count > 0;
    }
    Ok(())
}

/// Returns the bytes of a path of the guest.
pub(super) fn bytes(path: impl AsRef<OsStr>) -> Vec<u8> {
    path.as_ref().as_bytes().to_vec()
}

/// Returns the metadata of a file without its unused fields.
fn info(entry: Entry) -> FileInfo {
    let kind = match entry.r#type() {
        FileType::Regular => FileKind::Regular,
        FileType::Directory => FileKind::Directory,
        FileType::Symlink => FileKind::Symlink,
        _ => FileKind::Special,
    };
    FileInfo {
        kind,
        name: entry.name,
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        size_bytes: entry.size_bytes,
        modified: (entry.modified_seconds, entry.modified_nanoseconds),
        link: entry.link,
    }
}
