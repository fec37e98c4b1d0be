//! The processes of the running box: the service `a3s.box.process.v1` on vsock port 4089.
//!
//! ```text
//! gRPC ─► service ─► session, one for each stream ─► table ─► process ─► launch, cgroup
//!                       │    ▲                                  │
//!                       │    └── events ◄── output ◄── pipes ◄──┤
//!                       └── input ─────────────────► stdin ────►┘
//! ```
//!
//! PID 1 has one thread, so nothing here blocks: all descriptors are non-blocking, and all waits are
//! tasks.
//!
//! # Invariants
//!
//! - Each wait of a stream concerns this stream and its process only. A reader that stops, stops
//!   the pipes of its process and nothing else.
//! - The numbers of processes, of kept endings and of bytes for each of them are limited.
//! - A process has a cgroup of its own, so that its end by the service is also the end of each of
//!   its descendants.

mod cgroup;
mod descriptor;
mod failure;
mod output;
mod process;
mod request;
mod service;
mod session;
mod streams;
mod table;

pub(crate) use self::cgroup::{CgroupError, Cgroups};
pub(crate) use self::service::serve;
pub(crate) use self::table::Table;

#[cfg(test)]
mod tests;
