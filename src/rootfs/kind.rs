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
    /// Chooses the kind for the config, the guest kernel and libkrun.
    ///
    /// # Errors
    ///
    /// Fails if the config requires a block root that a VM of this installation cannot have.
    pub(crate) fn of(spec: &VmSpec, kernel: &GuestKernel) -> Result<Self, RootfsError> {
        let choice = |kind, reason| Ok(Self { kind, reason });
        // The guest kernel is searched only if the answer matters.
        match spec.root_kind {
            Some(RootKind::Shared) => {
                return choice(RootKind::Shared, RootKindReason::Config);
            }
            None if !spec.fits_block_root() => {
                return choice(RootKind::Shared, RootKindReason::Mounts);
            }
            _ => {}
        }
        let lacks = kernel.lacks_for_block_root();
        match spec.root_kind {
            Some(_) if lacks.is_empty() => choice(RootKind::Block, RootKindReason::Config),
            None if lacks.is_empty() => choice(RootKind::Block, RootKindReason::Default),
            Some(_) => Err(RootfsError::BlockRoot { lacks: lacks.join(", ") }),
            None => {
                tracing::info!(?lacks, "the root is shared, because a block root is not possible");
                choice(RootKind::Shared, RootKindReason::GuestKernel)
            }
        }
    }
}
