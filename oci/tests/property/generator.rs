//! Random images, made so that their entries meet: few names, and paths that were used before.

use std::collections::BTreeMap;

use proptest::collection::{btree_map, vec};
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::sample::{Index, select};

use crate::image::{Entry, Image, Kind, Metadata, join};

/// Most layers of an image: three to depend on each other, one to repeat.
const LAYERS: usize = 4;

/// Most entries of a layer: with more, nearly every layer holds one that is refused.
const ENTRIES: usize = 8;

/// Most names in the path of an entry.
const DEPTH: usize = 4;

/// A layer before its paths are known.
#[derive(Debug, Clone)]
enum Draft {
    Layer(Vec<DraftEntry>),
    /// An earlier layer once more.
    Again(Index),
}

#[derive(Debug, Clone)]
struct DraftEntry {
    place: Place,
    kind: DraftKind,
    metadata: Metadata,
}

/// How an entry comes to its path.
#[derive(Debug, Clone)]
enum Place {
    Fresh(String),
    /// The path of an earlier entry of this sort.
    Earlier(Sort, Index),
    /// Below the path of an earlier entry of this sort.
    Below(Sort, Index, String),
}

/// Entries that are used alike, or the layer would be refused too often.
#[derive(Debug, Clone, Copy)]
enum Sort {
    /// What can have something below it, of this layer or a lower one.
    Directory,
    /// What a hard link can have as its target, of this layer or a lower one.
    Linkable,
    /// Directories of lower layers.
    LowerDirectory,
    /// Anything of a lower layer.
    Lower,
    Any,
}

/// Paths of the entries so far, by sort.
#[derive(Debug, Default)]
struct Known {
    directories: Vec<String>,
    linkable: Vec<String>,
    lower_directories: Vec<String>,
    lower: Vec<String>,
    any: Vec<String>,
}

#[derive(Debug, Clone)]
enum DraftKind {
    HardLink(Place),
    Whiteout,
    Opaque,
    Root,
    Known(Kind),
}

/// Returns the strategy that makes images.
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
        3 => entry(used_place(Sort::Lower).boxed(), Just(DraftKind::Whiteout).boxed()),
        2 => entry(used_place(Sort::LowerDirectory).boxed(), Just(DraftKind::Opaque).boxed()),
    ]
}

fn place() -> impl Strategy<Value = Place> {
    let below = |sort| {
        (any::<Index>(), path()).prop_map(move |(index, path)| Place::Below(sort, index, path))
    };
    prop_oneof![
        7 => path().prop_map(Place::Fresh),
        3 => earlier(Sort::Any),
        5 => below(Sort::Directory),
        1 => below(Sort::Any),
    ]
}

/// Returns a place where there probably is something of this sort.
fn used_place(sort: Sort) -> impl Strategy<Value = Place> {
    prop_oneof![12 => earlier(sort), 1 => place()]
}

fn earlier(sort: Sort) -> impl Strategy<Value = Place> {
    any::<Index>().prop_map(move |index| Place::Earlier(sort, index))
}

fn path() -> impl Strategy<Value = String> {
    let directory = || select(vec!["a", "b", "c", "d"]);
    // Names that are rarely those of directories, so that not every second entry stands in the way
    // of another.
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
        3 => used_place(Sort::Linkable).prop_map(DraftKind::HardLink),
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

/// Gives each entry its path.
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
            // There is nothing yet to take away or to link to.
            return Entry { path: "a".to_owned(), kind: Kind::Directory, metadata };
        };
        let (path, kind) = match &self.kind {
            DraftKind::HardLink(_) => (path, Kind::HardLink(target)),
            DraftKind::Whiteout => (path, Kind::Whiteout),
            // Some are the root's.
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
        let is_linkable = !matches!(kind, Kind::Directory | Kind::Device);
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

    fn get(&self, sort: Sort, index: &Index) -> Option<&str> {
        let paths = match sort {
            Sort::Directory => &self.directories,
            Sort::Linkable => &self.linkable,
            Sort::LowerDirectory => &self.lower_directories,
            Sort::Lower => &self.lower,
            Sort::Any => &self.any,
        };
        (!paths.is_empty()).then(|| index.get(paths).as_str())
    }
}

impl Place {
    /// Returns the path, or `None` if there is no such entry yet.
    fn finish(&self, known: &Known) -> Option<String> {
        Some(match self {
            Self::Earlier(sort, index) => known.get(*sort, index)?.to_owned(),
            Self::Below(sort, index, path) => {
                let path = join(known.get(*sort, index).unwrap_or_default(), path);
                path.split('/').take(DEPTH).collect::<Vec<_>>().join("/")
            }
            Self::Fresh(path) => path.clone(),
        })
    }
}
