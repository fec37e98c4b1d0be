//! The root of an image, composed of what is in the cache.
//!
//! ```text
//!  every layer alone, several at once ──► from the bottom up: is it right on those below?
//!      sha256-…                               yes: as it is        no: once more, on top of them
//!                                                                      on-sha256-…
//!                                  ──► directories get lower layers' metadata back: meta-sha256-…
//!                                  ──► the names are written down: stacks/<chain>
//! ```
//!
//! All of that depends on the layers alone, by their `DiffID`s, so the next box with the same layers
//! reads the names, locks them, and is done. The file has a name in each line, the bottom first, and
//! before them `root` and the name of the layer that describes the root, if one does.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::{Mode, mkdirat};

use crate::cache::layer_cache::{CacheError, CachedLayer, LayerCache, LayerLease, Recipe};
use crate::cache::record::Record;
use crate::host::directory::{OPEN_DIR, open_below, open_dir};
use crate::host::metadata::{copy_metadata, reset_metadata};
use crate::host::overlay_mount;
use crate::host::overlay_xattr::OverlayXattrs;
use crate::host::remove::remove_tree;
use crate::image::Layer;
use crate::image::digest::Digest;
use crate::layout::Layout;
use crate::stack::overlap::LayerStack;
use crate::unpack::cross_layer::{Base, CrossLayerDependencies};
use crate::unpack::error::LayerError;
use crate::unpack::progress::{OnProgress, Progress};
use crate::unpack::unpacker::{Job, unpack};

/// Bound on the file of a stack: more names than any mount takes.
const STACK_LIMIT_BYTES: u64 = 1 << 17;

/// Files of stacks that this process has begun to write.
static WRITTEN: AtomicU64 = AtomicU64::new(0);

/// What overlayfs needs for itself while a layer is unpacked on top of others.
const WORK: &str = "work";

/// Begins the name of a layer that was unpacked on top of those below it.
const ON_TOP: &str = "on-";

/// Begins the name of a layer that gives directories their metadata back.
const META: &str = "meta-";

/// What makes the root of an image; it can be mounted.
#[derive(Debug)]
pub struct Stack {
    pub(crate) overlay_xattrs: OverlayXattrs,
    /// What is mounted, the bottom first.
    pub(crate) members: Vec<Member>,
    /// The tree whose root has the metadata of the image's root.
    pub(crate) root: Option<PathBuf>,
    /// Layers of the image that were in the cache already.
    pub hits: usize,
    /// Bytes of regular files that were unpacked.
    pub unpacked_bytes: u64,
}

/// One of a stack.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) tree: PathBuf,
    _lease: LayerLease,
}

/// What the file of a stack says.
struct StackFile {
    /// The layer that describes the root.
    root: Option<String>,
    /// What is mounted, the bottom first.
    names: Vec<String>,
}

/// Is told how far the work on a layer, by its index, has come, and may end all of it.
pub(crate) type OnLayerProgress<'a> = dyn FnMut(usize, Progress) -> ControlFlow<()> + Send + 'a;

impl Stack {
    /// Returns the stack of no layers.
    #[must_use]
    pub fn empty() -> Self {
        let overlay_xattrs = OverlayXattrs::Trusted;
        Self { overlay_xattrs, members: Vec::new(), root: None, hits: 0, unpacked_bytes: 0 }
    }

    /// Returns the trees that are mounted, the bottom first; nobody may write to them.
    pub fn trees(&self) -> impl Iterator<Item = &Path> {
        self.members.iter().map(|member| member.tree.as_path())
    }
}

