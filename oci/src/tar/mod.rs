//! The tar format of layers, read as a stream from any reader.
//!
//! ```text
//! archive   walks from header to header and yields entries; `Read` on it yields an entry's body
//! pax       PAX extended headers
//! sparse    the four formats of sparse files
//! field     numbers and strings in the fixed fields of a header
//! ```
//!
//! This module accesses no file system. `unpack` creates the files that an archive describes.

pub(crate) mod archive;
pub(crate) mod field;
pub(crate) mod pax;
pub(crate) mod sparse;
