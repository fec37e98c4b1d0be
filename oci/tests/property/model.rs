//! The layers of an image applied in order, in memory: what the file system must look like.
//!
//! The image specification (layer.md) says that layers are applied one after the other. Where it
//! leaves room, these are the rules:
//!
//! - Whiteouts act on lower layers only, all of them before the entries of their layer. Their paths are
//!   resolved over the lower layers as they were; one that hides nothing is nothing, and so is one below a
//!   something that this layer replaces, or in what another whiteout of the layer hides. An opaque marker empties a directory, which stays as it is.
//! - The directory of an entry is resolved over all that is there so far, symbolic links with the root as
//!   their root; after 40 links it is refused, as by the kernel. What is missing on the way is made, with mode
//!   0755, owner 0:0, time 0. Something else than a directory on the way is refused.
//! - A directory over a directory takes the new metadata, extended attributes included, and keeps its
//!   content. Every other entry replaces what is at its place, also a directory with all that is in it.
//! - A device is not made, but what was at its place goes.
//! - A hard link shares the inode that its target has by then. When the target is missing by then, what is at
//!   the link's place goes, and the target is looked up again at the end of the layer: it is refused if it is
//!   missing still, and nothing is done if a later entry has taken the place. Directories are refused as targets, and
//!   so is a target that goes when the place of the link is cleared. A link to itself is nothing.
//! - Links of one layer share an inode. Whether those of several layers do is left open, as one that an upper
//!   layer links to is copied into it.
//! - The root is a directory of mode 0755, owner 0:0, time 0, until an entry describes it.

use std::collections::BTreeMap;

use crate::image::{Entry, Image, Kind, Metadata, join, split};

/// Bound on symbolic links in one path: the kernel's.
const SYMLINK_HOPS: usize = 40;

const ROOT: usize = 0;

/// Why an image is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refusal(pub(crate) &'static str);

/// What is expected of an image.
#[derive(Debug)]
pub(crate) struct Expectation {
    pub(crate) outcome: Result<Tree, Refusal>,
    /// A refusal is right as well: the rules leave it open.
    pub(crate) may_be_refused: bool,
}

/// A tree, in the form in which it is compared.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Tree {
    /// Type, metadata and content of each path.
    pub(crate) entries: BTreeMap<String, String>,
    /// The inode of each path that is no directory, and the group of links that share it for certain.
    pub(crate) links: BTreeMap<String, (u64, usize)>,
}

#[derive(Debug)]
enum Body {
    Directory(BTreeMap<String, Link>),
    File(String),
    Symlink(String),
    Fifo,
}

#[derive(Debug)]
struct Node {
    metadata: Metadata,
    body: Body,
    /// The layer that described the directory last.
    described: Option<usize>,
}

#[derive(Debug, Clone, Copy)]
struct Link {
    node: usize,
    /// The links that share its inode for certain, see `Model::groups`.
    group: usize,
}

/// What is done about a directory that is missing on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Missing {
    Make,
    Stop,
}

/// The state after some layers and entries.
#[derive(Debug)]
struct Model {
    nodes: Vec<Node>,
    /// The layer that made each group of links.
    groups: Vec<usize>,
    layer: usize,
    may_be_refused: bool,
}

/// Applies all layers of an image.
pub(crate) fn expectation(image: &Image) -> Expectation {
    let mut model = Model::new();
    let mut outcome = Ok(());
    for (number, layer) in image.0.iter().enumerate() {
        model.layer = number;
        outcome = outcome.and_then(|()| model.apply(layer));
    }
    let outcome = outcome.map(|()| {
        let mut tree = Tree::default();
        model.describe(ROOT, "", &mut tree);
        tree
    });
    Expectation { outcome, may_be_refused: model.may_be_refused }
}

/// The metadata of a directory that no entry describes.
fn implicit() -> Metadata {
    Metadata { mode: 0o755, ..Metadata::default() }
}

impl Model {
    fn new() -> Self {
        let root =
            Node { metadata: implicit(), body: Body::Directory(BTreeMap::new()), described: None };
        Self { nodes: vec![root], groups: Vec::new(), layer: 0, may_be_refused: false }
    }

