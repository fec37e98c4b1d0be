//! Image layouts that mean harm, each packed into one archive: file name and layout. `layouts.txt`
//! says what becomes of each.

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

/// Above the bound on a document.
const HUGE_BYTES: usize = (4 << 20) + 1;

pub(crate) fn cases() -> Vec<Case> {
    [lies(), indexes(), confusion(), huge(), odd_files(), odd_digests(), texts()]
        .into_iter()
        .flatten()
        .collect()
}

/// An image with one layer, and all that it is made of.
struct Honest {
    bench: Bench,
    layer: Blob,
    diff_id: Digest,
    config: Blob,
    manifest: Blob,
}

impl Honest {
    fn new() -> Self {
        let bench = Bench::new();
        let tar = Tar::new().file("a", "content").bytes();
        let (layer, diff_id) = (bench.blob(GZIP, &gzip(&tar)), Digest::of(&tar));
        let manifest = bench.image_of("linux/amd64", std::slice::from_ref(&layer), &[diff_id]);
        let text = fs::read_to_string(bench.blob_path(manifest.digest)).unwrap();
        let config = text.split("sha256:").nth(1).unwrap()[..64].to_owned();
        let digest: Digest = format!("sha256:{config}").parse().unwrap();
        let size = fs::metadata(bench.blob_path(digest)).unwrap().len();
        let config = Blob { media_type: CONFIG.to_owned(), digest, size };
        bench.publish(&[manifest.descriptor("")]);
        Self { bench, layer, diff_id, config, manifest }
    }

    /// Publishes a manifest of these descriptors.
    fn publish_manifest(&self, config: &str, layer: &str) {
        let text = format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{layer}]}}"#);
        let manifest = self.bench.blob(MANIFEST, text.as_bytes());
        self.bench.publish(&[manifest.descriptor("")]);
    }

    fn remove(&self, blob: &Blob) {
        fs::remove_file(self.bench.blob_path(blob.digest)).unwrap();
    }
}

/// Packs an honest layout that was changed.
fn case(file: &'static str, change: impl FnOnce(&Honest)) -> Case {
    let honest = Honest::new();
    change(&honest);
    let bytes = pack(&honest.bench.path("layout"));
    let bytes = if file.ends_with(".zst") { zstd(&bytes) } else { bytes };
    Case { file, bytes }
}

/// Changes a blob, and leaves its length.
fn damage(honest: &Honest, blob: &Blob) {
    let path = honest.bench.blob_path(blob.digest);
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(path, bytes).unwrap();
}

fn lies() -> Vec<Case> {
    let sized = |blob: &Blob, size: &str| {
        format!(r#"{{"mediaType":"{}","digest":"{}","size":{size}}}"#, blob.media_type, blob.digest)
    };
    let layer_size = |honest: &Honest, size: &str| {
        honest.publish_manifest(&honest.config.descriptor(""), &sized(&honest.layer, size));
    };
    vec![
        case("honest.tar", |_| {}),
        case("digest-of-layer-lies.tar", |honest| damage(honest, &honest.layer)),
        case("digest-of-manifest-lies.tar", |honest| damage(honest, &honest.manifest)),
        case("digest-of-config-lies.tar", |honest| damage(honest, &honest.config)),
        case("layer-missing.tar", |honest| honest.remove(&honest.layer)),
        case("size-of-layer-too-small.tar", |honest| layer_size(honest, "1")),
        case("size-of-layer-too-large.tar", |honest| layer_size(honest, "1000000")),
        case("size-of-layer-negative.tar", |honest| layer_size(honest, "-1")),
        case("size-of-layer-all-bits.tar", |honest| layer_size(honest, "18446744073709551615")),
        case("size-of-layer-fraction.tar", |honest| layer_size(honest, "1e3")),
        case("size-of-config-too-small.tar", |honest| {
            honest.publish_manifest(&sized(&honest.config, "2"), &honest.layer.descriptor(""));
        }),
        case("size-of-manifest-huge.tar", |honest| {
            honest.bench.publish(&[sized(&honest.manifest, "1099511627776")]);
        }),
        case("diff-id-lies.tar", |honest| {
            let wrong = Digest::of(b"another archive");
            let layers = std::slice::from_ref(&honest.layer);
            let manifest = honest.bench.image_of("linux/amd64", layers, &[wrong]);
            honest.bench.publish(&[manifest.descriptor("")]);
        }),
        case("layers-more-than-diff-ids.tar", |honest| {
            let layers = [honest.layer.clone(), honest.layer.clone()];
            let manifest = honest.bench.image_of("linux/amd64", &layers, &[honest.diff_id]);
            honest.bench.publish(&[manifest.descriptor("")]);
        }),
    ]
}

fn indexes() -> Vec<Case> {
    vec![
        case("index-cycle.tar", |honest| {
            let name = Digest::of(b"an index that names itself");
            let mut blob = Blob { media_type: INDEX.to_owned(), digest: name, size: 0 };
            // The size has three digits in the end, whatever it is now.
            blob.size = 100;
            let text = |blob: &Blob| {
                format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, blob.descriptor(""))
            };
            blob.size = text(&blob).len() as u64;
            fs::write(honest.bench.blob_path(name), text(&blob)).unwrap();
            honest.bench.publish(&[blob.descriptor("")]);
        }),
        case("index-too-deep.tar", |honest| {
            let nest = |blob: Blob, _| honest.bench.index(&[blob.descriptor("")]);
            let top = (0..9).fold(honest.manifest.clone(), nest);
            honest.bench.publish(&[top.descriptor("")]);
        }),
        case("index-too-wide.tar.zst", |honest| {
            honest.bench.publish(&vec![honest.manifest.descriptor(""); 5000]);
        }),
        // Ten million paths lead to one manifest.
        case("index-exponential.tar", |honest| {
            let nest = |blob: Blob, _| honest.bench.index(&vec![blob.descriptor(""); 10]);
            let top = (0..7).fold(honest.manifest.clone(), nest);
            honest.bench.publish(&[top.descriptor("")]);
        }),
        case("index-empty.tar", |honest| honest.bench.publish(&[])),
    ]
}

