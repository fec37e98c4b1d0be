//! Tests of disks by the kernel and by fsck.erofs.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::Command;

use a3s_box_erofs::{Content, DataRange, Device, FileData, InodeId, Metadata, Tree};
use proptest::prelude::*;

use crate::compare::assert_same;
use crate::disk::{Disk, UUID};
use crate::fsck;
use crate::random::{DEVICES, trees};

fn tree() -> Tree {
    Tree::new(Metadata { mode: 0o755, ..Metadata::default() }).unwrap()
}

fn add(tree: &mut Tree, name: &str, metadata: Metadata, content: Content) -> InodeId {
    let id = tree.add(metadata, content).unwrap();
    tree.link(InodeId::ROOT, name.as_bytes(), id).unwrap();
    id
}

/// Block of the file, device, block of the device, number of blocks.
type Range = (u64, u16, u32, u32);

fn file(size_bytes: u64, ranges: &[Range]) -> Content {
    let range = |&(file_block, device, block, blocks): &Range| DataRange {
        file_block,
        device,
        block,
        blocks,
    };
    Content::File(FileData { size_bytes, ranges: ranges.iter().map(range).collect() })
}

/// Checks a disk by the kernel.
fn assert_mounts(tree: &Tree, devices: &[Device]) {
    let disk = Disk::new(tree, devices);
    let mounted = disk.mount();
    assert_same(tree, mounted.root());
}

/// Checks a disk by the kernel and by fsck.erofs.
fn assert_correct(tree: &Tree, devices: &[Device]) {
    assert_mounts(tree, devices);
    fsck::check(&Disk::new(tree, devices));
}

#[test]
fn an_empty_tree_mounts() {
    assert_correct(&tree(), &[]);
}

#[test]
fn the_kernel_identifies_the_file_system_by_its_uuid() {
    let disk = Disk::new(&tree(), &[]);
    let mounted = disk.mount();
    let id = Command::new("stat").args(["-f", "-c", "%i"]).arg(mounted.root()).output().unwrap();
    // The id of a file system is its UUID, folded into 64 bits (`uuid_to_fsid` of Linux).
    let half = |at: usize| u64::from_le_bytes(UUID[at..at + 8].try_into().unwrap());
    let folded = (half(0) ^ half(8)).rotate_left(32);
    assert_eq!(String::from_utf8(id.stdout).unwrap().trim(), format!("{folded:x}"));
}

#[test]
fn all_kinds_of_inodes_mount() {
    let mut tree = tree();
    let kinds = [
        ("directory", Content::Directory),
        ("empty", file(0, &[])),
        ("small", file(5, &[(0, 1, 0, 1)])),
        ("large", file(1_000_000, &[(0, 2, 1, 245)])),
        ("link", Content::Symlink(b"../some/where".to_vec())),
        ("long-link", Content::Symlink(vec![b'x'; 4000])),
        ("longest-link", Content::Symlink(vec![b'x'; 4095])),
        ("fifo", Content::Fifo),
        ("socket", Content::Socket),
        ("null", Content::CharDevice { major: 1, minor: 3 }),
        ("largest-char", Content::CharDevice { major: 4095, minor: 1_048_575 }),
        ("largest-block", Content::BlockDevice { major: 4095, minor: 1_048_575 }),
        ("block", Content::BlockDevice { major: 259, minor: 256 }),
        ("nothing", Content::CharDevice { major: 0, minor: 0 }),
    ];
    for (name, content) in kinds {
        add(&mut tree, name, Metadata { mode: 0o640, ..Metadata::default() }, content);
    }
    assert_correct(&tree, &[Device { blocks: 1 }, Device { blocks: 246 }]);
}

