//! Safe wrapper of libkrun.
//!
//! A [`Machine`] describes the VM. [`Vm::configure`] checks the values for which libkrun has no
//! useful error, and calls libkrun. [`Vm::enter`] turns the process into the VM and returns only an
//! error.
//!
//! ```text
//!   Machine ──► preflight ──► Vm::configure ──► Vm::enter ══► guest … libkrun calls _exit(code)
//!                                                                              │
//!                                                     hook of exit::intercept ◄┘ ──► exit_group
//! ```
//!
//! Three features choose the implementation of the `krun_*` functions. The crate calls each of them
//! through one table of typed function pointers (`libkrun.rs`):
//!
//! | feature | libkrun |
//! |---|---|
//! | `vendored` (default) | the crate `libkrun`, linked statically |
//! | `system` | `libkrun.so`, declared by krun-sys and found by pkg-config |
//! | `fake` | none: for tests, a process plays the guest |
//!
//! `fake` takes precedence over `system`, and `system` over `vendored`, because Cargo unites the
//! features that the members of a workspace ask for.
//!
//! Statements about libkrun in this crate hold for version 1.19.7. File names refer to the source
//! of the crates `libkrun` (`src/lib.rs`), `krun-vmm`, `krun-devices` and `krun-arch` of this
//! version, and of `imago` 0.2, which reads its disk images.
//!
//! # Example
//!
//! A VM with one virtual CPU, whose root is a directory with an executable `/init.krun`. The guest
//! kernel starts `/init.krun` as PID 1. PID 1 gets no argument from libkrun and reads its config
//! from a virtual file.
//!
//! ```no_run
//! use std::path::Path;
//!
//! use a3s_box_krun::guest_kernel::GuestKernel;
//! use a3s_box_krun::{Machine, OverlayFile, Root, Vm};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let executable = std::env::current_exe()?;
//! let kernel = GuestKernel::load(None, &executable)?;
//! let (_output, stdout) = std::io::pipe()?;
//! let (_errors, stderr) = std::io::pipe()?;
//! let machine = Machine {
//!     vcpus: 1,
//!     memory_mib: 256,
//!     root: Root::Directory("/srv/rootfs".into()),
//!     overlay_files: vec![OverlayFile {
//!         name: "config".into(),
//!         content: b"hello".to_vec().into(),
//!         permissions: 0o600,
//!         one_shot: true,
//!     }],
//!     shares: Vec::new(),
//!     vsock_ports: Vec::new(),
//!     net: None,
//!     tsi: false,
//!     stdout: stdout.into(),
//!     stderr: stderr.into(),
//! };
//! a3s_box_krun::exit::intercept(|code| if code == 0 { 0 } else { 1 });
//! let vm = Vm::configure(machine, &kernel)?;
//! // The process is the VM from here on. A value that comes back is the reason why it is not.
//! Err(vm.enter().into())
//! # }
//! ```

#![expect(unsafe_code, reason = "this crate is the boundary to libkrun")]

mod access;
mod content;
mod disk;
mod error;
pub mod exit;
#[cfg(feature = "fake")]
mod fake;
pub mod guest_kernel;
mod libkrun;
mod machine;
mod vm;
pub mod vmdk;

pub use access::Access;
pub use content::Content;
pub use disk::{Disk, DiskFormat, MAX_DISK_ID_BYTES, SECTOR_BYTES, SyncMode};
pub use error::KrunError;
#[cfg(feature = "fake")]
pub use fake::act;
pub use machine::{
    BlockRoot, Connect, MAX_DEVICES, MAX_SHARES, MAX_SOCKET_PATH_BYTES, MAX_TAG_BYTES, MAX_VCPUS,
    MIN_MEMORY_MIB, Machine, NetDevice, OverlayFile, Root, Share, ShareCache, VsockPort,
    max_shares,
};
pub use vm::{Vm, check_kvm};

/// Name of the feature whose libkrun was compiled in: `vendored`, `system` or `fake`.
pub const BACKEND: &str = if cfg!(feature = "fake") {
    "fake"
} else if cfg!(feature = "system") {
    "system"
} else {
    "vendored"
};
