use std::io::{self, Write};

use super::{Device, WriteError, write};
use crate::tree::{Content, DataRange, FileData, InodeId, Metadata, Tree};

const UUID: [u8; 16] = *b"a UUID of a disk";

fn tree() -> Tree {
    Tree::new(Metadata::default()).unwrap()
}

fn tree_with(size_bytes: u64, range: DataRange) -> Tree {
    let mut tree = tree();
    let data = FileData { size_bytes, ranges: vec![range] };
    let file = tree.add(Metadata::default(), Content::File(data)).unwrap();
    tree.link(InodeId::ROOT, b"file", file).unwrap();
    tree
}

#[test]
fn a_range_that_is_on_no_device_is_an_error() {
    let range = |device, block, blocks| DataRange { file_block: 0, device, block, blocks };
    let devices = [Device { blocks: 4 }, Device { blocks: 2 }];
    for range in [range(3, 0, 1), range(1, 4, 1), range(1, 2, 3), range(2, 1, 2)] {
        let mut output = Vec::new();
        let result = write(&tree_with(1 << 20, range), &devices, UUID, &mut output);
        assert!(matches!(result, Err(WriteError::OutsideDevice { .. })), "{range:?}: {result:?}");
        assert_eq!(output, []);
    }
    for range in [range(1, 3, 1), range(1, 0, 4), range(2, 0, 2)] {
        write(&tree_with(1 << 20, range), &devices, UUID, &mut Vec::new()).unwrap();
    }
}

#[test]
fn a_range_of_an_inode_without_a_name_is_not_checked() {
    let mut tree = tree_with(4096, DataRange { file_block: 0, device: 9, block: 0, blocks: 1 });
    tree.unlink(InodeId::ROOT, b"file");
    assert_eq!(write(&tree, &[], UUID, &mut Vec::new()).unwrap().inodes, 1);
}

#[test]
fn disks_that_erofs_cannot_address_are_errors() {
    let write = |devices: &[Device]| write(&tree(), devices, UUID, &mut Vec::new());
    let most = u32::MAX - 2;
    assert_eq!(write(&[Device { blocks: most }]).unwrap().disk_bytes, 4096 * u64::from(u32::MAX));
    let result = write(&[Device { blocks: most }, Device { blocks: 1 }]);
    assert!(matches!(result, Err(WriteError::TooLarge)), "{result:?}");
    let result = write(&vec![Device { blocks: 0 }; 65_536]);
    assert!(matches!(result, Err(WriteError::TooManyDevices { count: 65_536 })), "{result:?}");
    write(&vec![Device { blocks: 0 }; 65_535]).unwrap();
}

#[test]
fn sparse_files_with_too_many_chunks_are_an_error() {
    // Chunks of one block in a file of 2⁴⁰ bytes.
    let range = DataRange { file_block: 1, device: 1, block: 0, blocks: 1 };
    let result = write(&tree_with(1 << 40, range), &[Device { blocks: 1 }], UUID, &mut Vec::new());
    assert!(matches!(result, Err(WriteError::TooManyChunks)), "{result:?}");
}

#[test]
fn an_error_of_the_output_is_returned() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _bytes: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let result = write(&tree(), &[], UUID, &mut Full);
    assert!(matches!(result, Err(WriteError::Output(_))), "{result:?}");
}

#[test]
fn the_smallest_image_has_two_blocks() {
    let mut image = Vec::new();
    let summary = write(&tree(), &[], UUID, &mut image).unwrap();
    assert_eq!((summary.inodes, summary.metadata_bytes), (1, 8192));
    assert_eq!(image.len(), 8192);
}

#[test]
fn equal_trees_have_equal_images() {
    let image = |names: [&[u8]; 3]| {
        let mut tree = tree();
        for name in names {
            let xattrs = vec![([b"user.", name].concat(), name.to_vec())];
            let metadata = Metadata { xattrs, ..Metadata::default() };
            let directory = tree.add(metadata.clone(), Content::Directory).unwrap();
            let fifo = tree.add(metadata, Content::Fifo).unwrap();
            tree.link(InodeId::ROOT, name, directory).unwrap();
            tree.link(directory, b"fifo", fifo).unwrap();
        }
        let mut image = Vec::new();
        write(&tree, &[], UUID, &mut image).unwrap();
        image
    };
    assert_eq!(image([b"a", b"b", b"c"]), image([b"c", b"a", b"b"]));
}

#[test]
fn the_uuid_is_the_only_difference_between_images_of_equal_trees() {
    let image = |uuid| {
        let mut image = Vec::new();
        write(&tree(), &[], uuid, &mut image).unwrap();
        image
    };
    let (one, other) = (image(UUID), image([0; 16]));
    let differing: Vec<usize> = (0..one.len()).filter(|at| one[*at] != other[*at]).collect();
    // The checksum at 1028 covers the UUID at 1072.
    assert!(differing.iter().all(|at| matches!(at, 1028..1032 | 1072..1088)), "{differing:?}");
    assert_eq!(one[1072..1088], UUID);
}