#[test]
fn modes_owners_and_times_mount() {
    let mut tree = tree();
    let times = [(-1, 999_999_999), (-1 << 35, 0), (0, 1), (i64::from(u32::MAX) + 1, 2), (7, 0)];
    for (number, (mtime_s, mtime_ns)) in times.into_iter().enumerate() {
        let metadata = Metadata { mode: 0o600, mtime_s, mtime_ns, ..Metadata::default() };
        add(&mut tree, &format!("time-{number}"), metadata.clone(), Content::Fifo);
        add(&mut tree, &format!("again-{number}"), metadata, Content::Directory);
    }
    for mode in [0, 0o4755, 0o2755, 0o1777, 0o7777] {
        let metadata = Metadata { mode, ..Metadata::default() };
        add(&mut tree, &format!("mode-{mode:o}"), metadata.clone(), file(3, &[(0, 1, 0, 1)]));
        add(&mut tree, &format!("directory-{mode:o}"), metadata, Content::Directory);
    }
    for (uid, gid) in [(65_535, 0), (65_536, 0), (0, 65_536), (u32::MAX - 1, u32::MAX - 1)] {
        let metadata = Metadata { uid, gid, ..Metadata::default() };
        add(&mut tree, &format!("owner-{uid}-{gid}"), metadata, Content::Socket);
    }
    assert_correct(&tree, &[Device { blocks: 1 }]);
}

#[test]
fn the_commonest_time_makes_inodes_compact() {
    let bytes_of = |other: i64| {
        let mut tree = tree();
        for number in 0..1000_u32 {
            let mtime_s = if number.is_multiple_of(10) { other } else { 9 };
            let metadata = Metadata { mtime_s, ..Metadata::default() };
            add(&mut tree, &format!("{number:04}"), metadata, Content::Fifo);
        }
        assert_mounts(&tree, &[]);
        Disk::new(&tree, &[]).summary.metadata_bytes
    };
    // A tenth of the inodes is extended, which takes 32 bytes more.
    let (same, other) = (bytes_of(9), bytes_of(10));
    assert!(same < 1000 * 52 + 8192, "{same} bytes");
    assert!((2048..=8192).contains(&(other - same)), "{same} and {other} bytes");
}

#[test]
fn sparse_files_mount() {
    let mut tree = tree();
    let sparse: [(&str, u64, &[Range]); 9] = [
        ("hole", 1 << 30, &[]),
        ("hole-of-a-byte", 1, &[]),
        ("hole-at-the-start", 9 * 4096, &[(8, 1, 3, 1)]),
        ("hole-at-the-end", 64 * 4096 + 1, &[(0, 1, 0, 8)]),
        ("hole-in-the-middle", 12 * 4096, &[(0, 1, 0, 4), (8, 1, 4, 4)]),
        ("two-devices", 8 * 4096 - 1, &[(0, 1, 0, 4), (4, 2, 0, 4)]),
        ("same-block", 4 * 4096, &[(0, 1, 5, 1), (1, 1, 5, 1), (2, 1, 5, 1), (3, 1, 5, 1)]),
        ("unaligned", 100 * 4096, &[(1, 1, 0, 3), (7, 2, 0, 2), (99, 1, 9, 1)]),
        ("continued", 8 * 4096, &[(0, 1, 0, 3), (3, 1, 3, 5)]),
    ];
    for (name, size_bytes, ranges) in sparse {
        add(&mut tree, name, Metadata::default(), file(size_bytes, ranges));
    }
    assert_correct(&tree, &[Device { blocks: 16 }, Device { blocks: 16 }]);
}

#[test]
fn huge_files_mount() {
    let mut tree = tree();
    let terabyte = 1 << 28;
    let last = i64::MAX.unsigned_abs();
    let huge: [(&str, u64, &[Range]); 5] = [
        ("four-gib", 1 << 32, &[]),
        ("below-four-gib", (1 << 32) - 1, &[(0, 1, 0, 1 << 20)]),
        ("data", 20 << 30, &[(0, 2, 0, 5 << 20)]),
        ("sparse", 1 << 42, &[(terabyte, 1, 0, 1 << 20)]),
        ("largest", last, &[]),
    ];
    for (name, size_bytes, ranges) in huge {
        add(&mut tree, name, Metadata::default(), file(size_bytes, ranges));
    }
    assert_mounts(&tree, &[Device { blocks: 1 << 20 }, Device { blocks: 5 << 20 }]);
}

