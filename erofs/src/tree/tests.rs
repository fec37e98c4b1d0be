use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{Content, ContentRef, DataRange, FileData, InodeId, Metadata, Tree, TreeError};

fn tree() -> Tree {
    Tree::new(Metadata { mode: 0o755, ..Metadata::default() }).unwrap()
}

fn add(tree: &mut Tree, content: Content) -> InodeId {
    tree.add(Metadata::default(), content).unwrap()
}

fn names(tree: &Tree, directory: InodeId) -> Vec<Vec<u8>> {
    tree.children(directory).map(|(name, _)| name.to_vec()).collect()
}

#[test]
fn children_are_in_the_order_of_their_bytes() {
    let mut tree = tree();
    for name in [&b"b"[..], b"\xff", b"a.b", b"a", b"a-b"] {
        let inode = add(&mut tree, Content::Fifo);
        assert_eq!(tree.link(InodeId::ROOT, name, inode), Ok(None));
    }
    assert_eq!(names(&tree, InodeId::ROOT), [&b"a"[..], b"a-b", b"a.b", b"b", b"\xff"]);
    assert_eq!(tree.len(), 6);
}

#[test]
fn link_returns_the_replaced_inode() {
    let mut tree = tree();
    let (first, second) = (add(&mut tree, Content::Fifo), add(&mut tree, Content::Socket));
    assert_eq!(tree.link(InodeId::ROOT, b"a", first), Ok(None));
    assert_eq!(tree.link(InodeId::ROOT, b"a", second), Ok(Some(first)));
    assert_eq!(tree.child(InodeId::ROOT, b"a"), Some(second));
    assert_eq!(tree.unlink(InodeId::ROOT, b"a"), Some(second));
    assert_eq!(tree.unlink(InodeId::ROOT, b"a"), None);
    assert_eq!(tree.child(InodeId::ROOT, b"a"), None);
}

#[test]
fn a_directory_has_one_name_at_a_time() {
    let mut tree = tree();
    let directory = add(&mut tree, Content::Directory);
    tree.link(InodeId::ROOT, b"a", directory).unwrap();
    let again = TreeError::DirectoryLinked { name: b"b".to_vec() };
    assert_eq!(tree.link(InodeId::ROOT, b"b", directory), Err(again.clone()));
    assert_eq!(tree.link(directory, b"b", InodeId::ROOT), Err(again.clone()));
    assert_eq!(
        tree.link(InodeId::ROOT, b"a", directory),
        Err(TreeError::DirectoryLinked { name: b"a".to_vec() })
    );
    // Each way to lose its name allows another one.
    tree.unlink(InodeId::ROOT, b"a");
    assert_eq!(tree.link(InodeId::ROOT, b"b", directory), Ok(None));
    tree.clear(InodeId::ROOT);
    assert_eq!(tree.link(InodeId::ROOT, b"c", directory), Ok(None));
    let fifo = add(&mut tree, Content::Fifo);
    assert_eq!(tree.link(InodeId::ROOT, b"c", fifo), Ok(Some(directory)));
    assert_eq!(tree.link(InodeId::ROOT, b"d", directory), Ok(None));
}

#[test]
fn names_that_linux_does_not_allow_are_errors() {
    let mut tree = tree();
    let inode = add(&mut tree, Content::Fifo);
    for name in [&b""[..], b".", b"..", b"a/b", b"a\0", &[b'a'; 256]] {
        let error = TreeError::Name { name: name.to_vec() };
        assert_eq!(tree.link(InodeId::ROOT, name, inode), Err(error));
    }
    for name in [&b"..."[..], b".a", b"\n", &[b'a'; 255]] {
        assert_eq!(tree.link(InodeId::ROOT, name, inode), Ok(None));
    }
    assert_eq!(tree.link(inode, b"a", inode), Err(TreeError::NotDirectory));
}

#[test]
fn only_directories_have_children() {
    let mut tree = tree();
    let inode = add(&mut tree, Content::Fifo);
    tree.clear(inode);
    assert_eq!(tree.unlink(inode, b"a"), None);
    assert_eq!(tree.child(inode, b"a"), None);
    assert_eq!(tree.children(inode).count(), 0);
    assert!(tree.is_directory(InodeId::ROOT) && !tree.is_directory(inode));
}

