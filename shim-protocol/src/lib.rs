//! The contract of `a3s-box-shim`: what goes in, what comes out, and what the exit status means.
//!
//! | direction | type | where |
//! |---|---|---|
//! | stdin | [`BoxConfig`], one JSON document | [`config`] |
//! | stdout | [`Event`], one JSON object a line | [`event`] |
//! | `<state_dir>/<id>/` | [`RunRecord`] while it lives, [`ExitRecord`] afterwards | [`record`] |
//! | `error` events | [`ErrorReport`] with a stable [`ErrorCode`] | [`error`] |
//! | `--doctor --json` | [`DoctorReport`](doctor::DoctorReport) | [`doctor`] |
//! | exit status | constants and [`for_signal`](exit::for_signal) | [`exit`] |
//!
//! JSON Schemas for other languages are in `schema/` ([`schema`]). This crate holds data
//! only: no input or output, no clock, no system call.

pub mod config;
pub mod doctor;
mod emitter;
pub mod error;
pub mod event;
pub mod exit;
pub mod record;
pub mod schema;
mod state;

pub use config::{BoxConfig, ConfigError};
pub use emitter::EventEmitter;
pub use error::{ErrorCode, ErrorReport};
pub use event::{Event, EventKind};
pub use record::{ExitRecord, RunRecord};
pub use state::{BoxState, HealthState};