impl LayerCache {
    /// Returns what makes the root of an image with these layers, the bottom first, after unpacking
    /// what is not in the cache.
    ///
    /// `progress` is called every few milliseconds while there is work to do or to wait for, with
    /// the index of a layer, from several threads but by one at a time, and may end the work. When
    /// another process is unpacking one of the layers, this waits for it, and takes over should it
    /// fail.
    ///
    /// # Errors
    ///
    /// When a layer is not what the image says, is malformed, exceeds a limit or cannot be written,
    /// and when `progress` ended the work. In each case nothing of that layer can be seen in the
    /// cache.
    pub fn compose(
        &self,
        layout: &Layout,
        layers: &[Layer],
        progress: &mut OnLayerProgress<'_>,
    ) -> Result<Stack, CacheError> {
        let chains = chain_ids(layers);
        let Some(&chain) = chains.last() else { return Ok(Stack::empty()) };
        if let Some(stack) = self.recall(chain, layers.len())? {
            for i in 0..layers.len() {
                // There is nothing to end.
                let _flow = progress(i, Progress::Cached);
            }
            return Ok(stack);
        }
        let alone = self.unpack_all(layout, layers, progress)?;
        let (hits, unpacked_bytes) = costs(&alone);
        let composition = Composition { cache: self, layout, layers, chains, progress };
        let stack = composition.compose(alone)?;
        self.write_down(chain, &stack)?;
        Ok(Stack { hits, unpacked_bytes: stack.unpacked_bytes + unpacked_bytes, ..stack })
    }

    /// Returns a layer from the cache, unpacked alone, after unpacking it from `layout` if it is not
    /// there; `progress` is as for [`compose`](Self::compose). What depends on lower layers is left
    /// out.
    ///
    /// # Errors
    ///
    /// As for [`compose`](Self::compose).
    pub fn get_or_unpack(
        &self,
        layout: &Layout,
        layer: &Layer,
        progress: &mut OnProgress<'_>,
    ) -> Result<CachedLayer, CacheError> {
        self.get_or_make(&mut Alone { source: Source { cache: self, layout, layer }, progress })
    }

    /// Returns a stack that was composed before, if all of it is still there.
    fn recall(&self, chain: Digest, layers: usize) -> Result<Option<Stack>, CacheError> {
        let Some(StackFile { root, names }) = self.read_stack(&file_name(chain))? else {
            return Ok(None);
        };
        let mut members = Vec::with_capacity(names.len());
        for name in names {
            let Some(lease) = self.lease_listed(&name)? else { return Ok(None) };
            let tree = self.tree_path(&name);
            members.push(Member { name, tree, _lease: lease });
        }
        let root = root.map(|name| self.tree_path(&name));
        Ok(Some(Stack {
            overlay_xattrs: self.overlay_xattrs,
            members,
            root,
            hits: layers,
            unpacked_bytes: 0,
        }))
    }

