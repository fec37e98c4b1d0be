//! `unpack_untrusted`: archives of a hostile box.

use std::fs;
use std::io::{self, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use a3s_box_oci::{LayerError, Limits, Unpacked, unpack_untrusted};
use tar::{Builder, EntryType, Header};
use tempfile::TempDir;

struct Entry<'a>(&'a str, EntryType, &'a str, &'a [u8]);

const FILE: EntryType = EntryType::Regular;
const LINK: EntryType = EntryType::Symlink;
const HARD: EntryType = EntryType::Link;
const DIRECTORY: EntryType = EntryType::Directory;

fn header(Entry(name, kind, link, content): &Entry<'_>) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(*kind);
    header.set_mode(0o7755);
    header.set_uid(12345);
    header.set_gid(12345);
    header.set_mtime(1000);
    header.set_size(content.len() as u64);
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_cksum();
    header
}

fn archive(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for entry in entries {
        builder.append(&header(entry), entry.3).unwrap();
    }
    builder.into_inner().unwrap()
}

/// A directory `to` in a directory with a file `secret`.
struct Host(TempDir);

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("to")).unwrap();
        fs::write(dir.path().join("secret"), "secret").unwrap();
        Self(dir)
    }

    fn to(&self) -> std::path::PathBuf {
        self.0.path().join("to")
    }

    fn unpack(&self, stream: impl Read, limits: &Limits) -> Result<Unpacked, LayerError> {
        let directory = OwnedFd::from(fs::File::open(self.to()).unwrap());
        let unpacked = unpack_untrusted(BufReader::new(stream), directory, limits);
        let mut names: Vec<_> =
            fs::read_dir(self.0.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["secret", "to"], "nothing was made beside the directory");
        assert_eq!(fs::read(self.0.path().join("secret")).unwrap(), b"secret");
        unpacked
    }
}

#[test]
fn files_belong_to_the_caller_without_privileges() {
    let host = Host::new();
    let bytes = archive(&[
        Entry("c", DIRECTORY, "", b""),
        Entry("c/file", FILE, "", b"content"),
        Entry("c/hard", HARD, "c/file", b""),
        Entry("c/link", LINK, "/etc/passwd", b""),
        Entry("c/pipe", EntryType::Fifo, "", b""),
        Entry("c/disk", EntryType::Block, "", b""),
        Entry("c/tty", EntryType::Char, "", b""),
        Entry("c/same", HARD, "c/disk", b""),
        Entry("c/.wh.file", FILE, "", b""),
    ]);
    let unpacked = host.unpack(bytes.as_slice(), &Limits::default()).unwrap();
    assert_eq!(unpacked, Unpacked { entries: 9, bytes: 7, skipped: 4 });
    let found = |name: &str| fs::symlink_metadata(host.to().join(name)).unwrap();
    let own = fs::metadata(host.0.path()).unwrap();
    for name in ["c", "c/file", "c/link", "c/.wh.file"] {
        assert_eq!((found(name).uid(), found(name).gid()), (own.uid(), own.gid()), "{name}");
        assert_eq!(found(name).mtime(), 1000, "{name}");
    }
    assert_eq!(found("c").mode() & 0o7777, 0o755);
    assert_eq!(found("c/file").mode() & 0o7777, 0o755);
    assert_eq!(found("c/file").ino(), found("c/hard").ino());
    assert_eq!(fs::read_link(host.to().join("c/link")).unwrap(), Path::new("/etc/passwd"));
    assert_eq!(fs::read_dir(host.to().join("c")).unwrap().count(), 4);
}

