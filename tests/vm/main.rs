//! Tests that boot real VMs, on the KVM of this host or in the lab (`tests/lab`).
//!
//! | module | what must hold |
//! |---|---|
//! | `exit_status` | the ending of the workload, not libkrun's exit code, decides the exit status |
//! | `lost_guest` | a guest that vanishes is a failure in bounded time, and never a success |
//! | `exactness` | arguments, environment and output arrive byte for byte |
//! | `stop` | the stop signal, the grace period, SIGKILL, and a killed shim |
//! | `lifecycle` | health, readiness, states, metrics, and the limits of a flood |
//! | `matrix` | nothing is left of a VM, however and whenever it ends |
//! | `shares` | a hostile guest reaches nothing outside its shares and changes no read-only one |
//! | `share_limits` | what shares and a shared root cannot do, and when a guest sees changes of the host |
//! | `liars` | a guest that sends false, malformed or endless messages harms only its own box |
//! | `services` | images like those of databases: files of several owners, and a user to drop to |
//! | `images` | images of many kinds do their job: runtimes, servers, users, layers, odd files |
//! | `disks` | the limit of a box's disk, the space that it returns, and what a killed box leaves on it |
//! | `budgets` | how many requests a guest sends to the device of its root |
//! | `calls` | the shim makes each system call that its filter allows, or there is a reason |
//! | `cgroup` | limits of what a box takes from the host |
//! | `doctor` | `--doctor` finds no problem on a host where boxes run |
//! | `names` | curl, apt and pip reach what names of a rule lead to, and nothing else |
//! | `network` | what a guest can reach, and from where it can be reached |
//! | `exec` | processes in a running box: ends, streams, terminals, cancellation, and a client that stops |
//! | `agent` | the agent-only box, and the size of the guest program |
//! | `supervisor` | the documented example of `VmManager` |
//!
//! `tests/vm/run` sets the environment variables that the tests read: `A3S_BOX_SHIM`,
//! `A3S_BOX_GUEST`, `A3S_BOX_EXAMPLE`, `A3S_BOX_WORKLOAD`, `A3S_BOX_LIBKRUNFW`, `A3S_BOX_IMAGES`
//! and `A3S_BOX_KINDS`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails here")]

mod agent;
mod budgets;
mod calls;
mod cgroup;
mod disks;
mod doctor;
mod exactness;
mod exec;
mod exit_status;
mod files;
mod images;
mod liars;
mod lifecycle;
mod lost_guest;
mod matrix;
mod names;
mod network;
mod running_box;
mod services;
mod share_limits;
mod shares;
mod stop;
mod supervisor;