    fn apply(&mut self, layer: &[Entry]) -> Result<(), Refusal> {
        self.apply_whiteouts(layer);
        let mut late = Vec::new();
        for entry in layer {
            match &entry.kind {
                Kind::Whiteout | Kind::Opaque => {}
                Kind::HardLink(target) => {
                    if !self.hard_link(&entry.path, target)? {
                        if let Some((parent, name)) = self.place(&entry.path)? {
                            self.unlink(parent, name);
                        }
                        late.push((&entry.path, target));
                    }
                }
                _ => self.make(entry)?,
            }
        }
        self.link_late(&late)
    }

    /// Makes the links whose targets were missing when they were read.
    fn link_late(&mut self, late: &[(&String, &String)]) -> Result<(), Refusal> {
        let mut still_late = Vec::new();
        for (path, target) in late {
            let (parent, name) = self.place(path)?.ok_or(Refusal("root is no directory"))?;
            let (directory, from) = split(target);
            let directory = self.directory(directory, Missing::Stop).ok().flatten();
            let is_there = directory.is_some_and(|there| self.child(there, from).is_some());
            // A later entry of the same name has won.
            if is_there && self.child(parent, name).is_some() {
                continue;
            }
            match self.hard_link(path, target)? {
                true => {}
                false => still_late.push((*path, *target)),
            }
        }
        match still_late.len() {
            0 => Ok(()),
            // A late link to a late link: how often to look again is left open.
            left if left < late.len() => {
                self.may_be_refused = true;
                self.link_late(&still_late)
            }
            _ => Err(Refusal("hard link target is missing")),
        }
    }

    fn apply_whiteouts(&mut self, layer: &[Entry]) {
        let alone = Self::alone(layer);
        let find = |model: &mut Self, path: &str, whiteout: &Entry| {
            let is_nothing = is_hidden(whiteout, layer) || model.is_replaced(path, &alone);
            (!is_nothing).then(|| model.directory(path, Missing::Stop).ok().flatten()).flatten()
        };
        let mut hidden = Vec::new();
        let mut emptied = Vec::new();
        for entry in layer {
            let (directory, name) = split(&entry.path);
            match entry.kind {
                Kind::Whiteout => {
                    let directory = find(self, directory, entry);
                    hidden.extend(directory.map(|directory| (directory, name)));
                }
                Kind::Opaque => emptied.extend(find(self, &entry.path, entry)),
                _ => {}
            }
        }
        for (directory, name) in hidden {
            self.children(directory).remove(name);
        }
        emptied.into_iter().for_each(|directory| self.children(directory).clear());
    }

    /// Whether a path leads through something that `alone`, the layer by itself, replaces.
    fn is_replaced(&mut self, path: &str, alone: &Self) -> bool {
        let mut by_itself = ROOT;
        for path in ancestors(path).filter(|path| !path.is_empty()) {
            let (directory, name) = split(path);
            let Some(made) = alone.child(by_itself, name) else { return false };
            let directory = self.directory(directory, Missing::Stop).ok().flatten();
            let below = directory.and_then(|directory| self.child(directory, name));
            let is_described = alone.nodes[made.node].described.is_some();
            let merges = below.is_none_or(|below| self.is_directory(below.node));
            if !alone.is_directory(made.node) || is_described && !merges {
                return true;
            }
            by_itself = made.node;
        }
        false
    }

    /// Makes what a layer makes by itself, as far as it does.
    fn alone(layer: &[Entry]) -> Self {
        let mut model = Self::new();
        let mut late = Vec::new();
        for entry in layer {
            match &entry.kind {
                Kind::Whiteout | Kind::Opaque => {}
                Kind::HardLink(target) => {
                    if model.hard_link(&entry.path, target) == Ok(false)
                        && let Ok(Some((parent, name))) = model.place(&entry.path)
                    {
                        model.unlink(parent, name);
                        late.push((&entry.path, target));
                    }
                }
                // What cannot be made is not there.
                _ => model.make(entry).unwrap_or_default(),
            }
        }
        for link in late {
            model.link_late(&[link]).unwrap_or_default();
        }
        model
    }

