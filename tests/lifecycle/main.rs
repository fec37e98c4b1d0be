//! Real shims with a fake VM: killed at any moment, out of space, orphaned, many at once.
//!
//! | module | what must hold |
//! |---|---|
//! | `crash` | a kill leaves nothing wrong to be seen, and the next start repairs the rest |
//! | `full` | a disk that is full or fails is an error that says so, and the cache works once there is room |
//! | `crowd` | shims that want the same layers unpack each once |
//! | `readiness` | a box is ready as soon as its agent is |
//! | `deaths` | every death of a VM is told by `VmManager`, and soon |
//! | `records` | what is in the state directory at each time, and after each end |
//! | `matrix` | nothing is left of a box, however and whenever it ends |
//!
//! `deaths` and `records` drive the shim with `VmManager`; the others are its supervisor themselves.
//!
//! Needs root, because the shim and the tests make mounts. Built with the feature `fake-vm`. Each test
//! is a process of its own, as nextest has it, because it waits for every child of the process.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails here")]
#![expect(
    clippy::print_stdout,
    reason = "seeds and counts, which the runner shows of a failed test"
)]

mod chance;
mod crash;
mod crowd;
mod deaths;
mod full;
mod ground;
mod harness;
mod image;
mod matrix;
mod percentiles;
mod readiness;
mod records;
mod shim;
mod tree;
#[path = "../wire/wire_types.rs"]
mod wire_types;
