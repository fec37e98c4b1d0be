//! [`BoxConfig`]: the one JSON document that the shim reads on standard input.
//!
//! Strict: unknown fields are refused, every field has a default, and an error names the JSON
//! path, what was found and what was expected. `{}` is a legal config: an agent-only box, with an
//! empty root, the built-in agent and no workload.
//!
//! This module says what can be *written*. What it means together is decided once, by the shim,
//! when it turns a `BoxConfig` into its own validated type.

mod environment;
mod error;
mod lifecycle;
mod machine;
mod network;
mod workload;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use environment::Environment;
pub use error::ConfigError;
pub use lifecycle::{
    AgentConfig, AgentProvider, ConfinementConfig, ConfinementLevel, EventsConfig, HealthConfig,
    OnUnhealthy, Readiness, SeccompMode, StopConfig,
};
pub use machine::{ConsoleConfig, DiskPlace, MountConfig, ResourcesConfig, Rlimit, RlimitName};
pub use network::{Egress, NetworkConfig, NetworkMode, Protocol, PublishConfig};
pub use workload::{ImageConfig, ProcessConfig};

/// Version of the config format.
pub const SCHEMA_VERSION: u32 = 1;

/// Longest config that is read: room for 1,000 arguments and an environment of the kernel's
/// limits, and small enough that a wrong file on stdin costs nothing.
pub const MAX_CONFIG_BYTES: usize = 4 * 1024 * 1024;

/// Everything that a box is made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct BoxConfig {
    /// Version of this format: 1.
    pub schema_version: u32,
    /// Name of the box, unique among the live ones in `paths.state_dir`: 1 to 64 letters, digits,
    /// `.`, `_` and `-`, beginning with a letter or digit. Made up when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Host name in the guest: letters, digits, `-` and `.`, at most 64 bytes. Absent: `id`, with `-` for
    /// whatever else is in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Image of the root file system; without one the root is empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageConfig>,
    /// What runs in the box.
    pub process: ProcessConfig,
    /// Size of the machine and limits.
    pub resources: ResourcesConfig,
    /// File systems besides the root, mounted in this order.
    pub mounts: Vec<MountConfig>,
    /// Network of the guest.
    pub network: NetworkConfig,
    /// The agent in the guest and its health checks.
    pub agent: AgentConfig,
    /// Where the workload's output goes.
    pub console: ConsoleConfig,
    /// How the shim confines itself.
    pub confinement: ConfinementConfig,
    /// How the box is stopped.
    pub stop: StopConfig,
    /// The event stream.
    pub events: EventsConfig,
    /// What stays in the layer cache.
    pub cache: CacheConfig,
    /// Directories and files of the host.
    pub paths: PathsConfig,
}

impl Default for BoxConfig {
    fn default() -> Self {
        Self {
            schema_version: SCHEMA_VERSION,
            id: None,
            hostname: None,
            image: None,
            process: ProcessConfig::default(),
            resources: ResourcesConfig::default(),
            mounts: Vec::new(),
            network: NetworkConfig::default(),
            agent: AgentConfig::default(),
            console: ConsoleConfig::default(),
            confinement: ConfinementConfig::default(),
            stop: StopConfig::default(),
            events: EventsConfig::default(),
            cache: CacheConfig::default(),
            paths: PathsConfig::default(),
        }
    }
}

impl BoxConfig {
    /// Reads a config from its JSON text.
    ///
    /// # Errors
    ///
    /// Syntax errors with line and column; wrong types, unknown fields and unknown names with the
    /// JSON path. Values of environment variables are never part of an error.
    pub fn from_json(json: &[u8]) -> Result<Self, ConfigError> {
        if json.len() > MAX_CONFIG_BYTES {
            return Err(ConfigError::TooLarge);
        }
        let mut deserializer = serde_json::Deserializer::from_slice(json);
        let config: Self = serde_path_to_error::deserialize(&mut deserializer)
            .map_err(|error| ConfigError::from_serde(&error))?;
        deserializer.end().map_err(|error| ConfigError::syntax(&error))?;
        config.refuse_arrays_for_objects(json)?;
        if config.schema_version != SCHEMA_VERSION {
            return Err(ConfigError::invalid(
                "schema_version",
                config.schema_version.to_string(),
                SCHEMA_VERSION.to_string(),
            ));
        }
        Ok(config)
    }

    /// serde also fills a struct from an array, by position; here `[2]` for `resources` is a mistake.
    fn refuse_arrays_for_objects(&self, json: &[u8]) -> Result<(), ConfigError> {
        let found = serde_json::from_slice(json).map_err(|error| ConfigError::syntax(&error))?;
        let meant = serde_json::to_value(self).map_err(|error| ConfigError::syntax(&error))?;
        match array_for_object(&found, &meant) {
            None => Ok(()),
            Some(path) => {
                let path = if path.is_empty() { "config" } else { path.trim_start_matches('.') };
                Err(ConfigError::invalid(path, "an array", "an object"))
            }
        }
    }

    /// Writes the config as JSON, secrets included: for the shim's standard input, not for a log.
    ///
    /// # Errors
    ///
    /// Only for a path that is not UTF-8, which JSON cannot hold.
    pub fn to_json(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }
}

/// Path of the first place where `found` is an array and `meant` is an object. Not deeper than what
/// `serde_json` parses (128 levels).
fn array_for_object(found: &Value, meant: &Value) -> Option<String> {
    match (found, meant) {
        (Value::Array(_), Value::Object(_)) => Some(String::new()),
        (Value::Array(found), Value::Array(meant)) => {
            let mut pairs = found.iter().zip(meant).enumerate();
            pairs.find_map(|(i, (f, m))| Some(format!("[{i}]{}", array_for_object(f, m)?)))
        }
        (Value::Object(found), Value::Object(meant)) => found.iter().find_map(|(key, value)| {
            Some(format!(".{key}{}", array_for_object(value, meant.get(key)?)?))
        }),
        _ => None,
    }
}

/// What stays in the layer cache. What a box uses always does.
///
/// Kept by `--gc`, and by each start that unpacked something, after it has begun.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct CacheConfig {
    /// Most MiB that are kept; the least recently used layer goes first. Absent: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_mib: Option<u64>,
    /// Longest time in hours for which a layer that no box uses is kept. Absent: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_age_hours: Option<u64>,
}

/// Directories and files of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct PathsConfig {
    /// Holds a directory for each box: its sockets, console and writable layer. Absolute. Keep it
    /// short: the path of a socket in it may have 107 bytes.
    pub state_dir: PathBuf,
    /// Holds unpacked layers, shared by all boxes. Absolute.
    pub cache_dir: PathBuf,
    /// `libkrunfw.so.5`, the guest kernel. Absent: `../lib` beside the shim, then the system's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub libkrunfw: Option<PathBuf>,
    /// The program that runs as PID 1 of the guest. Absent: `a3s-box-guest` beside the shim, then
    /// in `../lib/a3s-box`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guest: Option<PathBuf>,
}

impl Default for PathsConfig {
    fn default() -> Self {
        Self {
            state_dir: PathBuf::from("/run/a3s-box"),
            cache_dir: PathBuf::from("/var/cache/a3s-box"),
            libkrunfw: None,
            guest: None,
        }
    }
}

#[cfg(test)]
mod tests;
