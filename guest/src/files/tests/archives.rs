//! Tests of `Pack` and `Unpack`.

use std::os::unix::net::UnixListener;

use a3s_box_proto::files::{
    PackRequest, UnpackRequest, UnpackResponse, UnpackStart, unpack_request,
};
use nix::sys::stat::Mode as NixMode;
use nix::unistd::mkfifo;
use rustix::fs::{XattrFlags, getxattr, setxattr};
use tar::{Archive, Builder, EntryType, Header};

use super::*;

/// Size of a file that does not fit into the buffers between the child and a client.
const LARGE: u64 = 32 << 20;

impl Guest {
    async fn pack(&mut self, path: &str) -> (Vec<u8>, Result<(), Status>) {
        let request = PackRequest { scope: self.scope(""), path: path.into(), name: Vec::new() };
        let mut answers = self.client.pack(request).await.unwrap().into_inner();
        let mut archive = Vec::new();
        loop {
            match answers.message().await {
                Ok(Some(answer)) => {
                    assert!(answer.data.len() <= CHUNK_BYTES);
                    archive.extend(answer.data);
                }
                Ok(None) => return (archive, Ok(())),
                Err(status) => return (archive, Err(status)),
            }
        }
    }

    async fn unpack(
        &mut self,
        path: &str,
        archive: &[u8],
        keep_owners: bool,
    ) -> Result<UnpackResponse, Status> {
        let start = UnpackStart { scope: self.scope(""), path: path.into(), keep_owners };
        let mut messages = vec![unpack_request::Message::Start(start)];
        let chunks = archive.chunks(CHUNK_BYTES);
        messages.extend(chunks.map(|part| unpack_request::Message::Data(part.to_vec())));
        let finish = Finish { bytes: archive.len() as u64 };
        messages.push(unpack_request::Message::Finish(finish));
        let requests = messages.into_iter().map(|message| UnpackRequest { message: Some(message) });
        Ok(self.client.unpack(tokio_stream::iter(requests)).await?.into_inner())
    }
}

/// Name, type, target of a link, and content.
type TestEntry<'a> = (&'a [u8], EntryType, &'a [u8], &'a [u8]);

