//! Safe wrapper of libkrun.
//!
//! A [`Machine`] says what the VM is; [`Vm::configure`] checks everything that libkrun does not
//! report usefully and makes the calls; [`Vm::enter`] becomes the VM and does not come back.
//!
//! ```text
//!   Machine ──► preflight ──► Vm::configure ──► Vm::enter ══► guest … libkrun calls _exit(code)
//!                                                                              │
//!                                                     hook of exit::intercept ◄┘ ──► exit_group
//! ```
//!
//! Three features choose where `krun_*` comes from, with one table of typed function pointers
//! (`libkrun.rs`) in front of them:
//!
//! | feature | libkrun |
//! |---|---|
//! | `vendored` (default) | the crate, linked statically |
//! | `system` | `libkrun.so` by krun-sys and pkg-config |
//! | `fake` | none: a process plays the guest, for tests |
//!
//! Facts about libkrun in this crate are those of version 1.19.7.

#![expect(unsafe_code, reason = "this crate is the boundary to libkrun")]

mod error;
pub mod exit;
#[cfg(feature = "fake")]
mod fake;
pub mod guest_kernel;
mod libkrun;
mod machine;
mod vm;

pub use error::KrunError;
pub use machine::{
    Access, Connect, MAX_SHARES, MAX_SOCKET_PATH_BYTES, MAX_TAG_BYTES, MAX_VCPUS, MIN_MEMORY_MIB,
    Machine, NetDevice, OverlayFile, Share, VsockPort,
};
pub use vm::{Vm, check_kvm};

/// Which libkrun was compiled in.
pub const BACKEND: &str = if cfg!(feature = "fake") {
    "fake"
} else if cfg!(feature = "system") {
    "system"
} else {
    "vendored"
};