    /// Whether all that a stack's file names is there.
    pub(crate) fn is_complete(&self, stack: &str) -> Result<bool, CacheError> {
        let Some(StackFile { names, .. }) = self.read_stack(stack)? else { return Ok(false) };
        for name in names {
            if !self.is_ready(&name)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Reads a stack's file; `None` when it is not there, or not what `write_down` writes.
    fn read_stack(&self, name: &str) -> Result<Option<StackFile>, CacheError> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut text = String::new();
        match openat(&self.stacks, name, flags, Mode::empty()) {
            Ok(file) => {
                let read = File::from(file).take(STACK_LIMIT_BYTES).read_to_string(&mut text);
                // What is no text was not written by us, and is composed again.
                read.unwrap_or_default();
            }
            Err(Errno::ENOENT) => return Ok(None),
            Err(errno) => return Err(self.error("read", &format!("stacks/{name}"))(errno)),
        }
        let Some(mut lines) = text.strip_suffix("\nend\n").map(|text| text.split('\n')) else {
            return Ok(None);
        };
        let root = lines.next().and_then(|line| line.strip_prefix("root "));
        let root = root.filter(|name| is_name(name)).map(str::to_owned);
        let names: Vec<String> = lines.filter(|name| !name.is_empty()).map(str::to_owned).collect();
        Ok(names.iter().all(|name| is_name(name)).then_some(StackFile { root, names }))
    }

    /// Writes a stack down for [`recall`](Self::recall).
    fn write_down(&self, chain: Digest, stack: &Stack) -> Result<(), CacheError> {
        let name = file_name(chain);
        // Its own, as several may write the same.
        let number = WRITTEN.fetch_add(1, Ordering::Relaxed);
        let new = format!("{name}.{}.{number}.new", std::process::id());
        let root = stack.members.iter().find(|member| Some(&member.tree) == stack.root.as_ref());
        let mut text = format!("root {}\n", root.map_or("", |root| root.name.as_str()));
        for member in &stack.members {
            text.push_str(&member.name);
            text.push('\n');
        }
        text.push_str("\nend\n");
        let write = || -> io::Result<()> {
            let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_CLOEXEC;
            let file = openat(&self.stacks, new.as_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR)?;
            File::from(file).write_all(text.as_bytes())?;
            Ok(renameat(&self.stacks, new.as_str(), &self.stacks, name.as_str())?)
        };
        write().map_err(self.error("write", &format!("stacks/{name}")))
    }
}

/// The work of making a stack of layers that were unpacked alone.
struct Composition<'c, 'p> {
    cache: &'c LayerCache,
    layout: &'c Layout,
    layers: &'c [Layer],
    /// Their `ChainID`s.
    chains: Vec<Digest>,
    progress: &'p mut OnLayerProgress<'p>,
}

/// What the layers below one make together.
struct Parents {
    /// The tree whose root has the metadata of the root.
    root: Option<PathBuf>,
    /// The layer that gives directories their metadata back.
    meta: Option<CachedLayer>,
}

impl Composition<'_, '_> {
    fn compose(mut self, alone: Vec<CachedLayer>) -> Result<Stack, CacheError> {
        let mut stack = LayerStack::new(self.cache.overlay_xattrs);
        let mut unpacked_bytes = 0;
        for (i, mut layer) in alone.into_iter().enumerate() {
            let failed = stack_error(&self.layers[i]);
            if layer.facts.opaque_root {
                stack.clear().map_err(failed)?;
            }
            if stack.differs_under(&layer).map_err(failed)? {
                layer = self.unpack_on_top(i, &stack, layer)?;
                if !layer.hit {
                    unpacked_bytes += layer.facts.bytes;
                }
            }
            // A layer without entries changes nothing.
            if layer.facts.entries > 0 {
                stack.push(layer).map_err(failed)?;
            }
        }
        let Parents { root, meta } = self.parents(&stack, self.layers.len())?;
        let mut members: Vec<Member> = stack.into_layers().map(Member::from).collect();
        members.extend(meta.map(Member::from));
        Ok(Stack {
            overlay_xattrs: self.cache.overlay_xattrs,
            members,
            root,
            hits: 0,
            unpacked_bytes,
        })
    }

    /// Unpacks the layer `i` once more, on top of those below it.
    fn unpack_on_top(
        &mut self,
        i: usize,
        stack: &LayerStack,
        layer: CachedLayer,
    ) -> Result<CachedLayer, CacheError> {
        let parents = self.parents(stack, i)?;
        let progress = &mut self.progress;
        let recipe = &mut OnTop {
            source: Source { cache: self.cache, layout: self.layout, layer: &self.layers[i] },
            name: format!("{ON_TOP}{}", file_name(self.chains[i])),
            stack,
            parents,
            dependencies: &layer.dependencies,
            progress: &mut |step| progress(i, step),
        };
        let unpacked = self.cache.get_or_make(recipe);
        if let Err(CacheError::Layer { .. }) = unpacked {
            // Nothing is left of a layer that is refused.
            self.cache.forget(layer)?;
        }
        unpacked
    }

    /// Completes a stack of the lowest `count` layers.
    fn parents(&self, stack: &LayerStack, count: usize) -> Result<Parents, CacheError> {
        let Some(topmost) = count.checked_sub(1) else {
            return Ok(Parents { root: None, meta: None });
        };
        let (chain, last) = (self.chains[topmost], &self.layers[topmost]);
        let root = stack.root().map_err(stack_error(last))?;
        let root = root.map(|stacked| stacked.layer.path.clone());
        let directories = stack.inherited().map_err(stack_error(last))?;
        if directories.is_empty() {
            return Ok(Parents { root, meta: None });
        }
        let name = format!("{META}{}", file_name(chain));
        let mut recipe = Meta { name, layer: last, stack, directories };
        let meta = self.cache.get_or_make(&mut recipe)?;
        // It has the root's metadata as well, and is sure to be mounted.
        Ok(Parents { root: Some(meta.path.clone()), meta: Some(meta) })
    }
}

/// Where a layer comes from, and for which cache.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    pub(crate) cache: &'a LayerCache,
    pub(crate) layout: &'a Layout,
    pub(crate) layer: &'a Layer,
}