#[test]
fn many_xattrs_mount() {
    let mut tree = tree();
    let many = |count: usize, bytes: usize| {
        let xattr = |number| (format!("user.{number:03}").into_bytes(), vec![b'v'; bytes]);
        Metadata { xattrs: (0..count).map(xattr).collect(), ..Metadata::default() }
    };
    add(&mut tree, "300", many(300, 10), file(5, &[(0, 1, 0, 1)]));
    // Of 300 attributes of two inodes, 255 are shared.
    for name in ["first", "second"] {
        add(&mut tree, name, many(300, 11), Content::Directory);
        add(&mut tree, &format!("{name}-link"), many(250, 12), Content::Symlink(b"a".to_vec()));
    }
    add(&mut tree, "long", many(3, 65_535), Content::Directory);
    add(&mut tree, "long-shared", many(2, 65_000), Content::Directory);
    add(&mut tree, "long-shared-again", many(2, 65_000), file(5, &[(0, 1, 0, 1)]));
    add(&mut tree, "empty", many(1, 0), Content::Directory);
    assert_mounts(&tree, &[Device { blocks: 1 }]);
}

#[test]
fn xattrs_of_all_prefixes_mount() {
    // The version, and the entries of owner, group and others (linux/posix_acl_xattr.h).
    let entry = |tag: u16, bits: u16| [tag.to_le_bytes(), bits.to_le_bytes(), [255; 2], [255; 2]];
    let acl = [entry(1, 6), entry(4, 4), entry(32, 4)].concat().concat();
    let acl = [2_u32.to_le_bytes().to_vec(), acl].concat();
    // Version 2 with CAP_NET_BIND_SERVICE, effective (linux/capability.h).
    let capability = [0x0200_0001_u32, 1 << 10, 0, 0, 0].map(u32::to_le_bytes).concat();
    let xattrs = vec![
        (b"security.capability".to_vec(), capability),
        (b"security.other".to_vec(), b"1".to_vec()),
        (b"system.posix_acl_access".to_vec(), acl.clone()),
        (b"system.posix_acl_default".to_vec(), acl),
        (b"trusted.overlay.opaque".to_vec(), b"y".to_vec()),
        ([&b"user."[..], &[b'n'; 250]].concat(), b"longest name".to_vec()),
    ];
    let metadata = Metadata { mode: 0o644, xattrs, ..Metadata::default() };
    let mut tree = tree();
    for name in ["shared", "by", "three"] {
        add(&mut tree, name, metadata.clone(), Content::Directory);
    }
    let mut single = metadata;
    single.xattrs.pop();
    add(&mut tree, "alone", single, Content::Directory);
    assert_correct(&tree, &[]);
}

#[test]
fn shared_xattrs_are_stored_once() {
    let bytes_of = |files: u32| {
        let mut tree = tree();
        let xattrs = vec![(b"user.a".to_vec(), vec![b'v'; 4000])];
        for number in 0..files {
            let metadata = Metadata { xattrs: xattrs.clone(), ..Metadata::default() };
            add(&mut tree, &format!("{number}"), metadata, Content::Fifo);
        }
        Disk::new(&tree, &[]).summary.metadata_bytes
    };
    assert_eq!(bytes_of(2), bytes_of(20));
}

#[test]
fn large_directories_mount() {
    let mut tree = tree();
    let large = add(&mut tree, "large", Metadata::default(), Content::Directory);
    let long = add(&mut tree, "long", Metadata::default(), Content::Directory);
    // In no order.
    for number in (0..20_000_u32).map(|number| number * 7919 % 20_000) {
        let content = if number.is_multiple_of(100) { Content::Directory } else { Content::Fifo };
        let id = tree.add(Metadata::default(), content).unwrap();
        tree.link(large, format!("name-{number}").as_bytes(), id).unwrap();
    }
    for number in 0..300_u32 {
        let id = tree.add(Metadata::default(), Content::Socket).unwrap();
        tree.link(long, format!("{number:0255}").as_bytes(), id).unwrap();
    }
    for name in [&b"!"[..], b"-", b"...", b"\xff\xfe", b"\n", b" "] {
        let id = tree.add(Metadata::default(), Content::Fifo).unwrap();
        tree.link(long, name, id).unwrap();
    }
    assert_correct(&tree, &[]);
}

