//! The layers of an image applied in order, in memory: what the file system must look like.
//!
//! The image specification (layer.md) says that layers are applied one after the other. Where it
//! leaves room, these are the rules:
//!
//! - Whiteouts act on lower layers only, all of them before the entries of their layer. Their paths are
//!   resolved over the lower layers as they were; one that hides nothing is nothing. An opaque marker empties a
//!   directory, which stays as it is.
//! - The directory of an entry is resolved over all that is there so far, symbolic links with the root as
//!   their root; after 40 links it is refused, as by the kernel. What is missing on the way is made, with mode
//!   0755, owner 0:0, time 0. Something else than a directory on the way is replaced by one if a lower layer
//!   made it, and refused if this layer did.
//! - A directory over a directory takes the new metadata, extended attributes included, and keeps its
//!   content. Every other entry replaces what is at its place, also a directory with all that is in it.
//! - A device is not made, but what was at its place goes.
//! - A hard link shares the inode that its target has by then; a target that is missing by then is looked up
//!   again at the end of the layer, and refused if it is missing still. Directories are refused as targets, and
//!   so is a target that goes when the place of the link is cleared. A link to itself is nothing.
//! - Links of one layer share an inode. Whether those of several layers do is left open, as one that an upper
//!   layer links to is copied into it.
//! - The root is a directory of mode 0755, owner 0:0, time 0, until an entry describes it.

use std::collections::{BTreeMap, BTreeSet};

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
    /// What the image has that is known not to work yet.
    pub(crate) pending: BTreeSet<&'static str>,
}

/// A tree, in the form in which it is compared.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Tree {
    /// Type, metadata and content of each path.
    pub(crate) entries: BTreeMap<String, String>,
    /// The inode of each path that is no directory, and the layer that linked it last.
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
    /// The layer whose entry it is.
    layer: usize,
    /// The layer that linked it, or linked to it, last.
    linked: usize,
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
    layer: usize,
    /// Places from which an entry of this layer removed one of a lower layer; whether it was a
    /// directory.
    replaced: BTreeMap<(usize, String), bool>,
    /// Symbolic links that paths of this layer have led through.
    followed: BTreeSet<usize>,
    may_be_refused: bool,
    pending: BTreeSet<&'static str>,
}

/// Applies all layers of an image.
pub(crate) fn expectation(image: &Image) -> Expectation {
    let root =
        Node { metadata: implicit(), body: Body::Directory(BTreeMap::new()), described: None };
    let mut model = Model {
        nodes: vec![root],
        layer: 0,
        replaced: BTreeMap::new(),
        followed: BTreeSet::new(),
        may_be_refused: false,
        pending: BTreeSet::new(),
    };
    let mut outcome = Ok(());
    for (number, layer) in image.0.iter().enumerate() {
        model.layer = number;
        outcome = outcome.and_then(|()| model.apply(layer));
    }
    if !model.nodes[ROOT].metadata.xattrs.is_empty() {
        model.pending.insert("extended attributes of the root");
    }
    let outcome = outcome.map(|()| {
        let mut tree = Tree::default();
        model.describe(ROOT, "", &mut tree);
        tree
    });
    Expectation { outcome, may_be_refused: model.may_be_refused, pending: model.pending }
}

/// The metadata of a directory that no entry describes.
fn implicit() -> Metadata {
    Metadata { mode: 0o755, ..Metadata::default() }
}

impl Model {
    fn apply(&mut self, layer: &[Entry]) -> Result<(), Refusal> {
        self.replaced.clear();
        self.followed.clear();
        self.note_whiteouts(layer);
        self.apply_whiteouts(layer);
        let mut late = Vec::new();
        for entry in layer {
            match &entry.kind {
                Kind::Whiteout | Kind::Opaque => {}
                Kind::HardLink(target) => {
                    if !self.hard_link(&entry.path, target)? {
                        late.push((&entry.path, target));
                    }
                }
                _ => self.make(entry)?,
            }
        }
        self.link_late(&late)?;
        self.note_whiteouts_again(layer);
        Ok(())
    }

