use std::collections::BTreeMap;
use std::io::Write;
use std::ops::ControlFlow;
use std::thread;
use std::time::Duration;

use a3s_box_erofs::{ContentRef, InodeId, Metadata, Tree};

use super::*;
use crate::block::checksum::Checksum;
use crate::block::index::{BlockRange, IndexFacts, encode, encode_end, encode_range};
use crate::block::trailer::Trailer;
use crate::unpack::entry_error::EntryError;
use crate::unpack::error::LayerError;
use crate::unpack::facts::LayerFacts;
use crate::unpack::progress::OnProgress;
use crate::unpack::steps::{StepLimits, StepsError};

/// Blocks of data in front of each index. Their content does not matter.
const BLOCKS: u32 = 8;

fn path(text: &str) -> EntryPath {
    EntryPath::from_normalized(text.into()).unwrap()
}

fn metadata(uid: u32) -> Metadata {
    Metadata { mode: 0o640, uid, mtime_s: 7, ..Metadata::default() }
}

fn dir(name: &str, uid: u32) -> Record {
    Record { path: path(name), change: Change::Directory(metadata(uid)) }
}

/// A file of one block: the block with this number.
fn file(name: &str, block: u32) -> Record {
    let ranges = vec![BlockRange { file_block: 0, block, blocks: 1 }];
    let change = Change::File { metadata: metadata(1), size_bytes: 5, ranges };
    Record { path: path(name), change }
}

fn symlink(name: &str, target: &str) -> Record {
    let change = Change::Symlink { metadata: metadata(1), target: target.into() };
    Record { path: path(name), change }
}

fn hard_link(name: &str, target: &str) -> Record {
    Record { path: path(name), change: Change::HardLink(path(target)) }
}

fn skipped(name: &str) -> Record {
    Record { path: path(name), change: Change::Skipped }
}

fn whiteout(name: &str) -> Record {
    Record { path: path(name), change: Change::Whiteout }
}

fn opaque(name: &str) -> Record {
    Record { path: path(name), change: Change::Opaque }
}

fn layer_file(records: &[Record]) -> LayerFile {
    let mut bytes = Vec::new();
    for Record { path, change } in records {
        encode(path, change, &mut bytes);
        if let Change::File { ranges, .. } = change {
            ranges.iter().for_each(|range| encode_range(range, &mut bytes));
            encode_end(&mut bytes);
        }
    }
    let index = IndexFacts {
        bytes: bytes.len() as u64,
        records: records.len() as u64,
        checksum: Checksum::of(&bytes),
        data_blocks: BLOCKS,
    };
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&vec![0; BLOCKS as usize * 4096]).unwrap();
    file.write_all(&bytes).unwrap();
    file.write_all(&Trailer { index, facts: LayerFacts::default() }.encode()).unwrap();
    LayerFile::open(file).unwrap()
}

fn merge_within(limits: TreeLimits, layers: &[&[Record]]) -> Result<Tree, BlockError> {
    let mut merge = Merge::new(limits)?;
    for (number, records) in layers.iter().enumerate() {
        let device = u16::try_from(number + 1).unwrap();
        let progress: &mut OnProgress<'_> = &mut |_| ControlFlow::Continue(());
        let meter = &mut Meter::new(0, progress);
        merge.apply(&layer_file(records), device, Digest::of(b""), meter)?;
    }
    Ok(merge.into_tree())
}

fn merge(layers: &[&[Record]]) -> Result<Tree, BlockError> {
    merge_within(TreeLimits::default(), layers)
}

/// Describes all files of a tree: path, owner, and content as `device:block`.
fn listing(tree: &Tree) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut pending = vec![(String::new(), InodeId::ROOT)];
    while let Some((path, inode)) = pending.pop() {
        let uid = tree.metadata(inode).uid;
        let text = match tree.content(inode) {
            ContentRef::Directory => {
                let name = |name: &[u8]| format!("{path}/{}", name.escape_ascii());
                pending.extend(tree.children(inode).map(|(child, inode)| (name(child), inode)));
                format!("dir {uid}")
            }
            ContentRef::File { ranges, .. } => {
                format!("file {}:{}", ranges[0].device, ranges[0].block)
            }
            ContentRef::Symlink(target) => format!("-> {}", target.escape_ascii()),
            other => format!("{other:?}"),
        };
        found.insert(path, text);
    }
    found
}

