//! The image and the workload of a box: `image` and `process` of a config.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Environment;

/// An image in an OCI image layout on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ImageConfig {
    /// Absolute path of the directory with `oci-layout`, `index.json` and `blobs`.
    pub layout: PathBuf,
    /// Tag, full name or manifest digest of an entry in `index.json`. A tag or full name is the
    /// value of the annotation `org.opencontainers.image.ref.name`. Absent: the only image of the
    /// layout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// Platform as `os/architecture[/variant]`, for example `linux/amd64`. Absent: the platform of
    /// this host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
}

/// The workload. The image's config provides the values that are absent here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct ProcessConfig {
    /// First words of the command. They replace the image's entrypoint and drop its default
    /// arguments; `[]` and `[""]` remove the image's entrypoint. Absent: the image's entrypoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// Words after the entrypoint, which replace the image's default arguments. Without an
    /// entrypoint the first word is the executable. Empty: the image's default arguments, unless
    /// `entrypoint` is given.
    pub args: Vec<String>,
    /// Environment variables, which are added to the image's and replace variables of the same
    /// name. The values are secrets: no event, log or error contains them.
    pub env: Environment,
    /// Absolute path of the working directory in the guest, which is created if it is missing.
    /// Absent: the image's, or else `/`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// `user[:group]`, each as a name or a number. Names are looked up in the image's `/etc/passwd`
    /// and `/etc/group`. Absent: the image's user, or else root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}
