//! The members of a stack: the layers that are mounted.

use std::path::{Path, PathBuf};

use crate::cache::lock::LayerLease;
use crate::cache::lookup::CachedLayer;
use crate::host::overlay_xattr::OverlayXattrs;

/// The layers that make the root of an image, locked in the cache.
/// [`OverlaySpec`](crate::OverlaySpec) mounts them.
#[derive(Debug)]
pub struct Stack {
    pub(crate) overlay_xattrs: OverlayXattrs,
    /// The layers that are mounted, the bottom first.
    pub(crate) members: Vec<Member>,
    /// Number of the image's layers that were in the cache already.
    pub hits: usize,
    /// Size of the regular files that were unpacked.
    pub unpacked_bytes: u64,
}

/// A layer of a stack.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) tree: PathBuf,
    /// Keeps the layer from being removed for as long as the stack exists.
    pub(crate) _lease: LayerLease,
}

impl Stack {
    /// Returns the stack without layers.
    #[must_use]
    pub fn empty() -> Self {
        let overlay_xattrs = OverlayXattrs::Trusted;
        Self { overlay_xattrs, members: Vec::new(), hits: 0, unpacked_bytes: 0 }
    }

    /// Returns the trees that are mounted, the bottom first. Callers must not write to them.
    pub fn trees(&self) -> impl Iterator<Item = &Path> {
        self.members.iter().map(|member| member.tree.as_path())
    }
}

impl From<CachedLayer> for Member {
    fn from(layer: CachedLayer) -> Self {
        Self { name: layer.name, tree: layer.path, _lease: layer.lease }
    }
}
