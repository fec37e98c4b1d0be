//! Applies the layers of an image in memory, in order. The result is the expected file system.
//!
//! The image specification (layer.md) defines that layers are applied one after the other. It
//! leaves some cases open, for which the model has these rules:
//!
//! - Whiteouts act on lower layers only, and all of them act before the entries of their layer.
//!   Their paths are resolved in the lower layers before any of them acts. A whiteout of a missing
//!   file has no effect. The same holds for a whiteout below a file or directory that this layer
//!   replaces, and for a whiteout below a path that another whiteout of the layer hides. An opaque
//!   whiteout removes the content of a directory and keeps its metadata.
//! - The parent of an entry is resolved in the result of all earlier entries. Symbolic links are
//!   resolved with the root of the tree as their root. A path with more than 40 links is refused,
//!   as the kernel does. Missing parents are created with mode 0755, owner 0:0 and time 0. A parent
//!   that is not a directory is refused.
//! - An entry for an existing directory sets its metadata, extended attributes included, and keeps
//!   its content. Every other entry replaces the file of its name, or the whole directory.
//! - A device is not created, but the file of its name is removed. Links to a device are one more
//!   name of it, and are not created either. The names of devices are kept as if the devices were
//!   there, until another file takes the place, a whiteout hides it, or its directory is removed.
//! - A hard link shares the inode of its target at this point of the archive. If the target is
//!   missing, the file with the link's name is removed, and the target is looked up again at the
//!   end of the layer. If it is still missing, the image is refused. If a later entry has created
//!   the link's name, the link is dropped. A directory as target is refused, and so is a target
//!   that is removed together with the file of the link's name. A link to itself has no effect.
//! - Hard links of one layer share one inode. Hard links of several layers may share it or not,
//!   because overlayfs copies a lower file when an upper layer links to it.
//! - The root has mode 0755, owner 0:0 and time 0. An entry for it changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use crate::image::{Entry, Image, Kind, Metadata, join, split};

/// Limit on symbolic links in one path. The kernel has the same limit (`path_resolution(7)`).
const SYMLINK_HOPS: usize = 40;

/// Index of the root directory in the nodes of a model.
const ROOT: usize = 0;

/// The reason why an image is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refusal(pub(crate) &'static str);

/// The expected outcome of an image.
#[derive(Debug)]
pub(crate) struct Expectation {
    pub(crate) outcome: Result<Tree, Refusal>,
    /// Whether a refusal is correct too, because the rules do not decide the case.
    pub(crate) may_be_refused: bool,
}

/// A tree in a form that can be compared.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Tree {
    /// Type, metadata and content of each path.
    pub(crate) entries: BTreeMap<String, String>,
    /// The inode of each path that is not a directory, and the group of its hard links. Links of
    /// one group always share the inode.
    pub(crate) links: BTreeMap<String, (u64, usize)>,
    /// The link count of each path of a mounted tree. The model has none.
    pub(crate) counts: BTreeMap<String, u64>,
}

impl Tree {
    /// Returns the number of inodes. A directory has one name only.
    pub(crate) fn inodes(&self) -> usize {
        let linked: BTreeSet<u64> = self.links.values().map(|(inode, _)| *inode).collect();
        self.entries.len() - self.links.len() + linked.len()
    }

    /// Returns whether an inode has links that overlayfs can separate, because several layers have
    /// made them.
    pub(crate) fn has_links_across_layers(&self) -> bool {
        let groups: BTreeSet<(u64, usize)> = self.links.values().copied().collect();
        let inodes: BTreeSet<u64> = groups.iter().map(|(inode, _)| *inode).collect();
        groups.len() > inodes.len()
    }
}

/// The type of an inode, with its content.
#[derive(Debug)]
enum Body {
    Directory(BTreeMap<String, Link>),
    File(String),
    Symlink(String),
    Fifo,
}

/// An inode.
#[derive(Debug)]
struct Node {
    metadata: Metadata,
    body: Body,
    /// The last layer with an entry for the directory.
    described: Option<usize>,
}

/// A name in a directory.
#[derive(Debug, Clone, Copy)]
struct Link {
    node: usize,
    /// The group of links that always share the inode; see `Model::groups`.
    group: usize,
}

/// The action for a parent directory that is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Missing {
    Make,
    Stop,
}

/// The tree after some layers and entries.
#[derive(Debug)]
struct Model {
    nodes: Vec<Node>,
    /// For each group of links, the layer that created it.
    groups: Vec<usize>,
    /// Directory and name of each device and of each link to one.
    devices: BTreeSet<(usize, String)>,
    /// Number of the current layer.
    layer: usize,
    may_be_refused: bool,
}

/// Applies all layers of an image, and returns the expected outcome.
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

/// Returns the metadata of a directory without an entry.
fn implicit() -> Metadata {
    Metadata { mode: 0o755, ..Metadata::default() }
}

impl Model {
    fn new() -> Self {
        let root =
            Node { metadata: implicit(), body: Body::Directory(BTreeMap::new()), described: None };
        Self {
            nodes: vec![root],
            groups: Vec::new(),
            devices: BTreeSet::new(),
            layer: 0,
            may_be_refused: false,
        }
    }

