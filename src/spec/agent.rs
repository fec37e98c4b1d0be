//! The agent in the guest and its health checks: `agent` of the config, validated.

use std::time::Duration;

use a3s_box_core::config::{
    AgentConfig, AgentProvider, ConfigError, HealthConfig, OnUnhealthy, Readiness,
};
use a3s_box_proto::{CONTROL_PORT, EXEC_PORT};

use super::field::{MAX_WAIT_MS, within};

/// Shortest time between two health checks. Each check wakes the guest's virtual CPU.
const MIN_INTERVAL_MS: u64 = 10;

/// The agent in the guest.
#[derive(Clone, Debug)]
pub(crate) struct AgentSpec {
    pub(crate) provider: AgentProvider,
    /// vsock port of the guest on which the agent answers health checks.
    pub(crate) port: u32,
    /// Whether the guest program serves the processes of the box.
    pub(crate) exec: bool,
    pub(crate) readiness: Readiness,
    pub(crate) boot_timeout: Duration,
    /// Health checks; none with provider `none`.
    pub(crate) health: Option<HealthSpec>,
}

/// The health checks of a box.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HealthSpec {
    pub(crate) interval: Duration,
    pub(crate) timeout: Duration,
    pub(crate) retries: u32,
    pub(crate) start_period: Duration,
    pub(crate) on_unhealthy: OnUnhealthy,
}

impl TryFrom<&AgentConfig> for AgentSpec {
    type Error = ConfigError;

    fn try_from(agent: &AgentConfig) -> Result<Self, ConfigError> {
        let port = agent.vsock_port;
        // `u32::MAX` is VMADDR_PORT_ANY (vsock(7)), which does not name one port. The port of the
        // processes is refused also without `exec`, so that `exec` can be set in any valid config.
        if [0, u32::MAX, CONTROL_PORT, EXEC_PORT].contains(&port) {
            let any = u32::MAX;
            let expected = format!("a port other than 0, {CONTROL_PORT}, {EXEC_PORT} and {any}");
            return Err(ConfigError::invalid("agent.vsock_port", port.to_string(), expected));
        }
        within("agent.boot_timeout_ms", agent.boot_timeout_ms, 1..=MAX_WAIT_MS)?;
        let has_agent = agent.provider != AgentProvider::None;
        let readiness = match agent.readiness {
            Some(Readiness::Health) if !has_agent => {
                let expected =
                    "`started` or `notify`, because provider `none` has no health checks";
                return Err(ConfigError::invalid("agent.readiness", "`health`", expected));
            }
            Some(readiness) => readiness,
            None if has_agent => Readiness::Health,
            None => Readiness::Started,
        };
        // The values are checked even if they are not used, so that a mistake is found early.
        let health = HealthSpec::try_from(&agent.health)?;
        Ok(Self {
            provider: agent.provider,
            port,
            exec: agent.exec,
            readiness,
            boot_timeout: Duration::from_millis(agent.boot_timeout_ms),
            health: has_agent.then_some(health),
        })
    }
}

impl TryFrom<&HealthConfig> for HealthSpec {
    type Error = ConfigError;

    fn try_from(health: &HealthConfig) -> Result<Self, ConfigError> {
        within("agent.health.interval_ms", health.interval_ms, MIN_INTERVAL_MS..=MAX_WAIT_MS)?;
        within("agent.health.timeout_ms", health.timeout_ms, 1..=MAX_WAIT_MS)?;
        within("agent.health.retries", health.retries.into(), 1..=1000)?;
        within("agent.health.start_period_ms", health.start_period_ms, 0..=MAX_WAIT_MS)?;
        Ok(Self {
            interval: Duration::from_millis(health.interval_ms),
            timeout: Duration::from_millis(health.timeout_ms),
            retries: health.retries,
            start_period: Duration::from_millis(health.start_period_ms),
            on_unhealthy: health.on_unhealthy,
        })
    }
}
