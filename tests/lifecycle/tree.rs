//! Trees of files: reads them from a file system and compares them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// A directory and all files below it by relative path. The path of the directory itself is empty.
///
/// Paths are strings, because comparing a `Path` parses its components and is much slower.
pub(crate) type Tree = BTreeMap<String, Node>;

/// A file of any kind.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) mtime_s: i64,
    /// Number of hard links of a regular file. It is 1 for all other files, because file systems
    /// count the links of directories in different ways.
    pub(crate) links: u64,
    pub(crate) xattrs: Vec<(String, Vec<u8>)>,
}

/// Type and content of a file.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    File(Vec<u8>),
    Symlink(PathBuf),
    Fifo,
    /// Any other file, with its device number.
    Device(u64),
}

/// Reads the tree at `root` without following symbolic links.
pub(crate) fn read(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let found = fs::symlink_metadata(&path)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let kind = kind(&path, &found);
        if kind == Kind::Directory {
            pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        let xattrs = xattrs(&path);
        // Both forms of an overlayfs whiteout. The image gives no modification time for it, so it
        // has the time at which it was made, which differs from start to start.
        let is_whiteout = kind == Kind::Device(0)
            || xattrs.iter().any(|(name, _)| name == "trusted.overlay.whiteout");
        let node = Node {
            kind,
            mode: found.mode() & 0o7777,
            owner: (found.uid(), found.gid()),
            mtime_s: if is_whiteout { 0 } else { found.mtime() },
            links: if found.is_file() { found.nlink() } else { 1 },
            xattrs,
        };
        let name = path.strip_prefix(root).unwrap().to_str().unwrap();
        tree.insert(name.to_owned(), node);
    }
    tree
}

fn kind(path: &Path, found: &fs::Metadata) -> Kind {
    let kind = found.file_type();
    if kind.is_dir() {
        Kind::Directory
    } else if kind.is_file() {
        Kind::File(fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
    } else if kind.is_symlink() {
        Kind::Symlink(fs::read_link(path).unwrap())
    } else if kind.is_fifo() {
        Kind::Fifo
    } else {
        Kind::Device(found.rdev())
    }
}

/// Returns the extended attributes of a file, sorted by name. In a layer, they contain the marks of
/// overlayfs.
fn xattrs(path: &Path) -> Vec<(String, Vec<u8>)> {
    // The marks of overlayfs are shorter. Longer names or values make the test fail.
    let mut buffer = [0; 1024];
    let length = rustix::fs::llistxattr(path, &mut buffer[..]).unwrap();
    let names = buffer[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let mut found: Vec<(String, Vec<u8>)> = names
        .map(|name| {
            let name = String::from_utf8(name.to_vec()).unwrap();
            let mut value = vec![0; 1024];
            let length = rustix::fs::lgetxattr(path, name.as_str(), &mut value[..]).unwrap();
            value.truncate(length);
            (name, value)
        })
        .collect();
    found.sort();
    found
}

/// Panics with the first difference unless the trees are equal.
pub(crate) fn assert_equal(found: &Tree, expected: &Tree, what: &str) {
    for (path, node) in expected {
        match found.get(path) {
            Some(other) if other == node => {}
            Some(other) => {
                panic!("{what}: `{path}`: found {}, expected {}", show(other), show(node))
            }
            None => panic!("{what}: `{path}` is missing, expected {}", show(node)),
        }
    }
    for (path, node) in found {
        assert!(expected.contains_key(path), "{what}: `{path}` is unexpected: {}", show(node));
    }
}

/// Returns the number of bytes in regular files.
pub(crate) fn bytes(tree: &Tree) -> u64 {
    let sizes = tree.values().map(|node| match &node.kind {
        Kind::File(content) => content.len() as u64,
        _ => 0,
    });
    sizes.sum()
}

/// Describes a file. A checksum stands for its content.
fn show(node: &Node) -> String {
    let kind = match &node.kind {
        Kind::Directory => "a directory".to_owned(),
        Kind::File(content) => {
            let sum = content
                .iter()
                .fold(0_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
            format!("a file of {} bytes (sum {sum:x})", content.len())
        }
        Kind::Symlink(target) => format!("a link to `{}`", target.display()),
        Kind::Fifo => "a fifo".to_owned(),
        Kind::Device(number) => format!("device {number}"),
    };
    let (Node { mode, owner: (uid, gid), mtime_s, links, .. }, names) =
        (node, node.xattrs.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>());
    format!("{kind}, mode {mode:o}, {uid}:{gid}, time {mtime_s}, {links} links, {names:?}")
}
