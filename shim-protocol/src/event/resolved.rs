//! [`ResolvedRun`]: the workload of a box, merged from its image and its config.

use serde::{Deserialize, Serialize};

/// The workload of a box: the image's config, merged with `process` and `stop.signal` of the box's
/// config.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ResolvedRun {
    /// First words of the command. Empty: `args` has the whole command.
    pub entrypoint: Vec<String>,
    /// Words of the command after `entrypoint`.
    pub args: Vec<String>,
    /// Names of the environment variables. Their values are secrets, so no event contains them.
    pub env: Vec<String>,
    /// Absolute path of the working directory in the guest.
    pub cwd: String,
    /// `user[:group]`, each as a name or a number. Empty: root.
    pub user: String,
    /// Full name of the first signal of a stop, for example `SIGTERM` or `SIGRTMIN+3`, or the text in
    /// the image if it is not a signal. The box then fails with `image_invalid`.
    pub stop_signal: String,
    /// The health check of the image, which the shim does not run. Absent: the image has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<ResolvedHealthcheck>,
    /// Directories that the image declares as volumes. The shim mounts nothing there, because the
    /// writable layer of the box serves the purpose of an anonymous volume.
    pub volumes: Vec<String>,
    /// Ports that the image declares, for example `80/tcp`. The shim does not publish them.
    pub exposed_ports: Vec<String>,
    /// Whether texts of this event are cut or left out to bound its length. The box gets all of
    /// them.
    pub truncated: bool,
}

/// A health check that an image declares. A value that is absent is left to the program that runs
/// it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ResolvedHealthcheck {
    /// `CMD` and the words of a command, or `CMD-SHELL` and one line for the shell.
    pub test: Vec<String>,
    /// Time between two tests in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval_ms: Option<u64>,
    /// Time limit of a test in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Time after the start of the workload in which failures do not count, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_period_ms: Option<u64>,
    /// Number of failures in a row after which the workload is unhealthy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retries: Option<u32>,
}