    /// Makes what is no link and no whiteout.
    fn make(&mut self, entry: &Entry) -> Result<(), Refusal> {
        let metadata = entry.metadata.clone();
        let body = match &entry.kind {
            Kind::Directory => {
                let directory = match self.place(&entry.path)? {
                    None => ROOT,
                    Some((parent, name)) => match self.child(parent, name) {
                        Some(link) if self.is_directory(link.node) => link.node,
                        _ => self.make_directory(parent, name),
                    },
                };
                self.describe_directory(directory, metadata);
                return Ok(());
            }
            Kind::File(content) => Some(Body::File(content.clone())),
            Kind::Symlink(target) => Some(Body::Symlink(target.clone())),
            Kind::Fifo => Some(Body::Fifo),
            _ => None,
        };
        let (parent, name) = self.place(&entry.path)?.ok_or(Refusal("root is no directory"))?;
        self.unlink(parent, name);
        if let Some(body) = body {
            let metadata = match body {
                Body::File(_) => metadata,
                Body::Symlink(_) => Metadata { mode: 0o777, xattrs: BTreeMap::new(), ..metadata },
                _ => Metadata { xattrs: BTreeMap::new(), ..metadata },
            };
            self.link(parent, name, Node { metadata, body, described: None });
        }
        Ok(())
    }

    fn describe_directory(&mut self, directory: usize, metadata: Metadata) {
        let node = &mut self.nodes[directory];
        (node.metadata, node.described) = (metadata, Some(self.layer));
    }

    /// Makes a hard link; `false` when its target is not there.
    fn hard_link(&mut self, path: &str, target: &str) -> Result<bool, Refusal> {
        let (directory, target) = split(target);
        let Some(directory) = self.directory(directory, Missing::Stop)? else { return Ok(false) };
        let Some(from) = self.child(directory, target) else { return Ok(false) };
        if self.is_directory(from.node) {
            return Err(Refusal("hard link to a directory"));
        }
        let (parent, name) = self.place(path)?.ok_or(Refusal("root is no directory"))?;
        let there = self.child(parent, name);
        if let Some(there) = there.filter(|there| there.node == from.node) {
            if there.group != from.group {
                // Whether these are one inode is left open, and with it which of them is copied.
                let groups = [self.new_group(), self.new_group()];
                self.children(parent).insert(name.to_owned(), Link { group: groups[0], ..there });
                let from = Link { group: groups[1], ..from };
                self.children(directory).insert(target.to_owned(), from);
            }
            return Ok(true);
        }
        self.unlink(parent, name);
        if self.child(directory, target).is_none_or(|left| left.node != from.node)
            || self.below(ROOT).all(|node| node != directory)
        {
            return Err(Refusal("hard link to what is at its place"));
        }
        let layer = self.layer;
        // A lower layer's file is copied for the first link to one of its names.
        let group = if self.groups[from.group] == layer { from.group } else { self.new_group() };
        let target = target.to_owned();
        self.children(directory).insert(target, Link { group, ..from });
        self.children(parent).insert(name.to_owned(), Link { node: from.node, group });
        Ok(true)
    }

