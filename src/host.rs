//! The host's operating system as the shim uses it: its own process, helper programs, the cgroup,
//! the ids of the box, capabilities and filters of system calls.

pub(crate) mod box_ids;
pub(crate) mod capabilities;
pub(crate) mod cgroup;
pub(crate) mod command;
pub(crate) mod detached_tmpfs;
pub(crate) mod inherited;
pub(crate) mod parent;
pub(crate) mod process;
pub(crate) mod seccomp;
pub(crate) mod user_namespace;
