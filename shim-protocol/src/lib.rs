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
//! JSON Schemas for other languages are in `schema/` ([`schema`]). All serializable types of the
//! contract are in this crate, without input and output. Only [`box_dir`] makes system calls: it owns
//! the lock of a box, because the shim and its supervisors must follow the same rule.

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
