//! What runs in the box: the image and the process.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Environment;

/// An image in an OCI image layout on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ImageConfig {
    /// Directory with `oci-layout`, `index.json` and `blobs`. Absolute.
    pub layout: PathBuf,
    /// Tag (`org.opencontainers.image.ref.name`) or manifest digest. May be absent when the layout
    /// holds one image only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// `os/architecture[/variant]`; absent: this host's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
}

/// The workload. What is absent comes from the image's config.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct ProcessConfig {
    /// Replaces the image's entrypoint, and drops its default arguments.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// Arguments after the entrypoint; without an entrypoint, the program and its arguments.
    /// Replaces the image's default arguments.
    pub args: Vec<String>,
    /// Added to the image's environment, name by name. Values are secrets.
    pub env: Environment,
    /// Working directory in the guest, absolute; made if missing. Default: the image's, else `/`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// `user[:group]`, names or numbers, looked up in the image's own passwd and group files.
    /// Default: the image's, else root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}
