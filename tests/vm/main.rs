//! Real VMs. Each test boots one, on this host's KVM or in the lab (`tests/lab`).
//!
//! | module | what must hold |
//! |---|---|
//! | `exit_status` | the workload's end is the shim's, whatever libkrun says |
//! | `lost_guest` | a guest that vanishes is a failure, soon, and never a success |
//! | `exactness` | arguments, environment and output arrive byte for byte |
//! | `stop` | signals, grace, kill, and what a killed shim leaves |
//! | `lifecycle` | health, readiness, states, figures, and floods that change nothing |
//! | `matrix` | nothing is left of a VM, however and whenever it ends |
//! | `shares` | a directory that is shared is all that a hostile guest reaches, and less if it is read-only |
//! | `liars` | a guest that lies or floods, on whichever port, harms itself only |
//! | `services` | images as databases are: several owners, and a user to drop to |
//! | `calls` | no system call is allowed that nothing makes |
//! | `cgroup` | what a box may take of the host |
//! | `doctor` | a host where boxes run is found to be well |
//! | `network` | what a guest reaches, and from where it is reached |
//! | `agent` | the agent-only box and its health |
//! | `supervisor` | the example of `VmManager`, as it is documented |
//!
//! `tests/vm/run` sets what they need: `A3S_BOX_SHIM`, `A3S_BOX_GUEST`, `A3S_BOX_EXAMPLE`,
//! `A3S_BOX_WORKLOAD`, `A3S_BOX_LIBKRUNFW` and `A3S_BOX_IMAGES`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails here")]

mod agent;
mod calls;
mod cgroup;
mod doctor;
mod exactness;
mod exit_status;
mod liars;
mod lifecycle;
mod lost_guest;
mod matrix;
mod network;
mod services;
mod shares;
mod stop;
mod supervisor;
