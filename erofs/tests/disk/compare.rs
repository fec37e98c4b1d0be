//! Compares a mounted disk with the tree it was written from.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata as Status};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;

use a3s_box_erofs::{BLOCK_BYTES, ContentRef, DataRange, InodeId, Tree};
use rustix::fs::{lgetxattr, llistxattr};

use crate::disk::block_content;

/// Files of at most this many bytes are compared as a whole. Of larger ones, the blocks at the
/// borders of their ranges are.
const WHOLE_BYTES: u64 = 1 << 20;

/// Compares all that a mount shows with the tree.
pub(crate) fn assert_same(tree: &Tree, root: &Path) {
    let mut links: HashMap<InodeId, (u64, u64)> = HashMap::new();
    let mut inodes: HashMap<u64, InodeId> = HashMap::new();
    let mut pending = vec![(InodeId::ROOT, root.to_owned())];
    while let Some((id, path)) = pending.pop() {
        let status = fs::symlink_metadata(&path).unwrap();
        // One inode of the tree has one number in the mount, and the other way round.
        assert_eq!(*inodes.entry(status.ino()).or_insert(id), id, "{}", path.display());
        let entry = links.entry(id).or_insert((status.nlink(), 0));
        entry.1 += 1;
        if entry.1 > 1 {
            continue;
        }
        assert_same_inode(tree, id, &path, &status);
        let mut names: Vec<Vec<u8>> = Vec::new();
        for (name, child) in tree.children(id) {
            names.push(name.to_vec());
            pending.push((child, path.join(OsStr::from_bytes(name))));
        }
        if tree.is_directory(id) {
            let found = fs::read_dir(&path).unwrap();
            // The kernel returns entries in their order on the disk.
            let found: Vec<_> = found.map(|entry| entry.unwrap().file_name().into_vec()).collect();
            assert_eq!(found, names, "{}", path.display());
            // Each directory in it counts by its `..`, which has no path here.
            let inner = tree.children(id).filter(|(_, child)| tree.is_directory(*child)).count();
            links.get_mut(&id).unwrap().1 += 1 + inner as u64;
        }
    }
    for (id, (reported, counted)) in links {
        assert_eq!(reported, counted, "link count of {id:?}");
    }
}

fn assert_same_inode(tree: &Tree, id: InodeId, path: &Path, status: &Status) {
    let metadata = tree.metadata(id);
    let shown = path.display();
    assert_eq!(status.mode() & 0o7777, u32::from(metadata.mode), "mode of {shown}");
    assert_eq!((status.uid(), status.gid()), (metadata.uid, metadata.gid), "owner of {shown}");
    let expected = (metadata.mtime_s, i64::from(metadata.mtime_ns));
    assert_eq!((status.mtime(), status.mtime_nsec()), expected, "time of {shown}");
    let device = |major: u32, minor: u32| rustix::fs::makedev(major, minor);
    let kind = status.file_type();
    match tree.content(id) {
        ContentRef::Directory => assert!(kind.is_dir(), "{shown}"),
        ContentRef::Fifo => assert!(kind.is_fifo(), "{shown}"),
        ContentRef::Socket => assert!(kind.is_socket(), "{shown}"),
        ContentRef::CharDevice { major, minor } => {
            assert!(kind.is_char_device(), "{shown}");
            assert_eq!(status.rdev(), device(major, minor), "{shown}");
        }
        ContentRef::BlockDevice { major, minor } => {
            assert!(kind.is_block_device(), "{shown}");
            assert_eq!(status.rdev(), device(major, minor), "{shown}");
        }
        ContentRef::Symlink(target) => {
            assert!(kind.is_symlink(), "{shown}");
            assert_eq!(fs::read_link(path).unwrap().as_os_str().as_bytes(), target, "{shown}");
            assert_eq!(status.size(), target.len() as u64, "{shown}");
        }
        ContentRef::File { size_bytes, ranges } => {
            assert!(kind.is_file(), "{shown}");
            assert_eq!(status.size(), size_bytes, "size of {shown}");
            assert_same_data(size_bytes, ranges, path);
        }
    }
    assert_same_xattrs(&metadata.xattrs, path, kind.is_file() || kind.is_dir());
}

fn assert_same_data(size_bytes: u64, ranges: &[DataRange], path: &Path) {
    let file = File::open(path).unwrap();
    let blocks = size_bytes.div_ceil(BLOCK_BYTES);
    let chosen: Vec<u64> = if size_bytes <= WHOLE_BYTES {
        (0..blocks).collect()
    } else {
        let borders = ranges.iter().flat_map(|range| {
            let end = range.file_block + u64::from(range.blocks);
            [range.file_block.saturating_sub(1), range.file_block, end - 1, end]
        });
        borders.chain([0, blocks - 1]).filter(|block| *block < blocks).collect()
    };
    for block in chosen {
        let holder = ranges.iter().find(|range| {
            (range.file_block..range.file_block + u64::from(range.blocks)).contains(&block)
        });
        let mut expected = holder.map_or(vec![0; 4096], |range| {
            let offset = u32::try_from(block - range.file_block).unwrap();
            block_content(range.device, range.block + offset)
        });
        let start = block * BLOCK_BYTES;
        expected.truncate(usize::try_from((size_bytes - start).min(BLOCK_BYTES)).unwrap());
        let mut found = vec![1; expected.len()];
        file.read_exact_at(&mut found, start).unwrap();
        assert!(found == expected, "block {block} of {}", path.display());
    }
}

fn assert_same_xattrs(expected: &[(Vec<u8>, Vec<u8>)], path: &Path, has_user_xattrs: bool) {
    let mut list = vec![0; 65_536];
    let bytes = llistxattr(path, &mut list).unwrap();
    let mut names: Vec<&[u8]> = list[..bytes].split(|byte| *byte == 0).collect();
    assert_eq!(names.pop(), Some(&b""[..]));
    names.sort_unstable();
    let expected_names: Vec<&[u8]> = expected.iter().map(|(name, _)| &name[..]).collect();
    assert_eq!(names, expected_names, "attributes of {}", path.display());
    for (name, value) in expected {
        // Linux returns no value of `user.*` for anything but files and directories.
        if name.starts_with(b"user.") && !has_user_xattrs {
            continue;
        }
        let mut found = vec![0; 65_536];
        let bytes = lgetxattr(path, OsStr::from_bytes(name), &mut found).unwrap();
        let shown = name.escape_ascii();
        assert!(found[..bytes] == value[..], "attribute {shown} of {}", path.display());
    }
}
