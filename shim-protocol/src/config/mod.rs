//! [`BoxConfig`]: the JSON document that the shim reads on standard input.
//!
//! The parser is strict: it refuses unknown fields, and an error names the JSON path, what was
//! found and what was expected. Each field of `BoxConfig` has a default, so `{}` is a valid config.
//! Its box has an empty root, the built-in agent and no workload.
//!
//! The types here accept any value of the right type. The shim checks ranges, and fields that
//! depend on each other, once, when it converts the `BoxConfig` into its own validated type. The
//! docs of each field list these bounds.

mod egress;
mod environment;
mod error;
mod lifecycle;
mod machine;
mod network;
mod protocol;
mod root;
mod secret;
mod workload;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use egress::{Egress, EgressRule, PortRange};
pub use environment::Environment;
pub use error::ConfigError;
pub use lifecycle::{
    AgentConfig, AgentProvider, ConfinementConfig, ConfinementLevel, EventsConfig, HealthConfig,
    IdsConfig, OnUnhealthy, Readiness, SeccompMode, StopConfig,
};
pub use machine::{
    ConsoleConfig, DiskPlace, IoConfig, MountConfig, ResourcesConfig, Rlimit, RlimitName,
    ShareCache,
};
pub use network::{NetworkConfig, NetworkMode, PublishConfig};
pub use protocol::Protocol;
pub use root::{RootConfig, RootKind};
pub use secret::variable_path;
pub use workload::{ImageConfig, ImageLimits, ProcessConfig};

/// Version of the config format, the only value of `schema_version` that this version accepts.
pub const SCHEMA_VERSION: u32 = 1;

/// Maximum length of a config in bytes: 4 MiB.
///
/// The arguments and the environment that execve(2) accepts with the default stack limit (2 MiB
/// together) fit into it, and reading a wrong file up to this limit is cheap.
pub const MAX_CONFIG_BYTES: usize = 4 * 1024 * 1024;

/// The config of a box.
///
/// Each field has a default, and unknown fields are refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct BoxConfig {
    /// Version of the config format: 1, which is also the default.
    pub schema_version: u32,
    /// Id of the box, unique among the live boxes in `paths.state_dir`: 1 to 64 letters, digits,
    /// `.`, `_` and `-`, beginning with a letter or digit. Absent: generated, and unique on the
    /// host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Host name in the guest: at most 64 bytes. It consists of parts of letters, digits and inner
    /// `-`, up to 63 bytes each, with `.` between them. Absent: `id`, with `-` in place of `.` and
    /// `_`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Image of the root file system. Absent: the root is an empty directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageConfig>,
    /// How the guest gets its root file system.
    pub root: RootConfig,
    /// The workload.
    pub process: ProcessConfig,
    /// Size of the machine, and limits of the box.
    pub resources: ResourcesConfig,
    /// File systems that the guest mounts in addition to its root, in this order. Default: none.
    pub mounts: Vec<MountConfig>,
    /// Network of the guest. Default: loopback only.
    pub network: NetworkConfig,
    /// The agent in the guest, readiness, and health checks.
    pub agent: AgentConfig,
    /// Destination of the workload's output.
    pub console: ConsoleConfig,
    /// How the shim confines itself before the guest starts.
    pub confinement: ConfinementConfig,
    /// How the shim stops the box.
    pub stop: StopConfig,
    /// The event stream, and the file that keeps it.
    pub events: EventsConfig,
    /// Limits of the layer cache.
    pub cache: CacheConfig,
    /// The shim's own directories and files on the host.
    pub paths: PathsConfig,
}

