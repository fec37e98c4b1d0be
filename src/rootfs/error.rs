//! The error of the root file system.

use a3s_box_oci::{CacheError, LayoutError, MountError};
use a3s_box_sys::HostError;

use super::block::DisksError;
use crate::host::process::StopRequest;
use crate::state::disk::DiskError;

/// Why the root file system cannot be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RootfsError {
    #[error("cannot use the image")]
    Layout(#[from] LayoutError),
    #[error("cannot put a layer into the cache")]
    Layer(#[from] CacheError),
    #[error("cannot make the disk for what the box writes")]
    Disk(#[from] DiskError),
    #[error("cannot make the disks of the box")]
    Disks(#[from] DisksError),
    #[error(transparent)]
    Host(#[from] HostError),
    #[error("cannot mount the root file system")]
    Mount(#[from] MountError),
    #[error("cannot unmount the root file system")]
    Unmount(#[source] std::io::Error),
    #[error("the config requires a block root, for which this installation lacks: {lacks}")]
    BlockRoot { lacks: String },
    #[error("{count} damaged layers are in use: stop the boxes that use them, and verify again")]
    DamagedInUse { count: usize },
    #[error("stopped by {0} while unpacking")]
    Stopped(StopRequest),
    #[error("stopped by `resources.timeout_ms` while unpacking")]
    TimedOut,
}
