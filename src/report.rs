//! Everything that the shim reports: events to its supervisor, the log, messages to the service
//! manager, and plain text to a person at a terminal.
//!
//! No receiver is ever waited for while the VM runs, because one that is slow or stopped must not
//! stop the VM.

pub(crate) mod events;
pub(crate) mod log;
mod merged;
pub(crate) mod output_place;
pub(crate) mod printable;
pub(crate) mod rotated_file;
pub(crate) mod service_manager;
pub(crate) mod terminal;
