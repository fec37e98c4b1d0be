//! Unpacks one layer, and verifies its blob in the same pass.
//!
//! ```text
//! unpacker     the pass: creates a file for each entry of the archive
//! reader       reads the entries of a layer from its blob; enforces the limits
//! stream       decompresses the blob on other threads; checks size, digest and diff ID
//! gzip         gzip streams with several members
//! zstd_stream  zstd streams, with a limit on their window
//! path         checks and normalizes the names of entries
//! tree         the directory that a layer is unpacked into; resolves paths in it
//! steps        limits on the names that are looked up
//! place        one name in an open directory, and the operations on it
//! body         writes the content of files, without their zeros
//! links        hard links
//! skipped      the names at which devices were skipped
//! whiteout     whiteouts and opaque whiteouts
//! cross_layer  the paths whose result depends on lower layers
//! mapped       the ids that are mapped in the user namespace
//! limits       limits on entries, bytes and memory
//! progress     reports progress to the caller
//! untrusted    the archive of a box, unpacked for its caller
//! facts        counts and properties of an unpacked layer
//! ```
//!
//! Callers must not use the files before [`unpack`](unpacker::unpack) has returned. Only then have
//! the digest and the diff ID been checked. Unpacking needs root, or a user namespace, because it
//! creates files of other owners and whiteouts.

pub(crate) mod body;
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
pub(crate) mod reader;
mod skipped;
pub(crate) mod steps;
mod stream;
mod tree;
pub(crate) mod unpacker;
pub(crate) mod untrusted;
pub(crate) mod whiteout;
pub(crate) mod zstd_stream;
