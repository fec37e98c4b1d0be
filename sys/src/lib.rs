//! The host's operating system, as far as no other crate covers it.
//!
//! Each of the first six modules owns one operation that needs `unsafe` code and is no part of
//! libkrun, so that all other crates of the host's side except `krun` are free of it:
//!
//! | module | operation |
//! |---|---|
//! | [`mount_setattr`] | `mount_setattr(2)`, which neither `nix` nor `rustix` wraps |
//! | [`duplicate`] | `fcntl(2)` that duplicates an fd which belongs to a library |
//! | [`environment`] | overwrites the process's environment in memory |
//! | [`exit`] | `exit_group(2)`, which ends all threads without running a handler |
//! | [`pinned_addresses`] | addresses of sockets in memory that cannot change, and `connect(2)` with them |
//! | [`user_namespace`] | `clone(2)` of a child that makes a user namespace |
//!
//! [`HostError`] is the one error type of a call that the host refused.

#![expect(unsafe_code, reason = "this crate holds the unsafe code that is no part of libkrun")]

pub mod duplicate;
pub mod environment;
pub mod exit;
mod host_error;
pub mod mount_setattr;
pub mod pinned_addresses;
pub mod user_namespace;

pub use host_error::HostError;
