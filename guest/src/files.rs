//! The files of the running box: the service `a3s.box.files.v1`.
//!
//! ```text
//! PID 1                                    a child for each call, as the user of the call
//! gRPC ─► service ─► worker ── socket ───► channel ─► operation ─► files of the guest
//! ```
//!
//! PID 1 has one thread and must never wait for a file system: one of the workload's own (FUSE) or
//! of the host (virtio-fs) can stop to answer. Each call therefore runs in a child process, which
//! has the ids of the user, so that the kernel checks permissions. The child ends when its call
//! does.
//!
//! # Invariants
//!
//! - PID 1 itself opens no path of a call.
//! - Paths are resolved by `openat2(2)` with a root that no link and no `..` leaves. An operation
//!   on a name uses the open directory of that name, and never follows a link of the name.
//! - The number of children, the bytes on the way and the memory of a child are limited.

mod channel;
mod content;
mod directory;
mod extended;
mod failure;
mod operation;
mod pack;
mod scope;
mod service;
mod unpack;
mod worker;

pub(crate) use self::service::server;

#[cfg(test)]
mod tests;