impl Default for BoxConfig {
    fn default() -> Self {
        Self {
            schema_version: SCHEMA_VERSION,
            id: None,
            hostname: None,
            image: None,
            root: RootConfig::default(),
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
    /// Parses a config from its JSON text.
    ///
    /// Ranges of values are not checked here, but by the shim.
    ///
    /// ```
    /// use a3s_box_core::{BoxConfig, ConfigError};
    ///
    /// let json = br#"{"id": "demo", "resources": {"memory_mib": 1024}}"#;
    /// let config = BoxConfig::from_json(json)?;
    /// assert_eq!(config.resources.memory_mib, 1024);
    /// // A field that the text does not contain has its default.
    /// assert_eq!(config.resources.vcpus, 1);
    /// assert_eq!(config.stop.grace_ms, 10_000);
    ///
    /// let error = BoxConfig::from_json(br#"{"resources": {"cpus": 2}}"#).unwrap_err();
    /// assert!(error.to_string().starts_with("resources.cpus: unknown field `cpus`"));
    /// # Ok::<(), ConfigError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`ConfigError::TooLarge`] for a text of more than [`MAX_CONFIG_BYTES`],
    /// [`ConfigError::Syntax`] with line and column for a text that is not JSON,
    /// [`ConfigError::Shape`] with the JSON path for a wrong type or an unknown name, and
    /// [`ConfigError::Invalid`] for an array in the place of an object, for another
    /// `schema_version`, and for a wrong type or an unknown name below `process`. No error quotes
    /// anything below `process`.
    pub fn from_json(json: &[u8]) -> Result<Self, ConfigError> {
        // The length comes first, so that the work of the parser is bounded.
        if json.len() > MAX_CONFIG_BYTES {
            return Err(ConfigError::TooLarge);
        }
        let mut deserializer = serde_json::Deserializer::from_slice(json);
        let config: Self = serde_path_to_error::deserialize(&mut deserializer)
            .map_err(|error| ConfigError::from_serde(&error, json))?;
        // Without this call, text after the document would be ignored.
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

    /// Refuses an array in the place of an object. serde also fills a struct from an array, by
    /// position, so `"resources": [2]` would otherwise set `vcpus`.
    fn refuse_arrays_for_objects(&self, json: &[u8]) -> Result<(), ConfigError> {
        let found = serde_json::from_slice(json).map_err(|error| ConfigError::syntax(&error))?;
        // The config that was read has an object at each position where the text must have one.
        let meant = serde_json::to_value(self).map_err(|error| ConfigError::syntax(&error))?;
        match array_for_object(&found, &meant) {
            None => Ok(()),
            Some(path) => {
                let path = if path.is_empty() { "config" } else { path.trim_start_matches('.') };
                Err(ConfigError::invalid(path, "an array", "an object"))
            }
        }
    }

    /// Serializes the config as JSON, for the shim's standard input.
    ///
    /// The text contains the values of environment variables, so it must not be logged.
    ///
    /// # Errors
    ///
    /// Fails only for a path that is not UTF-8, because JSON cannot represent it.
    pub fn to_json(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }
}

/// Returns the path of the first position where `found` has an array and `meant` has an object.
///
/// The recursion is bounded, because `serde_json` parses at most 128 levels.
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

/// Limits of the layer cache. A layer that a box uses is never removed.
///
/// `--gc` enforces the limits, and so does each start that has unpacked a layer, once its root is
/// mounted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct CacheConfig {
    /// Size limit of the cache in MiB. The least recently used layer is removed first. Absent: no
    /// limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_mib: Option<u64>,
    /// Time in hours after which a layer that no box uses is removed. Absent: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_age_hours: Option<u64>,
}

/// The shim's own directories and files on the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct PathsConfig {
    /// Absolute path of the state directory, which holds a box directory for each box. Default:
    /// `/run/a3s-box`. The path must be short, because the path of a socket in a box directory may
    /// have 107 bytes (unix(7)). No other user may be able to replace the directory.
    pub state_dir: PathBuf,
    /// Absolute path of the cache directory, which holds unpacked layers for all boxes. Default:
    /// `/var/cache/a3s-box`. No other user may be able to replace the directory.
    pub cache_dir: PathBuf,
    /// Absolute path of the guest kernel, `libkrunfw.so.5`. Absent: the file in `../lib` beside the
    /// shim, or else the system's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub libkrunfw: Option<PathBuf>,
    /// Absolute path of the guest program's executable. Absent: `a3s-box-guest` beside the shim, or
    /// else in `../lib/a3s-box`.
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
