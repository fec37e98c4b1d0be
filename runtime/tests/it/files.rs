//! Files in a box: `files` with the service of the guest program, and with a hostile one.

#![expect(clippy::unwrap_used, reason = "a failed setup fails the test")]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use a3s_box_core::{BoxConfig, BoxDir, EventEmitter};
use a3s_box_proto::files::files_server::{Files, FilesServer};
use a3s_box_proto::files::*;
use a3s_box_runtime::VmManager;
use a3s_box_runtime::files::{
    BoxFiles, Copied, CopyLimits, FileFailure, FileKind, FilesError, WriteOptions,
};
use tar::{Builder, EntryType, Header};
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use crate::harness::in_time;
use crate::service::Service;

/// Returns what a directory contains.
fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn files_are_written_read_listed_renamed_and_removed() {
    let (service, dir) = (Service::start(), tempfile::tempdir().unwrap());
    let files = service.files(dir.path());
    in_time(async {
        files.make_directory("a/b", 0o750, true).await.unwrap();
        let content = vec![5; 200_000];
        let options = WriteOptions { mode: Some(0o600), ..WriteOptions::default() };
        let written = files.write("a/b/file", content.as_slice(), options).await.unwrap();
        assert_eq!(written, 200_000);
        assert_eq!(files.read("a/b/file", 200_000).await.unwrap(), content);
        let larger = files.read("a/b/file", 199_999).await;
        assert!(matches!(larger, Err(FilesError::Limit { limit: 199_999, .. })), "{larger:?}");
        let mut part = Vec::new();
        files.read_to("a/b/file", 199_990, Some(100), &mut part).await.unwrap();
        assert_eq!(part, [5; 10]);
        files.rename("a/b/file", "a/file", true).await.unwrap();
        let mut listed = files.list("a").await.unwrap();
        listed.sort_by(|a, b| a.name.cmp(&b.name));
        let kinds: Vec<_> = listed.iter().map(|file| (file.name.as_slice(), file.kind)).collect();
        assert_eq!(kinds, [(&b"b"[..], FileKind::Directory), (&b"file"[..], FileKind::Regular)]);
        assert_eq!(files.stat("a/file", false).await.unwrap().mode, 0o600);
        files.remove("a", true).await.unwrap();
        let missing = files.stat("a", false).await.unwrap_err();
        assert_eq!(missing.failure(), Some(FileFailure::NotFound));
    })
    .await;
    assert!(names(dir.path()).is_empty());
}

#[tokio::test]
async fn a_write_whose_reader_fails_changes_nothing() {
    let (service, dir) = (Service::start(), tempfile::tempdir().unwrap());
    fs::write(dir.path().join("file"), "before").unwrap();
    let content = tokio::io::AsyncReadExt::chain(&b"part"[..], Broken);
    let files = service.files(dir.path());
    let written = in_time(files.write("file", content, WriteOptions::default())).await;
    assert!(matches!(written, Err(FilesError::Stream(_))), "{written:?}");
    assert_eq!(fs::read(dir.path().join("file")).unwrap(), b"before");
}

/// A reader that fails.
struct Broken;

impl tokio::io::AsyncRead for Broken {
    fn poll_read(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        _: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::task::Poll::Ready(Err(std::io::Error::other("broken")))
    }
}

