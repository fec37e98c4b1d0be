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
    /// Limits of each layer.
    #[serde(default)]
    pub limits: ImageLimits,
}

/// Limits of each layer of an image. A layer that exceeds one is refused while it is read, and the
/// event `error` names the limit. Layers that are in the cache already are not checked again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct ImageLimits {
    /// Size of the uncompressed archive and of the holes of its sparse files in MiB: 1 to 16777216.
    /// Default: 65536. The limit bounds the time to decompress and hash a layer.
    pub unpacked_mib: u32,
    /// Number of entries in the archive: 1 to 4294967295. Default: 5000000. Each file takes an
    /// inode.
    pub entries: u32,
    /// Uncompressed bytes for each compressed byte, above the first GiB: 1 to 4294967295. Default:
    /// 200. Blocks of zeros in files do not count, because they become holes, which take no disk
    /// space.
    pub ratio: u32,
    /// Memory in MiB for the names that are kept until the end of a layer, of directories and
    /// whiteouts: 1 to 4096. Default: 64.
    pub names_mib: u32,
    /// Size of the window of a zstd layer in MiB, rounded up to a power of two: 1 to 2048. Default:
    /// 128, as for the tool `zstd`. Up to four layers are unpacked at once, and each keeps its
    /// window in memory.
    pub zstd_window_mib: u32,
}

impl Default for ImageLimits {
    fn default() -> Self {
        Self {
            unpacked_mib: 64 * 1024,
            entries: 5_000_000,
            ratio: 200,
            names_mib: 64,
            zstd_window_mib: 128,
        }
    }
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
