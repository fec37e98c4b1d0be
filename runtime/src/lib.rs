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
//! `examples/boot.rs` is this text as a program; a test keeps the two equal.
//!
//! # Who owns what
//!
//! ```text
//!  VmManager ──── order to stop ────► follower task ──── owns ────► shim process (the VM)
//!  │  config, id                      │  TERM, then KILL            ▲       │
//!  │  agent client ─────────┐         │  reads events ◄── stdout ───────────┤
//!  │                        │         │  reaps                      │       │
//!  └─ sees ── Status ◄─ writes ───────┤                      stdin ─┘       │
//!     (state, ready?, end?) │         └─► EventEmitter    (config, by a     │
//!                           │             (events)         task of its own) │
//!                           └── gRPC ──► <state_dir>/<id>/agent.sock ───────┘
//! ```
//!
//! # Invariants
//!
//! - A shim is reached as a process only: this crate never links libkrun.
//! - The follower alone signals and reaps the shim, so that a signal never meets a recycled pid.
//! - An [`EventEmitter`](a3s_box_core::EventEmitter) sees exactly one `box.stopped` for each shim
//!   that was started, after that process has gone.
//! - Dropping a `VmManager` kills its shim.
//! - What a supervisor that was not there can know of a box, [`inspect`] says.

mod agent;
mod chronicle;
mod directory;
mod error;
mod follower;
mod lines;
mod manager;
mod record;
mod shim;
mod status;

pub use directory::BoxDirectoryError;
pub use error::VmError;
pub use manager::VmManager;
pub use record::{BoxRecord, RecordError, inspect};
pub use shim::ShimStartError;
pub use status::Outcome;