#[tokio::test]
async fn a_tree_is_the_same_after_a_copy_in_and_out() {
    let (service, dir) = (Service::start(), tempfile::tempdir().unwrap());
    let (guest, host) = (dir.path().join("guest"), dir.path().join("host"));
    fs::create_dir(&guest).unwrap();
    fs::create_dir_all(host.join("tree/below")).unwrap();
    let long = format!("tree/below/{}", "n".repeat(150));
    fs::write(host.join(&long), vec![9; 300_000]).unwrap();
    fs::write(host.join("tree/tool"), "tool").unwrap();
    fs::set_permissions(host.join("tree/tool"), fs::Permissions::from_mode(0o4755)).unwrap();
    symlink("../outside", host.join("tree/link")).unwrap();
    let files = service.files(&guest);
    let copied = in_time(files.copy_in(&host.join("tree"), "/copy")).await.unwrap();
    assert_eq!(copied, Copied { entries: 5, bytes: 300_004, skipped: 0 });
    let found = fs::metadata(guest.join("copy/tool")).unwrap();
    assert_eq!(found.mode() & 0o7777, 0o755);
    std::os::unix::net::UnixListener::bind(guest.join("copy/socket")).unwrap();
    fs::set_permissions(guest.join("copy/tool"), fs::Permissions::from_mode(0o4755)).unwrap();

    let back = host.join("back");
    let limits = CopyLimits::default();
    let copied = in_time(files.copy_out("copy", &back, &limits)).await.unwrap();
    assert_eq!(copied, Copied { entries: 5, bytes: 300_004, skipped: 0 });
    assert_eq!(fs::read(back.join(long.strip_prefix("tree/").unwrap())).unwrap(), vec![9; 300_000]);
    assert_eq!(fs::read_link(back.join("link")).unwrap(), Path::new("../outside"));
    let of = |path: PathBuf| {
        let found = fs::symlink_metadata(path).unwrap();
        (found.mode() & 0o777, found.mtime(), found.mtime_nsec())
    };
    for name in ["tool", "below"] {
        assert_eq!(of(host.join("tree").join(name)), of(back.join(name)), "{name}");
    }
    assert_eq!(fs::metadata(back.join("tool")).unwrap().mode() & 0o7000, 0);
    let again = in_time(files.copy_out("copy", &back, &limits)).await;
    assert!(matches!(again, Err(FilesError::Host { .. })), "{again:?}");
    let single = in_time(files.copy_out("copy/tool", &host.join("one"), &limits)).await.unwrap();
    assert_eq!((single.entries, fs::read(host.join("one")).unwrap()), (1, b"tool".to_vec()));
    assert_eq!(names(&host), ["back", "one", "tree"]);
}

#[tokio::test]
async fn a_copy_of_a_missing_file_leaves_nothing() {
    let (service, dir) = (Service::start(), tempfile::tempdir().unwrap());
    let files = service.files(dir.path());
    let limits = CopyLimits::default();
    let copied = in_time(files.copy_out("missing", &dir.path().join("to"), &limits)).await;
    assert_eq!(copied.unwrap_err().failure(), Some(FileFailure::NotFound));
    let copied = in_time(files.copy_in(&dir.path().join("missing"), "to")).await;
    assert!(matches!(copied, Err(FilesError::Host { .. })), "{copied:?}");
    let copied = in_time(files.copy_in(Path::new("/dev/null"), "to")).await;
    assert!(matches!(copied, Err(FilesError::Host { .. })), "{copied:?}");
    assert!(names(dir.path()).is_empty());
}

#[tokio::test]
async fn a_box_that_was_not_booted_has_no_files() {
    let vm = VmManager::new(BoxConfig::default(), EventEmitter::new());
    assert!(matches!(vm.files(), Err(FilesError::NotBooted)));
    let dir = tempfile::tempdir().unwrap();
    let files = BoxFiles::of(&BoxDir::new(dir.path(), &"demo".parse().unwrap()));
    let found = files.stat("/", true).await;
    assert!(matches!(found, Err(FilesError::Unreachable { .. })), "{found:?}");
}

/// A guest that answers each `Pack` with these bytes and this status.
struct Hostile {
    archive: Vec<u8>,
    status: Option<Status>,
    is_endless: bool,
}

type Answers<T> = tokio_stream::wrappers::ReceiverStream<Result<T, Status>>;

#[tonic::async_trait]
impl Files for Hostile {
    type ListStream = Answers<ListResponse>;
    type ReadStream = Answers<ReadResponse>;
    type PackStream = Answers<PackResponse>;

    async fn pack(&self, _: Request<PackRequest>) -> Result<Response<Self::PackStream>, Status> {
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        let parts = self.archive.chunks(60_000).map(<[u8]>::to_vec).collect::<Vec<_>>();
        let (status, is_endless) = (self.status.clone(), self.is_endless);
        tokio::spawn(async move {
            loop {
                for data in &parts {
                    if sender.send(Ok(PackResponse { data: data.clone() })).await.is_err() {
                        return;
                    }
                }
                if !is_endless {
                    break;
                }
            }
            if let Some(status) = status {
                drop(sender.send(Err(status)).await);
            }
        });
        Ok(Response::new(Answers::new(receiver)))
    }

    async fn stat(&self, _: Request<StatRequest>) -> Result<Response<StatResponse>, Status> {
        Ok(Response::new(StatResponse { entry: None }))
    }

    async fn list(&self, _: Request<ListRequest>) -> Result<Response<Self::ListStream>, Status> {
        Err(Status::unimplemented("not used"))
    }

