//! Writes images of many files of equal size, as streams, so that no layer is ever in memory as a
//! whole.

use std::error::Error;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Size of each file: typical for a mixture of programs and libraries.
const FILE_BYTES: usize = 100_000;

/// A writer that computes digest and number of the bytes that it passes on.
struct Hashed<W> {
    to: W,
    digest: Sha256,
    bytes: u64,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.to.write(bytes)?;
        self.digest.update(&bytes[..count]);
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

impl<W> Hashed<W> {
    fn new(to: W) -> Self {
        Self { to, digest: Sha256::new(), bytes: 0 }
    }
}

/// Writes an image with `bytes` in files into the new directory `layout`. Returns the number of
/// files.
pub fn write(layout: &Path, layers: usize, bytes: usize) -> Result<usize, Box<dyn Error>> {
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let files_each = (bytes / FILE_BYTES).div_ceil(layers);
    let (mut descriptors, mut diff_ids) = (Vec::new(), Vec::new());
    for layer in 0..layers {
        let (descriptor, diff_id) = write_layer(&blobs, layer, files_each, bytes)?;
        descriptors.push(descriptor);
        diff_ids.push(diff_id);
    }
    let architecture = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let config = json!({
        "os": "linux", "architecture": architecture, "config": {},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = write_json(&blobs, "config.v1+json", &config)?;
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": descriptors});
    let manifest = write_json(&blobs, "manifest.v1+json", &manifest)?;
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    fs::write(layout.join("index.json"), index.to_string())?;
    Ok(files_each * layers)
}

/// Writes one layer. Returns its descriptor and its `DiffID`.
fn write_layer(
    blobs: &Path,
    layer: usize,
    files: usize,
    bytes: usize,
) -> Result<(Value, String), Box<dyn Error>> {
    // The name of a blob is its digest, which is known only at its end. The inner writer computes
    // this digest, the outer one computes the DiffID.
    let unnamed = blobs.join("new");
    let blob = Hashed::new(BufWriter::new(File::create(&unnamed)?));
    let archive = Hashed::new(GzEncoder::new(blob, Compression::fast()));
    let mut archive = tar::Builder::new(archive);
    for directory in ["./".to_owned(), "usr/".to_owned(), format!("usr/layer{layer}/")] {
        archive.append(&header(&directory, tar::EntryType::Directory, 0o755, 0)?, io::empty())?;
    }
    let mut state = (layer * bytes) as u64;
    for file in 0..files {
        let content: Vec<u8> = (0..FILE_BYTES / 8)
            .flat_map(|_| {
                // A linear congruential generator with Knuth's constants, so that all runs have the
                // same image. The mask makes the files compressible.
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                (state & 0x0f0f_0f0f_ffff_0000).to_le_bytes()
            })
            .collect();
        let name = format!("usr/layer{layer}/file{file}");
        let header = header(&name, tar::EntryType::Regular, 0o644, content.len())?;
        archive.append(&header, &content[..])?;
    }
    let archive = archive.into_inner()?;
    let diff_id = name(archive.digest);
    let mut blob = archive.to.finish()?;
    blob.flush()?;
    let (digest, size) = (name(blob.digest), blob.bytes);
    fs::rename(unnamed, blobs.join(digest.trim_start_matches("sha256:")))?;
    let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
    Ok((json!({"mediaType": media_type, "digest": digest, "size": size}), diff_id))
}

fn header(name: &str, kind: tar::EntryType, mode: u32, size: usize) -> io::Result<tar::Header> {
    let mut header = tar::Header::new_gnu();
    header.set_path(name)?;
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_700_000_000);
    header.set_size(size as u64);
    header.set_cksum();
    Ok(header)
}

/// Writes a document as a blob. Returns its descriptor.
fn write_json(blobs: &Path, kind: &str, value: &Value) -> io::Result<Value> {
    let text = value.to_string();
    let digest = name(Sha256::new().chain_update(&text));
    fs::write(blobs.join(digest.trim_start_matches("sha256:")), &text)?;
    let media_type = format!("application/vnd.oci.image.{kind}");
    Ok(json!({"mediaType": media_type, "digest": digest, "size": text.len()}))
}

/// Formats a digest as OCI documents do.
fn name(digest: Sha256) -> String {
    let hex: String = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}
