//! Input of the shim: its command line and its config.

pub(crate) mod arguments;
pub(crate) mod config;