#[test]
fn content_is_returned_as_it_was_given() {
    let mut tree = tree();
    let ranges = vec![DataRange { file_block: 1, device: 2, block: 3, blocks: 1 }];
    let file = FileData { size_bytes: 8192, ranges: ranges.clone() };
    let file = add(&mut tree, Content::File(file));
    let link = add(&mut tree, Content::Symlink(b"a/b".to_vec()));
    let device = add(&mut tree, Content::BlockDevice { major: 4095, minor: 1_048_575 });
    assert_eq!(tree.content(file), ContentRef::File { size_bytes: 8192, ranges: &ranges });
    assert_eq!(tree.content(link), ContentRef::Symlink(b"a/b"));
    let expected = ContentRef::BlockDevice { major: 4095, minor: 1_048_575 };
    assert_eq!(tree.content(device), expected);
    assert_eq!(tree.content(InodeId::ROOT), ContentRef::Directory);
}

#[test]
fn content_that_erofs_cannot_represent_is_an_error() {
    let range = |file_block, device, block, blocks| DataRange { file_block, device, block, blocks };
    let file = |size_bytes, ranges: &[DataRange]| {
        Content::File(FileData { size_bytes, ranges: ranges.to_vec() })
    };
    let invalid = [
        file(u64::MAX, &[]),
        file(4096, &[range(0, 1, 0, 0)]),
        file(4096, &[range(0, 0, 0, 1)]),
        file(4096, &[range(1, 1, 0, 1)]),
        file(4096, &[range(0, 1, 0, 2)]),
        file(4096, &[range(u64::MAX, 1, 0, 1)]),
        file(4096, &[range(0, 1, u32::MAX, 1)]),
        file(12_288, &[range(0, 1, 0, 2), range(1, 1, 5, 1)]),
        file(12_288, &[range(2, 1, 0, 1), range(1, 1, 5, 1)]),
        Content::Symlink(Vec::new()),
        Content::Symlink(vec![b'a'; 4096]),
        Content::Symlink(b"a\0".to_vec()),
        Content::CharDevice { major: 4096, minor: 0 },
        Content::BlockDevice { major: 0, minor: 1_048_576 },
    ];
    let mut tree = tree();
    for content in invalid {
        let result = tree.add(Metadata::default(), content.clone());
        assert!(result.is_err(), "{content:?} was accepted");
    }
    // The last block of a file may be partial.
    add(&mut tree, file(4097, &[range(0, 1, 7, 2)]));
    assert_eq!(tree.len(), 2);
}

#[test]
fn metadata_that_erofs_cannot_represent_is_an_error() {
    let xattrs = |list: &[(&[u8], usize)]| Metadata {
        xattrs: list.iter().map(|(name, bytes)| (name.to_vec(), vec![0; *bytes])).collect(),
        ..Metadata::default()
    };
    let many: Vec<Vec<u8>> = (0..5).map(|number| format!("user.{number}").into_bytes()).collect();
    let many: Vec<(&[u8], usize)> = many.iter().map(|name| (&name[..], 60_000)).collect();
    let invalid = [
        Metadata { mode: 0o10000, ..Metadata::default() },
        Metadata { mtime_ns: 1_000_000_000, ..Metadata::default() },
        xattrs(&[(b"user.", 0)]),
        xattrs(&[(b"other.a", 0)]),
        xattrs(&[(b"system.posix_acl_accessx", 0)]),
        xattrs(&[(b"user.a\0", 0)]),
        xattrs(&[(&[&b"user."[..], &[b'a'; 251]].concat(), 0)]),
        xattrs(&[(b"user.a", 1), (b"user.b", 1), (b"user.a", 2)]),
        xattrs(&[(b"user.a", 65_536)]),
        xattrs(&many),
    ];
    let mut tree = tree();
    for metadata in invalid {
        assert!(tree.set_metadata(InodeId::ROOT, metadata.clone()).is_err(), "{metadata:?}");
        assert!(tree.add(metadata.clone(), Content::Directory).is_err(), "{metadata:?}");
        assert!(Tree::new(metadata.clone()).is_err(), "{metadata:?}");
    }
    assert_eq!(tree.len(), 1);
}

