//! An image as the rest of the project sees it: a configuration and a list of layers.
//!
//! These are plain types, not the wire types of the specification: what is here has been checked.
//! Each descriptor was understood, the digests parse, there are as many layers as `DiffID`s, and no
//! text holds a NUL byte.

pub(crate) mod digest;
pub(crate) mod healthcheck;
pub(crate) mod platform;

use std::collections::BTreeMap;

use oci_spec::image::{Config, Descriptor, ImageConfiguration, ImageManifest};

use self::digest::Digest;
use self::healthcheck::Healthcheck;
use self::platform::Platform;
use crate::layout::{Configuration, LayoutError};

/// Bound on the texts of each field of the configuration, names and values counted: far above what images have, and what a
/// line of a log can bear.
pub(crate) const FIELD_TEXTS: usize = 4096;

/// Bound on one text of the configuration: the kernel's own on a word of a command or a variable of
/// the environment (`MAX_ARG_STRLEN`).
pub(crate) const TEXT_BYTES: usize = 128 * 1024;

/// An image, chosen from a layout and checked; its layers have not been read.
#[derive(Debug, Clone)]
pub struct Image {
    /// Digest of the manifest, which pins everything else.
    pub manifest_digest: Digest,
    /// What the image was built for.
    pub platform: Platform,
    /// What the image says about the process to run.
    pub config: ImageConfig,
    /// The layers, bottom first.
    pub layers: Vec<Layer>,
}

/// What an image says about the process to run; absent and empty are the same.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// Leading words of the command.
    pub entrypoint: Vec<String>,
    /// Trailing words of the command, which a user replaces.
    pub cmd: Vec<String>,
    /// Environment, in the order of the image.
    pub env: Vec<(String, String)>,
    /// Directory in which to start; empty means `/`.
    pub working_dir: String,
    /// User, and group after a colon, by name or number; empty means root.
    pub user: String,
    /// Signal that asks the process to end.
    pub stop_signal: Option<String>,
    /// How to ask the process whether it is well.
    pub healthcheck: Option<Healthcheck>,
    /// Directories for data that outlives the image, sorted. Docker mounts an anonymous volume on
    /// each, so that writes do not go to the image's layers; the private writable layer that each box
    /// has does that already, so nothing needs to be mounted.
    pub volumes: Vec<String>,
    /// Ports on which the process listens, such as `80/tcp`, sorted.
    pub exposed_ports: Vec<String>,
    /// What the image says about itself.
    pub labels: BTreeMap<String, String>,
}

/// One layer of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layer {
    /// Digest of the blob.
    pub digest: Digest,
    /// Digest of the uncompressed tar archive.
    pub diff_id: Digest,
    /// Size of the blob.
    pub size_bytes: u64,
    /// How the blob is compressed.
    pub compression: Compression,
}

/// How a layer's blob is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// A bare tar archive.
    None,
    /// One or more gzip members.
    Gzip,
    /// One or more zstd frames.
    Zstd,
}

impl Compression {
    /// Reads a layer's media type; who may hand a layer out makes no difference to what it is.
    fn of_media_type(media_type: &str) -> Result<Self, LayoutError> {
        let found = media_type.to_owned();
        match media_type {
            "application/vnd.oci.image.layer.v1.tar"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar"
            | "application/vnd.docker.image.rootfs.diff.tar"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar" => Ok(Self::None),
            "application/vnd.oci.image.layer.v1.tar+gzip"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" => Ok(Self::Gzip),
            "application/vnd.oci.image.layer.v1.tar+zstd"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"
            | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Ok(Self::Zstd),
            _ => Err(LayoutError::LayerNotSupported { found }),
        }
    }
}

impl Image {
    /// Makes an image of its two documents, which have been verified; `digest` is the manifest's.
    pub(crate) fn from_documents(
        digest: Digest,
        manifest: &ImageManifest,
        configuration: &Configuration,
    ) -> Result<Self, LayoutError> {
        let Configuration { document: configuration, healthcheck } = configuration;
        let root = configuration.rootfs();
        if root.typ() != "layers" {
            return Err(LayoutError::RootfsType { found: root.typ().clone() });
        }
        let (layers, diff_ids) = (manifest.layers(), root.diff_ids());
        if layers.len() != diff_ids.len() {
            return Err(LayoutError::LayerCount { layers: layers.len(), diff_ids: diff_ids.len() });
        }
        Ok(Self {
            manifest_digest: digest,
            platform: platform_of(configuration),
            config: match configuration.config() {
                Some(config) => {
                    let healthcheck = Healthcheck::from_value(healthcheck)?;
                    ImageConfig::from_documents(config, healthcheck)?
                }
                None => ImageConfig::default(),
            },
            layers: layers
                .iter()
                .zip(diff_ids)
                .map(Layer::from_documents)
                .collect::<Result<_, _>>()?,
        })
    }
}

