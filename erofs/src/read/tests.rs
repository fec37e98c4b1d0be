use std::cell::Cell;
use std::io;

use super::{Image, ReadAt, ReadError};
use crate::format::BLOCK;
use crate::format::superblock::{SuperblockError, seal};
use crate::tree::{Content, DataRange, FileData, InodeId, Metadata, Tree};
use crate::write::{Device, write};

const DEVICES: [Device; 2] = [Device { blocks: 8 }, Device { blocks: 3 }];

/// Makes a tree with each kind of part that an image may have.
fn tree() -> Tree {
    let mut tree = Tree::new(Metadata { mode: 0o755, ..Metadata::default() }).unwrap();
    let repeated = vec![(b"user.a".to_vec(), b"shared".to_vec())];
    let single = [&repeated[..], &[(b"security.b".to_vec(), vec![1; 70])]].concat();
    let with = |xattrs: &[_]| Metadata { xattrs: xattrs.to_vec(), mtime_s: 5, ..<_>::default() };
    let range = |file_block, device, block, blocks| DataRange { file_block, device, block, blocks };
    let file = |size_bytes, ranges| Content::File(FileData { size_bytes, ranges });
    let sparse = file(9 * 4096 - 5, vec![range(2, 1, 3, 4), range(8, 2, 2, 1)]);
    let directory = tree.add(with(&repeated), Content::Directory).unwrap();
    let other = Metadata { mode: 0o4711, uid: 70_000, mtime_ns: 9, ..Metadata::default() };
    let inodes: [(&[u8], Metadata, Content); 9] = [
        (b"chunks", other.clone(), sparse),
        (b"contiguous", Metadata::default(), file(5 * 4096, vec![range(0, 1, 3, 5)])),
        (b"empty", Metadata::default(), file(0, Vec::new())),
        (b"shared", with(&repeated), Content::Fifo),
        (b"alone", with(&single), Content::Socket),
        (b"null", other.clone(), Content::CharDevice { major: 1, minor: 3 }),
        (b"disk", other, Content::BlockDevice { major: 259, minor: 1000 }),
        (b"short", Metadata::default(), Content::Symlink(b"../target".to_vec())),
        (b"long", Metadata::default(), Content::Symlink(vec![b'l'; 4090])),
    ];
    tree.link(InodeId::ROOT, b"directory", directory).unwrap();
    for (name, metadata, content) in inodes {
        let id = tree.add(metadata, content).unwrap();
        tree.link(directory, name, id).unwrap();
        if !tree.is_directory(id) {
            tree.link(InodeId::ROOT, name, id).unwrap();
        }
    }
    // More names than one block has.
    for number in 0..20 {
        let inner = tree.add(Metadata::default(), Content::Directory).unwrap();
        tree.link(directory, format!("{number:0240}").as_bytes(), inner).unwrap();
    }
    tree
}

fn image() -> Vec<u8> {
    image_of(&tree(), &DEVICES)
}

fn image_of(tree: &Tree, devices: &[Device]) -> Vec<u8> {
    let mut image = Vec::new();
    write(tree, devices, [7; 16], &mut image).unwrap();
    image
}

/// Corrects the checksum.
fn sealed(mut image: Vec<u8>) -> Vec<u8> {
    seal(image.first_chunk_mut().unwrap());
    image
}

/// An image that counts how often it is read.
struct Counted<'a> {
    image: &'a [u8],
    reads: Cell<usize>,
}

impl ReadAt for Counted<'_> {
    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.reads.set(self.reads.get() + 1);
        self.image.read_exact_at(bytes, offset)
    }
}

fn read(image: &[u8]) -> Result<(Tree, Vec<Device>), ReadError> {
    let counted = Counted { image, reads: Cell::new(0) };
    let opened = Image::open(&counted)?;
    let tree = opened.tree();
    // Each part has at least 8 bytes, and is read at most three times.
    let most = image.len() / 8 * 3;
    assert!(counted.reads.get() <= most, "{} reads", counted.reads.get());
    tree.map(|tree| (tree, opened.devices().to_vec()))
}

