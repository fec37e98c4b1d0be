//! What an image and a config ask for together.

use serde::{Deserialize, Serialize};

/// What a box runs: the image's config and `process`, merged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ResolvedRun {
    /// First words of the command.
    pub entrypoint: Vec<String>,
    /// Words after them.
    pub args: Vec<String>,
    /// Names of the environment's variables. Values are secrets, and in no event.
    pub env: Vec<String>,
    /// Working directory in the guest.
    pub cwd: String,
    /// `user[:group]`; empty: root.
    pub user: String,
    /// First signal of a stop; what the image says when nobody knows such a signal.
    pub stop_signal: String,
    /// The image's own health check, which the shim does not run. Absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<ResolvedHealthcheck>,
    /// Directories that the image declares as volumes. Nothing is mounted there: what the box writes
    /// goes to its own private layer, which is what an anonymous volume is for.
    pub volumes: Vec<String>,
    /// Ports on which the workload listens, as the image says; nothing is published.
    pub exposed_ports: Vec<String>,
    /// Texts are cut, or left out, to keep the line short; the box gets all of them.
    pub truncated: bool,
}

/// A health check that an image brings along; what is absent is up to who asks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ResolvedHealthcheck {
    /// `CMD` and a command, or `CMD-SHELL` and a line for the shell.
    pub test: Vec<String>,
    /// Time between two tests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval_ms: Option<u64>,
    /// Time that a test may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Time after the start in which failures do not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_period_ms: Option<u64>,
    /// Failures in a row that mean that the workload is not well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retries: Option<u32>,
}
