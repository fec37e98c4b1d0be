//! The system calls that are left to the connector. Any other call kills it.
//!
//! `tests/wire/network.rs` compares this list with the calls that a connector makes.

use a3s_box_core::config::SeccompMode;
use libc::{
    SYS_close, SYS_connect, SYS_exit_group, SYS_fcntl, SYS_recvfrom, SYS_sendmsg, SYS_setsockopt,
    SYS_socket,
};

use crate::host::seccomp::{Filter, equal};

/// Calls that answer a request of the gate. The connector has no socket of the host's network, so
/// connect(2) leads into its own empty network only.
const CALLS: [i64; 6] =
    [SYS_close, SYS_connect, SYS_exit_group, SYS_recvfrom, SYS_sendmsg, SYS_setsockopt];

/// Installs the filter, which cannot be removed again.
pub(super) fn restrict(mode: SeccompMode) -> Result<(), seccompiler::Error> {
    let mut filter = Filter::allowing(&CALLS);
    filter.allow_if(SYS_socket, vec![equal(0, u64::from(libc::AF_INET.unsigned_abs()))?]);
    // Rust's debug builds ask whether an fd is open before they close it.
    filter.allow_if(SYS_fcntl, vec![equal(1, libc::F_GETFD.unsigned_abs().into())?]);
    filter.install(mode)
}
