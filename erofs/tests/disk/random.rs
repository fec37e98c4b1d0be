//! Random trees.

use a3s_box_erofs::{Content, DataRange, Device, FileData, InodeId, Metadata, Tree};
use proptest::prelude::*;

/// The devices of all random trees.
pub(crate) const DEVICES: [Device; 3] =
    [Device { blocks: 40 }, Device { blocks: 1 }, Device { blocks: 64 }];

/// One inode of a random tree, and where it is linked: the directory as a number modulo that of the
/// directories so far, and the name.
#[derive(Debug, Clone)]
struct Node {
    metadata: Metadata,
    content: Content,
    links: Vec<(usize, Vec<u8>)>,
}

/// Returns a strategy for trees with up to `inodes` inodes, some of which are not linked.
pub(crate) fn trees(inodes: usize) -> impl Strategy<Value = Tree> {
    let links = prop::collection::vec((any::<usize>(), name()), 0..4);
    let node = (metadata(), content(), links);
    let node = node.prop_map(|(metadata, content, links)| Node { metadata, content, links });
    (metadata(), prop::collection::vec(node, 0..inodes)).prop_map(|(root, nodes)| {
        let mut tree = Tree::new(root).unwrap();
        let mut directories = vec![InodeId::ROOT];
        for Node { metadata, content, mut links } in nodes {
            if content == Content::Directory {
                links.truncate(1);
            }
            let id = tree.add(metadata, content).unwrap();
            for (directory, name) in links {
                tree.link(directories[directory % directories.len()], &name, id).unwrap();
            }
            if tree.is_directory(id) {
                directories.push(id);
            }
        }
        tree
    })
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    let bytes = |length| {
        let byte = any::<u8>().prop_filter("a byte of names", |byte| !matches!(byte, 0 | b'/'));
        prop::collection::vec(byte, length)
    };
    prop_oneof![
        8 => "[a-c.]{1,4}".prop_map(String::into_bytes),
        4 => bytes(1..20),
        2 => bytes(200..256),
    ]
    .prop_filter("a name", |name| !matches!(&name[..], b"." | b".."))
}

fn metadata() -> impl Strategy<Value = Metadata> {
    let id =
        || prop_oneof![4 => Just(0), 2 => 0..=65_535_u32, 1 => Just(65_536), 1 => any::<u32>()];
    // Linux has no -1 as an owner.
    let id = move || id().prop_map(|id| id.min(u32::MAX - 1));
    let time = prop_oneof![
        4 => Just((1_700_000_000, 0)),
        2 => Just((0, 0)),
        1 => (-1_i64 << 40..1 << 40, 0..1_000_000_000_u32),
    ];
    (0..=0o7777_u16, id(), id(), time, xattrs()).prop_map(|(mode, uid, gid, time, xattrs)| {
        let (mtime_s, mtime_ns) = time;
        Metadata { mode, uid, gid, mtime_s, mtime_ns, xattrs }
    })
}

fn xattrs() -> impl Strategy<Value = Vec<(Vec<u8>, Vec<u8>)>> {
    let name = prop_oneof!["user\\.[a-c]{1,2}", "trusted\\.[a-c]{1,3}", "security\\.x[a-c]?"];
    let value = prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 0..8),
        2 => prop::collection::vec(any::<u8>(), 0..300),
        1 => prop::collection::vec(any::<u8>(), 3900..5000),
    ];
    let set = prop::collection::btree_map(name.prop_map(String::into_bytes), value, 1..6);
    let set = set.prop_map(|set| set.into_iter().collect());
    let repeated = vec![(b"user.repeated".to_vec(), b"value".to_vec())];
    let overlapping = [&repeated[..], &[(b"user.a".to_vec(), Vec::new())]].concat();
    prop_oneof![
        8 => Just(Vec::new()),
        2 => Just(repeated),
        2 => Just(overlapping),
        3 => set,
    ]
}

fn content() -> impl Strategy<Value = Content> {
    let target = prop_oneof![
        4 => "[a-z./]{1,60}",
        1 => "[a-z]{3900,4095}",
    ];
    prop_oneof![
        6 => Just(Content::Directory),
        6 => file().prop_map(Content::File),
        2 => target.prop_map(|target| Content::Symlink(target.into_bytes())),
        1 => Just(Content::Fifo),
        1 => Just(Content::Socket),
        1 => (0..4096_u32, 0..1_048_576_u32)
            .prop_map(|(major, minor)| Content::CharDevice { major, minor }),
        1 => (0..4096_u32, 0..1_048_576_u32)
            .prop_map(|(major, minor)| Content::BlockDevice { major, minor }),
    ]
}

fn file() -> impl Strategy<Value = FileData> {
    let hole = prop_oneof![3 => Just(0_u64), 2 => 0..5_u64, 1 => Just(8), 1 => Just(16)];
    // Ranges that continue the one before make larger chunks.
    let part = (hole, 0..DEVICES.len(), any::<u32>(), 1..=8_u32, any::<bool>());
    let parts = prop::collection::vec(part, 0..5);
    (parts, 0..9_u64, 0..4096_u64).prop_map(|(parts, hole_at_end, cut)| {
        let mut at = 0;
        let mut ranges: Vec<DataRange> = Vec::new();
        for (hole, device, block, blocks, continues) in parts {
            let end = ranges.last().map(|last| (last.device, last.block + last.blocks));
            let (device, block, hole) = match end {
                Some((number, block))
                    if continues && block < DEVICES[usize::from(number) - 1].blocks =>
                {
                    (usize::from(number) - 1, block, 0)
                }
                _ => (device, block % DEVICES[device].blocks, hole),
            };
            let blocks = blocks.min(DEVICES[device].blocks - block);
            at += hole;
            let device = u16::try_from(device + 1).unwrap();
            ranges.push(DataRange { file_block: at, device, block, blocks });
            at += u64::from(blocks);
        }
        let size_bytes = ((at + hole_at_end) * 4096).saturating_sub(cut);
        FileData { size_bytes, ranges }
    })
}
