//! OCI image layouts on disk, from `oci-layout` to a mounted root file system.
//!
//! The crate reads a layout that is on the disk already, unpacks each layer once into a cache that
//! all boxes share, and mounts the layers of an image below a writable directory. It contains no
//! code for VMs.
//!
//! Images are hostile input. Every byte is verified against a digest before a box can see it, every
//! count is bounded, and no path of an image ever becomes a path of the host.
//!
//! ```text
//! Layout::open ─► Layout::resolve ─► Image { config, layers }
//!                                               │ several layers at once
//!                                               ▼
//!                            LayerCache::compose ─► Stack, locked in the cache
//!                                                     │
//!                                                     ▼
//!                                          OverlaySpec::mount ─► a root file system
//! ```
//!
//! Each module uses only modules that stand below it:
//!
//! ```text
//! root     mounts a stack, or copies it where overlayfs is not available
//! stack    composes the layers of an image, as a stack or as a block root
//! cache    keeps trees of layers, layer files and metadata images
//! block    reads a layer into a layer file, and merges layer files into a metadata image
//! unpack   makes a tree from one layer
//! layout   reads documents and blobs     tar   reads archives
//! image    configuration, layers, platforms and digests
//! host     file system operations that the others share
//! ```
//!
//! # Example
//!
//! ```no_run
//! use std::ops::ControlFlow;
//!
//! use a3s_box_oci::{LayerCache, Layout, OverlaySpec, Platform};
//!
//! let layout = Layout::open("/var/lib/images/alpine".as_ref())?;
//! let image = layout.resolve(Some("3.22"), &Platform::host())?;
//! let cache = LayerCache::open("/var/cache/layers".as_ref())?;
//! let progress = &mut |_layer, _progress| ControlFlow::Continue(());
//! let stack = cache.compose(&layout, &image.layers, progress)?;
//! OverlaySpec {
//!     stack: &stack,
//!     upper: "/run/box/upper".into(),
//!     work: "/run/box/work".into(),
//!     target: "/run/box/root".into(),
//! }
//! .mount()?;
//! // The next start after a crash of the machine can use the layers too.
//! cache.sync(&stack)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Invariants
//!
//! - A layer in the cache has the size, the digest and the `DiffID` that its image claims.
//! - Unpacking works on directory fds only, and resolves no path of an image outside of its tree.
//! - Only root and the user of this process can reach or replace the content of the cache.
//! - No input makes this crate panic, or use memory without a bound.

mod block;
mod cache;
mod host;
mod image;
mod layout;
mod root;
mod stack;
mod tar;
mod unpack;

pub use block::error::BlockError;
pub use block::index::IndexError;
pub use block::root_tree::TreeLimits;
pub use cache::error::{CacheError, Holder};
pub use cache::layer_cache::LayerCache;
pub use cache::lock::LayerLease;
pub use cache::lookup::CachedLayer;
pub use cache::retention::{Collected, Retention};
pub use cache::task::{Fault, OnTaskProgress, Task, UnpackerFailure, Unpackers};
pub use host::private_dir::{private_directory, private_directory_with_group};
pub use host::remove::remove_path;
pub use host::trusted_path::{
    ReachedDirectory, StoreError, check_parents, open_protected, open_safely,
};
pub use image::config::{ImageConfig, ImageConfigError};
pub use image::digest::{Algorithm, Digest, DigestError};
pub use image::healthcheck::{Healthcheck, HealthcheckError};
pub use image::platform::{Platform, PlatformError};
pub use image::{Compression, Image, ImageError, Layer};
pub use layout::blob::BlobError;
pub use layout::document::{DocumentError, JsonError};
pub use layout::select::SelectError;
pub use layout::{Layout, LayoutError};
pub use root::{MountError, OverlaySpec, RootMethod, copy_contents};
pub use stack::block_root::{BlockRoot, DiskPart};
pub use stack::members::Stack;
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
pub use unpack::steps::{StepLimits, StepsError};
pub use unpack::untrusted::{Unpacked, unpack_untrusted};
pub use unpack::zstd_stream::WindowError;
