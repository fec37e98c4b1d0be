//! Hostile image layouts, each packed into one archive: file name and layout of each.
//! `layouts.txt` has the expected results.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use a3s_box_oci::Digest;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::archive::Tar;
use crate::bench::{Bench, Blob, CONFIG, GZIP, INDEX, MANIFEST, gzip};
use crate::layers::{Case, zstd};
use crate::packed::pack;

/// One byte more than a document can have.
const HUGE_BYTES: usize = (4 << 20) + 1;

/// Returns all layouts of the corpus.
pub(crate) fn cases() -> Vec<Case> {
    [mismatches(), indexes(), confusion(), huge(), odd_files(), odd_digests(), texts()]
        .into_iter()
        .flatten()
        .collect()
}

/// A valid layout with one image of one layer, and the blobs of the image.
struct ValidLayout {
    bench: Bench,
    layer: Blob,
    diff_id: Digest,
    config: Blob,
    manifest: Blob,
}

impl ValidLayout {
    fn new() -> Self {
        let bench = Bench::new();
        let tar = Tar::new().file("a", "content").bytes();
        let (layer, diff_id) = (bench.blob(GZIP, &gzip(&tar)), Digest::of(&tar));
        let manifest = bench.image_of("linux/amd64", std::slice::from_ref(&layer), &[diff_id]);
        let text = fs::read_to_string(bench.blob_path(manifest.digest)).unwrap();
        // The first digest of a manifest is that of its configuration.
        let config = text.split("sha256:").nth(1).unwrap()[..64].to_owned();
        let digest: Digest = format!("sha256:{config}").parse().unwrap();
        let size = fs::metadata(bench.blob_path(digest)).unwrap().len();
        let config = Blob { media_type: CONFIG.to_owned(), digest, size };
        bench.publish(&[manifest.descriptor("")]);
        Self { bench, layer, diff_id, config, manifest }
    }

    /// Publishes a manifest with these two descriptors.
    fn publish_manifest(&self, config: &str, layer: &str) {
        let text = format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{layer}]}}"#);
        let manifest = self.bench.blob(MANIFEST, text.as_bytes());
        self.bench.publish(&[manifest.descriptor("")]);
    }

    fn remove(&self, blob: &Blob) {
        fs::remove_file(self.bench.blob_path(blob.digest)).unwrap();
    }
}

/// Returns the case of a valid layout after `change`.
fn case(file: &'static str, change: impl FnOnce(&ValidLayout)) -> Case {
    let valid = ValidLayout::new();
    change(&valid);
    let bytes = pack(&valid.bench.path("layout"));
    let bytes = if file.ends_with(".zst") { zstd(&bytes) } else { bytes };
    Case { file, bytes }
}

/// Flips a bit of a blob. The length of the blob stays the same.
fn damage(valid: &ValidLayout, blob: &Blob) {
    let path = valid.bench.blob_path(blob.digest);
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(path, bytes).unwrap();
}

