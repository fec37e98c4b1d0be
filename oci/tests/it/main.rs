//! Library tests: tiny image layouts, built in code, read and unpacked and mounted for real.
//!
//! They run as root, as unpacking does. A test that changes its mount namespace relies on nextest,
//! which gives each test a process of its own.

#![expect(
    clippy::unwrap_used,
    reason = "what cannot be set up or looked at is a failure of the test"
)]

#[expect(dead_code, reason = "some of it is for the test binary `corpus`")]
mod archive;
mod bench;
mod cache;
mod choice;
mod digests;
mod hostile;
mod overlay;
mod resolve;
mod retention;
mod sparse;
mod stores;
mod tools;
mod unpacking;
mod verify;
