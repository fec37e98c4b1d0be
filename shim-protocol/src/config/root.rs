//! The root file system of a box: `root` of a config.

use serde::{Deserialize, Serialize};

/// How the guest gets its root file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct RootConfig {
    /// The kind of the root. Absent: `block`, unless the guest kernel or libkrun cannot mount such
    /// a root, or the config has more shares than the machine has devices for beside the disks.
    /// Then it is `shared`. The event `rootfs.ready` names the kind and the reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<RootKind>,
}

/// The kind of a root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum RootKind {
    /// Two disks: the image as a read-only one with EROFS, and one for the files that the box
    /// writes. The guest kernel mounts an overlay of both. The host never sees the files of the
    /// image as files.
    Block,
    /// A directory of the host, in which the layers of the image are mounted, and which the guest
    /// sees through virtio-fs.
    Shared,
}