/// A layer alone.
pub(crate) struct Alone<'a> {
    source: Source<'a>,
    progress: &'a mut OnProgress<'a>,
}

impl Recipe for Alone<'_> {
    fn name(&self) -> String {
        file_name(self.source.layer.diff_id)
    }

    fn make(&mut self, _directory: &OwnedFd, tree: OwnedFd) -> Result<Record, CacheError> {
        let record = self.source.unpack(Base::Empty, tree, self.progress)?;
        match (self.progress)(Progress::Publishing) {
            ControlFlow::Continue(()) => Ok(record),
            ControlFlow::Break(()) => {
                Err(CacheError::Cancelled { layer: self.source.layer.digest })
            }
        }
    }

    fn wait(&mut self) -> Result<(), CacheError> {
        wait(self.source.layer, self.progress)
    }
}

/// A layer on top of those below it.
struct OnTop<'a> {
    source: Source<'a>,
    name: String,
    stack: &'a LayerStack,
    parents: Parents,
    dependencies: &'a CrossLayerDependencies,
    progress: &'a mut OnProgress<'a>,
}

impl Recipe for OnTop<'_> {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn make(&mut self, directory: &OwnedFd, tree: OwnedFd) -> Result<Record, CacheError> {
        let failed = stack_error(self.source.layer);
        let root = self.root(directory, &tree).map_err(failed)?;
        let progress = &mut *self.progress;
        let progress: &mut OnProgress<'_> = &mut |_| progress(Progress::OnTop);
        let base = Base::Lower(self.dependencies);
        let record = self.source.unpack(base, root, progress)?;
        // Unmounted by now, as the fd of the root was the only one.
        let emptied = remove_tree(directory.as_fd(), WORK.as_bytes());
        emptied.map_err(|errno| failed(errno.into()))?;
        Ok(Record { facts: record.facts, dependencies: CrossLayerDependencies::default() })
    }

    fn wait(&mut self) -> Result<(), CacheError> {
        wait(self.source.layer, self.progress)
    }
}

impl OnTop<'_> {
    /// Opens what the layers below make, with `tree` taking what is written.
    fn root(&self, directory: &OwnedFd, tree: &OwnedFd) -> io::Result<OwnedFd> {
        match &self.parents.root {
            Some(path) => copy_metadata(&open_dir(path)?, tree)?,
            None => reset_metadata(tree)?,
        }
        let stacked = self.stack.layers().iter().map(|below| &below.layer);
        let lower: Vec<OwnedFd> = stacked
            .chain(&self.parents.meta)
            .rev()
            .map(|layer| open_dir(&layer.path))
            .collect::<io::Result<_>>()?;
        if lower.is_empty() {
            return tree.try_clone();
        }
        mkdirat(directory, WORK, Mode::S_IRWXU)?;
        let work = openat(directory, WORK, OPEN_DIR, Mode::empty())?;
        overlay_mount::overlay(&lower, tree, &work, self.source.cache.overlay_xattrs)
    }
}

/// Directories with the metadata of lower layers'.
struct Meta<'a> {
    name: String,
    /// The topmost layer.
    layer: &'a Layer,
    stack: &'a LayerStack,
    /// Each with the position of the layer that describes it.
    directories: BTreeMap<PathBuf, Option<usize>>,
}

