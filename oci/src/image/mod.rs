//! An image: its configuration and its layers.
//!
//! These types differ from the types of the image specification in that all values have been
//! checked: each media type is known, each digest is valid, there are as many layers as `DiffID`s,
//! and no text contains a NUL byte.
//!
//! ```text
//! documents    the JSON documents of an image, with the leniency of other readers
//! config       the process of the image: command, environment and user
//! healthcheck  Docker's extension of the configuration
//! platform     operating system and processor, and which images run on which
//! digest       SHA-256 and SHA-512 digests
//! ```

pub(crate) mod config;
pub(crate) mod digest;
pub(crate) mod documents;
pub(crate) mod healthcheck;
pub(crate) mod platform;

use oci_spec::image::MediaType;
use serde::{Deserialize, Serialize};

use self::config::{ImageConfig, ImageConfigError};
use self::digest::{Digest, DigestError};
use self::documents::{Configuration, Descriptor, Manifest};
use self::healthcheck::{Healthcheck, HealthcheckError};
use self::platform::Platform;
use crate::host::text::Shown;

/// An image whose documents contradict each other, or contain unusable values.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A digest is malformed, or its algorithm is not supported.
    #[error("a document of the image has an unusable digest")]
    Digest(#[from] DigestError),
    /// The root file system of the image does not consist of layers.
    #[error(
        "unknown root file system type in the image configuration: expected `layers`, found `{}`",
        Shown(found)
    )]
    RootfsType {
        /// The type in the configuration.
        found: String,
    },
    /// The manifest and the configuration have different numbers of layers.
    #[error("the manifest has {layers} layers, but the image configuration has {diff_ids} DiffIDs")]
    LayerCount {
        /// Number of layers in the manifest.
        layers: usize,
        /// Number of `DiffID`s in the configuration.
        diff_ids: usize,
    },
    /// A layer is not a tar archive, or is compressed by an unknown method.
    #[error(
        "layers of media type `{}` are not supported: expected tar, tar+gzip or tar+zstd",
        Shown(found)
    )]
    LayerNotSupported {
        /// The media type.
        found: String,
    },
    /// The configuration cannot be given to a process.
    #[error(transparent)]
    Config(#[from] ImageConfigError),
    /// The health check is malformed.
    #[error(transparent)]
    Healthcheck(#[from] HealthcheckError),
}

/// An image of a layout. Its documents have been checked, but its layers have not been read.
#[derive(Debug, Clone)]
pub struct Image {
    /// Digest of the manifest. It identifies the image, because the manifest contains the digests
    /// of all other parts.
    pub manifest_digest: Digest,
    /// The platform for which the image was built.
    pub platform: Platform,
    /// The process of the image.
    pub config: ImageConfig,
    /// The layers, the bottom first.
    pub layers: Vec<Layer>,
}

/// One layer of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// Digest of the blob.
    pub digest: Digest,
    /// Digest of the uncompressed tar archive.
    pub diff_id: Digest,
    /// Size of the blob.
    pub size_bytes: u64,
    /// Compression of the blob.
    pub compression: Compression,
}

/// Compression of a layer's blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Compression {
    /// A bare tar archive.
    None,
    /// One or more gzip members.
    Gzip,
    /// One or more zstd frames.
    Zstd,
}

impl Compression {
    /// Returns the compression of a layer's media type. Types of layers that registries must not
    /// distribute (`nondistributable`, `foreign`) have the same format as the others.
    fn of_media_type(media_type: &str) -> Result<Self, ImageError> {
        match MediaType::from(media_type) {
            MediaType::ImageLayer | MediaType::ImageLayerNonDistributable => Ok(Self::None),
            MediaType::ImageLayerGzip | MediaType::ImageLayerNonDistributableGzip => Ok(Self::Gzip),
            MediaType::ImageLayerZstd | MediaType::ImageLayerNonDistributableZstd => Ok(Self::Zstd),
            _ => Self::of_docker_media_type(media_type),
        }
    }

    /// Returns the compression of Docker's media types of layers (Docker image manifest version 2,
    /// schema 2).
    fn of_docker_media_type(media_type: &str) -> Result<Self, ImageError> {
        let found = media_type.to_owned();
        match media_type {
            "application/vnd.docker.image.rootfs.diff.tar"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar" => Ok(Self::None),
            "application/vnd.docker.image.rootfs.diff.tar.gzip"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" => Ok(Self::Gzip),
            "application/vnd.docker.image.rootfs.diff.tar.zstd" => Ok(Self::Zstd),
            _ => Err(ImageError::LayerNotSupported { found }),
        }
    }
}

impl Image {
    /// Makes an image from its two documents, whose digests have been verified. `digest` is the
    /// digest of the manifest, and `wanted` the platform that was asked for.
    pub(crate) fn from_documents(
        digest: Digest,
        manifest: &Manifest,
        configuration: Configuration,
        wanted: &Platform,
    ) -> Result<Self, ImageError> {
        let root = &configuration.rootfs.0;
        // The image specification defines only the type `layers` (config.md). An image without
        // layers can leave the type out.
        if !matches!(root.kind.as_str(), "" | "layers") {
            return Err(ImageError::RootfsType { found: root.kind.clone() });
        }
        // The two lists are matched by position (image specification, config.md), so a missing
        // element would assign every later `DiffID` to the wrong layer.
        let (layers, diff_ids) = (&manifest.layers, &root.diff_ids);
        if layers.len() != diff_ids.len() {
            return Err(ImageError::LayerCount { layers: layers.len(), diff_ids: diff_ids.len() });
        }
        Ok(Self {
            manifest_digest: digest,
            platform: Platform::of_configuration(&configuration, wanted),
            layers: layers
                .iter()
                .zip(diff_ids)
                .map(Layer::from_documents)
                .collect::<Result<_, _>>()?,
            config: {
                let process = configuration.config.0;
                let healthcheck = Healthcheck::from_value(&process.healthcheck)?;
                ImageConfig::from_document(process, healthcheck)?
            },
        })
    }
}

impl Layer {
    /// Returns the digest by which the cache names the layer. It covers the blob and the `DiffID`.
    ///
    /// The `DiffID` alone would not do. Only the process that decompresses a blob finds out whether
    /// the blob has the `DiffID` that its image claims, and the blob may have taken that process
    /// over. With the digest of the blob in the name, such a process makes content only for those
    /// bytes that have taken it over.
    #[must_use]
    pub fn id(&self) -> Digest {
        if self.digest == self.diff_id {
            return self.diff_id;
        }
        Digest::of(format!("layer {} {}", self.digest, self.diff_id).as_bytes())
    }

    fn from_documents((descriptor, diff_id): (&Descriptor, &String)) -> Result<Self, ImageError> {
        Ok(Self {
            digest: descriptor.digest.parse()?,
            diff_id: diff_id.parse()?,
            size_bytes: descriptor.size,
            compression: Compression::of_media_type(&descriptor.media_type)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_of_a_layer_covers_its_blob_and_its_diff_id() {
        let [a, b, c] = [b"a", b"b", b"c"].map(|text| Digest::of(text));
        let layer = |digest, diff_id| {
            Layer { digest, diff_id, size_bytes: 0, compression: Compression::Gzip }.id()
        };
        // The blob of an uncompressed layer is its archive.
        assert_eq!(layer(a, a), a);
        let ids = [layer(a, a), layer(b, a), layer(c, a), layer(b, c), layer(a, b)];
        for (i, id) in ids.iter().enumerate() {
            assert!(!ids[..i].contains(id), "{i}");
        }
    }
}