#[track_caller]
fn assert_listing(layers: &[&[Record]], expected: &[(&str, &str)]) {
    let found = listing(&merge(layers).unwrap());
    let expected: BTreeMap<String, String> =
        expected.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect();
    assert_eq!(found, expected);
}

#[track_caller]
fn refusal(layers: &[&[Record]]) -> EntryError {
    match merge(layers) {
        Err(BlockError::Layer { source: LayerError::Entry { source, .. }, .. }) => source,
        other => panic!("expected the refusal of an entry, found {other:?}"),
    }
}

fn inode_of(tree: &Tree, path: &str) -> InodeId {
    path.split('/').fold(InodeId::ROOT, |here, name| tree.child(here, name.as_bytes()).unwrap())
}

#[test]
fn later_entries_replace_files_and_describe_directories() {
    let lower = [dir("d", 1), file("d/f", 0), file("d/g", 1), file("e", 2), skipped("n")];
    let upper = [dir("d", 2), file("d/f", 3), dir("e", 4), skipped("d/g"), dir("", 9)];
    assert_listing(
        &[&lower, &upper],
        &[("", "dir 0"), ("/d", "dir 2"), ("/d/f", "file 2:3"), ("/e", "dir 4")],
    );
}

#[test]
fn parents_are_resolved_in_the_layers_below_and_made_if_missing() {
    let lower = [symlink("lib", "usr/lib"), symlink("up", "/../x/../usr"), dir("usr/lib", 3)];
    let upper = [file("lib/a", 0), file("up/b/c", 1), file("d", 2)];
    assert_listing(
        &[&lower, &upper],
        &[
            ("", "dir 0"),
            ("/d", "file 2:2"),
            ("/lib", "-> usr/lib"),
            ("/up", "-> /../x/../usr"),
            ("/usr", "dir 0"),
            ("/usr/b", "dir 0"),
            ("/usr/b/c", "file 2:1"),
            ("/usr/lib", "dir 3"),
            ("/usr/lib/a", "file 2:0"),
            ("/x", "dir 0"),
        ],
    );
}

#[test]
fn parent_that_is_no_directory_and_links_without_end_are_refused() {
    let below_file = refusal(&[&[file("f", 0)], &[file("f/x", 0)]]);
    assert!(matches!(below_file, EntryError::ParentNotDirectory), "{below_file:?}");
    let circle = refusal(&[&[symlink("a", "b"), symlink("b", "a"), file("a/x", 0)]]);
    assert!(matches!(circle, EntryError::SymlinkLoop), "{circle:?}");
    // 40 links are followed, and 41 are not.
    let chain = |length: usize| {
        let mut records = vec![dir("l0", 0)];
        for number in 1..=length {
            records.push(symlink(&format!("l{number}"), &format!("l{}", number - 1)));
        }
        records.push(file(&format!("l{length}/x"), 0));
        records
    };
    let tree = merge(&[&chain(40)]).unwrap();
    inode_of(&tree, "l0/x");
    assert!(matches!(refusal(&[&chain(41)]), EntryError::SymlinkLoop));
}

#[test]
fn whiteouts_hide_lower_files_only() {
    let lower = [file("a", 0), file("b/x", 1), file("b/y", 2), file("c/x", 3)];
    let upper = [file("a", 4), whiteout("a"), whiteout("b/x"), opaque("c"), file("c/z", 5)];
    assert_listing(
        &[&lower, &upper],
        &[
            ("", "dir 0"),
            ("/a", "file 2:4"),
            ("/b", "dir 0"),
            ("/b/y", "file 1:2"),
            ("/c", "dir 0"),
            ("/c/z", "file 2:5"),
        ],
    );
    assert_listing(&[&lower, &[opaque(""), file("n", 0)]], &[("", "dir 0"), ("/n", "file 2:0")]);
    // A whiteout of a missing file creates nothing.
    assert_listing(&[&[whiteout("p/q"), opaque("r")]], &[("", "dir 0")]);
}

