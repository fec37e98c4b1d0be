//! Reads a tree in a form that can be compared: a text for each property that an image can set.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::{self, Display, Formatter};
use std::fs::{self, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use a3s_box_oci::Digest;

/// Largest content that is shown as text. Of larger content, the size and a digest are shown.
const SHOWN_BYTES: usize = 40;

/// Maximum of Linux for the value of an attribute and for a list of names (`XATTR_SIZE_MAX` and
/// `XATTR_LIST_MAX`).
const XATTR_BYTES: usize = 64 * 1024;

/// Largest delay of the clock by which the kernel sets file times: one tick, which is 10 ms at
/// most.
const TICK: Duration = Duration::from_millis(10);

/// The time at which the tools of this test started. A file with a later time has the time of
/// unpacking, which is compared as `now`.
static START: LazyLock<SystemTime> = LazyLock::new(|| SystemTime::now() - TICK);

/// Kind of a name that `readdir(3)` returns, but `lstat(2)` does not find. Overlayfs lists the
/// device node of a whiteout in this way.
const GHOST: &str = "ghost";

/// Path of the root.
pub(crate) const ROOT: &str = "/";

/// A root and all files below it, by path. Bytes of a path that are not printable ASCII are
/// escaped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tree(BTreeMap<String, Node>);

/// The properties of one name.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Node {
    kind: String,
    mode: String,
    owner: String,
    mtime: String,
    xattrs: String,
    /// The content of a file, or the target of a symbolic link.
    content: String,
    /// The first name of the same inode, if the inode has several names.
    same_as: String,
}

impl Tree {
    /// Reads the tree at `root`.
    pub(crate) fn read(root: &Path) -> Self {
        let mut nodes = BTreeMap::new();
        let mut inodes: HashMap<(u64, u64), BTreeSet<String>> = HashMap::new();
        let mut pending = vec![root.to_owned()];
        while let Some(path) = pending.pop() {
            let name = match path.strip_prefix(root).unwrap().as_os_str().as_bytes() {
                b"" => ROOT.to_owned(),
                name => name.escape_ascii().to_string(),
            };
            let Ok(found) = fs::symlink_metadata(&path) else {
                nodes.insert(name, Node::ghost());
                continue;
            };
            if found.is_dir() {
                pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            } else {
                inodes.entry((found.dev(), found.ino())).or_default().insert(name.clone());
            }
            nodes.insert(name, Node::read(&path, &found));
        }
        for names in inodes.values().filter(|names| names.len() > 1) {
            for name in names {
                nodes.get_mut(name).unwrap().same_as = names.first().unwrap().clone();
            }
        }
        Self(nodes)
    }

    /// Returns the tree without the metadata of the root.
    pub(crate) fn without_root(&self) -> Self {
        let mut nodes = self.0.clone();
        nodes.remove(ROOT);
        Self(nodes)
    }

    /// Returns the tree without the times of directories.
    pub(crate) fn without_dir_times(mut self) -> Self {
        for node in self.0.values_mut().filter(|node| node.kind == "dir") {
            node.mtime.clear();
        }
        self
    }

    pub(crate) fn paths(&self) -> impl Iterator<Item = &String> {
        self.0.keys()
    }

    /// Returns a description of the file at `path`, or `absent`.
    pub(crate) fn describe(&self, path: &str) -> String {
        self.0.get(path).map_or_else(|| "absent".to_owned(), Node::to_string)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns the paths at which `other` differs, each with a description of the difference.
    pub(crate) fn differences(&self, other: &Self) -> BTreeMap<String, String> {
        let paths: BTreeSet<&String> = self.0.keys().chain(other.0.keys()).collect();
        let difference = |path: &String| match (self.0.get(path), other.0.get(path)) {
            (Some(_), None) => Some("absent".to_owned()),
            (None, Some(theirs)) => Some(theirs.kind.clone()),
            (Some(ours), Some(theirs)) if ours != theirs => Some(ours.difference(theirs)),
            _ => None,
        };
        paths.into_iter().filter_map(|path| Some((path.clone(), difference(path)?))).collect()
    }
}

impl Node {
    fn ghost() -> Self {
        let nothing = String::new;
        Self {
            kind: GHOST.to_owned(),
            mode: nothing(),
            owner: nothing(),
            mtime: nothing(),
            xattrs: nothing(),
            content: nothing(),
            same_as: nothing(),
        }
    }

