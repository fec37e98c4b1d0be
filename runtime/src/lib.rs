//! Drives `a3s-box-shim` processes: one [`VmManager`] for each box.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use a3s_box_runtime::VmManager;
//! use a3s_box_core::{BoxConfig, EventEmitter};
//!
//! let config = BoxConfig::default();
//! let emitter = EventEmitter::new();
//! let vm = VmManager::new(config, emitter);
//! vm.boot().await?;                       // lazy: nothing is started before
//! let healthy = vm.health_check().await?; // a real gRPC round trip, never kill(pid, 0)
//! vm.destroy().await?;
//! # let _printed_by_the_example_program = healthy;
//! # Ok(())
//! # }
//! ```
//!
//! `examples/boot.rs` has the same lines as a program, and a test compares the two.
//!
//! # Ownership
//!
//! ```text
//!  VmManager ───── Termination ─────► follower task ──── owns ────► shim process (the VMM)
//!  │  config, id                      │  SIGTERM, then SIGKILL      ▲       │
//!  │  agent client ─────────┐         │  reads events ◄── stdout ───────────┤
//!  │                        │         │  reaps                      │       │
//!  └─ reads ─ Status ◄─ writes ───────┤                      stdin ─┘       │
//!     (state, outcome)      │         └─► EventEmitter    (config, by a     │
//!                           │             (events)         task of its own) │
//!                           └── gRPC ──► <state_dir>/<id>/agent.sock ───────┘
//!                               and ───► exec.sock, for the processes of the box (`exec`)
//! ```
//!
//! # Invariants
//!
//! - This crate reaches a shim as a process only, and never links libkrun.
//! - Only the follower signals and reaps the shim. Until it has reaped the process, the kernel
//!   cannot give the pid to another one, so no signal reaches a wrong process.
//! - An [`EventEmitter`](a3s_box_core::EventEmitter) emits exactly one `box.stopped` for each shim
//!   that was started, after the process was reaped, unless the tokio runtime ends first or an
//!   observer panics.
//! - Dropping a `VmManager` kills its shim. Dropping an [`exec::Process`] kills the process in its
//!   box, unless it is kept.
//!
//! A supervisor that has restarted has no `VmManager` for its boxes. It calls [`inspect`], which
//! reads the state of a box from its box directory.

mod agent;
mod connection;
mod directory;
mod error;
pub mod exec;
pub mod files;
mod follower;
mod lines;
mod manager;
mod record;
mod relay;
mod shim;
mod status;

pub use directory::BoxDirectoryError;
pub use error::VmError;
pub use manager::VmManager;
pub use record::{BoxRecord, RecordError, inspect};
pub use shim::ShimStartError;
pub use status::Outcome;