#[test]
fn directories_of_each_size_mount() {
    let mut tree = tree();
    // One more byte in each directory, so that entries and inline tails meet the ends of blocks.
    for bytes in 0..300_usize {
        let id = add(&mut tree, &format!("{bytes}"), Metadata::default(), Content::Directory);
        for number in 0..14 {
            let length = if number < 13 { 255 } else { bytes.clamp(2, 255) };
            let fifo = tree.add(Metadata::default(), Content::Fifo).unwrap();
            let name = format!("{number:0length$}");
            tree.link(id, name.as_bytes(), fifo).unwrap();
        }
        let fifo = tree.add(Metadata::default(), Content::Fifo).unwrap();
        tree.link(id, "x".repeat(bytes.clamp(1, 255)).as_bytes(), fifo).unwrap();
    }
    assert_correct(&tree, &[]);
}

#[test]
fn deep_directories_mount() {
    let mut tree = tree();
    let mut directory = InodeId::ROOT;
    for _ in 0..500 {
        let id = tree.add(Metadata::default(), Content::Directory).unwrap();
        tree.link(directory, b"d", id).unwrap();
        directory = id;
    }
    assert_correct(&tree, &[]);
}

#[test]
fn hard_links_are_one_inode() {
    let mut tree = tree();
    let linked = add(&mut tree, "a", Metadata::default(), file(9, &[(0, 1, 0, 1)]));
    let inner = add(&mut tree, "b", Metadata::default(), Content::Directory);
    tree.link(inner, b"c", linked).unwrap();
    let popular = add(&mut tree, "d", Metadata::default(), Content::Symlink(b"a".to_vec()));
    // A compact inode counts links in 16 bits.
    for number in 0..66_000_u32 {
        tree.link(inner, format!("{number}").as_bytes(), popular).unwrap();
    }
    // Names that are gone do not count.
    let gone = tree.add(Metadata::default(), Content::Directory).unwrap();
    tree.link(gone, b"a", linked).unwrap();
    let disk = Disk::new(&tree, &[Device { blocks: 1 }]);
    assert_eq!(disk.summary.inodes, 4);
    let mounted = disk.mount();
    assert_same(&tree, mounted.root());
    let links = |path: &str| fs::symlink_metadata(mounted.root().join(path)).unwrap().nlink();
    assert_eq!((links("b/c"), links("b/65999")), (2, 66_001));
}

#[test]
fn many_devices_mount() {
    // The device table takes two blocks from the 24th device on.
    for count in [1, 23, 24, 200_u16] {
        let mut tree = tree();
        for device in 1..=count {
            let content = file(4096, &[(0, device, 0, 1)]);
            add(&mut tree, &format!("{device}"), Metadata::default(), content);
        }
        assert_correct(&tree, &vec![Device { blocks: 1 }; count.into()]);
    }
}

#[test]
fn parts_of_a_file_that_no_range_covers_are_holes_for_the_kernel() {
    let mut tree = tree();
    let content = file(16 * 4096, &[(4, 1, 0, 4), (12, 1, 4, 4)]);
    add(&mut tree, "file", Metadata::default(), content);
    let disk = Disk::new(&tree, &[Device { blocks: 8 }]);
    let mounted = disk.mount();
    let file = File::open(mounted.root().join("file")).unwrap();
    let seek = |place| rustix::fs::seek(&file, place).unwrap() / 4096;
    assert_eq!(seek(rustix::fs::SeekFrom::Data(0)), 4);
    assert_eq!(seek(rustix::fs::SeekFrom::Hole(4 * 4096)), 8);
    assert_eq!(seek(rustix::fs::SeekFrom::Data(8 * 4096)), 12);
    let mut bytes = [1; 4096];
    file.read_exact_at(&mut bytes, 8 * 4096).unwrap();
    assert_eq!(bytes, [0; 4096]);
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 64, failure_persistence: None, max_shrink_iters: 300, ..ProptestConfig::default()
    })]

    #[test]
    fn random_trees_mount(tree in trees(60)) {
        assert_correct(&tree, &DEVICES);
    }
}