impl Layer {
    fn from_documents((descriptor, diff_id): (&Descriptor, &String)) -> Result<Self, LayoutError> {
        Ok(Self {
            digest: descriptor.digest().to_string().parse()?,
            diff_id: diff_id.parse()?,
            size_bytes: descriptor.size(),
            compression: Compression::of_media_type(descriptor.media_type().as_ref())?,
        })
    }
}

impl ImageConfig {
    fn from_documents(
        config: &Config,
        healthcheck: Option<Healthcheck>,
    ) -> Result<Self, LayoutError> {
        let this = Self {
            entrypoint: config.entrypoint().clone().unwrap_or_default(),
            cmd: config.cmd().clone().unwrap_or_default(),
            env: config
                .env()
                .iter()
                .flatten()
                .enumerate()
                .map(split_env)
                .collect::<Result<_, _>>()?,
            working_dir: config.working_dir().clone().unwrap_or_default(),
            user: config.user().clone().unwrap_or_default(),
            stop_signal: config.stop_signal().clone().filter(|signal| !signal.is_empty()),
            healthcheck,
            volumes: sorted(config.volumes().as_deref()),
            exposed_ports: sorted(config.exposed_ports().as_deref()),
            labels: config.labels().clone().unwrap_or_default().into_iter().collect(),
        };
        this.check()?;
        Ok(this)
    }

    /// Checks that the texts can be handed to a process, and that there are not too many.
    fn check(&self) -> Result<(), LayoutError> {
        let mut entries = BTreeMap::new();
        for (field, text) in self.texts() {
            let count = entries.entry(field).or_insert(0);
            *count += 1;
            if *count > FIELD_TEXTS || text.len() > TEXT_BYTES {
                return Err(LayoutError::ConfigTooLarge { field });
            }
            if text.contains('\0') {
                return Err(LayoutError::NulInConfig { field });
            }
        }
        Ok(())
    }

    /// Lists all texts with the fields they are of.
    fn texts(&self) -> impl Iterator<Item = (&'static str, &str)> {
        fn of<'a>(
            field: &'static str,
            texts: impl IntoIterator<Item = &'a String>,
        ) -> impl Iterator<Item = (&'static str, &'a str)> {
            texts.into_iter().map(move |text| (field, text.as_str()))
        }
        of("entrypoint", &self.entrypoint)
            .chain(of("cmd", &self.cmd))
            .chain(of("env", self.env.iter().flat_map(|(name, value)| [name, value])))
            .chain(of("working_dir", [&self.working_dir]))
            .chain(of("user", [&self.user]))
            .chain(of("stop_signal", &self.stop_signal))
            .chain(of("healthcheck", self.healthcheck.iter().flat_map(|check| &check.test)))
            .chain(of("volumes", &self.volumes))
            .chain(of("exposed_ports", &self.exposed_ports))
            .chain(of("labels", self.labels.iter().flat_map(|(name, value)| [name, value])))
    }
}

/// Lists the keys of a map, which come in no order.
fn sorted(keys: Option<&[String]>) -> Vec<String> {
    let mut keys = keys.unwrap_or_default().to_vec();
    keys.sort_unstable();
    keys
}

/// Splits `NAME=value`; an error names the position only, as the text may be a secret.
fn split_env((position, variable): (usize, &String)) -> Result<(String, String), LayoutError> {
    match variable.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(LayoutError::EnvSyntax { position }),
    }
}

/// Returns the platform that an image's configuration names.
pub(crate) fn platform_of(configuration: &ImageConfiguration) -> Platform {
    Platform {
        os: configuration.os().to_string(),
        architecture: configuration.architecture().to_string(),
        variant: configuration.variant().clone().filter(|variant| !variant.is_empty()),
    }
}
