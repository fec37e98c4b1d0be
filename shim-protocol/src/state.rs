//! The states of a box, as supervisors see them.
//!
//! ```text
//!              booted, health check passes
//!   Created ────────────────────────────────► Ready ◄──────► Busy
//!      │                                       │ ▲             │
//!      │                                       ▼ │             │
//!      │                                   Compacting ◄────────┤
//!      │                                       │               │
//!      └──────────────► Stopped ◄──────────────┴───────────────┘
//!        VM terminated, resources freed
//! ```
//!
//! Ready, Busy and Compacting are the agent's to say. Stopped is final.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a box is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum BoxState {
    /// Config captured, no VM started.
    Created,
    /// VM booted, agent initialized, health check passing.
    Ready,
    /// A session is processing.
    Busy,
    /// A session compresses its context.
    Compacting,
    /// VM terminated, resources freed.
    Stopped,
}

/// What health checks say.
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
    /// No check has succeeded yet, and none had to.
    #[default]
    Starting,
    /// The last check succeeded, or too few since then have failed.
    Healthy,
    /// Too many checks in a row have failed.
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