#[test]
fn an_image_is_read_as_it_was_written() {
    let image = image();
    let (tree, devices) = read(&image).unwrap();
    assert_eq!(devices, DEVICES);
    assert_eq!(tree.len(), 31);
    assert!(image_of(&tree, &devices) == image);
}

#[test]
fn each_corruption_of_a_byte_is_an_error_or_another_tree() {
    let correct = image();
    let (mut errors, mut trees) = (0, 0);
    // Of the padding, every 16th byte is enough.
    let is_chosen = |at: &usize| correct[*at] != 0 || at.is_multiple_of(16);
    for at in (0..correct.len()).filter(is_chosen) {
        let mut image = correct.clone();
        image[at] ^= [0x01, 0x04, 0x80, 0xff][at % 4];
        // The checksum covers the rest of the first block. An attacker corrects it.
        if (1024..BLOCK).contains(&at) {
            assert!(read(&image).is_err(), "byte {at}");
            image = sealed(image);
        }
        match read(&image) {
            Err(_) => errors += 1,
            Ok((tree, devices)) => {
                trees += 1;
                // An accepted tree can be written, and is read as the same tree.
                let again = image_of(&tree, &devices);
                let (second, _) = read(&again).unwrap();
                assert!(image_of(&second, &devices) == again, "byte {at}");
            }
        }
    }
    assert!(errors > 500 && trees > 500, "{errors} errors, {trees} trees");
}

#[test]
fn each_truncation_is_an_error() {
    let image = image();
    for length in (0..image.len()).step_by(61) {
        let result = read(&image[..length]);
        assert!(matches!(result, Err(ReadError::File(_))), "{length} bytes");
    }
}

#[test]
fn other_formats_are_errors() {
    let correct = image();
    let changed = |at: usize, byte: u8| {
        let mut image = correct.clone();
        image[1024 + at] = byte;
        match read(&sealed(image)) {
            Err(ReadError::Superblock(error)) => error,
            other => panic!("byte {at}: {:?}", other.map(|_| ())),
        }
    };
    assert_eq!(changed(0, 0), SuperblockError::Magic { magic: 0xE0F5_E100 });
    assert_eq!(changed(8, 2), SuperblockError::Checksum);
    assert_eq!(changed(12, 9), SuperblockError::Form);
    assert_eq!(changed(80, 0x0d), SuperblockError::Features { features: 0x0d });
    let unsealed = [&correct[..2000], &[1], &correct[2001..]].concat();
    let error = read(&unsealed).map(|_| ());
    assert!(matches!(error, Err(ReadError::Superblock(SuperblockError::Checksum))), "{error:?}");
}

/// Replaces the one occurrence of `from` behind the first block.
fn replaced(mut image: Vec<u8>, from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut places = (BLOCK..image.len() - from.len()).filter(|at| image[*at..].starts_with(from));
    let place = places.next().unwrap();
    assert_eq!(places.next(), None, "{from:?} occurs twice");
    image[place..place + to.len()].copy_from_slice(to);
    image
}

/// Returns an entry of a directory without its name.
fn entry(inode: u64, name_start: u16, kind: u8) -> Vec<u8> {
    [&inode.to_le_bytes()[..], &name_start.to_le_bytes(), &[kind, 0]].concat()
}

#[test]
fn directories_that_make_a_circle_are_an_error() {
    let mut tree = Tree::new(Metadata::default()).unwrap();
    let outer = tree.add(Metadata::default(), Content::Directory).unwrap();
    let inner = tree.add(Metadata::default(), Content::Directory).unwrap();
    tree.link(InodeId::ROOT, b"outer", outer).unwrap();
    tree.link(outer, b"inner", inner).unwrap();
    let image = image_of(&tree, &[]);
    // `.`, `..` and `inner`: three entries of 12 bytes, and their names.
    let inner = image[BLOCK..].chunks(32).position(|slot| slot.starts_with(&[4, 0])).unwrap();
    assert_eq!(inner, 1, "the root is compact and inline");
    let number = (0..1000_u64).find(|number| {
        let entry = entry(*number, 39, 2);
        image.windows(12).any(|bytes| bytes == entry)
    });
    let circle = replaced(image, &entry(number.unwrap(), 39, 2), &entry(1, 39, 2));
    let error = read(&circle).map(|_| ());
    assert!(matches!(error, Err(ReadError::Tree { .. })), "{error:?}");
}

