//! Tests of the service by gRPC clients over a socket pair, with files of a temporary directory.
//! They need root, because calls act as other users.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;
use std::time::Duration;

use a3s_box_proto::files::files_client::FilesClient;
use a3s_box_proto::files::{
    Entry, Failed, FailureKind, FileType, Finish, ListRequest, MakeDirectoryRequest, Owner,
    ReadRequest, RemoveRequest, RenameRequest, Scope, StatRequest, WriteRequest, WriteStart,
    read_response, write_request,
};
use hyper_util::rt::TokioIo;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use prost::Message;
use tempfile::TempDir;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::sleep;
use tonic::Status;
use tonic::codegen::tokio_stream::{self, StreamExt, wrappers::ReceiverStream};
use tonic::transport::{Channel, Endpoint, Server};

use super::channel::CHUNK_BYTES;
use super::server;

mod archives;

/// A user without an entry in the host's `/etc/passwd`, so that it has no further groups.
const USER: u32 = 54321;

/// A client of the service, and the directory that is the root of its calls.
struct Guest {
    client: FilesClient<Channel>,
    outside: TempDir,
}

impl Guest {
    async fn new() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "this test needs root");
        let outside = tempfile::tempdir().unwrap();
        fs::set_permissions(outside.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(outside.path().join("root")).unwrap();
        fs::write(outside.path().join("secret"), "secret").unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let incoming = tokio_stream::iter([Ok::<_, io::Error>(theirs)]);
        let incoming = incoming.chain(tokio_stream::pending());
        tokio::spawn(Server::builder().add_service(server()).serve_with_incoming(incoming));
        let mut ours = Some(TokioIo::new(ours));
        let channel = Endpoint::from_static("http://guest")
            .connect_with_connector(tower::service_fn(move |_| {
                let stream = ours.take();
                async move { stream.ok_or_else(|| io::Error::other("one connection only")) }
            }))
            .await
            .unwrap();
        Self { client: FilesClient::new(channel), outside }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.outside.path().join("root").join(name)
    }

    fn scope(&self, user: &str) -> Option<Scope> {
        Some(Scope { user: user.into(), root: self.path("").as_os_str().as_bytes().to_vec() })
    }

    fn names(&self, directory: &str) -> BTreeSet<String> {
        let names = fs::read_dir(self.path(directory)).unwrap();
        names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    async fn stat(&mut self, path: &str, follow: bool) -> Result<Entry, Status> {
        let request = StatRequest { scope: self.scope(""), path: path.into(), follow };
        Ok(self.client.stat(request).await?.into_inner().entry.unwrap())
    }

    async fn read(&mut self, request: ReadRequest) -> Result<(Entry, Vec<u8>), Status> {
        let mut answers = self.client.read(request).await?.into_inner();
        let first = answers.message().await?.unwrap().message;
        let Some(read_response::Message::Entry(entry)) = first else { panic!("{first:?}") };
        let mut content = Vec::new();
        while let Some(answer) = answers.message().await? {
            let Some(read_response::Message::Data(data)) = answer.message else { panic!() };
            assert!(data.len() <= CHUNK_BYTES);
            content.extend(data);
        }
        Ok((entry, content))
    }

    fn start(&self, path: &str) -> WriteStart {
        WriteStart { scope: self.scope(""), path: path.into(), ..WriteStart::default() }
    }

    async fn write(&mut self, start: WriteStart, content: &[u8]) -> Result<u64, Status> {
        let mut messages = vec![write_request::Message::Start(start)];
        messages.extend(content.chunks(CHUNK_BYTES).map(data));
        messages.push(write_request::Message::Finish(Finish { bytes: content.len() as u64 }));
        self.write_messages(messages).await
    }

    async fn write_messages(
        &mut self,
        messages: Vec<write_request::Message>,
    ) -> Result<u64, Status> {
        let requests = messages.into_iter().map(|message| WriteRequest { message: Some(message) });
        let answer = self.client.write(tokio_stream::iter(requests)).await?;
        Ok(answer.into_inner().bytes)
    }

    async fn remove(&mut self, path: &str, recursive: bool) -> Result<(), Status> {
        let request = RemoveRequest { scope: self.scope(""), path: path.into(), recursive };
        self.client.remove(request).await.map(drop)
    }

    /// Starts a write that waits for its client, and returns once the temporary file exists.
    async fn stalled_write(&self, path: &str) -> mpsc::Sender<WriteRequest> {
        let before = self.names("").len();
        let (sender, receiver) = mpsc::channel(4);
        let mut client = self.client.clone();
        let start = self.start(path);
        tokio::spawn(async move { client.write(ReceiverStream::new(receiver)).await });
        for message in [write_request::Message::Start(start), data(b"part")] {
            sender.send(WriteRequest { message: Some(message) }).await.unwrap();
        }
        while self.names("").len() == before {
            sleep(Duration::from_millis(5)).await;
        }
        sender
    }
}