#[test]
fn whiteout_follows_a_lower_link_unless_its_layer_replaces_the_link() {
    let lower = [symlink("s", "t"), file("t/x", 0)];
    let followed = [("", "dir 0"), ("/s", "-> t"), ("/t", "dir 0")];
    assert_listing(&[&lower, &[whiteout("s/x")]], &followed);
    let replaced = [("", "dir 0"), ("/s", "dir 5"), ("/t", "dir 0"), ("/t/x", "file 1:0")];
    assert_listing(&[&lower, &[whiteout("s/x"), dir("s", 5)]], &replaced);
    // A hard link that is made at the end of the layer replaces the link below too.
    let late = [
        ("", "dir 0"),
        ("/f", "file 2:1"),
        ("/s", "file 2:1"),
        ("/t", "dir 0"),
        ("/t/x", "file 1:0"),
    ];
    assert_listing(&[&lower, &[whiteout("s/x"), hard_link("s", "f"), file("f", 1)]], &late);
    // A parent without an entry follows the link, and so does the whiteout.
    let used = [("", "dir 0"), ("/s", "-> t"), ("/t", "dir 0"), ("/t/n", "file 2:1")];
    assert_listing(&[&lower, &[whiteout("s/x"), file("s/n", 1)]], &used);
}

#[test]
fn hard_links_share_the_inode_of_any_layer() {
    let lower = [file("a", 0), hard_link("b", "a")];
    let upper = [hard_link("c", "a"), hard_link("late", "later"), file("later", 1)];
    let tree = merge(&[&lower, &upper]).unwrap();
    let inode = |path| inode_of(&tree, path);
    assert_eq!([inode("b"), inode("c")], [inode("a"); 2]);
    assert_eq!(inode("late"), inode("later"));
    // The link survives when the first name is replaced.
    let tree = merge(&[&lower, &[file("a", 5)]]).unwrap();
    assert_ne!(inode_of(&tree, "a"), inode_of(&tree, "b"));
}

#[test]
fn late_link_gives_way_to_a_later_entry_of_its_name() {
    let tree = merge(&[&[hard_link("l", "t"), file("l", 1), file("t", 2)]]).unwrap();
    assert_ne!(inode_of(&tree, "l"), inode_of(&tree, "t"));
    let removed = refusal(&[&[file("l", 0)], &[hard_link("l", "t"), whiteout("t")]]);
    assert!(matches!(removed, EntryError::HardLinkTarget { .. }), "{removed:?}");
}

#[test]
fn hard_link_that_cannot_be_made_is_refused() {
    for (layer, name) in [
        ([file("f", 0), hard_link("h", "missing")], "missing"),
        // The link's name is a directory above the target.
        ([file("d/f", 0), hard_link("d", "d/f")], "d/f"),
        ([dir("x", 0), hard_link("h", "h")], "h"),
    ] {
        let EntryError::HardLinkTarget { target } = refusal(&[&layer]) else {
            panic!("{name} is another error");
        };
        assert_eq!(target, name);
    }
    for target in ["d", ""] {
        let error = refusal(&[&[dir("d", 0), hard_link("h", target)]]);
        assert!(matches!(error, EntryError::HardLinkToDirectory { .. }), "{error:?}");
    }
    // A link to itself has no effect.
    merge(&[&[file("f", 0), hard_link("f", "f")]]).unwrap();
}

#[test]
fn tree_is_bounded_in_inodes_memory_steps_and_depth() {
    let many: Vec<Record> = (0..50).map(|number| file(&format!("f{number}"), 0)).collect();
    let within = |limits| merge_within(limits, &[&many]).map(drop);
    within(TreeLimits { inodes: 51, ..TreeLimits::default() }).unwrap();
    let limits = [
        ("inodes", TreeLimits { inodes: 50, ..TreeLimits::default() }),
        ("bytes of memory", TreeLimits { bytes: 1000, ..TreeLimits::default() }),
    ];
    for (expected, limits) in limits {
        let Err(BlockError::Limit { what, .. }) = within(limits) else { panic!("{expected}") };
        assert_eq!(what, expected);
    }
    let deep: Vec<Record> = (0..5).map(|number| file(&format!("a/b/c/d/e/{number}"), 0)).collect();
    for (steps, expected) in [
        (StepLimits { entry: 5, average: 5, floor: 0 }, None),
        (StepLimits { entry: 4, average: 5, floor: 0 }, Some(StepsError::Entry { limit: 4 })),
        (StepLimits { entry: 5, average: 4, floor: 4 }, Some(StepsError::Layer { limit: 24 })),
    ] {
        // Each layer has the whole limit.
        let found = merge_within(TreeLimits { steps, ..TreeLimits::default() }, &[&deep, &deep]);
        let found = match found.map(drop) {
            Err(BlockError::Layer { source: LayerError::Entry { source, .. }, .. }) => Some(source),
            other => other.map(|()| None).unwrap(),
        };
        let found = found.map(|error| match error {
            EntryError::Steps(error) => error,
            other => panic!("{other:?}"),
        });
        assert_eq!(found, expected);
    }
    // Each link doubles the depth of the tree.
    let mut records = Vec::new();
    for number in 1..20 {
        let target = format!(
            "{}/{}",
            if number > 1 { format!("l{}", number - 1) } else { String::new() },
            vec!["d"; 200].join("/")
        );
        records
            .push(symlink(&format!("l{number}"), &format!("/{}", target.trim_start_matches('/'))));
        records.push(file(&format!("l{number}/x"), 0));
    }
    let found = refusal(&[&records]);
    assert!(matches!(found, EntryError::Name(_)), "{found:?}");
}

