//! How a box is watched, confined and stopped.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The agent in the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct AgentConfig {
    /// Who answers health checks.
    pub provider: AgentProvider,
    /// vsock port of the guest on which the agent listens.
    pub vsock_port: u32,
    /// Health checks after the first success. Not supported yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthConfig>,
    /// How long the guest may take from the entry into libkrun to the agent's first answer.
    pub boot_timeout_ms: u64,
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self {
            provider: AgentProvider::Builtin,
            vsock_port: 4088,
            health: None,
            // Half of what systemd gives a service to start (90 s), and ten times what an
            // emulated host needs.
            boot_timeout_ms: 45_000,
        }
    }
}

/// Who answers health checks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum AgentProvider {
    /// The program that is PID 1 of the guest.
    #[default]
    Builtin,
    /// A server of the image. Not supported yet.
    Image,
    /// Nobody: the box is ready when its workload was started.
    None,
}

/// Health checks after the first success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct HealthConfig {
    /// Time between two checks.
    pub interval_ms: u64,
    /// Time in which an answer must come.
    pub timeout_ms: u64,
    /// Failures in a row until the box is unhealthy.
    pub retries: u32,
    /// Time after the start in which failures do not count.
    pub start_period_ms: u64,
    /// What happens to an unhealthy box.
    pub on_unhealthy: OnUnhealthy,
}

impl Default for HealthConfig {
    fn default() -> Self {
        Self {
            interval_ms: 1000,
            timeout_ms: 500,
            retries: 3,
            start_period_ms: 30_000,
            on_unhealthy: OnUnhealthy::Report,
        }
    }
}

/// What happens to an unhealthy box.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum OnUnhealthy {
    /// An event says so.
    #[default]
    Report,
    /// The box is stopped.
    Stop,
}

/// How the shim confines itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct ConfinementConfig {
    /// How much confinement is needed to start. `none` until confinement exists; then `required`.
    pub level: ConfinementLevel,
}

/// How much confinement is needed to start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ConfinementLevel {
    /// All of it, or the shim refuses to start. Not supported yet.
    Required,
    /// As much as this host allows. Not supported yet.
    BestEffort,
    /// None: the guest's kernel is trusted with everything that the shim's user may do.
    #[default]
    None,
}

/// How the box is stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct StopConfig {
    /// First signal to the workload, as `SIGTERM`. Absent: the image's stop signal, else SIGTERM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<String>,
    /// Time until every process of the guest is killed.
    pub grace_ms: u64,
}

impl Default for StopConfig {
    fn default() -> Self {
        // What container engines give by default.
        Self { signal: None, grace_ms: 10_000 }
    }
}

/// The event stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct EventsConfig {
    /// Time between two metrics events. Not supported yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics_interval_ms: Option<u64>,
    /// File that keeps the stream. Not supported yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
}
