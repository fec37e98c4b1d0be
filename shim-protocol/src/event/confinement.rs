//! What keeps a guest that has taken the shim over from the host.

use std::fmt;

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
    /// A root file system of its own, with nothing in it but the box's directory, its shares and
    /// `/dev/kvm`.
    Root,
    /// No core file, nothing of the supervisor's environment and files, and nothing that a child could gain.
    Process,
    /// The capabilities that the guest's files need, and no others.
    Capabilities,
    /// Files and directories of the box, and no others (`landlock(7)`).
    Landlock,
    /// The system calls that the VM needs, and no others (seccomp(2)).
    Seccomp,
}

impl Layer {
    /// Name of the layer in events.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MountNamespace => "mount_namespace",
            Self::UserNamespace => "user_namespace",
            Self::IpcNamespace => "ipc_namespace",
            Self::UtsNamespace => "uts_namespace",
            Self::NetNamespace => "net_namespace",
            Self::Root => "root",
            Self::Process => "process",
            Self::Capabilities => "capabilities",
            Self::Landlock => "landlock",
            Self::Seccomp => "seccomp",
        }
    }
}

impl fmt::Display for LayerReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.layer.as_str())?;
        self.detail.iter().try_for_each(|detail| write!(f, " ({detail})"))
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layer_has_one_name_everywhere() {
        for layer in [Layer::MountNamespace, Layer::Root, Layer::Capabilities, Layer::Seccomp] {
            assert_eq!(serde_json::json!(layer), layer.as_str());
        }
    }
}
