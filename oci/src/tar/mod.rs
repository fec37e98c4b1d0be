//! The tar format of layers, read as a stream from any reader.
//!
//! ```text
//! archive      walks from header to header and yields entries; `Read` on it yields a body
//! pax          PAX extended headers
//! sparse       the four formats of sparse files
//! header_name  the name in a header, and the prefix of a long one
//! field        numbers and strings in the fixed fields of a header
//! ```
//!
//! This module accesses no file system. `unpack` creates the files that an archive describes.

pub(crate) mod archive;
pub(crate) mod field;
mod header_name;
pub(crate) mod pax;
pub(crate) mod sparse;