fn data(part: &[u8]) -> write_request::Message {
    write_request::Message::Data(part.to_vec())
}

/// Returns the failure that the details of a status describe.
fn failed(status: &Status) -> Failed {
    Failed::decode(status.details()).unwrap()
}

fn kind<T: std::fmt::Debug>(result: Result<T, Status>) -> FailureKind {
    failed(&result.unwrap_err()).kind()
}

#[tokio::test]
async fn no_path_leads_out_of_the_root() {
    let mut guest = Guest::new().await;
    let secret = guest.outside.path().join("secret");
    symlink(&secret, guest.path("absolute")).unwrap();
    symlink("../secret", guest.path("relative")).unwrap();
    symlink(guest.outside.path(), guest.path("directory")).unwrap();
    symlink("..", guest.path("up")).unwrap();
    let long = format!("{}secret", "../".repeat(40));
    for path in
        ["absolute", "relative", "directory/secret", "up/secret", "../secret", "/../secret", &long]
    {
        assert_eq!(kind(guest.stat(path, true).await), FailureKind::NotFound, "{path}");
        let request =
            ReadRequest { scope: guest.scope(""), path: path.into(), ..Default::default() };
        assert_eq!(kind(guest.read(request).await), FailureKind::NotFound, "{path}");
    }
    for path in ["directory/new", "../new", "up/../../new"] {
        let written = guest.write(guest.start(path), b"x").await;
        if path == "directory/new" {
            assert_eq!(kind(written), FailureKind::NotFound);
        } else {
            written.unwrap();
        }
        assert!(!guest.outside.path().join("new").exists());
    }
    assert_eq!(guest.names(""), set(&["absolute", "directory", "new", "relative", "up"]));
    let link = guest.stat("absolute", false).await.unwrap();
    assert_eq!(
        (link.r#type(), link.link.as_slice()),
        (FileType::Symlink, secret.as_os_str().as_bytes())
    );
    guest.remove("absolute", true).await.unwrap();
    assert!(secret.exists() && !guest.names("").contains("absolute"));
}

#[tokio::test]
async fn links_of_procfs_to_the_files_of_processes_are_not_followed() {
    let mut guest = Guest::new().await;
    for path in ["/proc/self/root/etc", "/proc/self/cwd", "/proc/self/exe"] {
        let request = StatRequest { scope: None, path: path.into(), follow: true };
        let found = guest.client.stat(request).await;
        assert_eq!(kind(found), FailureKind::Link, "{path}");
    }
}

#[tokio::test]
async fn a_directory_of_100_000_entries_comes_in_pages() {
    let mut guest = Guest::new().await;
    fs::create_dir(guest.path("many")).unwrap();
    for number in 0..100_000 {
        fs::File::create(guest.path(&format!("many/{number}"))).unwrap();
    }
    let request = ListRequest { scope: guest.scope(""), path: "many".into() };
    let mut pages = guest.client.list(request).await.unwrap().into_inner();
    let mut names = BTreeSet::new();
    while let Some(page) = pages.message().await.unwrap() {
        assert!(page.encoded_len() <= CHUNK_BYTES);
        for entry in page.entries {
            assert_eq!((entry.r#type(), entry.mode), (FileType::Regular, 0o644));
            assert!(names.insert(entry.name));
        }
    }
    assert_eq!(names.len(), 100_000);
    assert!(names.contains(b"99999".as_slice()));
    guest.remove("many", true).await.unwrap();
    assert!(guest.names("").is_empty());
}

#[tokio::test]
async fn a_part_of_a_large_file_is_read_alone() {
    const GIB: u64 = 1 << 30;
    let mut guest = Guest::new().await;
    let file = fs::File::create(guest.path("sparse")).unwrap();
    file.set_len(GIB).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"in the middle", GIB / 2).unwrap();
    let request = |offset, length| ReadRequest {
        scope: Some(Scope { user: String::new(), root: Vec::new() }),
        path: guest.path("sparse").as_os_str().as_bytes().to_vec(),
        offset,
        length,
    };
    let cases = [
        (request(GIB / 2 + 3, Some(3)), b"the".to_vec()),
        (request(GIB / 2, Some(200_000)), [b"in the middle".as_slice(), &[0; 199_987]].concat()),
        (request(GIB - 4, None), vec![0; 4]),
        (request(GIB - 4, Some(u64::MAX)), vec![0; 4]),
        (request(GIB, None), Vec::new()),
        (request(0, Some(0)), Vec::new()),
    ];
    for (request, expected) in cases {
        let (entry, content) = guest.read(request.clone()).await.unwrap();
        assert_eq!(entry.size_bytes, GIB);
        assert!(content == expected, "{request:?}: {} bytes", content.len());
    }
}

#[tokio::test]
async fn a_written_file_replaces_the_name_at_once_with_mode_and_owner() {
    let mut guest = Guest::new().await;
    let content = vec![7; 3 * CHUNK_BYTES + 1];
    let written = guest.write(guest.start("file"), &content).await.unwrap();
    assert_eq!(written, content.len() as u64);
    assert_eq!(fs::read(guest.path("file")).unwrap(), content);
    let mode_and_owner = |guest: &Guest, name: &str| {
        let found = fs::symlink_metadata(guest.path(name)).unwrap();
        (found.mode() & 0o7777, found.uid(), found.gid())
    };
    assert_eq!(mode_and_owner(&guest, "file"), (0o644, 0, 0));
    let owner = Some(Owner { uid: USER, gid: 7 });
    let start = WriteStart { mode: Some(0o4711), owner, ..guest.start("file") };
    guest.write(start, b"x").await.unwrap();
    assert_eq!(mode_and_owner(&guest, "file"), (0o4711, USER, 7));
    // The owner stays, but the content of another writer does not run as the owner.
    guest.write(guest.start("file"), b"y").await.unwrap();
    assert_eq!(mode_and_owner(&guest, "file"), (0o711, USER, 7));
    let start = WriteStart { keep_existing: true, ..guest.start("file") };
    assert_eq!(kind(guest.write(start, b"z").await), FailureKind::Exists);
    assert_eq!(fs::read(guest.path("file")).unwrap(), b"y");
    symlink("file", guest.path("link")).unwrap();
    guest.write(guest.start("link"), b"z").await.unwrap();
    assert_eq!(fs::read(guest.path("file")).unwrap(), b"y");
    assert!(fs::symlink_metadata(guest.path("link")).unwrap().is_file());
    assert_eq!(guest.names(""), set(&["file", "link"]));
}

#[tokio::test]
async fn a_write_that_is_not_finished_leaves_nothing() {
    let mut guest = Guest::new().await;
    let start = || write_request::Message::Start(guest.start("file"));
    let cases = [
        vec![start()],
        vec![start(), data(b"abc")],
        vec![start(), data(b"abc"), write_request::Message::Finish(Finish { bytes: 2 })],
        vec![start(), data(b"abc"), start()],
        vec![data(b"abc")],
        vec![],
    ];
    for messages in cases {
        let written = guest.write_messages(messages.clone()).await;
        assert_eq!(kind(written), FailureKind::InvalidRequest, "{messages:?}");
        assert!(guest.names("").is_empty(), "{messages:?}");
    }
}

#[tokio::test]
async fn a_write_whose_client_disappears_leaves_nothing() {
    let guest = Guest::new().await;
    fs::write(guest.path("file"), "before").unwrap();
    let (sender, receiver) = mpsc::channel(4);
    let mut client = guest.client.clone();
    let call = tokio::spawn(async move { client.write(ReceiverStream::new(receiver)).await });
    for message in [write_request::Message::Start(guest.start("file")), data(b"part")] {
        sender.send(WriteRequest { message: Some(message) }).await.unwrap();
    }
    while guest.names("").len() == 1 {
        sleep(Duration::from_millis(5)).await;
    }
    // Dropping the call resets the stream.
    call.abort();
    while guest.names("").len() > 1 {
        sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(fs::read(guest.path("file")).unwrap(), b"before");
}

#[tokio::test]
async fn calls_act_as_their_user() {
    let mut guest = Guest::new().await;
    fs::write(guest.path("private"), "x").unwrap();
    fs::set_permissions(guest.path("private"), fs::Permissions::from_mode(0o600)).unwrap();
    let user = USER.to_string();
    let request =
        ReadRequest { scope: guest.scope(&user), path: "private".into(), ..Default::default() };
    assert_eq!(kind(guest.read(request).await), FailureKind::PermissionDenied);
    let start = WriteStart { scope: guest.scope(&user), ..guest.start("new") };
    assert_eq!(kind(guest.write(start.clone(), b"x").await), FailureKind::PermissionDenied);
    fs::set_permissions(guest.path(""), fs::Permissions::from_mode(0o777)).unwrap();
    guest.write(start.clone(), b"x").await.unwrap();
    assert_eq!(fs::metadata(guest.path("new")).unwrap().uid(), USER);
    let start = WriteStart { owner: Some(Owner { uid: 0, gid: 0 }), ..start };
    assert_eq!(kind(guest.write(start, b"x").await), FailureKind::PermissionDenied);
    let start = WriteStart { scope: guest.scope("no-such-user"), ..guest.start("new") };
    assert_eq!(kind(guest.write(start, b"x").await), FailureKind::NoSuchUser);
    assert_eq!(guest.names(""), set(&["new", "private"]));
}

#[tokio::test]
async fn failures_of_the_kernel_are_typed() {
    let mut guest = Guest::new().await;
    fs::create_dir_all(guest.path("directory/below")).unwrap();
    fs::write(guest.path("file"), "x").unwrap();
    symlink("loop", guest.path("loop")).unwrap();
    let long = "n".repeat(256);
    let longer = "n/".repeat(2048);
    for (path, expected) in [
        ("missing", FailureKind::NotFound),
        ("missing/file", FailureKind::NotFound),
        ("file/file", FailureKind::NotADirectory),
        ("loop", FailureKind::Link),
        (&long, FailureKind::TooLong),
        (&longer, FailureKind::TooLong),
        ("", FailureKind::InvalidRequest),
        ("a\0b", FailureKind::InvalidRequest),
    ] {
        let status = guest.stat(path, true).await.unwrap_err();
        assert_eq!(failed(&status).kind(), expected, "{path:?}");
        assert_eq!(failed(&status).path, path.as_bytes());
    }
    let directory = |path: &str, parents| MakeDirectoryRequest {
        scope: guest.scope(""),
        path: path.into(),
        mode: None,
        parents,
    };
    let mut client = guest.client.clone();
    let mut make = async |request| kind(client.make_directory(request).await);
    assert_eq!(make(directory("directory", false)).await, FailureKind::Exists);
    assert_eq!(make(directory("file", true)).await, FailureKind::NotADirectory);
    assert_eq!(make(directory("a/b", false)).await, FailureKind::NotFound);
    assert_eq!(make(directory("..", false)).await, FailureKind::InvalidRequest);
    guest.client.make_directory(directory("a/../b/c/", true)).await.unwrap();
    assert!(guest.path("b/c").is_dir());
    assert_eq!(kind(guest.remove("directory", false).await), FailureKind::NotEmpty);
    assert_eq!(kind(guest.remove("/", true).await), FailureKind::InvalidRequest);
    let start = guest.start("directory");
    assert_eq!(kind(guest.write(start, b"x").await), FailureKind::IsADirectory);
    let request =
        ReadRequest { scope: guest.scope(""), path: "directory".into(), ..Default::default() };
    assert_eq!(kind(guest.read(request).await), FailureKind::IsADirectory);
    let request = ReadRequest { path: "/dev/null".into(), ..Default::default() };
    assert_eq!(kind(guest.read(request).await), FailureKind::NotARegularFile);
}

#[tokio::test]
async fn a_rename_replaces_only_if_asked() {
    let mut guest = Guest::new().await;
    fs::write(guest.path("a"), "a").unwrap();
    fs::write(guest.path("b"), "b").unwrap();
    let scope = guest.scope("");
    let request = |keep_existing| RenameRequest {
        scope: scope.clone(),
        from: "a".into(),
        to: "b".into(),
        keep_existing,
    };
    assert_eq!(kind(guest.client.rename(request(true)).await), FailureKind::Exists);
    assert_eq!(fs::read(guest.path("b")).unwrap(), b"b");
    guest.client.rename(request(false)).await.unwrap();
    assert_eq!(fs::read(guest.path("b")).unwrap(), b"a");
    assert_eq!(kind(guest.client.rename(request(false)).await), FailureKind::NotFound);
}

#[tokio::test]
async fn the_number_of_calls_is_limited_and_comes_back() {
    let mut guest = Guest::new().await;
    let mut writes = Vec::new();
    for number in 0..32 {
        writes.push(guest.stalled_write(&format!("file{number}")).await);
    }
    assert_eq!(kind(guest.stat("/", true).await), FailureKind::TooManyCalls);
    drop(writes);
    while guest.stat("/", true).await.is_err() {
        sleep(Duration::from_millis(5)).await;
    }
    // The first free call comes before the others have removed their files.
    while !guest.names("").is_empty() {
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_child_that_is_killed_is_told_from_other_failures() {
    let guest = Guest::new().await;
    let (sender, receiver) = mpsc::channel(4);
    let mut client = guest.client.clone();
    let message = Some(write_request::Message::Start(guest.start("file")));
    sender.send(WriteRequest { message }).await.unwrap();
    let call = tokio::spawn(async move { client.write(ReceiverStream::new(receiver)).await });
    while guest.names("").is_empty() {
        sleep(Duration::from_millis(5)).await;
    }
    // The name of the temporary file has the PID of the child.
    let name = guest.names("").pop_first().unwrap();
    let pid: i32 = name.split('-').nth(3).unwrap().parse().unwrap();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    assert_eq!(kind(call.await.unwrap()), FailureKind::Killed);
    drop(sender);
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}
