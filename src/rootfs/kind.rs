//! The kind of a root: `block`, wherever that is possible, or `shared`.

use a3s_box_core::config::RootKind;
use a3s_box_core::event::RootKindReason;
use a3s_box_krun::guest_kernel::GuestKernel;

use super::error::RootfsError;
use crate::spec::VmSpec;

/// The kind of the root of a box, and the reason for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) kind: RootKind,
    pub(crate) reason: RootKindReason,
}

impl Choice {
    /// Chooses the kind for the config and the guest kernel.
    ///
    /// # Errors
    ///
    /// Fails if the config requires a block root that the guest kernel cannot mount.
    pub(crate) fn of(spec: &VmSpec, kernel: &GuestKernel) -> Result<Self, RootfsError> {
        let lacks = kernel.lacks_for_block_root();
        let choice = |kind, reason| Ok(Self { kind, reason });
        match spec.root_kind {
            Some(RootKind::Block) if !lacks.is_empty() => {
                Err(RootfsError::Kernel { lacks: lacks.join(", ") })
            }
            Some(kind) => choice(kind, RootKindReason::Config),
            None if !lacks.is_empty() => {
                tracing::info!(?lacks, "the root is shared, because a block root is not possible");
                choice(RootKind::Shared, RootKindReason::GuestKernel)
            }
            None if !spec.fits_block_root() => choice(RootKind::Shared, RootKindReason::Mounts),
            None => choice(RootKind::Block, RootKindReason::Default),
        }
    }
}
