//! [`BoxState`], the state of a box, and [`HealthState`], its health.
//!
//! ```text
//!                     ready
//!   Created ────────────────────────────────► Ready ◄──────► Busy
//!      │                                       │ ▲             │
//!      │                                       ▼ │             │
//!      │                                   Compacting ◄────────┤
//!      │                                       │               │
//!      └──────────────► Stopped ◄──────────────┴───────────────┘
//! ```
//!
//! `agent.readiness` decides when a box becomes Ready. Afterwards the agent's health answers and
//! the workload's notifications (`X_A3S_STATE` on `$NOTIFY_SOCKET`) select Ready, Busy or
//! Compacting. Each of these three states can follow each of the others. Stopped is final.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The state of a box, as `state.changed` reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum BoxState {
    /// The box is not ready yet: its shim has not started, or the guest boots.
    Created,
    /// The box is ready, as `agent.readiness` defines it, and idle.
    Ready,
    /// The agent or the workload has reported that it is processing.
    Busy,
    /// The agent or the workload has reported that it compresses its context.
    Compacting,
    /// The box has ended. No other state follows.
    Stopped,
}

/// The health of a box, as its health checks found it.
///
/// ```text
///              a check succeeds                    a check succeeds
///   Starting ────────────────────► Healthy ◄───────────────────────── Unhealthy
///      │                              │                                   ▲
///      └──────────────────────────────┴───────────────────────────────────┘
///         start_period_ms is over, or a check has succeeded before,
///                 and `retries` checks in a row have failed
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum HealthState {
    /// No check has succeeded yet, and fewer than `retries` failures count.
    #[default]
    Starting,
    /// A check has succeeded, and fewer than `retries` checks have failed since.
    Healthy,
    /// At least `retries` checks in a row have failed.
    Unhealthy,
}

impl fmt::Display for BoxState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Created => "created",
            Self::Ready => "ready",
            Self::Busy => "busy",
            Self::Compacting => "compacting",
            Self::Stopped => "stopped",
        })
    }
}
