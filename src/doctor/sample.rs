//! A tiny image for the trial of the root: one layer with one empty file.

use std::fs;
use std::io;
use std::path::Path;

use a3s_box_oci::{Digest, Platform};
use serde_json::{Value, json};

/// Size of a header in a tar archive, and the unit to which contents are padded (POSIX ustar).
const BLOCK: usize = 512;

/// Writes the image layout into a new directory at `path`.
pub(super) fn write(path: &Path) -> io::Result<()> {
    let blobs = path.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let blob = |media_type: &str, bytes: &[u8]| {
        let digest = Digest::of(bytes);
        fs::write(blobs.join(digest.hex()), bytes)?;
        Ok::<Value, io::Error>(json!({
            "mediaType": format!("application/vnd.oci.image.{media_type}"),
            "digest": digest.to_string(),
            "size": bytes.len(),
        }))
    };
    let archive = archive();
    let platform = Platform::host().to_string();
    let mut parts = platform.split('/');
    let config = json!({
        "os": parts.next(),
        "architecture": parts.next(),
        "rootfs": {"type": "layers", "diff_ids": [Digest::of(&archive).to_string()]},
        // The command is never run.
        "config": {"Cmd": ["/file"]},
    });
    let config = blob("config.v1+json", config.to_string().as_bytes())?;
    let layers = [blob("layer.v1.tar", &archive)?];
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers});
    let entry = blob("manifest.v1+json", manifest.to_string().as_bytes())?;
    let index = json!({"schemaVersion": 2, "manifests": [entry]});
    fs::write(path.join("index.json"), index.to_string())?;
    fs::write(path.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)
}

/// Returns an archive with the empty file `file`, owned by root. Two blocks of zeros end an
/// archive.
fn archive() -> Vec<u8> {
    let mut header = [0_u8; BLOCK];
    // Offsets and formats of the fields are defined by POSIX ustar. The checksum is computed with
    // spaces in its own field.
    let fields: [(usize, &[u8]); 10] = [
        (0, b"file"),
        (100, b"0000644\0"),
        (108, b"0000000\0"),
        (116, b"0000000\0"),
        (124, b"00000000000\0"),
        (136, b"00000000000\0"),
        (148, b"        "),
        (156, b"0"),
        (257, b"ustar\0"),
        (263, b"00"),
    ];
    for (offset, value) in fields {
        for (to, from) in header.iter_mut().skip(offset).zip(value) {
            *to = *from;
        }
    }
    let checksum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    for (to, from) in header.iter_mut().skip(148).zip(format!("{checksum:06o}\0 ").bytes()) {
        *to = from;
    }
    let mut archive = header.to_vec();
    archive.resize(3 * BLOCK, 0);
    archive
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archive_can_be_read_by_another_implementation() {
        let mut archive = tar::Archive::new(io::Cursor::new(archive()));
        let entries: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let header = entry.header();
                let mode = header.mode().unwrap();
                (entry.path().unwrap().into_owned(), mode, header.uid().unwrap(), entry.size())
            })
            .collect();
        assert_eq!(entries, [("file".into(), 0o644, 0, 0)]);
    }
}
