//! Unpacking of one layer: one pass over the blob that verifies it while it is written.
//!
//! ```text
//! unpacker   the pass: entries of the archive become files of the tree
//! stream     bytes of the blob, decompressed on other threads; size, digest and DiffID
//! path       names made safe       whiteout   names that hide
//! tree       the file system       place      one name in it       links    hard links
//! mapped     the owners that there can be
//! cross_layer  what a layer leaves to those below it
//! ```
//!
//! What is written is not to be used before [`unpack`](unpacker::unpack) has returned: only then has
//! the layer been proved to be the one that the image means. Unpacking needs root, as it makes files
//! of other owners and whiteouts.

pub(crate) mod cross_layer;
pub(crate) mod entry_error;
pub(crate) mod error;
pub(crate) mod facts;
mod gzip;
pub(crate) mod limits;
mod links;
pub(crate) mod mapped;
pub(crate) mod path;
mod place;
pub(crate) mod progress;
mod stream;
mod tree;
pub(crate) mod unpacker;
mod whiteout;