/// Descriptors with a wrong digest or size, and layers that do not match the configuration.
fn mismatches() -> Vec<Case> {
    let sized = |blob: &Blob, size: &str| {
        format!(r#"{{"mediaType":"{}","digest":"{}","size":{size}}}"#, blob.media_type, blob.digest)
    };
    let layer_size = |valid: &ValidLayout, size: &str| {
        valid.publish_manifest(&valid.config.descriptor(""), &sized(&valid.layer, size));
    };
    vec![
        case("honest.tar", |_| {}),
        case("digest-of-layer-lies.tar", |valid| damage(valid, &valid.layer)),
        case("digest-of-manifest-lies.tar", |valid| damage(valid, &valid.manifest)),
        case("digest-of-config-lies.tar", |valid| damage(valid, &valid.config)),
        case("layer-missing.tar", |valid| valid.remove(&valid.layer)),
        case("size-of-layer-too-small.tar", |valid| layer_size(valid, "1")),
        case("size-of-layer-too-large.tar", |valid| layer_size(valid, "1000000")),
        case("size-of-layer-negative.tar", |valid| layer_size(valid, "-1")),
        case("size-of-layer-all-bits.tar", |valid| layer_size(valid, "18446744073709551615")),
        case("size-of-layer-fraction.tar", |valid| layer_size(valid, "1e3")),
        case("size-of-config-too-small.tar", |valid| {
            valid.publish_manifest(&sized(&valid.config, "2"), &valid.layer.descriptor(""));
        }),
        case("size-of-manifest-huge.tar", |valid| {
            valid.bench.publish(&[sized(&valid.manifest, "1099511627776")]);
        }),
        case("diff-id-lies.tar", |valid| {
            let wrong = Digest::of(b"another archive");
            let layers = std::slice::from_ref(&valid.layer);
            let manifest = valid.bench.image_of("linux/amd64", layers, &[wrong]);
            valid.bench.publish(&[manifest.descriptor("")]);
        }),
        case("layers-more-than-diff-ids.tar", |valid| {
            let layers = [valid.layer.clone(), valid.layer.clone()];
            let manifest = valid.bench.image_of("linux/amd64", &layers, &[valid.diff_id]);
            valid.bench.publish(&[manifest.descriptor("")]);
        }),
    ]
}

/// Indexes that name themselves, or are nested too deep or too wide.
fn indexes() -> Vec<Case> {
    vec![
        case("index-cycle.tar", |valid| {
            let name = Digest::of(b"an index that names itself");
            let mut blob = Blob { media_type: INDEX.to_owned(), digest: name, size: 0 };
            // The length depends on the number of digits of `size`. The result has three digits, so
            // any number of three digits gives the right length.
            blob.size = 100;
            let text = |blob: &Blob| {
                format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, blob.descriptor(""))
            };
            blob.size = text(&blob).len() as u64;
            fs::write(valid.bench.blob_path(name), text(&blob)).unwrap();
            valid.bench.publish(&[blob.descriptor("")]);
        }),
        case("index-too-deep.tar", |valid| {
            let nest = |blob: Blob, _| valid.bench.index(&[blob.descriptor("")]);
            let top = (0..9).fold(valid.manifest.clone(), nest);
            valid.bench.publish(&[top.descriptor("")]);
        }),
        case("index-too-wide.tar.zst", |valid| {
            valid.bench.publish(&vec![valid.manifest.descriptor(""); 5000]);
        }),
        // Ten million paths (10^7) lead to one manifest.
        case("index-exponential.tar", |valid| {
            let nest = |blob: Blob, _| valid.bench.index(&vec![blob.descriptor(""); 10]);
            let top = (0..7).fold(valid.manifest.clone(), nest);
            valid.bench.publish(&[top.descriptor("")]);
        }),
        case("index-empty.tar", |valid| valid.bench.publish(&[])),
    ]
}