#[test]
fn equal_sets_of_xattrs_are_stored_once() {
    let mut tree = tree();
    let a = (b"user.a".to_vec(), b"1".to_vec());
    let b = (b"system.posix_acl_access".to_vec(), b"2".to_vec());
    let metadata = |xattrs| Metadata { xattrs, ..Metadata::default() };
    let first = tree.add(metadata(vec![a.clone(), b.clone()]), Content::Fifo).unwrap();
    let second = tree.add(metadata(vec![b.clone(), a.clone()]), Content::Fifo).unwrap();
    assert_eq!(tree.metadata(first).xattrs, [b, a]);
    assert_eq!(tree.metadata(first), tree.metadata(second));
    assert_eq!(tree.xattr_sets().len(), 2);
}

/// Bytes that a tree has allocated, without sets of extended attributes and targets.
fn allocated(tree: &Tree) -> usize {
    let directories: usize = tree.directories.iter().map(super::Directory::allocated).sum();
    tree.inodes.capacity() * size_of::<super::Inode>()
        + tree.directories.capacity() * size_of::<super::Directory>()
        + directories
        + tree.ranges.allocated()
        + tree.names.allocated()
}

#[test]
fn a_regular_file_takes_at_most_150_bytes() {
    // A Debian image has 10 files a directory, with names of 16 bytes.
    for files in [1_000_u32, 10_000, 45_000, 50_001] {
        let mut tree = tree();
        let mut directory = InodeId::ROOT;
        for number in 0..files {
            if number % 10 == 0 {
                directory = add(&mut tree, Content::Directory);
                let name = format!("directory-{number:06}");
                tree.link(InodeId::ROOT, name.as_bytes(), directory).unwrap();
            }
            let range = DataRange { file_block: 0, device: 1, block: number, blocks: 1 };
            let data = FileData { size_bytes: 4096, ranges: vec![range] };
            let file = add(&mut tree, Content::File(data));
            tree.link(directory, format!("file-{number:011}").as_bytes(), file).unwrap();
        }
        let bytes = allocated(&tree) / tree.len();
        assert!((80..=150).contains(&bytes), "{bytes} bytes an inode of {files} files");
    }
}

#[derive(Debug, Clone)]
enum Step {
    Link(u16),
    Unlink(u16),
    Clear,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        600 => (0..2000_u16).prop_map(Step::Link),
        200 => (0..2000_u16).prop_map(Step::Unlink),
        1 => Just(Step::Clear),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_directory_behaves_as_a_sorted_map(
        steps in prop::collection::vec(step(), 0..3000),
        is_ascending: bool,
    ) {
        let mut tree = tree();
        let mut model: BTreeMap<Vec<u8>, InodeId> = BTreeMap::new();
        let mut ascending = 0_u32;
        for step in steps {
            match step {
                Step::Link(number) => {
                    ascending += 1;
                    let number = if is_ascending { ascending } else { number.into() };
                    let name = format!("{number:04}").into_bytes();
                    let inode = add(&mut tree, Content::Fifo);
                    let replaced = tree.link(InodeId::ROOT, &name, inode).unwrap();
                    prop_assert_eq!(replaced, model.insert(name, inode));
                }
                Step::Unlink(number) => {
                    let name = format!("{number:04}").into_bytes();
                    prop_assert_eq!(tree.child(InodeId::ROOT, &name), model.get(&name).copied());
                    prop_assert_eq!(tree.unlink(InodeId::ROOT, &name), model.remove(&name));
                }
                Step::Clear => {
                    tree.clear(InodeId::ROOT);
                    model.clear();
                }
            }
        }
        let found: Vec<_> =
            tree.children(InodeId::ROOT).map(|(name, inode)| (name.to_vec(), inode)).collect();
        prop_assert_eq!(found, model.into_iter().collect::<Vec<_>>());
    }
}