    async fn read(&self, _: Request<ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            let message = Some(read_response::Message::Data(vec![0; 1000]));
            while sender.send(Ok(ReadResponse { message: message.clone() })).await.is_ok() {}
        });
        Ok(Response::new(Answers::new(receiver)))
    }

    async fn write(
        &self,
        _: Request<Streaming<WriteRequest>>,
    ) -> Result<Response<WriteResponse>, Status> {
        Err(Status::unimplemented("not used"))
    }

    async fn make_directory(
        &self,
        _: Request<MakeDirectoryRequest>,
    ) -> Result<Response<MakeDirectoryResponse>, Status> {
        Err(Status::unimplemented("not used"))
    }

    async fn remove(&self, _: Request<RemoveRequest>) -> Result<Response<RemoveResponse>, Status> {
        Err(Status::unimplemented("not used"))
    }

    async fn rename(&self, _: Request<RenameRequest>) -> Result<Response<RenameResponse>, Status> {
        Err(Status::unimplemented("not used"))
    }

    async fn unpack(
        &self,
        _: Request<Streaming<UnpackRequest>>,
    ) -> Result<Response<UnpackResponse>, Status> {
        Err(Status::unimplemented("not used"))
    }
}

/// Serves a hostile guest, and returns its client and a directory for copies.
fn serve(hostile: Hostile) -> (BoxFiles, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let directory = BoxDir::new(&dir.path().join("state"), &"demo".parse().unwrap());
    fs::create_dir_all(directory.path()).unwrap();
    fs::create_dir(dir.path().join("copies")).unwrap();
    let listener = UnixListener::bind(directory.exec_socket()).unwrap();
    let server = Server::builder().add_service(FilesServer::new(hostile));
    tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
    (BoxFiles::of(&directory), dir)
}

/// An archive of files with these names and link targets. A file with a target is a link.
fn archive(entries: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (name, link) in entries {
        let mut header = Header::new_ustar();
        let kind = if link.is_empty() { EntryType::Regular } else { EntryType::Symlink };
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(0);
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        builder.append(&header, std::io::empty()).unwrap();
    }
    builder.into_inner().unwrap()
}

#[tokio::test]
async fn archives_of_a_hostile_guest_are_refused_and_leave_nothing() {
    let good = archive(&[("content", "")]);
    let limits = CopyLimits { entries: 1000, bytes: 1 << 20, depth: 10 };
    let headers = good[..512].to_vec();
    let changed = Status::aborted("a file changed");
    let cases: [(&str, Vec<u8>, Option<Status>, bool); 8] = [
        ("no file", archive(&[]), None, false),
        ("another name", archive(&[("other", "")]), None, false),
        ("names outside", archive(&[("../content", "up"), ("/x", "")]), None, false),
        ("bytes after the archive", [good.as_slice(), &[1]].concat(), None, false),
        ("cut off", good[..300].to_vec(), None, false),
        ("a status after it", good.clone(), Some(changed), false),
        ("entries without end", headers, None, true),
        ("garbage without end", vec![7; 50_000], None, true),
    ];
    for (name, archive, status, is_endless) in cases {
        let (files, dir) = serve(Hostile { archive, status, is_endless });
        let destination = dir.path().join("copies/copy");
        let copied = in_time(files.copy_out("/x", &destination, &limits)).await;
        let links_out = name == "names outside";
        assert_eq!(copied.is_ok(), links_out, "{name}: {copied:?}");
        let left = names(&dir.path().join("copies"));
        assert_eq!(left, if links_out { vec!["copy"] } else { vec![] }, "{name}");
        assert_eq!(names(dir.path()), ["copies", "state"], "{name}");
    }
}

#[tokio::test]
async fn a_guest_that_sends_more_than_was_asked_for_is_given_up() {
    let (files, _dir) = serve(Hostile { archive: vec![], status: None, is_endless: false });
    let read = in_time(files.read("/x", 5000)).await;
    assert!(matches!(read, Err(FilesError::Protocol { .. })), "{read:?}");
    let found = in_time(files.stat("/x", true)).await;
    assert!(matches!(found, Err(FilesError::Protocol { .. })), "{found:?}");
}

#[tokio::test]
async fn a_copy_that_is_dropped_leaves_nothing() {
    let zeros = archive(&[("content", "")]);
    let mut header = Header::from_byte_slice(&zeros[..512]).clone();
    header.set_size(1 << 40);
    header.set_cksum();
    let body = [header.as_bytes().as_slice(), &[7; 100 << 10]].concat();
    let (files, dir) = serve(Hostile { archive: body, status: None, is_endless: true });
    let copies = dir.path().join("copies");
    let limits = CopyLimits { bytes: 1 << 50, ..CopyLimits::default() };
    let destination = copies.join("copy");
    let copy = tokio::spawn(async move { files.copy_out("/x", &destination, &limits).await });
    in_time(async {
        while names(&copies).is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
        copy.abort();
        while !names(&copies).is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    })
    .await;
}