/// CVE-2021-41190: documents that one reader takes for an index and another for a manifest.
fn confusion() -> Vec<Case> {
    let both = |valid: &ValidLayout| {
        format!(
            r#"{{"schemaVersion":2,"manifests":[{}],"config":{},"layers":[{}]}}"#,
            valid.manifest.descriptor(""),
            valid.config.descriptor(""),
            valid.layer.descriptor("")
        )
    };
    let publish = |valid: &ValidLayout, media_type: &str, text: &str| {
        let blob = valid.bench.blob(media_type, text.as_bytes());
        valid.bench.publish(&[blob.descriptor("")]);
    };
    let retyped = |valid: &ValidLayout, blob: &Blob, media_type: &str| {
        let blob = Blob { media_type: media_type.to_owned(), ..blob.clone() };
        valid.bench.publish(&[blob.descriptor("")]);
    };
    vec![
        case("both-as-index.tar", |valid| publish(valid, INDEX, &both(valid))),
        case("both-as-manifest.tar", |valid| publish(valid, MANIFEST, &both(valid))),
        case("both-as-index-json.tar", |valid| {
            fs::write(valid.bench.path("layout/index.json"), both(valid)).unwrap();
        }),
        case("manifest-as-index.tar", |valid| retyped(valid, &valid.manifest, INDEX)),
        case("index-as-manifest.tar", |valid| {
            let index = valid.bench.index(&[valid.manifest.descriptor("")]);
            retyped(valid, &index, MANIFEST);
        }),
        case("media-type-inside-differs.tar", |valid| {
            publish(valid, MANIFEST, &format!(r#"{{"mediaType":"{INDEX}","schemaVersion":2}}"#));
        }),
        case("keys-twice.tar", |valid| {
            let (config, layer) = (valid.config.descriptor(""), valid.layer.descriptor(""));
            publish(
                valid,
                MANIFEST,
                &format!(
                    r#"{{"schemaVersion":2,"config":{config},"layers":[],"layers":[{layer}]}}"#
                ),
            );
        }),
        case("layer-as-config.tar", |valid| {
            valid.publish_manifest(&valid.layer.descriptor(""), &valid.layer.descriptor(""));
        }),
        case("config-as-layer.tar", |valid| {
            valid.publish_manifest(&valid.config.descriptor(""), &valid.config.descriptor(""));
        }),
    ]
}

/// Documents that are too large or nested too deep, or are not JSON.
fn huge() -> Vec<Case> {
    let spaces = || " ".repeat(HUGE_BYTES);
    let top = |valid: &ValidLayout, name: &str, text: &str| {
        fs::write(valid.bench.path("layout").join(name), text).unwrap();
    };
    // `serde_json` refuses more than 128 levels.
    let deep = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    vec![
        case("huge-index.tar.zst", |valid| top(valid, "index.json", &spaces())),
        case("huge-oci-layout.tar.zst", |valid| top(valid, "oci-layout", &spaces())),
        case("huge-manifest.tar.zst", |valid| {
            let blob = valid.bench.blob(MANIFEST, spaces().as_bytes());
            valid.bench.publish(&[blob.descriptor("")]);
        }),
        case("huge-config.tar.zst", |valid| {
            let blob = valid.bench.blob(CONFIG, spaces().as_bytes());
            valid.publish_manifest(&blob.descriptor(""), &valid.layer.descriptor(""));
        }),
        case("deep-index.tar.zst", |valid| top(valid, "index.json", &deep(100_000))),
        case("deep-oci-layout.tar", |valid| top(valid, "oci-layout", &deep(200))),
        case("deep-config.tar.zst", |valid| {
            let text = format!(
                r#"{{"os":"linux","architecture":"amd64","unknown":{},"rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
                deep(100_000),
                valid.diff_id
            );
            let blob = valid.bench.blob(CONFIG, text.as_bytes());
            valid.publish_manifest(&blob.descriptor(""), &valid.layer.descriptor(""));
        }),
        case("not-json.tar", |valid| top(valid, "index.json", "{")),
        case("not-utf-8.tar", |valid| {
            fs::write(valid.bench.path("layout/index.json"), b"{\"\xff\":0}").unwrap();
        }),
    ]
}

/// Symbolic links, pipes and directories in the place of regular files.
fn odd_files() -> Vec<Case> {
    let replace = |path: PathBuf, make: &dyn Fn(&Path)| {
        fs::rename(&path, path.with_file_name("moved")).unwrap();
        make(&path);
    };
    let outside = |path: &Path| symlink("/mnt/canary/secret", path).unwrap();
    // A link to the same content is refused too: no symbolic link in a layout is followed.
    let inside = |path: &Path| symlink("moved", path).unwrap();
    let fifo = |path: &Path| mkfifo(path, Mode::S_IRUSR).unwrap();
    let directory = |path: &Path| fs::create_dir(path).unwrap();
    let layer = |valid: &ValidLayout| valid.bench.blob_path(valid.layer.digest);
    let manifest = |valid: &ValidLayout| valid.bench.blob_path(valid.manifest.digest);
    let index = |valid: &ValidLayout| valid.bench.path("layout/index.json");
    vec![
        case("layer-is-symlink.tar", |valid| replace(layer(valid), &outside)),
        case("layer-is-inner-symlink.tar", |valid| replace(layer(valid), &inside)),
        case("layer-is-fifo.tar", |valid| replace(layer(valid), &fifo)),
        case("layer-is-directory.tar", |valid| replace(layer(valid), &directory)),
        case("manifest-is-symlink.tar", |valid| replace(manifest(valid), &outside)),
        case("manifest-is-inner-symlink.tar", |valid| replace(manifest(valid), &inside)),
        case("manifest-is-fifo.tar", |valid| replace(manifest(valid), &fifo)),
        case("manifest-is-directory.tar", |valid| replace(manifest(valid), &directory)),
        case("index-is-symlink.tar", |valid| replace(index(valid), &outside)),
        case("index-is-inner-symlink.tar", |valid| replace(index(valid), &inside)),
        case("index-is-fifo.tar", |valid| replace(index(valid), &fifo)),
        case("index-is-directory.tar", |valid| replace(index(valid), &directory)),
        case("blobs-are-elsewhere.tar", |valid| {
            replace(valid.bench.path("layout/blobs"), &inside);
        }),
    ]
}

/// Digests that are paths, or have a wrong length, algorithm or character.
fn odd_digests() -> Vec<Case> {
    let hex = "0".repeat(64);
    let of = |file, digest: &str| {
        let text = format!(r#"{{"mediaType":"{GZIP}","digest":"{digest}","size":1}}"#);
        case(file, |valid| valid.publish_manifest(&valid.config.descriptor(""), &text))
    };
    let up = "../../../../../../../../mnt/canary/secret";
    vec![
        of("digest-traversal.tar", &format!("sha256:{up}")),
        of("digest-absolute.tar", "sha256:/mnt/canary/secret"),
        of("digest-traversal-algorithm.tar", "../../../mnt/canary:secret"),
        of("digest-upper-case.tar", &format!("sha256:{}", "A".repeat(64))),
        of("digest-too-short.tar", "sha256:00"),
        of("digest-too-long.tar", &format!("sha256:{hex}00")),
        of("digest-sha512.tar", &format!("sha512:{hex}{hex}")),
        of("digest-unknown.tar", &format!("blake3:{hex}")),
        of("digest-empty.tar", ""),
        of("digest-nul.tar", r"sha256:\u0000"),
        of("digest-control.tar", r"sha256:\u001b[2J\n"),
    ]
}

/// Control characters in texts that an error shows, and the media type of a foreign layer.
fn texts() -> Vec<Case> {
    let escape = r"\u001b[2J\n";
    let config = |valid: &ValidLayout, text: &str| {
        let blob = valid.bench.blob(CONFIG, text.as_bytes());
        valid.publish_manifest(&blob.descriptor(""), &valid.layer.descriptor(""));
    };
    let rootfs = |valid: &ValidLayout, kind: &str, diff_id: &str| {
        config(
            valid,
            &format!(
                r#"{{"os":"linux","architecture":"amd64","rootfs":{{"type":"{kind}","diff_ids":["{diff_id}"]}}}}"#
            ),
        );
    };
    vec![
        case("diff-id-control.tar", |valid| rootfs(valid, "layers", escape)),
        case("rootfs-type-control.tar", |valid| {
            rootfs(valid, escape, &valid.diff_id.to_string());
        }),
        case("layer-type-control.tar", |valid| {
            let layer = valid.layer.descriptor("").replace(GZIP, escape);
            valid.publish_manifest(&valid.config.descriptor(""), &layer);
        }),
        case("layer-type-foreign.tar", |valid| {
            let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
            let layer = valid.layer.descriptor("").replace(GZIP, foreign);
            valid.publish_manifest(&valid.config.descriptor(""), &layer);
        }),
        case("names-control.tar", |valid| {
            let named = |name| valid.manifest.descriptor(&format!("{escape}:{name}"));
            let other = valid.bench.image("linux/amd64", &[]);
            valid.bench.publish(&[named("one"), other.descriptor(&format!("{escape}:two"))]);
        }),
        case("platform-control.tar", |valid| {
            config(
                valid,
                &format!(
                    r#"{{"os":"{escape}","architecture":"{escape}","rootfs":{{"type":"layers","diff_ids":[]}}}}"#
                ),
            );
        }),
        case("version-control.tar", |valid| {
            let text = format!(r#"{{"imageLayoutVersion":"{escape}"}}"#);
            fs::write(valid.bench.path("layout/oci-layout"), text).unwrap();
        }),
        case("media-type-control.tar", |valid| {
            let text = format!(r#"{{"schemaVersion":2,"mediaType":"{escape}","manifests":[]}}"#);
            fs::write(valid.bench.path("layout/index.json"), text).unwrap();
        }),
        // JSON does not require an escape for DEL and U+009B.
        case("schema-version-control.tar", |valid| {
            let text = "{\"schemaVersion\":\"\u{7f}\u{9b}2J\",\"manifests\":[]}";
            fs::write(valid.bench.path("layout/index.json"), text).unwrap();
        }),
        case("json-control.tar", |valid| {
            let text = format!(r#"{{"schemaVersion":"{escape}","manifests":[]}}"#);
            fs::write(valid.bench.path("layout/index.json"), text).unwrap();
        }),
    ]
}
