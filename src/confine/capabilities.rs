//! The capabilities that the shim keeps: those with which libkrun's virtio-fs server sets the
//! owners and modes that the guest kernel requests. A box with a block root and without shares has
//! no such server, and its shim keeps none.

use caps::Capability;
use caps::errors::CapsError;

use crate::host::capabilities::keep_only;

/// The capabilities that are kept for directories of the host.
///
/// `CAP_SETUID` and `CAP_SETGID` are among them because the server acts as the owner of each
/// request (`passthrough.rs`, libkrun 1.19.7). Two capabilities of file servers are left out. The
/// guest needs no `CAP_MKNOD`, because its device nodes are not those of the host.
/// `CAP_DAC_READ_SEARCH` would allow `open_by_handle_at(2)`, which opens any file of a file system
/// without a path.
const KEPT: [Capability; 7] = [
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FOWNER,
    Capability::CAP_FSETID,
    Capability::CAP_SETFCAP,
    Capability::CAP_SETGID,
    Capability::CAP_SETUID,
];

/// Drops all other capabilities from all sets, and [`KEPT`] as well unless the guest sees
/// directories of the host. They cannot be regained.
pub(super) fn drop(has_directories: bool) -> Result<(), CapsError> {
    keep_only(if has_directories { &KEPT } else { &[] })
}
