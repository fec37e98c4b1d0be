//! Writes image layouts of generated layers.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use a3s_box_oci::Digest;
use flate2::Compression as Level;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

use crate::archive::Tar;

/// Tag of each generated image.
pub(crate) const TAG: &str = "t";

pub(crate) const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// A layer: its blob, and the DiffID of its archive.
pub(crate) struct Layer {
    pub(crate) media_type: &'static str,
    pub(crate) blob: Vec<u8>,
    pub(crate) diff_id: Digest,
}

impl Layer {
    pub(crate) fn of(media_type: &'static str, blob: Vec<u8>, tar: &[u8]) -> Self {
        Self { media_type, blob, diff_id: Digest::of(tar) }
    }
}

impl From<Tar> for Layer {
    fn from(tar: Tar) -> Self {
        let tar = tar.bytes();
        Self::of(GZIP, gzip(&tar), &tar)
    }
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Level::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Writes a layout with one image for the platform of the host. `layers` has the bottom layer
/// first.
pub(crate) fn write(dir: &Path, layers: &[Layer]) {
    fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let blob = |media_type: &str, bytes: &[u8]| -> Value {
        let digest = Digest::of(bytes);
        fs::write(dir.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
        json!({"mediaType": media_type, "digest": digest.to_string(), "size": bytes.len()})
    };
    let diff_ids: Vec<String> = layers.iter().map(|layer| layer.diff_id.to_string()).collect();
    let config = json!({
        "os": "linux",
        "architecture": a3s_box_oci::Platform::host().architecture,
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes()),
        "layers": layers.iter().map(|layer| blob(layer.media_type, &layer.blob)).collect::<Vec<_>>(),
    });
    let mut image =
        blob("application/vnd.oci.image.manifest.v1+json", manifest.to_string().as_bytes());
    image["annotations"] = json!({"org.opencontainers.image.ref.name": TAG});
    let index = json!({"schemaVersion": 2, "manifests": [image]});
    fs::write(dir.join("index.json"), index.to_string()).unwrap();
}

/// Packs a layout into an archive, because containerd imports archives only.
pub(crate) fn pack(dir: &Path, archive: &Path) {
    let mut builder = tar::Builder::new(File::create(archive).unwrap());
    builder.append_dir_all(".", dir).unwrap();
    builder.finish().unwrap();
}
