//! The error of the root file system, with its stable code and a hint.

use std::error::Error;
use std::io;

use a3s_box_core::ErrorCode;
use a3s_box_krun::guest_kernel::BLOCK_ROOT_REMEDY;
use a3s_box_oci::{
    BlockError, CacheError, EntryError, LayerError, LayoutError, MountError, UnpackerFailure,
};
use a3s_box_sys::HostError;
use nix::errno::Errno;

use super::block::DisksError;
use super::unpacker::error::UnpackerError;
use crate::host::process::StopRequest;
use crate::state::disk::DiskError;

/// Why the root file system cannot be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RootfsError {
    #[error("cannot use the image")]
    Layout(#[from] LayoutError),
    #[error("cannot put a layer into the cache")]
    Layer(#[source] CacheError),
    /// The unpacker process reports an error, or has ended without a report.
    #[error(transparent)]
    Unpacker(#[from] UnpackerError),
    #[error("cannot make the disk for what the box writes")]
    Disk(#[from] DiskError),
    #[error("cannot make the disks of the box")]
    Disks(#[from] DisksError),
    #[error(transparent)]
    Host(#[from] HostError),
    #[error("cannot mount the root file system")]
    Mount(#[from] MountError),
    #[error("cannot unmount the root file system")]
    Unmount(#[source] io::Error),
    #[error("the config requires a block root, for which this installation lacks: {lacks}")]
    BlockRoot { lacks: String },
    #[error("{count} damaged layers are in use: stop the boxes that use them, and verify again")]
    DamagedInUse { count: usize },
    #[error("stopped by {0} while unpacking")]
    Stopped(StopRequest),
    #[error("stopped by `resources.timeout_ms` while unpacking")]
    TimedOut,
}

impl From<CacheError> for RootfsError {
    fn from(error: CacheError) -> Self {
        let CacheError::Unpacker(UnpackerFailure { fault, source }) = error else {
            return Self::Layer(error);
        };
        // The report of an unpacker has the whole chain of errors.
        match source.downcast() {
            Ok(error) => Self::Unpacker(*error),
            Err(source) => Self::Layer(UnpackerFailure { fault, source }.into()),
        }
    }
}

impl RootfsError {
    /// Returns the stable name of the error.
    pub(crate) fn code(&self) -> ErrorCode {
        match self {
            Self::Unpacker(error) => error.code(),
            // A full disk also ends the unpacking of a layer with an error of this layer. The
            // reason is the host, so the image must not be reported as invalid.
            error if failure_of_host(error).is_some() || has_unmapped_owner(error) => {
                ErrorCode::RootfsFailed
            }
            Self::BlockRoot { .. } => ErrorCode::HostUnsupported,
            Self::Layout(_) => ErrorCode::ImageInvalid,
            Self::Layer(error) if is_of_image(error) => ErrorCode::LayerInvalid,
            _ => ErrorCode::RootfsFailed,
        }
    }

    /// Returns what a user can do about the error, where that is known.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::Unpacker(error) => error.hint(),
            error if has_unmapped_owner(error) => Some(
                "give the user sub-ids for the image's other users: a line `USER:100000:65536`, or \
                 another free range, in /etc/subuid and in /etc/subgid, and the package `uidmap`; \
                 or run as root"
                    .to_owned(),
            ),
            Self::Layer(CacheError::Layer {
                source: LayerError::Limit { .. } | LayerError::Window(_),
                ..
            }) => Some("if the image is trusted, raise the limit in `image.limits`".to_owned()),
            Self::BlockRoot { .. } => {
                Some(format!("{BLOCK_ROOT_REMEDY}, or set `root.kind` to `shared`"))
            }
            error => match failure_of_host(error) {
                Some(Errno::ENOSPC | Errno::EDQUOT) => Some(
                    "free space, or set `paths.cache_dir` and `paths.state_dir` to a larger file \
                     system"
                        .to_owned(),
                ),
                _ => None,
            },
        }
    }
}

/// Returns whether the layers of an image cause the error.
fn is_of_image(error: &CacheError) -> bool {
    match error {
        CacheError::Layer { .. } | CacheError::Forged { .. } => true,
        CacheError::Block(error) => {
            !matches!(error, BlockError::Index { .. } | BlockError::Write(_) | BlockError::Root(_))
        }
        _ => false,
    }
}

/// Returns whether an image has files of owners for whom this user has no sub-ids.
fn has_unmapped_owner(error: &RootfsError) -> bool {
    let root = root_of(error).and_then(|root| root.downcast_ref::<EntryError>());
    matches!(root, Some(EntryError::Unmapped { .. }))
}

/// Returns the last cause in the chain of `error`.
fn root_of(error: &RootfsError) -> Option<&(dyn Error + 'static)> {
    std::iter::successors(Some(error as &dyn Error), |&error| error.source()).last()
}

/// Returns the errno at the end of the chain of `error` if its reason is the host and never the
/// image: a disk or quota that is full, fails or is read-only, or a lack of memory or file
/// descriptors.
fn failure_of_host(error: &RootfsError) -> Option<Errno> {
    let errno = Errno::from_raw(root_of(error)?.downcast_ref::<io::Error>()?.raw_os_error()?);
    match errno {
        Errno::ENOSPC
        | Errno::EDQUOT
        | Errno::EIO
        | Errno::EROFS
        | Errno::ENOMEM
        | Errno::EMFILE
        | Errno::ENFILE => Some(errno),
        _ => None,
    }
}