#[test]
fn no_name_and_no_link_leads_out_of_the_directory() {
    let cases: [(&str, &[Entry<'_>]); 9] = [
        ("parent", &[Entry("../secret", FILE, "", b"x")]),
        ("absolute", &[Entry("/secret", FILE, "", b"x")]),
        ("deep", &[Entry("a/../../../secret", FILE, "", b"x")]),
        ("link", &[Entry("l", LINK, "..", b""), Entry("l/secret", FILE, "", b"x")]),
        ("absolute link", &[Entry("l", LINK, "/tmp", b""), Entry("l/x", FILE, "", b"x")]),
        (
            "links",
            &[
                Entry("a", DIRECTORY, "", b""),
                Entry("a/b", LINK, "../..", b""),
                Entry("c", LINK, "a/b/..", b""),
                Entry("c/secret", FILE, "", b"x"),
            ],
        ),
        (
            "replaced",
            &[
                Entry("d", DIRECTORY, "", b""),
                Entry("d", LINK, "..", b""),
                Entry("d/secret", FILE, "", b"x"),
            ],
        ),
        ("over a link", &[Entry("l", LINK, "../secret", b""), Entry("l", FILE, "", b"x")]),
        ("time", &[Entry("l", LINK, "..", b""), Entry("l", DIRECTORY, "", b"")]),
    ];
    for (name, entries) in cases {
        let host = Host::new();
        let before = fs::metadata(host.0.path()).unwrap();
        // Whether the archive is refused or kept inside, `unpack` checks what is outside.
        let unpacked = host.unpack(archive(entries).as_slice(), &Limits::default());
        assert!(unpacked.is_ok(), "{name}: {unpacked:?}");
        let after = fs::metadata(host.0.path()).unwrap();
        assert_eq!((before.mode(), before.mtime()), (after.mode(), after.mtime()), "{name}");
    }
    let hard_links: [&[Entry<'_>]; 3] = [
        &[Entry("h", HARD, "../secret", b"")],
        &[Entry("l", LINK, "..", b""), Entry("h", HARD, "l/secret", b"")],
        &[Entry("h", HARD, "/etc/passwd", b"")],
    ];
    for entries in hard_links {
        let unpacked = Host::new().unpack(archive(entries).as_slice(), &Limits::default());
        assert!(matches!(unpacked, Err(LayerError::Entry { .. })), "{unpacked:?}");
    }
}

#[test]
fn a_link_that_was_there_before_is_not_followed() {
    let host = Host::new();
    symlink("..", host.to().join("up")).unwrap();
    host.unpack(archive(&[Entry("up/secret", FILE, "", b"x")]).as_slice(), &Limits::default())
        .unwrap();
}

#[test]
fn limits_hold_for_entries_bytes_depth_and_memory() {
    let limits = Limits {
        entries: 10,
        unpacked_bytes: 100_000,
        path_depth: 5,
        remembered_bytes: 1000,
        ..Limits::default()
    };
    let files: Vec<String> = (0..11).map(|number| number.to_string()).collect();
    let many: Vec<Entry<'_>> = files.iter().map(|name| Entry(name, FILE, "", b"")).collect();
    let names = ["d"; 9].map(|letter| letter.repeat(90));
    let directories: Vec<Entry<'_>> =
        (0..9).map(|index| Entry(&names[index][..80 + index], DIRECTORY, "", b"")).collect();
    // A header that declares an exabyte, of which nothing follows.
    let mut huge = header(&Entry("huge", FILE, "", b""));
    huge.set_size(1 << 60);
    huge.set_cksum();
    let cases: [(&str, Vec<u8>); 4] = [
        ("entries", archive(&many)),
        ("unpacked bytes", archive(&[Entry("f", FILE, "", &[1; 100_001])])),
        ("unpacked bytes", huge.as_bytes().to_vec()),
        ("bytes of directory names", archive(&directories)),
    ];
    for (expected, bytes) in cases {
        let host = Host::new();
        match host.unpack(bytes.as_slice(), &limits) {
            Err(LayerError::Limit { what, .. }) => assert_eq!(what, expected),
            other => panic!("{expected}: {other:?}"),
        }
        let files = fs::read_dir(host.to()).unwrap().flatten();
        let taken: u64 = files.map(|file| file.metadata().unwrap().blocks() * 512).sum();
        assert!(taken <= 300_000, "{expected}: {taken} bytes");
    }
    let deep = archive(&[Entry("1/2/3/4/5/6", FILE, "", b"")]);
    assert!(matches!(Host::new().unpack(deep.as_slice(), &limits), Err(LayerError::Entry { .. })));
}

#[test]
fn an_archive_without_end_is_given_up() {
    /// Repeats the headers of one entry.
    struct Endless(Vec<u8>, usize);

    impl Read for Endless {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = self.0[self.1..].as_ref().read(buffer)?;
            self.1 = (self.1 + count) % self.0.len();
            Ok(count)
        }
    }

    let limits = Limits { entries: 1000, unpacked_bytes: 1 << 20, ..Limits::default() };
    for entry in [Entry("f", FILE, "", b""), Entry("", EntryType::XGlobalHeader, "", b"9 a=bcde\n")]
    {
        let mut bytes = archive(&[entry]);
        bytes.truncate(bytes.len() - 1024);
        let unpacked = Host::new().unpack(Endless(bytes, 0), &limits);
        assert!(matches!(unpacked, Err(LayerError::Limit { .. })), "{unpacked:?}");
    }
}

#[test]
fn a_malformed_archive_is_an_error() {
    let whole = archive(&[Entry("file", FILE, "", &[7; 3000])]);
    for length in [1, 511, 513, 2000] {
        let unpacked = Host::new().unpack(&whole[..length], &Limits::default());
        assert!(matches!(unpacked, Err(LayerError::Archive { .. })), "{length}: {unpacked:?}");
    }
}

#[test]
fn a_directory_that_nobody_may_enter_can_be_unpacked_and_removed() {
    let host = Host::new();
    let mut locked = header(&Entry("d", DIRECTORY, "", b""));
    locked.set_mode(0);
    locked.set_cksum();
    let mut bytes = locked.as_bytes().to_vec();
    bytes.extend(archive(&[Entry("d/f", FILE, "", b"x")]));
    host.unpack(bytes.as_slice(), &Limits::default()).unwrap();
    let found = fs::metadata(host.to().join("d")).unwrap();
    assert_eq!(found.permissions().mode() & 0o7777, 0o700);
}
