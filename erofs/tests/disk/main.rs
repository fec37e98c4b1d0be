//! Trees written as disks, and read back by the kernel, by fsck.erofs and by the reader of this
//! crate.
//!
//! ```text
//!  Tree ─► Disk: image and devices in one file ─► mount -o loop ─► compare with the tree
//!                                              ─► fsck.erofs
//!                                              ─► Image::tree ─► compare with the tree
//! ```
//!
//! The tests that mount need root.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails here")]

mod compare;
mod disk;
mod fsck;
mod kernel;
mod random;
mod reader;