    /// Applies one layer.
    fn apply(&mut self, layer: &[Entry]) -> Result<(), Refusal> {
        // Whiteouts hide files of lower layers only, so they must not see an entry of this layer.
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

    /// Creates the links whose targets were missing when their entries were applied.
    fn link_late(&mut self, late: &[(&String, &String)]) -> Result<(), Refusal> {
        let mut still_late = Vec::new();
        for (path, target) in late {
            let (parent, name) =
                self.place(path)?.ok_or(Refusal("the root must be a directory"))?;
            let (directory, from) = split(target);
            let directory = self.directory(directory, Missing::Stop).ok().flatten();
            let is_there = directory.is_some_and(|there| self.has(there, from));
            // A later entry has created the name, and takes precedence.
            if is_there && self.has(parent, name) {
                continue;
            }
            match self.hard_link(path, target)? {
                true => {}
                false => still_late.push((*path, *target)),
            }
        }
        match still_late.len() {
            0 => Ok(()),
            // A late link has another late link as its target. The rules do not say how often
            // targets are looked up again.
            left if left < late.len() => {
                self.may_be_refused = true;
                self.link_late(&still_late)
            }
            _ => Err(Refusal("the target of a hard link is missing")),
        }
    }

    /// Removes the files that the whiteouts of a layer hide.
    fn apply_whiteouts(&mut self, layer: &[Entry]) {
        let alone = Self::alone(layer);
        // All paths are resolved before the first removal, because a path can lead through a
        // symbolic link that another whiteout removes.
        let find = |model: &mut Self, path: &str, whiteout: &Entry| {
            let has_no_effect = is_hidden(whiteout, layer) || model.is_replaced(path, &alone);
            (!has_no_effect).then(|| model.directory(path, Missing::Stop).ok().flatten()).flatten()
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
            self.unlink(directory, name);
        }
        for directory in emptied {
            self.children(directory).clear();
            self.devices.retain(|(parent, _)| *parent != directory);
        }
    }

    /// Returns whether a path leads through a lower file that the layer replaces. `alone` is the
    /// result of the layer without lower layers.
    fn is_replaced(&mut self, path: &str, alone: &Self) -> bool {
        let mut in_alone = ROOT;
        for path in ancestors(path).filter(|path| !path.is_empty()) {
            let (directory, name) = split(path);
            let Some(made) = alone.child(in_alone, name) else { return false };
            let directory = self.directory(directory, Missing::Stop).ok().flatten();
            let below = directory.and_then(|directory| self.child(directory, name));
            // A directory without an entry follows a lower symbolic link. A directory with an entry
            // replaces the link.
            let is_described = alone.nodes[made.node].described.is_some();
            let merges = below.is_none_or(|below| self.is_directory(below.node));
            if !alone.is_directory(made.node) || is_described && !merges {
                return true;
            }
            in_alone = made.node;
        }
        false
    }

    /// Applies a layer to an empty tree. Entries that need lower layers are skipped.
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
                // An entry that cannot be created alone creates no file.
                _ => model.make(entry).unwrap_or_default(),
            }
        }
        for link in late {
            model.link_late(&[link]).unwrap_or_default();
        }
        model
    }

    /// Applies an entry that is neither a hard link nor a whiteout.
    fn make(&mut self, entry: &Entry) -> Result<(), Refusal> {
        let metadata = entry.metadata.clone();
        let body = match &entry.kind {
            Kind::Directory => {
                let directory = match self.place(&entry.path)? {
                    None => return Ok(()),
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
        let (parent, name) =
            self.place(&entry.path)?.ok_or(Refusal("the root must be a directory"))?;
        self.unlink(parent, name);
        if let Some(body) = body {
            // On Linux a symbolic link always has the mode 0777, and `user.*` attributes exist on
            // regular files and directories only.
            let metadata = match body {
                Body::File(_) => metadata,
                Body::Symlink(_) => Metadata { mode: 0o777, xattrs: BTreeMap::new(), ..metadata },
                _ => Metadata { xattrs: BTreeMap::new(), ..metadata },
            };
            self.link(parent, name, Node { metadata, body, described: None });
        } else {
            self.devices.insert((parent, name.to_owned()));
        }
        Ok(())
    }

    /// Applies the metadata of an entry to a directory.
    fn describe_directory(&mut self, directory: usize, metadata: Metadata) {
        let node = &mut self.nodes[directory];
        (node.metadata, node.described) = (metadata, Some(self.layer));
    }

    /// Creates a hard link. Returns `false` if the target is missing.
    fn hard_link(&mut self, path: &str, target: &str) -> Result<bool, Refusal> {
        let (directory, target) = split(target);
        let Some(directory) = self.directory(directory, Missing::Stop)? else { return Ok(false) };
        let Some(from) = self.child(directory, target) else {
            return self.link_to_device(path, directory, target);
        };
        if self.is_directory(from.node) {
            return Err(Refusal("the target of a hard link is a directory"));
        }
        let (parent, name) = self.place(path)?.ok_or(Refusal("the root must be a directory"))?;
        let there = self.child(parent, name);
        if let Some(there) = there.filter(|there| there.node == from.node) {
            if there.group != from.group {
                // The two names may or may not share an inode, so it is open which of them
                // overlayfs copies. Both get a group of their own.
                let groups = [self.new_group(), self.new_group()];
                self.children(parent).insert(name.to_owned(), Link { group: groups[0], ..there });
                let from = Link { group: groups[1], ..from };
                self.children(directory).insert(target.to_owned(), from);
            }
            return Ok(true);
        }
        self.unlink(parent, name);
        // The unlinked name can have been a directory above the target.
        if self.child(directory, target).is_none_or(|left| left.node != from.node)
            || self.below(ROOT).all(|node| node != directory)
        {
            return Err(Refusal("the target of a hard link is removed with the link's name"));
        }
        let layer = self.layer;
        // Overlayfs copies a lower file for the first link to one of its names. The copy has the
        // two names only, so they are a new group.
        let group = if self.groups[from.group] == layer { from.group } else { self.new_group() };
        let target = target.to_owned();
        self.children(directory).insert(target, Link { group, ..from });
        self.children(parent).insert(name.to_owned(), Link { node: from.node, group });
        Ok(true)
    }

    /// Adds a name of a device. Returns `false` if the target is no device.
    fn link_to_device(
        &mut self,
        path: &str,
        directory: usize,
        target: &str,
    ) -> Result<bool, Refusal> {
        if !self.has(directory, target) {
            return Ok(false);
        }
        let (parent, name) = self.place(path)?.ok_or(Refusal("the root must be a directory"))?;
        self.unlink(parent, name);
        self.devices.insert((parent, name.to_owned()));
        let is_left = self.devices.contains(&(directory, target.to_owned()));
        match is_left && self.below(ROOT).any(|node| node == directory) {
            true => Ok(true),
            false => Err(Refusal("the target of a hard link is removed with the link's name")),
        }
    }

    /// Returns whether a directory has a file or a device of this name.
    fn has(&self, directory: usize, name: &str) -> bool {
        self.child(directory, name).is_some() || self.devices.contains(&(directory, name.into()))
    }

    /// Returns the parent directory and the name of an entry, or `None` for the root. Missing
    /// parents are created.
    fn place<'a>(&mut self, path: &'a str) -> Result<Option<(usize, &'a str)>, Refusal> {
        if path.is_empty() {
            return Ok(None);
        }
        let (directory, name) = split(path);
        let directory = self.directory(directory, Missing::Make)?;
        Ok(Some((directory.ok_or(Refusal("unreachable: missing parents are created"))?, name)))
    }

    /// Resolves a path of a directory. Symbolic links are followed with the root of the tree as
    /// their root. With [`Missing::Stop`], a missing directory gives `None`.
    fn directory(&mut self, path: &str, missing: Missing) -> Result<Option<usize>, Refusal> {
        let mut pending: Vec<String> = path.rsplit('/').map(str::to_owned).collect();
        // The directories from the root to the current one. `..` returns to the one before.
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
                    Body::File(_) | Body::Fifo => {
                        return Err(Refusal("a parent is not a directory"));
                    }
                },
                None if missing == Missing::Stop => return Ok(None),
                None => self.make_directory(here, &name),
            };
            real.push(next);
        }
        Ok(real.pop())
    }

    /// Creates a directory that has no entry yet, and replaces an existing file of its name.
    fn make_directory(&mut self, parent: usize, name: &str) -> usize {
        self.unlink(parent, name);
        let body = Body::Directory(BTreeMap::new());
        self.link(parent, name, Node { metadata: implicit(), body, described: None })
    }

    /// Adds a group of links that the current layer creates.
    fn new_group(&mut self) -> usize {
        self.groups.push(self.layer);
        self.groups.len() - 1
    }

    /// Adds a node with one name, and returns its index.
    fn link(&mut self, parent: usize, name: &str, node: Node) -> usize {
        self.nodes.push(node);
        let node = self.nodes.len() - 1;
        let group = self.new_group();
        self.children(parent).insert(name.to_owned(), Link { node, group });
        node
    }

    /// Removes a name. The node stays, because it can have other names.
    fn unlink(&mut self, parent: usize, name: &str) {
        self.children(parent).remove(name);
        self.devices.remove(&(parent, name.to_owned()));
    }

    /// Returns a name in a directory, or `None` if it is missing or the node is not a directory.
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

    /// Iterates over a node and all nodes below it.
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

    /// Adds a node and all nodes below it to `tree`.
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

/// Returns whether another whiteout of the layer hides the path of a whiteout.
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

/// Iterates over the directories above a path, and then the path itself. The root is left out.
fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(end, _)| end).chain([path.len()]).map(|end| &path[..end])
}

/// Returns the description of an inode. `mounted::walk` uses the same format.
fn entry_text(body: &Body, metadata: &Metadata) -> String {
    match body {
        Body::Directory(_) => format!("dir ({metadata})"),
        Body::File(content) => format!("file `{content}` ({metadata})"),
        Body::Symlink(target) => format!("symlink -> {target} ({metadata})"),
        Body::Fifo => format!("fifo ({metadata})"),
    }
}
