//! The root of a box as one read-only EROFS image: metadata that point into files of layers.
//!
//! ```text
//!  blob ─► layer_file: bodies, index, trailer ─┐                      ┌─► metadata image
//!  blob ─► layer_file                          ├─► merge: one tree ───┤
//!  blob ─► layer_file                          ┘                      └─► data files, in order
//! ```
//!
//! The disk of a box is the metadata image, followed by the data of each layer file in order. No
//! layer is unpacked to files, and nothing of an image is resolved on the host's file system.
//!
//! Each module uses only modules that stand below it:
//!
//! ```text
//! image       the metadata image of an image's layers, and the devices behind it
//! merge       applies layers to one tree, in order
//! whiteouts   selects the whiteouts of a layer that have an effect, and applies them
//! alone       the result of a layer on an empty tree
//! entries     applies single entries to a tree
//! error       the error of the whole work
//! root_tree   the tree of inodes; resolves paths in it, and bounds its size
//! layer_file  reads a layer once, and writes its file
//! trailer     the end of a layer file
//! body        the blocks of a file's content
//! index       the entries of a layer, as its file stores them
//! spool       the index while the data are written
//! checksum    CRC-32C
//! ```

mod alone;
mod body;
mod checksum;
mod entries;
pub(crate) mod error;
pub(crate) mod image;
pub(crate) mod index;
pub(crate) mod layer_file;
pub(crate) mod merge;
pub(crate) mod root_tree;
mod spool;
mod trailer;
mod whiteouts;