#[test]
fn whole_index_is_verified_before_the_first_entry_is_applied() {
    let mut merge = Merge::new(TreeLimits::default()).unwrap();
    let mut file = layer_file(&[file("a", 0), file("b", 1)]);
    file.corrupt_checksum();
    let progress: &mut OnProgress<'_> = &mut |_| ControlFlow::Continue(());
    let found = merge.apply(&file, 1, Digest::of(b""), &mut Meter::new(0, progress));
    assert!(matches!(found, Err(BlockError::Index { .. })), "{found:?}");
    assert_eq!(merge.into_tree().len(), 1);
}

#[test]
fn names_of_links_are_counted_before_they_are_looked_up() {
    // Each link leads to the next one at once, and has a thousand names behind it.
    let mut records = vec![dir("l0", 0)];
    for number in 1..=39 {
        records
            .push(symlink(&format!("l{number}"), &format!("l{}/{}", number - 1, "x/".repeat(999))));
    }
    records.push(file("l39/f", 0));
    let error = refusal(&[&records]);
    assert!(matches!(error, EntryError::Steps(StepsError::Entry { limit: 4096 })), "{error:?}");
    // The way to a whiteout and to the target of a hard link is an entry's way, too.
    records.pop();
    for upper in [whiteout("l39/f"), hard_link("h", "l39/f"), opaque("l39/f")] {
        let error = refusal(&[&records, &[upper]]);
        assert!(matches!(error, EntryError::Steps(_)), "{error:?}");
    }
}

#[test]
fn merge_is_cancelled_at_any_entry() {
    let lower = [file("a", 0), hard_link("late", "later"), file("later", 0)];
    let upper = [whiteout("a"), file("b", 0)];
    let merge = |most: usize| {
        let mut merge = Merge::new(TreeLimits::default()).unwrap();
        let mut calls = 0;
        let progress: &mut OnProgress<'_> = &mut |_| {
            calls += 1;
            // Each further entry is then reported, because the interval between reports is over.
            thread::sleep(Duration::from_millis(30));
            if calls < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        };
        let mut meter = Meter::new(0, progress);
        let merged = [&lower[..], &upper].into_iter().try_for_each(|records| {
            merge.apply(&layer_file(records), 1, Digest::of(b""), &mut meter)
        });
        (calls, merged)
    };
    // The index is read twice, and a third time if the layer has a whiteout. The late link and the
    // whiteout are applied separately.
    let (calls, merged) = merge(usize::MAX);
    merged.unwrap();
    assert_eq!(calls, (2 * 3 + 1) + (3 * 2 + 1));
    for most in 1..=calls {
        let (calls, merged) = merge(most);
        assert_eq!(calls, most);
        let is_cancelled =
            matches!(merged, Err(BlockError::Layer { source: LayerError::Cancelled, .. }));
        assert!(is_cancelled, "{merged:?}");
    }
}

#[test]
fn names_of_a_device_are_left_out_and_a_link_to_a_lost_device_is_refused() {
    let lower = [skipped("n"), hard_link("l", "n"), file("f", 1)];
    assert_listing(&[&lower, &[hard_link("m", "l")]], &[("", "dir 0"), ("/f", "file 1:1")]);
    // A device hides a lower file of its name, and a later file takes its place.
    assert_listing(&[&lower, &[skipped("f"), file("n", 2)]], &[("", "dir 0"), ("/n", "file 2:2")]);
    let lost: [&[Record]; 3] = [
        &[whiteout("n"), hard_link("m", "n")],
        &[dir("n", 1), file("n/x", 1), hard_link("m", "n/y")],
        &[hard_link("n/m", "n")],
    ];
    for upper in lost {
        let error = refusal(&[&[skipped("n")], upper]);
        assert!(matches!(error, EntryError::HardLinkTarget { .. }), "{upper:?}: {error}");
    }
}