impl Recipe for Meta<'_> {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn make(&mut self, _directory: &OwnedFd, tree: OwnedFd) -> Result<Record, CacheError> {
        let make = || {
            for path in self.directories.keys().filter(|path| !path.as_os_str().is_empty()) {
                mkdirat(&tree, path, Mode::S_IRWXU)?;
            }
            // The deepest first, as giving one its time changes nothing above it, but making does.
            for (path, position) in self.directories.iter().rev() {
                let made = open_below(&tree, path)?;
                let model = match position {
                    Some(i) => Some(&self.stack.layers()[*i]),
                    None if path.as_os_str().is_empty() => self.stack.root()?,
                    None => None,
                };
                match model {
                    Some(model) => copy_metadata(&open_below(&model.tree, path)?, &made)?,
                    None => reset_metadata(&made)?,
                }
            }
            Ok(Record::default())
        };
        make().map_err(stack_error(self.layer))
    }

    fn wait(&mut self) -> Result<(), CacheError> {
        Ok(()) // It takes no time that anybody would want to end.
    }
}

impl<'a> Source<'a> {
    /// How to make the layer alone.
    pub(crate) fn alone(self, progress: &'a mut OnProgress<'a>) -> Alone<'a> {
        Alone { source: self, progress }
    }

    /// Unpacks the layer into the directory `root`.
    fn unpack(
        &self,
        base: Base<'_>,
        root: OwnedFd,
        progress: &mut OnProgress<'_>,
    ) -> Result<Record, CacheError> {
        let Self { cache, layout, layer } = *self;
        let failed = |source| match source {
            LayerError::Cancelled => CacheError::Cancelled { layer: layer.digest },
            source => CacheError::Layer { layer: layer.digest, source },
        };
        let blob = layout.open_blob(layer.digest, layer.size_bytes);
        let blob = blob.map_err(|source| failed(source.into()))?;
        let job = Job { layer, base, overlay_xattrs: cache.overlay_xattrs, limits: &cache.limits };
        let (facts, dependencies) = unpack(blob, job, root, progress).map_err(failed)?;
        Ok(Record { facts, dependencies })
    }
}

impl LayerCache {
    /// Removes what was made of several layers of an image together, and is not in use.
    pub(crate) fn discard_composed(&self, layers: &[Layer]) -> Result<(), CacheError> {
        for chain in chain_ids(layers) {
            for name in [ON_TOP, META].map(|kind| format!("{kind}{}", file_name(chain))) {
                if self.is_ready(&name)?
                    && let Some(_lock) = self.try_lock(&name)?
                {
                    self.discard(&name)?;
                }
            }
        }
        Ok(())
    }
}

impl From<CachedLayer> for Member {
    fn from(layer: CachedLayer) -> Self {
        Self { name: layer.name, tree: layer.path, _lease: layer.lease }
    }
}

fn wait(layer: &Layer, progress: &mut OnProgress<'_>) -> Result<(), CacheError> {
    match progress(Progress::Waiting) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(CacheError::Cancelled { layer: layer.digest }),
    }
}

fn stack_error(layer: &Layer) -> impl Fn(io::Error) -> CacheError + Copy + use<> {
    let layer = layer.digest;
    move |source| CacheError::Stack { layer, source }
}

/// Computes the `ChainID`s of layers (OCI image specification, config.md): each stands for a layer
/// and all below it.
fn chain_ids(layers: &[Layer]) -> Vec<Digest> {
    let mut chains: Vec<Digest> = Vec::with_capacity(layers.len());
    for layer in layers {
        chains.push(match chains.last() {
            None => layer.diff_id,
            Some(below) => Digest::of(format!("{below} {}", layer.diff_id).as_bytes()),
        });
    }
    chains
}

/// Writes a digest as a name of a file.
pub(crate) fn file_name(digest: Digest) -> String {
    digest.to_string().replace(':', "-")
}

/// Says whether a line of a stack's file is a name in the cache, and not one that leads elsewhere.
fn is_name(text: &str) -> bool {
    let digest = text.strip_prefix(ON_TOP).or_else(|| text.strip_prefix(META)).unwrap_or(text);
    digest.replacen('-', ":", 1).parse::<Digest>().is_ok()
}

/// Counts the layers that were in the cache, and the bytes of those that were not.
fn costs(alone: &[CachedLayer]) -> (usize, u64) {
    let (hits, misses): (Vec<_>, Vec<_>) = alone.iter().partition(|layer| layer.hit);
    (hits.len(), misses.iter().map(|layer| layer.facts.bytes).sum())
}
