//! The layers of confinement, which keep a guest that has taken over the shim away from the host.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The status of one layer of confinement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct LayerReport {
    /// The layer.
    pub layer: Layer,
    /// Whether the layer is in effect.
    pub status: LayerStatus,
    /// What a partial layer lacks, or why a layer is missing. Absent: the layer is complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// A layer of confinement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Layer {
    /// The shim has a mount namespace of its own.
    MountNamespace,
    /// The shim is in a user namespace. Its user is the one that started it, or, if that was root,
    /// a user that the host does not have.
    UserNamespace,
    /// The shim has System V IPC objects and POSIX message queues of its own.
    IpcNamespace,
    /// The shim has a host name of its own.
    UtsNamespace,
    /// The shim has an empty network namespace of its own. `network.mode` `tsi` omits this layer.
    NetNamespace,
    /// The shim has a root file system of its own, with little more than the box directory, the
    /// shares and `/dev/kvm`.
    Root,
    /// The shim dumps no core file, has neither the environment nor the open files of its
    /// supervisor, and its children cannot gain privileges (`no_new_privs`).
    Process,
    /// The shim has only the capabilities that serving the guest's files requires.
    Capabilities,
    /// The shim can access only the files and directories of the box (`landlock(7)`).
    Landlock,
    /// The shim can make only the system calls that the VM requires (`seccomp(2)`).
    Seccomp,
    /// A word that this version does not know. The shim does not use it.
    #[cfg_attr(feature = "schema", schemars(skip))]
    #[serde(other)]
    Unknown,
}

impl Layer {
    /// Returns the name of the layer in events.
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
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for LayerReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.layer.as_str())?;
        self.detail.iter().try_for_each(|detail| write!(f, " ({detail})"))
    }
}

/// Whether a layer of confinement is in effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum LayerStatus {
    /// The layer is complete.
    Applied,
    /// The layer has the features that the host kernel supports, and lacks others.
    Partial,
    /// The layer is not in effect.
    Missing,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_of_a_layer_is_equal_in_json_and_in_text() {
        for layer in [Layer::MountNamespace, Layer::Root, Layer::Capabilities, Layer::Seccomp] {
            assert_eq!(serde_json::json!(layer), layer.as_str());
        }
    }
}