#[test]
fn parts_that_overlap_are_errors() {
    let mut tree = Tree::new(Metadata::default()).unwrap();
    for number in 0..200 {
        let target = if number == 0 { vec![b'l'; 4090] } else { b"short".to_vec() };
        let link = tree.add(Metadata::default(), Content::Symlink(target)).unwrap();
        tree.link(InodeId::ROOT, format!("{number}").as_bytes(), link).unwrap();
    }
    let mut image = image_of(&tree, &[]);
    let last = u32::try_from(image.len() / BLOCK - 1).unwrap();
    let mut changed = 0;
    for slot in (BLOCK..image.len() - BLOCK).step_by(32) {
        // A compact and inline link with 5 bytes becomes one whose bytes are the last block.
        if image[slot..].starts_with(&[4, 0, 0, 0, 0, 0xa0, 1, 0, 5]) {
            image[slot] = 0;
            image[slot + 8..slot + 12].copy_from_slice(&4090_u32.to_le_bytes());
            image[slot + 16..slot + 20].copy_from_slice(&last.to_le_bytes());
            changed += 1;
        }
    }
    assert_eq!(changed, 199);
    let error = read(&image).map(|_| ());
    assert!(matches!(error, Err(ReadError::Overlap)), "{error:?}");
}

/// Returns an image of sets, each of two inodes and with a value of its own. The first sets also
/// have one value of 60,000 bytes, and the others have a short one.
fn image_of_sets(with_long: u32, with_short: u32) -> Vec<u8> {
    let mut tree = Tree::new(Metadata::default()).unwrap();
    let long = (b"user.a".to_vec(), vec![b'v'; 60_000]);
    let short = (b"user.a".to_vec(), b"short".to_vec());
    for number in 0..with_long + with_short {
        let of_all = if number < with_long { &long } else { &short };
        let other = (b"user.b".to_vec(), format!("{number:05}").into_bytes());
        let metadata = Metadata { xattrs: vec![of_all.clone(), other], ..Metadata::default() };
        for name in [format!("{number:05}-a"), format!("{number:05}-b")] {
            let fifo = tree.add(metadata.clone(), Content::Fifo).unwrap();
            tree.link(InodeId::ROOT, name.as_bytes(), fifo).unwrap();
        }
    }
    image_of(&tree, &[])
}

#[test]
fn shared_xattrs_of_many_sets_are_bounded() {
    let mut image = image_of_sets(1000, 200);
    assert!(image.len() < 500_000, "{} bytes", image.len());
    // The header of a set with two shared attributes. The place of the first one follows.
    let header = [0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0];
    let is_set = |at: &usize| image[*at..].starts_with(&header);
    let sets: Vec<usize> = (BLOCK..image.len() - 16).step_by(4).filter(is_set).collect();
    // All sets get the long value, which exceeds the limit.
    let first = *sets.first().unwrap();
    for set in sets {
        image.copy_within(first + 12..first + 16, set + 12);
    }
    let error = read(&image).map(|_| ());
    assert!(matches!(error, Err(ReadError::TooManyXattrs)), "{error:?}");
}

#[test]
fn sets_that_are_too_many_to_share_are_read_as_they_were_written() {
    let image = image_of_sets(1200, 0);
    // The limit has room for 1116 of these values. 84 sets of two inodes each are not shared.
    assert!((10_000_000..12_000_000).contains(&image.len()), "{} bytes", image.len());
    let (tree, _) = read(&image).unwrap();
    assert_eq!(tree.len(), 2401);
    assert!(image_of(&tree, &[]) == image);
}