    /// Makes the links whose targets were missing when they were read.
    fn link_late(&mut self, late: &[(&String, &String)]) -> Result<(), Refusal> {
        let mut still_late = Vec::new();
        for (path, target) in late {
            match self.hard_link(path, target)? {
                true => self.pending("hard link before its target"),
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
        let find =
            |model: &mut Self, path: &str| model.directory(path, Missing::Stop).ok().flatten();
        let mut hidden = Vec::new();
        let mut emptied = Vec::new();
        for entry in layer {
            let (directory, name) = split(&entry.path);
            match entry.kind {
                Kind::Whiteout => {
                    let directory = find(self, directory);
                    hidden.extend(directory.map(|directory| (directory, name)));
                }
                Kind::Opaque => emptied.extend(find(self, &entry.path)),
                _ => {}
            }
        }
        for (directory, name) in hidden {
            self.children(directory).remove(name);
        }
        emptied.into_iter().for_each(|directory| self.children(directory).clear());
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
        if body.is_none() && self.replaced.contains_key(&(parent, name.to_owned())) {
            self.pending("device over an entry of a lower layer");
        }
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
        let layer = self.layer;
        let node = &mut self.nodes[directory];
        let lost = |name| !metadata.xattrs.contains_key(name);
        let keeps = node.described == Some(layer) && node.metadata.xattrs.keys().any(lost);
        (node.metadata, node.described) = (metadata, Some(layer));
        if keeps {
            self.pending("extended attributes that a second description takes away");
        }
    }

    /// Makes a hard link; `false` when its target is not there.
    fn hard_link(&mut self, path: &str, target: &str) -> Result<bool, Refusal> {
        let (directory, target) = split(target);
        let Some(directory) = self.directory(directory, Missing::Stop)? else { return Ok(false) };
        let Some(from) = self.child(directory, target) else { return Ok(false) };
        if self.is_directory(from.node) {
            return Err(Refusal("hard link to a directory"));
        }
        if from.layer < self.layer {
            self.pending("hard link to a lower layer");
        }
        let (parent, name) = self.place(path)?.ok_or(Refusal("root is no directory"))?;
        let there = self.child(parent, name);
        if there.is_some_and(|there| there.node == from.node) {
            return Ok(true);
        }
        self.unlink(parent, name);
        if self.child(directory, target).is_none_or(|left| left.node != from.node)
            || self.below(ROOT).all(|node| node != directory)
        {
            return Err(Refusal("hard link to what is at its place"));
        }
        let layer = self.layer;
        let target = target.to_owned();
        self.children(directory).insert(target, Link { linked: layer, ..from });
        self.children(parent)
            .insert(name.to_owned(), Link { node: from.node, layer, linked: layer });
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
                Some(Link { node, layer, .. }) => match &self.nodes[node].body {
                    Body::Directory(_) => {
                        self.note_use(node);
                        node
                    }
                    Body::Symlink(target) => {
                        hops += 1;
                        if hops > SYMLINK_HOPS {
                            return Err(Refusal("too many symbolic links"));
                        }
                        if target.starts_with('/') {
                            real.truncate(1);
                        }
                        pending.extend(target.rsplit('/').map(str::to_owned));
                        self.followed.insert(node);
                        if layer < self.layer {
                            self.pending("symbolic link of a lower layer on the way");
                        }
                        continue;
                    }
                    Body::File(_) | Body::Fifo if missing == Missing::Stop => return Ok(None),
                    Body::File(_) | Body::Fifo if layer == self.layer => {
                        return Err(Refusal("a file of this layer is on the way"));
                    }
                    Body::File(_) | Body::Fifo => self.make_directory(here, &name),
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
        if self.replaced.get(&(parent, name.to_owned())) == Some(&true) {
            self.pending("directory at the place of one that this layer replaced");
        }
        let body = Body::Directory(BTreeMap::new());
        self.link(parent, name, Node { metadata: implicit(), body, described: None })
    }

    fn link(&mut self, parent: usize, name: &str, node: Node) -> usize {
        self.nodes.push(node);
        let (node, layer) = (self.nodes.len() - 1, self.layer);
        self.children(parent).insert(name.to_owned(), Link { node, layer, linked: layer });
        node
    }

    fn unlink(&mut self, parent: usize, name: &str) {
        let removed = self.children(parent).remove(name);
        if removed
            .is_some_and(|link| self.below(link.node).any(|node| self.followed.contains(&node)))
        {
            self.pending("symbolic link that was followed and then replaced");
        }
        if let Some(link) = removed.filter(|link| link.layer < self.layer) {
            self.replaced.insert((parent, name.to_owned()), self.is_directory(link.node));
        }
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
                tree.links.insert(path.clone(), (link.node as u64, link.linked));
            }
            self.describe(link.node, &path, tree);
        }
    }
}

/// What is known not to work yet; goes with `PENDING`.
impl Model {
    fn pending(&mut self, what: &'static str) {
        self.pending.insert(what);
    }

    /// Notes the use of a directory that this layer may not describe.
    fn note_use(&mut self, node: usize) {
        let Node { metadata, described, .. } = &self.nodes[node];
        if *described != Some(self.layer) && !metadata.xattrs.is_empty() {
            self.pending("extended attributes of a directory that is not described again");
        }
    }

    /// Notes whiteouts that leave a trace in the tree of their layer, before its entries are made.
    fn note_whiteouts(&mut self, layer: &[Entry]) {
        for entry in layer {
            if entry.kind == Kind::Whiteout && self.plain(split(&entry.path).0).is_none() {
                self.pending("whiteout whose directory is not there below");
            }
        }
    }

    /// The same, after its entries were made.
    fn note_whiteouts_again(&mut self, layer: &[Entry]) {
        for entry in layer {
            let directory = match entry.kind {
                Kind::Whiteout => split(&entry.path).0,
                Kind::Opaque => entry.path.as_str(),
                _ => continue,
            };
            let Some(found) = self.plain(directory) else {
                self.pending("whiteout below an entry of its own layer");
                continue;
            };
            if entry.kind == Kind::Opaque && self.nodes[found].described != Some(self.layer) {
                self.pending("opaque marker of a directory that is not described again");
            }
        }
    }

    /// Finds a directory by a path without symbolic links.
    fn plain(&self, path: &str) -> Option<usize> {
        path.split('/').filter(|name| !name.is_empty()).try_fold(ROOT, |directory, name| {
            self.child(directory, name)
                .map(|link| link.node)
                .filter(|node| self.is_directory(*node))
        })
    }
}

fn entry_text(body: &Body, metadata: &Metadata) -> String {
    match body {
        Body::Directory(_) => format!("dir ({metadata})"),
        Body::File(content) => format!("file `{content}` ({metadata})"),
        Body::Symlink(target) => format!("symlink -> {target} ({metadata})"),
        Body::Fifo => format!("fifo ({metadata})"),
    }
}
