//! Layouts with SHA-512 digests, with digests of both algorithms, and with an unknown algorithm.

use std::fs;

use a3s_box_oci::{
    Algorithm, BlobError, CacheError, DocumentError, Image, LayerError, LayoutError,
};

use crate::archive::Tar;
use crate::bench::{Bench, Blob, CONFIG, GZIP, INDEX, MANIFEST, amd64, chain, gzip, names};

/// Publishes an image of one layer, and returns its manifest.
///
/// The algorithms are those of the layer's blob, its `DiffID`, the configuration and the manifest.
fn image_of(bench: &mut Bench, [blob, diff_id, config, manifest]: [Algorithm; 4]) -> Blob {
    let tar = Tar::new().file("a", "content").bytes();
    bench.algorithm = blob;
    let layer = bench.blob(GZIP, &gzip(&tar));
    bench.algorithm = config;
    let config = bench.config("linux/amd64", &[diff_id.digest(&tar)]);
    bench.algorithm = manifest;
    let manifest = bench.manifest(&config, &[layer]);
    bench.publish(&[manifest.descriptor("named:1")]);
    manifest
}

fn resolved(bench: &Bench) -> Image {
    bench.layout().resolve(None, &amd64()).unwrap_or_else(|error| panic!("{}", chain(&error)))
}

#[test]
fn layout_with_only_sha512_digests_is_read_and_unpacked() {
    let mut bench = Bench::new();
    let manifest = image_of(&mut bench, [Algorithm::Sha512; 4]);
    let index = bench.index(&[manifest.descriptor("linux/amd64")]);
    bench.publish(&[index.descriptor("multi:1")]);
    assert!(!bench.path("layout/blobs/sha256").exists(), "no blob has a sha256 digest");
    let by_digest = [manifest.digest.to_string(), index.digest.to_string()];
    assert!(by_digest.iter().all(|digest| digest.starts_with("sha512:")));
    for reference in [None, Some("multi:1"), Some(&by_digest[0]), Some(&by_digest[1])] {
        let image = bench.layout().resolve(reference, &amd64()).unwrap();
        assert_eq!(image.manifest_digest, manifest.digest);
    }
    let layer = bench.unpack(&resolved(&bench).layers[0]).unwrap();
    assert_eq!(names(&layer.path), ["a"]);
    fs::remove_dir_all(bench.path("layout/blobs/sha512")).unwrap();
    let text = chain(&bench.layout().resolve(None, &amd64()).unwrap_err());
    assert!(text.contains("is missing from the layout"), "{text}");
}

#[test]
fn each_part_of_an_image_can_use_either_algorithm() {
    let algorithm = |bit: usize| if bit == 0 { Algorithm::Sha256 } else { Algorithm::Sha512 };
    // Each of the four bits selects the algorithm of one part.
    for mixture in 0..16 {
        let mut bench = Bench::new();
        let of = [0, 1, 2, 3].map(|bit| algorithm(mixture >> bit & 1));
        image_of(&mut bench, of);
        let image = resolved(&bench);
        let [layer] = image.layers[..] else { panic!("the image has one layer") };
        assert_eq!([layer.digest.algorithm(), layer.diff_id.algorithm()], of[..2]);
        let unpacked = bench.unpack(&layer).unwrap_or_else(|error| panic!("{}", chain(&error)));
        assert_eq!(names(&unpacked.path), ["a"], "{of:?}");
    }
}

#[test]
fn wrong_sha512_diff_id_is_refused() {
    let mut bench = Bench::new();
    bench.algorithm = Algorithm::Sha512;
    let tar = Tar::new().file("a", "content").bytes();
    let layer = bench.blob(GZIP, &gzip(&tar));
    let wrong = Algorithm::Sha512.digest(b"another");
    bench.publish(&[bench.image_of("linux/amd64", &[layer], &[wrong]).descriptor("")]);
    match bench.unpack(&resolved(&bench).layers[0]) {
        Err(CacheError::Layer { source: LayerError::DiffId { expected, found }, .. }) => {
            assert_eq!((expected, found), (wrong, Algorithm::Sha512.digest(&tar)));
        }
        other => panic!("{other:?}"),
    }
    bench.assert_cache_is_empty();
}

#[test]
fn damaged_sha512_blob_is_refused() {
    let mut bench = Bench::new();
    let manifest = image_of(&mut bench, [Algorithm::Sha512; 4]);
    let layer = resolved(&bench).layers[0];
    let path = bench.blob_path(layer.digest);
    let blob = fs::read(&path).unwrap();
    for position in 0..blob.len() {
        let mut damaged = blob.clone();
        damaged[position] ^= 0x55;
        fs::write(&path, damaged).unwrap();
        match bench.unpack(&layer) {
            Err(CacheError::Layer {
                source: LayerError::Blob(BlobError::Digest { expected, .. }),
                ..
            }) => assert_eq!(expected, layer.digest),
            other => panic!("byte {position}: {other:?}"),
        }
        bench.assert_cache_is_empty();
    }
    let path = bench.blob_path(manifest.digest);
    fs::write(&path, fs::read_to_string(&path).unwrap().replace("tar+gzip", "tar+zstd")).unwrap();
    let error = bench.layout().resolve(None, &amd64()).unwrap_err();
    assert!(
        matches!(
            error,
            LayoutError::Document(DocumentError::Blob { source: BlobError::Digest { .. }, .. })
        ),
        "{error:?}"
    );
}

#[test]
fn unknown_algorithm_is_refused_and_the_error_lists_the_supported_ones() {
    let unknown = |media_type: &str| {
        let digest = format!("blake3:{}", "ab".repeat(32));
        format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":2}}"#)
    };
    let refusal = |bench: &Bench| chain(&bench.layout().resolve(None, &amd64()).unwrap_err());
    let supported = "is not supported: expected `sha256:…` or `sha512:…`";
    let bench = Bench::new();
    let manifest = |config: &str, layers: &str| {
        let text = format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{layers}]}}"#);
        bench.publish(&[bench.blob(MANIFEST, text.as_bytes()).descriptor("")]);
    };
    manifest(&unknown(CONFIG), "");
    assert!(refusal(&bench).contains(supported), "{}", refusal(&bench));
    let diff_id = format!("blake3:{}", "cd".repeat(32));
    let one = bench.config("linux/amd64", &[]);
    let document = fs::read_to_string(bench.blob_path(one.digest)).unwrap();
    let of_blake3 = document.replace(r#""diff_ids":[]"#, &format!(r#""diff_ids":["{diff_id}"]"#));
    let layer = bench.blob(GZIP, b"").descriptor("");
    manifest(&bench.blob(CONFIG, of_blake3.as_bytes()).descriptor(""), &layer);
    assert!(refusal(&bench).contains(&format!("`{diff_id}` {supported}")), "{}", refusal(&bench));
    let known = of_blake3.replace(&diff_id, &Algorithm::Sha512.digest(b"").to_string());
    manifest(&bench.blob(CONFIG, known.as_bytes()).descriptor(""), &unknown(GZIP));
    assert!(refusal(&bench).contains(supported), "{}", refusal(&bench));
    for media_type in [MANIFEST, INDEX] {
        bench.publish(&[unknown(media_type)]);
        assert!(refusal(&bench).contains(supported), "{}", refusal(&bench));
    }
}
