//! Generates random images. They use few names and often reuse paths, so that entries affect each
//! other.

use std::collections::BTreeMap;

use proptest::collection::{btree_map, vec};
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::sample::{Index, select};

use crate::image::{Entry, Image, Kind, Metadata, join};

/// Largest number of layers of an image: three that can depend on each other, and a repeated one.
const LAYERS: usize = 4;

/// Largest number of entries of a layer. With more entries, nearly every layer has one that is
/// refused.
const ENTRIES: usize = 8;

/// Largest number of names in the path of an entry.
const DEPTH: usize = 4;

/// A layer whose paths are not chosen yet. A path can depend on earlier entries, so paths are
/// chosen after all entries have been generated.
#[derive(Debug, Clone)]
enum Draft {
    Layer(Vec<DraftEntry>),
    /// A copy of an earlier layer.
    Again(Index),
}

/// An entry whose path is not chosen yet.
#[derive(Debug, Clone)]
struct DraftEntry {
    place: Place,
    kind: DraftKind,
    metadata: Metadata,
}

/// The way to choose the path of an entry.
#[derive(Debug, Clone)]
enum Place {
    /// A new path.
    Fresh(String),
    /// The path of an earlier entry of this class.
    Earlier(Class, Index),
    /// A path below the path of an earlier entry of this class.
    Below(Class, Index, String),
}

/// A class of earlier entries. With entries of any class, a new entry would be refused too often.
#[derive(Debug, Clone, Copy)]
enum Class {
    /// Directories, and symbolic links to them, of this layer or a lower one.
    Directory,
    /// Possible targets of a hard link, of this layer or a lower one.
    Linkable,
    /// Directories, and symbolic links to them, of lower layers.
    LowerDirectory,
    /// All entries of lower layers.
    Lower,
    /// All entries.
    Any,
}

/// The paths of the entries so far, by class.
#[derive(Debug, Default)]
struct Known {
    directories: Vec<String>,
    linkable: Vec<String>,
    lower_directories: Vec<String>,
    lower: Vec<String>,
    any: Vec<String>,
}

/// The type of an entry whose path is not chosen yet.
#[derive(Debug, Clone)]
enum DraftKind {
    /// A hard link to the path at this place.
    HardLink(Place),
    Whiteout,
    Opaque,
    /// The root directory.
    Root,
    /// A type that does not depend on paths.
    Known(Kind),
}

/// Returns the strategy that generates images.
pub(crate) fn images() -> impl Strategy<Value = Image> {
    let layer = vec(entry(), 0..=ENTRIES).prop_map(Draft::Layer);
    let draft = prop_oneof![9 => layer, 1 => any::<Index>().prop_map(Draft::Again)];
    vec(draft, 1..=LAYERS).prop_map(|drafts| finish(&drafts))
}

fn entry() -> impl Strategy<Value = DraftEntry> {
    let entry = |place, kind| {
        (place, kind, metadata()).prop_map(|(place, kind, metadata)| DraftEntry {
            place,
            kind,
            metadata,
        })
    };
    prop_oneof![
        25 => entry(place().boxed(), kind().boxed()),
        3 => entry(used_place(Class::Lower).boxed(), Just(DraftKind::Whiteout).boxed()),
        2 => entry(used_place(Class::LowerDirectory).boxed(), Just(DraftKind::Opaque).boxed()),
    ]
}

fn place() -> impl Strategy<Value = Place> {
    let below = |class| {
        (any::<Index>(), path()).prop_map(move |(index, path)| Place::Below(class, index, path))
    };
    prop_oneof![
        7 => path().prop_map(Place::Fresh),
        3 => earlier(Class::Any),
        5 => below(Class::Directory),
        1 => below(Class::Any),
    ]
}

/// Returns a place that most often has an earlier entry of this class.
fn used_place(class: Class) -> impl Strategy<Value = Place> {
    prop_oneof![12 => earlier(class), 1 => place()]
}

fn earlier(class: Class) -> impl Strategy<Value = Place> {
    any::<Index>().prop_map(move |index| Place::Earlier(class, index))
}

fn path() -> impl Strategy<Value = String> {
    let directory = || select(vec!["a", "b", "c", "d"]);
    // `x` and `y` are seldom names of parents. Otherwise every second entry would be a file in
    // place of a directory that another entry needs.
    let name = prop_oneof![1 => directory(), 1 => select(vec!["x", "y"])];
    let depth = prop_oneof![6 => Just(0_usize), 4 => Just(1), 2 => Just(2), 1 => Just(3)];
    (depth.prop_flat_map(move |depth| vec(directory(), depth)), name).prop_map(|(mut all, name)| {
        all.push(name);
        all.join("/")
    })
}

fn kind() -> impl Strategy<Value = DraftKind> {
    let content = select(vec!["", "one", "two", "three"]);
    prop_oneof![
        8 => Just(DraftKind::Known(Kind::Directory)),
        6 => content.prop_map(|content| DraftKind::Known(Kind::File(content.to_owned()))),
        4 => symlink_target().prop_map(|target| DraftKind::Known(Kind::Symlink(target))),
        3 => used_place(Class::Linkable).prop_map(DraftKind::HardLink),
        1 => Just(DraftKind::Known(Kind::Fifo)),
        1 => Just(DraftKind::Known(Kind::Device)),
        1 => Just(DraftKind::Root),
    ]
}

