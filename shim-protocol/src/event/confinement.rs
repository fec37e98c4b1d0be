//! What keeps a guest that has taken the shim over from the host.

use serde::{Deserialize, Serialize};

/// One layer of confinement, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct LayerReport {
    /// Which layer.
    pub layer: Layer,
    /// Whether it holds.
    pub status: LayerStatus,
    /// What is missing of it, or what it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// A layer of confinement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Layer {
    /// Mounts of its own.
    MountNamespace,
    /// Root is an ordinary user outside.
    UserNamespace,
    /// System V and POSIX message queues of its own.
    IpcNamespace,
    /// A host name of its own.
    UtsNamespace,
    /// A network of its own, with nothing in it.
    NetNamespace,
    /// No core file, and nothing that a child could gain.
    Process,
    /// The capabilities that the guest's files need, and no others.
    Capabilities,
    /// Files and folders of the box, and no others (`landlock(7)`).
    Landlock,
    /// The system calls that the VM needs, and no others (seccomp(2)).
    Seccomp,
}

/// Whether a layer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum LayerStatus {
    /// All of it.
    Applied,
    /// What this kernel knows of it.
    Partial,
    /// Nothing of it.
    Missing,
}