    fn read(path: &Path, found: &Metadata) -> Self {
        let kind = found.file_type();
        let device = || format!("{}:{}", found.rdev() >> 8, found.rdev() & 0xff);
        let (kind, content) = if kind.is_file() {
            ("file".to_owned(), content_text(&fs::read(path).unwrap()))
        } else if kind.is_symlink() {
            let target = fs::read_link(path).unwrap();
            ("symlink".to_owned(), content_text(target.as_os_str().as_bytes()))
        } else if kind.is_dir() {
            ("dir".to_owned(), String::new())
        } else if kind.is_fifo() {
            ("fifo".to_owned(), String::new())
        } else if kind.is_char_device() {
            (format!("char {}", device()), String::new())
        } else {
            (format!("block {}", device()), String::new())
        };
        Self {
            kind,
            mode: format!("{:o}", found.mode() & 0o7777),
            owner: format!("{}:{}", found.uid(), found.gid()),
            mtime: mtime_text(found),
            xattrs: xattrs_text(path),
            content,
            same_as: String::new(),
        }
    }

    /// Returns all properties with their names.
    fn fields(&self) -> [(&'static str, &String); 7] {
        [
            ("kind", &self.kind),
            ("mode", &self.mode),
            ("owner", &self.owner),
            ("mtime", &self.mtime),
            ("xattrs", &self.xattrs),
            ("content", &self.content),
            ("same as", &self.same_as),
        ]
    }

    /// Returns the properties that differ, with the values of `other`.
    fn difference(&self, other: &Self) -> String {
        let pairs = self.fields().into_iter().zip(other.fields());
        let different = pairs.filter(|((_, ours), (_, theirs))| ours != theirs);
        different
            .map(|(_, (field, value))| format!("{field} {value}"))
            .collect::<Vec<_>>()
            .join(", ")
    }
}

impl Display for Node {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        if self.kind == GHOST {
            return formatter.write_str(GHOST);
        }
        let Self { kind, mode, owner, mtime, xattrs, content, same_as } = self;
        write!(formatter, "{kind} {mode} {owner} {mtime}")?;
        for (before, value) in [(" ", content), (" with ", xattrs), (" same as ", same_as)] {
            if !value.is_empty() {
                write!(formatter, "{before}{value}")?;
            }
        }
        Ok(())
    }
}

/// Returns a short text for the content of a file.
fn content_text(content: &[u8]) -> String {
    match content.len() {
        0..=SHOWN_BYTES => format!("`{}`", content.escape_ascii()),
        length => format!("{length} bytes {}", &Digest::of(content).hex()[..16]),
    }
}

/// Sets the start time of the tools to now.
pub(crate) fn record_start() {
    LazyLock::force(&START);
}

/// Returns the modification time in seconds, or `now` for the time of unpacking.
fn mtime_text(found: &Metadata) -> String {
    let modified = found.modified().unwrap();
    match (found.mtime(), found.mtime_nsec()) {
        _ if (*START..=SystemTime::now()).contains(&modified) => "now".to_owned(),
        (seconds, 0) => seconds.to_string(),
        (seconds, nanoseconds) => format!("{seconds}.{nanoseconds:09}"),
    }
}

/// Returns the extended attributes, sorted by name.
fn xattrs_text(path: &Path) -> String {
    let mut buffer = vec![0; XATTR_BYTES];
    let length = rustix::fs::llistxattr(path, &mut buffer).unwrap();
    let names: BTreeSet<Vec<u8>> = buffer[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(<[u8]>::to_vec)
        .collect();
    let value = |name: Vec<u8>| {
        let mut value = vec![0; XATTR_BYTES];
        let length = rustix::fs::lgetxattr(path, name.as_slice(), &mut value).unwrap();
        format!("{}={}", name.escape_ascii(), value[..length].escape_ascii())
    };
    names.into_iter().map(value).collect::<Vec<_>>().join(" ")
}