/// CVE-2021-41190: a document that is one thing to one reader and another to the next.
fn confusion() -> Vec<Case> {
    let both = |honest: &Honest| {
        format!(
            r#"{{"schemaVersion":2,"manifests":[{}],"config":{},"layers":[{}]}}"#,
            honest.manifest.descriptor(""),
            honest.config.descriptor(""),
            honest.layer.descriptor("")
        )
    };
    let publish = |honest: &Honest, media_type: &str, text: &str| {
        let blob = honest.bench.blob(media_type, text.as_bytes());
        honest.bench.publish(&[blob.descriptor("")]);
    };
    let retyped = |honest: &Honest, blob: &Blob, media_type: &str| {
        let blob = Blob { media_type: media_type.to_owned(), ..blob.clone() };
        honest.bench.publish(&[blob.descriptor("")]);
    };
    vec![
        case("both-as-index.tar", |honest| publish(honest, INDEX, &both(honest))),
        case("both-as-manifest.tar", |honest| publish(honest, MANIFEST, &both(honest))),
        case("both-as-index-json.tar", |honest| {
            fs::write(honest.bench.path("layout/index.json"), both(honest)).unwrap();
        }),
        case("manifest-as-index.tar", |honest| retyped(honest, &honest.manifest, INDEX)),
        case("index-as-manifest.tar", |honest| {
            let index = honest.bench.index(&[honest.manifest.descriptor("")]);
            retyped(honest, &index, MANIFEST);
        }),
        case("media-type-inside-differs.tar", |honest| {
            publish(honest, MANIFEST, &format!(r#"{{"mediaType":"{INDEX}","schemaVersion":2}}"#));
        }),
        case("keys-twice.tar", |honest| {
            let (config, layer) = (honest.config.descriptor(""), honest.layer.descriptor(""));
            publish(
                honest,
                MANIFEST,
                &format!(
                    r#"{{"schemaVersion":2,"config":{config},"layers":[],"layers":[{layer}]}}"#
                ),
            );
        }),
        case("layer-as-config.tar", |honest| {
            honest.publish_manifest(&honest.layer.descriptor(""), &honest.layer.descriptor(""));
        }),
        case("config-as-layer.tar", |honest| {
            honest.publish_manifest(&honest.config.descriptor(""), &honest.config.descriptor(""));
        }),
    ]
}

fn huge() -> Vec<Case> {
    let spaces = || " ".repeat(HUGE_BYTES);
    let top = |honest: &Honest, name: &str, text: &str| {
        fs::write(honest.bench.path("layout").join(name), text).unwrap();
    };
    let deep = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    vec![
        case("huge-index.tar.zst", |honest| top(honest, "index.json", &spaces())),
        case("huge-oci-layout.tar.zst", |honest| top(honest, "oci-layout", &spaces())),
        case("huge-manifest.tar.zst", |honest| {
            let blob = honest.bench.blob(MANIFEST, spaces().as_bytes());
            honest.bench.publish(&[blob.descriptor("")]);
        }),
        case("huge-config.tar.zst", |honest| {
            let blob = honest.bench.blob(CONFIG, spaces().as_bytes());
            honest.publish_manifest(&blob.descriptor(""), &honest.layer.descriptor(""));
        }),
        case("deep-index.tar.zst", |honest| top(honest, "index.json", &deep(100_000))),
        case("deep-oci-layout.tar", |honest| top(honest, "oci-layout", &deep(200))),
        case("deep-config.tar.zst", |honest| {
            let text = format!(
                r#"{{"os":"linux","architecture":"amd64","unknown":{},"rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
                deep(100_000),
                honest.diff_id
            );
            let blob = honest.bench.blob(CONFIG, text.as_bytes());
            honest.publish_manifest(&blob.descriptor(""), &honest.layer.descriptor(""));
        }),
        case("not-json.tar", |honest| top(honest, "index.json", "{")),
        case("not-utf-8.tar", |honest| {
            fs::write(honest.bench.path("layout/index.json"), b"{\"\xff\":0}").unwrap();
        }),
    ]
}

/// What is no regular file where one is expected.
fn odd_files() -> Vec<Case> {
    let replace = |path: PathBuf, make: &dyn Fn(&Path)| {
        fs::rename(&path, path.with_file_name("moved")).unwrap();
        make(&path);
    };
    let outside = |path: &Path| symlink("/mnt/canary/secret", path).unwrap();
    let inside = |path: &Path| symlink("moved", path).unwrap();
    let fifo = |path: &Path| mkfifo(path, Mode::S_IRUSR).unwrap();
    let directory = |path: &Path| fs::create_dir(path).unwrap();
    let layer = |honest: &Honest| honest.bench.blob_path(honest.layer.digest);
    let manifest = |honest: &Honest| honest.bench.blob_path(honest.manifest.digest);
    let index = |honest: &Honest| honest.bench.path("layout/index.json");
    vec![
        case("layer-is-symlink.tar", |honest| replace(layer(honest), &outside)),
        case("layer-is-inner-symlink.tar", |honest| replace(layer(honest), &inside)),
        case("layer-is-fifo.tar", |honest| replace(layer(honest), &fifo)),
        case("layer-is-directory.tar", |honest| replace(layer(honest), &directory)),
        case("manifest-is-symlink.tar", |honest| replace(manifest(honest), &outside)),
        case("manifest-is-inner-symlink.tar", |honest| replace(manifest(honest), &inside)),
        case("manifest-is-fifo.tar", |honest| replace(manifest(honest), &fifo)),
        case("manifest-is-directory.tar", |honest| replace(manifest(honest), &directory)),
        case("index-is-symlink.tar", |honest| replace(index(honest), &outside)),
        case("index-is-inner-symlink.tar", |honest| replace(index(honest), &inside)),
        case("index-is-fifo.tar", |honest| replace(index(honest), &fifo)),
        case("index-is-directory.tar", |honest| replace(index(honest), &directory)),
        case("blobs-are-elsewhere.tar", |honest| {
            replace(honest.bench.path("layout/blobs"), &inside);
        }),
    ]
}

fn odd_digests() -> Vec<Case> {
    let hex = "0".repeat(64);
    let of = |file, digest: &str| {
        let text = format!(r#"{{"mediaType":"{GZIP}","digest":"{digest}","size":1}}"#);
        case(file, |honest| honest.publish_manifest(&honest.config.descriptor(""), &text))
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

/// Texts that are shown to a person or handed to a process.
fn texts() -> Vec<Case> {
    let escape = r"\u001b[2J\n";
    let config = |honest: &Honest, text: &str| {
        let blob = honest.bench.blob(CONFIG, text.as_bytes());
        honest.publish_manifest(&blob.descriptor(""), &honest.layer.descriptor(""));
    };
    let rootfs = |honest: &Honest, kind: &str, diff_id: &str| {
        config(
            honest,
            &format!(
                r#"{{"os":"linux","architecture":"amd64","rootfs":{{"type":"{kind}","diff_ids":["{diff_id}"]}}}}"#
            ),
        );
    };
    vec![
        case("diff-id-control.tar", |honest| rootfs(honest, "layers", escape)),
        case("rootfs-type-control.tar", |honest| {
            rootfs(honest, escape, &honest.diff_id.to_string());
        }),
        case("layer-type-control.tar", |honest| {
            let layer = honest.layer.descriptor("").replace(GZIP, escape);
            honest.publish_manifest(&honest.config.descriptor(""), &layer);
        }),
        case("layer-type-foreign.tar", |honest| {
            let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
            let layer = honest.layer.descriptor("").replace(GZIP, foreign);
            honest.publish_manifest(&honest.config.descriptor(""), &layer);
        }),
        case("names-control.tar", |honest| {
            let named = |name| honest.manifest.descriptor(&format!("{escape}:{name}"));
            let other = honest.bench.image("linux/amd64", &[]);
            honest.bench.publish(&[named("one"), other.descriptor(&format!("{escape}:two"))]);
        }),
        case("platform-control.tar", |honest| {
            config(
                honest,
                &format!(
                    r#"{{"os":"{escape}","architecture":"{escape}","rootfs":{{"type":"layers","diff_ids":[]}}}}"#
                ),
            );
        }),
        case("version-control.tar", |honest| {
            let text = format!(r#"{{"imageLayoutVersion":"{escape}"}}"#);
            fs::write(honest.bench.path("layout/oci-layout"), text).unwrap();
        }),
        case("media-type-control.tar", |honest| {
            let text = format!(r#"{{"schemaVersion":2,"mediaType":"{escape}","manifests":[]}}"#);
            fs::write(honest.bench.path("layout/index.json"), text).unwrap();
        }),
        // JSON leaves this one as it is.
        case("schema-version-control.tar", |honest| {
            let text = "{\"schemaVersion\":\"\u{7f}\u{9b}2J\",\"manifests\":[]}";
            fs::write(honest.bench.path("layout/index.json"), text).unwrap();
        }),
        case("json-control.tar", |honest| {
            let text = format!(r#"{{"schemaVersion":"{escape}","manifests":[]}}"#);
            fs::write(honest.bench.path("layout/index.json"), text).unwrap();
        }),
    ]
}
