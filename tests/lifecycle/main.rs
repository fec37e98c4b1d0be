//! The life of a box from outside: a real shim with a fake VM, driven by `VmManager`.
//!
//! | module | what must hold |
//! |---|---|
//! | `deaths` | every death of a VM is told, and soon |
//! | `records` | what is in the state folder at each time, and after each end |
//!
//! Needs root, because the shim makes mounts. Built with the feature `fake-vm`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails here")]
#![expect(clippy::print_stdout, reason = "figures, which the runner shows when asked to")]

mod deaths;
mod harness;
mod records;
