//! Real shims with a fake VM: killed at any moment, out of space, orphaned, many at once.
//!
//! | module | what must hold |
//! |---|---|
//! | `crash` | a killed start publishes no damaged layer, and the next start removes the rest |
//! | `full_disk` | the error names a full or failing disk, and the cache works once there is room |
//! | `concurrency` | shims that need the same layers unpack each of them once |
//! | `readiness` | a box is ready as soon as its agent is |
//! | `deaths` | `VmManager` reports every death of a VM within 100 ms |
//! | `records` | the records in the state directory match the life and the ending of the box |
//! | `matrix` | nothing is left of a box, however and whenever it ends |
//!
//! Each test makes boxes of both kinds of root, or there is one test for each kind. The root of a box
//! without an image is empty, and a block root still has a disk for writes.
//!
//! `deaths` and `records` drive the shim with `VmManager`. In the other modules, the test itself is
//! the supervisor.
//!
//! The tests need root, because the shim and the tests make mounts, and the feature `fake-vm`. They
//! must run under nextest, which starts a process for each test: a test waits for every child of
//! its process, and would otherwise wait for the children of other tests.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails here")]
#![expect(
    clippy::print_stdout,
    reason = "prints seeds and counts, which the runner shows for a failed test"
)]

mod block_root;
mod concurrency;
mod crash;
mod deaths;
mod full_disk;
mod harness;
mod image;
#[path = "../wire/image_disk.rs"]
mod image_disk;
mod matrix;
mod percentiles;
mod random;
mod readiness;
mod records;
mod scratch;
mod shim;
mod tree;
#[path = "../wire/wire_types.rs"]
mod wire_types;