fn symlink_target() -> impl Strategy<Value = String> {
    let prefix = select(vec!["", "/", "../", "/../", "./", "../../../../../"]);
    let path =
        prop_oneof![6 => path(), 1 => (path(), path()).prop_map(|(a, b)| format!("{a}/../{b}"))];
    prop_oneof![
        9 => (prefix, path).prop_map(|(prefix, path)| format!("{prefix}{path}")),
        1 => select(vec!["/", ".", "..", "../.."]).prop_map(str::to_owned),
    ]
}

fn metadata() -> impl Strategy<Value = Metadata> {
    let mode = select(vec![0o755, 0o644, 0o700, 0o1777, 0o6755, 0o555, 0]);
    let id = || select(vec![0, 7, 100_000]);
    let mtime = select(vec![(0, 0), (1, 0), (1_700_000_000, 0), (12, 345), (-1, 0)]);
    let some =
        btree_map(select(vec!["user.k", "user.l"]), select(vec!["", "v", "two\nlines"]), 1..=2);
    let xattrs = prop_oneof![6 => Just(BTreeMap::new()), 1 => some];
    (mode, id(), id(), mtime, xattrs).prop_map(|(mode, uid, gid, mtime, xattrs)| Metadata {
        mode,
        uid,
        gid,
        mtime,
        xattrs: xattrs
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
    })
}

/// Chooses the path of each entry.
fn finish(drafts: &[Draft]) -> Image {
    let mut known = Known::default();
    let mut layers: Vec<Vec<Entry>> = Vec::new();
    for draft in drafts {
        match draft {
            Draft::Again(index) if !layers.is_empty() => layers.push(index.get(&layers).clone()),
            Draft::Again(_) => layers.push(Vec::new()),
            Draft::Layer(entries) => {
                known.lower_directories.clone_from(&known.directories);
                known.lower.clone_from(&known.any);
                layers.push(entries.iter().map(|entry| entry.finish(&mut known)).collect());
            }
        }
    }
    Image(layers)
}

impl DraftEntry {
    fn finish(&self, known: &mut Known) -> Entry {
        let (path, target) = (
            self.place.finish(known),
            match &self.kind {
                DraftKind::HardLink(target) => target.finish(known),
                _ => Some(String::new()),
            },
        );
        let metadata = self.metadata.clone();
        let (Some(path), Some(target)) = (path, target) else {
            // No earlier entry can be hidden or linked to, so the entry becomes a directory.
            return Entry { path: "a".to_owned(), kind: Kind::Directory, metadata };
        };
        let (path, kind) = match &self.kind {
            DraftKind::HardLink(_) => (path, Kind::HardLink(target)),
            DraftKind::Whiteout => (path, Kind::Whiteout),
            // The path `a` becomes the root, so that some opaque whiteouts are for the root.
            DraftKind::Opaque if path == "a" => (String::new(), Kind::Opaque),
            DraftKind::Opaque => (path, Kind::Opaque),
            DraftKind::Root => (String::new(), Kind::Directory),
            DraftKind::Known(kind) => (path, kind.clone()),
        };
        known.add(&path, &kind);
        Entry { path, kind, metadata }
    }
}

impl Known {
    fn add(&mut self, path: &str, kind: &Kind) {
        let is_made = !path.is_empty() && !matches!(kind, Kind::Whiteout | Kind::Opaque);
        let is_linkable = !matches!(kind, Kind::Directory);
        let is_directory = matches!(kind, Kind::Directory | Kind::Symlink(_));
        let all = [
            (&mut self.any, is_made),
            (&mut self.linkable, is_made && is_linkable),
            (&mut self.directories, is_made && is_directory),
        ];
        all.into_iter()
            .filter(|(_, fits)| *fits)
            .for_each(|(paths, _)| paths.push(path.to_owned()));
    }

    fn get(&self, class: Class, index: &Index) -> Option<&str> {
        let paths = match class {
            Class::Directory => &self.directories,
            Class::Linkable => &self.linkable,
            Class::LowerDirectory => &self.lower_directories,
            Class::Lower => &self.lower,
            Class::Any => &self.any,
        };
        (!paths.is_empty()).then(|| index.get(paths).as_str())
    }
}

impl Place {
    /// Returns the path, or `None` if there is no earlier entry of the class.
    fn finish(&self, known: &Known) -> Option<String> {
        Some(match self {
            Self::Earlier(class, index) => known.get(*class, index)?.to_owned(),
            Self::Below(class, index, path) => {
                let path = join(known.get(*class, index).unwrap_or_default(), path);
                path.split('/').take(DEPTH).collect::<Vec<_>>().join("/")
            }
            Self::Fresh(path) => path.clone(),
        })
    }
}
