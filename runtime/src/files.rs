//! Files of a running box.
//!
//! [`BoxFiles`] is a client of the socket `exec.sock` in the box directory, behind which the guest
//! program serves `a3s.box.files.v1`.
//!
//! ```text
//! BoxFiles ── stat, list, read, write, make_directory, remove, rename
//!    ├─ copy_out ◄── archive of a hostile guest ── a3s-box-oci ─► staging directory ─► rename
//!    └─ copy_in  ──► archive of a host's tree
//! ```
//!
//! All that a guest sends is hostile: names, metadata and archives can be anything. Content of the
//! guest becomes a path of the host only in [`BoxFiles::copy_out`], by the code that unpacks
//! layers.

mod client;
mod copy;
mod error;
mod pack;

pub use client::{BoxFiles, FileInfo, FileKind, WriteOptions};
pub use copy::{Copied, CopyLimits};
pub use error::{FileFailure, FilesError};
