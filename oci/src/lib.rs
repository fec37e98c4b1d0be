//! OCI image layouts on disk, from `oci-layout` to a mounted root file system.
//!
//! The crate knows nothing of VMs. It reads a layout that is already on disk, unpacks each layer
//! once into a cache that all boxes share, and mounts the layers of an image under a writable
//! directory. Images are hostile input: every byte is verified against a digest before it can be seen,
//! every count is bounded, and no path of an image ever becomes a path of the host.
//!
//! ```text
//! Layout::open ─► Layout::resolve ─► Image { config, layers }
//!                                               │ several at once
//!                                               ▼
//!                            LayerCache::compose ─► Stack, locked in the cache
//!                                                     │
//!                                                     ▼
//!                                          OverlaySpec::mount ─► a root file system
//! ```
//!
//! # Invariants
//!
//! - A layer that can be seen in the cache has the size, the digest and the `DiffID` that its image claims.
//! - Unpacking works on directory fds only; nothing an image says is resolved outside of its own tree.
//! - Nobody but us and root can reach what is in the cache, or replace it.
//! - No input makes this crate panic, and no input makes it use memory without a bound.

mod batch;
mod blob;
mod cache;
mod clone;
mod compose;
mod digest;
mod directory;
mod healthcheck;
mod image;
mod layout;
mod metadata;
mod mount;
mod overlay;
mod platform;
mod record;
mod retention;
mod select;
mod stack;
mod store;
mod text;
mod unpack;
mod verify;
mod xattr;

pub use blob::BlobError;
pub use cache::{CacheError, CachedLayer, LayerCache, LayerLease};
pub use clone::CloneError;
pub use compose::Stack;
pub use digest::{Algorithm, Digest, DigestError};
pub use healthcheck::Healthcheck;
pub use image::{Compression, Image, ImageConfig, Layer};
pub use layout::{JsonError, Layout, LayoutError};
pub use overlay::{MountError, OverlaySpec, RootMethod};
pub use platform::{Platform, PlatformError};
pub use retention::{Collected, Retention};
pub use store::{StoreError, check_parents, private_directory};
pub use unpack::{
    ArchiveError, EntryError, LayerError, LayerFacts, Limits, MappedIds, PathError, PaxError,
    Progress, SparseError, remove_path,
};
pub use verify::{Damage, Verified};
