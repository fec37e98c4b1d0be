//! The contract of `a3s-box-shim`: its input, its output, its files and its exit status.
//!
//! | direction | type | where |
//! |---|---|---|
//! | stdin | [`BoxConfig`], one JSON document | [`config`] |
//! | stdout | [`Event`], one JSON object for each line | [`event`] |
//! | `<state_dir>/<id>/` | [`RunRecord`] of the shim, then [`ExitRecord`] | [`record`] |
//! | `error` events | [`ErrorReport`] with a stable [`ErrorCode`] | [`error`] |
//! | `--doctor --json` | [`DoctorReport`](doctor::DoctorReport) | [`doctor`] |
//! | exit status | constants and [`for_signal`](exit::for_signal) | [`exit`] |
//!
//! The JSON Schemas for other languages are in the directory `schema/` ([`schema`]). This crate has
//! all serializable types of the contract, but does no input or output with them. Only [`box_dir`]
//! makes system calls: it owns the lock of a box, because the shim and its supervisors must follow
//! the same rule.

pub mod box_dir;
mod box_id;
pub mod config;
pub mod doctor;
mod emitter;
pub mod error;
pub mod event;
mod event_lines;
pub mod exit;
pub mod record;
pub mod schema;
mod state;

pub use box_dir::BoxDir;
pub use box_id::{BoxId, BoxIdError};
pub use config::{BoxConfig, ConfigError};
pub use emitter::EventEmitter;
pub use error::{ErrorCode, ErrorReport, one_line};
pub use event::{Event, EventKind};
pub use event_lines::{EventDecoder, EventLineError, MAX_EVENT_LINE_BYTES};
pub use record::{ExitRecord, RunRecord};
pub use state::{BoxState, HealthState};
