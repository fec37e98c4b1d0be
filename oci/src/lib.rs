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

mod cache;
mod host;
mod image;
mod layout;
mod root;
mod stack;
mod tar;
mod unpack;

pub use cache::layer_cache::{CacheError, CachedLayer, LayerCache, LayerLease};
pub use cache::retention::{Collected, Retention};
pub use host::private_dir::{StoreError, check_parents, private_directory};
pub use host::remove::remove_path;
pub use image::digest::{Algorithm, Digest, DigestError};
pub use image::healthcheck::Healthcheck;
pub use image::platform::{Platform, PlatformError};
pub use image::{Compression, Image, ImageConfig, Layer};
pub use layout::blob::BlobError;
pub use layout::{JsonError, Layout, LayoutError};
pub use root::{MountError, OverlaySpec, RootMethod};
pub use stack::compose::Stack;
pub use stack::verify::{Damage, Verified};
pub use tar::archive::ArchiveError;
pub use tar::field::FieldError;
pub use tar::pax::PaxError;
pub use tar::sparse::SparseError;
pub use unpack::entry_error::EntryError;
pub use unpack::error::LayerError;
pub use unpack::facts::LayerFacts;
pub use unpack::limits::Limits;
pub use unpack::mapped::MappedIds;
pub use unpack::path::PathError;
pub use unpack::progress::Progress;