    /// Finds directory and name of an entry; `None` for the root.
    fn place<'a>(&mut self, path: &'a str) -> Result<Option<(usize, &'a str)>, Refusal> {
        if path.is_empty() {
            return Ok(None);
        }
        let (directory, name) = split(path);
        let directory = self.directory(directory, Missing::Make)?;
        Ok(Some((directory.ok_or(Refusal("unreachable: all that is missing was made"))?, name)))
    }

    /// Follows a path and the symbolic links in it.
    fn directory(&mut self, path: &str, missing: Missing) -> Result<Option<usize>, Refusal> {
        let mut pending: Vec<String> = path.rsplit('/').map(str::to_owned).collect();
        let mut real = vec![ROOT];
        let mut hops = 0;
        while let Some(name) = pending.pop() {
            let here = real[real.len() - 1];
            match name.as_str() {
                "" | "." => continue,
                ".." => {
                    real.truncate(1.max(real.len() - 1));
                    continue;
                }
                _ => {}
            }
            let next = match self.child(here, &name) {
                Some(Link { node, .. }) => match &self.nodes[node].body {
                    Body::Directory(_) => node,
                    Body::Symlink(target) => {
                        hops += 1;
                        if hops > SYMLINK_HOPS {
                            return Err(Refusal("too many symbolic links"));
                        }
                        if target.starts_with('/') {
                            real.truncate(1);
                        }
                        pending.extend(target.rsplit('/').map(str::to_owned));
                        continue;
                    }
                    Body::File(_) | Body::Fifo if missing == Missing::Stop => return Ok(None),
                    Body::File(_) | Body::Fifo => return Err(Refusal("a file is on the way")),
                },
                None if missing == Missing::Stop => return Ok(None),
                None => self.make_directory(here, &name),
            };
            real.push(next);
        }
        Ok(real.pop())
    }

    /// Makes a directory that nothing describes yet, in place of what is there.
    fn make_directory(&mut self, parent: usize, name: &str) -> usize {
        self.unlink(parent, name);
        let body = Body::Directory(BTreeMap::new());
        self.link(parent, name, Node { metadata: implicit(), body, described: None })
    }

    fn new_group(&mut self) -> usize {
        self.groups.push(self.layer);
        self.groups.len() - 1
    }

    fn link(&mut self, parent: usize, name: &str, node: Node) -> usize {
        self.nodes.push(node);
        let node = self.nodes.len() - 1;
        let group = self.new_group();
        self.children(parent).insert(name.to_owned(), Link { node, group });
        node
    }

    fn unlink(&mut self, parent: usize, name: &str) {
        self.children(parent).remove(name);
    }

    fn child(&self, directory: usize, name: &str) -> Option<Link> {
        match &self.nodes[directory].body {
            Body::Directory(children) => children.get(name).copied(),
            _ => None,
        }
    }

    fn children(&mut self, directory: usize) -> &mut BTreeMap<String, Link> {
        match &mut self.nodes[directory].body {
            Body::Directory(children) => children,
            other => panic!("{other:?} has no children"),
        }
    }

    fn is_directory(&self, node: usize) -> bool {
        matches!(self.nodes[node].body, Body::Directory(_))
    }

    /// Lists a node and all that is below it.
    fn below(&self, node: usize) -> impl Iterator<Item = usize> {
        let mut pending = vec![node];
        std::iter::from_fn(move || {
            let node = pending.pop()?;
            if let Body::Directory(children) = &self.nodes[node].body {
                pending.extend(children.values().map(|link| link.node));
            }
            Some(node)
        })
    }

    /// Describes a node and all that is below it.
    fn describe(&self, node: usize, path: &str, tree: &mut Tree) {
        let Node { metadata, body, .. } = &self.nodes[node];
        tree.entries.insert(path.to_owned(), entry_text(body, metadata));
        let Body::Directory(children) = body else { return };
        for (name, link) in children {
            let path = join(path, name);
            if !self.is_directory(link.node) {
                tree.links.insert(path.clone(), (link.node as u64, link.group));
            }
            self.describe(link.node, &path, tree);
        }
    }
}

/// Whether a whiteout is in what another of its layer hides.
fn is_hidden(whiteout: &Entry, layer: &[Entry]) -> bool {
    ancestors(&whiteout.path).any(|path| {
        let hides = |other: &&Entry| match other.kind {
            Kind::Whiteout => path != whiteout.path || whiteout.kind == Kind::Opaque,
            Kind::Opaque => path != whiteout.path,
            _ => false,
        };
        layer.iter().filter(hides).any(|other| other.path == path)
    })
}

/// Lists a path and all above it but the root, the highest first.
fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(end, _)| end).chain([path.len()]).map(|end| &path[..end])
}

fn entry_text(body: &Body, metadata: &Metadata) -> String {
    match body {
        Body::Directory(_) => format!("dir ({metadata})"),
        Body::File(content) => format!("file `{content}` ({metadata})"),
        Body::Symlink(target) => format!("symlink -> {target} ({metadata})"),
        Body::Fifo => format!("fifo ({metadata})"),
    }
}