/// An archive of entries with the given names, types, link targets and contents.
fn archive(entries: &[TestEntry<'_>]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (name, kind, link, content) in entries {
        let mut header = Header::new_ustar();
        header.set_entry_type(*kind);
        header.set_mode(0o6755);
        header.set_uid(USER.into());
        header.set_gid(7);
        header.set_mtime(1);
        header.set_size(content.len() as u64);
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link);
        header.set_cksum();
        builder.append(&header, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

/// Returns the names in an archive with their types.
fn listed(archive: &[u8]) -> Vec<(String, EntryType)> {
    let mut archive = Archive::new(archive);
    let entries = archive.entries().unwrap().map(|entry| {
        let entry = entry.unwrap();
        (String::from_utf8_lossy(&entry.path_bytes()).into_owned(), entry.header().entry_type())
    });
    entries.collect()
}

#[tokio::test]
async fn a_packed_tree_is_the_same_when_it_is_unpacked() {
    let mut guest = Guest::new().await;
    fs::create_dir_all(guest.path("from/tree/below")).unwrap();
    fs::create_dir(guest.path("to")).unwrap();
    let long = format!("from/tree/below/{}", "n".repeat(200));
    fs::write(guest.path(&long), vec![3; 200_000]).unwrap();
    fs::hard_link(guest.path(&long), guest.path("from/tree/hard")).unwrap();
    fs::write(guest.path("from/tree/tool"), "tool").unwrap();
    std::os::unix::fs::chown(guest.path("from/tree/tool"), Some(3_000_000), Some(9)).unwrap();
    fs::set_permissions(guest.path("from/tree/tool"), fs::Permissions::from_mode(0o4751)).unwrap();
    let xattr = |path: PathBuf, name| {
        let mut value = [0; 100];
        getxattr(path, name, &mut value[..]).map(|length| value[..length].to_vec())
    };
    setxattr(guest.path("from/tree/tool"), "user.note", b"\0=\n", XattrFlags::empty()).unwrap();
    symlink("/absolute/target", guest.path("from/tree/link")).unwrap();
    mkfifo(&guest.path("from/tree/pipe"), NixMode::from_bits_truncate(0o600)).unwrap();
    let _socket = UnixListener::bind(guest.path("from/tree/socket")).unwrap();
    let odd = std::ffi::OsStr::from_bytes(b"from/tree/\xff");
    fs::write(guest.path("").join(odd), "odd").unwrap();
    fs::File::create(guest.path("from/tree/sparse")).unwrap().set_len(1 << 20).unwrap();

    let (packed, outcome) = guest.pack("from/tree").await;
    outcome.unwrap();
    let answer = guest.unpack("to", &packed, true).await.unwrap();
    assert_eq!(answer.entries, 9);
    assert_eq!(answer.bytes, 200_000 + 4 + 3 + (1 << 20));
    for name in ["", "/below", "/tool", "/link", "/pipe", "/sparse", "/hard"] {
        let of = |place: &str| {
            let found = fs::symlink_metadata(guest.path(&format!("{place}/tree{name}"))).unwrap();
            (found.mode(), found.uid(), found.gid(), found.mtime(), found.mtime_nsec())
        };
        assert_eq!(of("from"), of("to"), "{name}");
    }
    assert_eq!(fs::read(guest.path("to/tree/tool")).unwrap(), b"tool");
    assert_eq!(xattr(guest.path("to/tree/tool"), "user.note").unwrap(), b"\0=\n");
    let long = fs::metadata(guest.path(&long.replace("from", "to"))).unwrap();
    assert_eq!((long.len(), long.nlink()), (200_000, 2));
    assert_eq!(long.ino(), fs::metadata(guest.path("to/tree/hard")).unwrap().ino());
    assert!(fs::metadata(guest.path("to/tree/sparse")).unwrap().blocks() < 1000);
    assert!(!guest.path("to/tree/socket").exists());
    assert_eq!(
        fs::read(guest.path("to/tree").join(std::ffi::OsStr::from_bytes(b"\xff"))).unwrap(),
        b"odd"
    );

    fs::create_dir(guest.path("own")).unwrap();
    guest.unpack("own", &packed, false).await.unwrap();
    let found = fs::metadata(guest.path("own/tree/tool")).unwrap();
    assert_eq!((found.mode() & 0o7777, found.uid()), (0o751, 0));
}

#[tokio::test]
async fn a_file_that_changes_while_it_is_packed_keeps_its_size_and_is_named() {
    for (size, expected) in [(LARGE * 2, vec![0; 0]), (10, vec![0; 0]), (LARGE, vec![1])] {
        let mut guest = Guest::new().await;
        let file = fs::File::create(guest.path("file")).unwrap();
        file.set_len(LARGE).unwrap();
        let request =
            PackRequest { scope: guest.scope(""), path: "file".into(), name: b"x".into() };
        let mut answers = guest.client.pack(request).await.unwrap().into_inner();
        let mut packed = answers.message().await.unwrap().unwrap().data;
        // The child waits for this client, so it has not come to the end of the file.
        file.set_len(size).unwrap();
        if !expected.is_empty() {
            std::os::unix::fs::FileExt::write_all_at(&file, &expected, LARGE - 1).unwrap();
        }
        let status = loop {
            match answers.message().await {
                Ok(answer) => packed.extend(answer.unwrap().data),
                Err(status) => break status,
            }
        };
        assert_eq!(failed(&status).kind(), FailureKind::Changed, "{size}");
        assert_eq!(failed(&status).path, b"x");
        assert_eq!(listed(&packed), [("x".to_owned(), EntryType::Regular)]);
        assert_eq!(&packed[packed.len() - 1024..], [0; 1024]);
    }
}

#[tokio::test]
async fn a_directory_that_becomes_a_link_while_its_tree_is_packed_leads_nowhere() {
    let mut guest = Guest::new().await;
    for name in ["a", "b"] {
        fs::create_dir_all(guest.path(&format!("tree/{name}"))).unwrap();
        let large = fs::File::create(guest.path(&format!("tree/{name}/large"))).unwrap();
        large.set_len(LARGE).unwrap();
    }
    let request = PackRequest { scope: guest.scope(""), path: "tree".into(), name: Vec::new() };
    let mut answers = guest.client.pack(request).await.unwrap().into_inner();
    let mut packed = answers.message().await.unwrap().unwrap().data;
    while listed_so_far(&packed).len() < 3 {
        packed.extend(answers.message().await.unwrap().unwrap().data);
    }
    // The child waits for this client in the first of the two directories.
    let first = listed_so_far(&packed)[1].clone();
    let (open, other) =
        if first == "tree/a/" { ("tree/a", "tree/b") } else { ("tree/b", "tree/a") };
    for name in [open, other] {
        fs::rename(guest.path(name), guest.path(&name.replace("tree/", "moved-"))).unwrap();
        symlink(guest.outside.path(), guest.path(name)).unwrap();
    }
    while let Ok(Some(answer)) = answers.message().await {
        packed.extend(answer.data);
    }
    let names = listed(&packed);
    assert!(names.contains(&(other.to_owned(), EntryType::Symlink)), "{names:?}");
    assert!(!names.iter().any(|(name, _)| name.contains("secret")), "{names:?}");
}

/// Returns the names of the entries whose headers are complete.
fn listed_so_far(packed: &[u8]) -> Vec<String> {
    let mut archive = Archive::new(packed);
    let entries = archive.entries().unwrap().map_while(Result::ok);
    entries.map(|entry| String::from_utf8_lossy(&entry.path_bytes()).into_owned()).collect()
}

#[tokio::test]
async fn other_file_systems_are_not_packed() {
    let mut guest = Guest::new().await;
    let request = PackRequest { scope: None, path: "/dev".into(), name: b"dev".into() };
    let mut answers = guest.client.pack(request).await.unwrap().into_inner();
    let mut packed = Vec::new();
    while let Ok(Some(answer)) = answers.message().await {
        packed.extend(answer.data);
    }
    let names: Vec<String> = listed(&packed).into_iter().map(|(name, _)| name).collect();
    assert!(names.contains(&"dev/pts/".to_owned()) && names.contains(&"dev/null".to_owned()));
    assert!(!names.iter().any(|name| name.starts_with("dev/pts/p")), "{names:?}");
}

#[tokio::test]
async fn no_entry_of_an_archive_leaves_its_directory() {
    let outside = |guest: &Guest| {
        let names = fs::read_dir(guest.outside.path()).unwrap();
        let names: BTreeSet<_> = names.map(|entry| entry.unwrap().file_name()).collect();
        (names, fs::read(guest.outside.path().join("secret")).unwrap())
    };
    let file = EntryType::Regular;
    let cases: [(&[TestEntry<'_>], FailureKind); 9] = [
        (&[(b"../new", file, b"", b"x")], FailureKind::InvalidArchive),
        (&[(b"a/../../new", file, b"", b"x")], FailureKind::InvalidArchive),
        (
            &[(b"l", EntryType::Symlink, b"../..", b""), (b"l/new", file, b"", b"x")],
            FailureKind::Link,
        ),
        (&[(b"link/new", file, b"", b"x")], FailureKind::Link),
        (&[(b"link", EntryType::Directory, b"", b"")], FailureKind::NotADirectory),
        (&[(b"h", EntryType::Link, b"../../secret", b"")], FailureKind::InvalidArchive),
        (&[(b"h", EntryType::Link, b"link/secret", b"")], FailureKind::Link),
        (&[(b"d", EntryType::Char, b"", b"")], FailureKind::InvalidArchive),
        (&[(b"..", EntryType::Directory, b"", b"")], FailureKind::InvalidArchive),
    ];
    for (entries, expected) in cases {
        let mut guest = Guest::new().await;
        fs::create_dir(guest.path("to")).unwrap();
        symlink(guest.outside.path(), guest.path("to/link")).unwrap();
        let before = outside(&guest);
        let unpacked = guest.unpack("to", &archive(entries), true).await;
        // A link above an entry is no directory, or a link that must not be followed.
        let found = kind(unpacked);
        let is_expected = found == expected
            || (expected == FailureKind::Link && found == FailureKind::NotADirectory);
        assert!(is_expected, "{entries:?}: {found:?}");
        assert_eq!(outside(&guest), before, "{entries:?}");
    }
}

#[tokio::test]
async fn an_absolute_name_or_a_link_at_the_name_of_a_file_stays_inside() {
    let mut guest = Guest::new().await;
    fs::create_dir(guest.path("to")).unwrap();
    symlink(guest.outside.path().join("secret"), guest.path("to/file")).unwrap();
    let file = EntryType::Regular;
    let entries: &[TestEntry<'_>] =
        &[(b"/abs/deep", file, b"", b"x"), (b"./file", file, b"", b"y")];
    guest.unpack("to", &archive(entries), true).await.unwrap();
    assert_eq!(fs::read(guest.path("to/abs/deep")).unwrap(), b"x");
    assert_eq!(fs::read(guest.path("to/file")).unwrap(), b"y");
    assert_eq!(fs::read(guest.outside.path().join("secret")).unwrap(), b"secret");
}

#[tokio::test]
async fn an_archive_that_is_cut_off_is_refused() {
    let mut guest = Guest::new().await;
    let whole = archive(&[(b"file", EntryType::Regular, b"", &[1; 5000])]);
    for length in [100, 512, 3000] {
        let unpacked = guest.unpack("/", &whole[..length], false).await;
        assert_eq!(kind(unpacked), FailureKind::InvalidArchive, "{length}");
    }
    let request = UnpackRequest {
        message: Some(unpack_request::Message::Start(UnpackStart {
            scope: guest.scope(""),
            path: "/".into(),
            keep_owners: false,
        })),
    };
    let unpacked = guest.client.unpack(tokio_stream::iter([request])).await;
    assert_eq!(kind(unpacked), FailureKind::InvalidRequest);
}
