//! Tests of the library's public interface. They write small image layouts, and read, unpack and
//! mount them on the host's own file systems.
//!
//! The tests need root, because unpacking sets owners and mounting needs `CAP_SYS_ADMIN`. A test
//! that changes its mount namespace relies on nextest, which runs each test in its own process.

#![expect(
    clippy::unwrap_used,
    reason = "a failure of the set-up or of an inspection is a failure of the test"
)]

#[expect(dead_code, reason = "the test binary `corpus` uses the rest")]
mod archive;
mod bench;
mod block_cache;
mod block_verify;
mod blocks;
mod cache;
mod choice;
mod devices;
mod digests;
#[path = "../property/disk.rs"]
mod disk;
mod hostile;
mod leniency;
mod locks;
mod overlay;
mod resolve;
mod retention;
mod sparse;
mod stores;
mod tools;
mod unpackers;
mod unpacking;
mod untrusted;
mod verify;
