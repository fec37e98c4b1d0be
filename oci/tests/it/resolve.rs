//! Choosing an image from a layout, and refusing documents that are not what they seem.

use std::fs;

use a3s_box_oci::{BlobError, Digest, Layout, LayoutError, Platform};

use crate::archive::Tar;
use crate::bench::{Bench, CONFIG, GZIP, amd64, chain};

fn arm64() -> Platform {
    "linux/arm64".parse().unwrap()
}

#[test]
fn only_image_is_found_without_a_reference() {
    let bench = Bench::new();
    let manifest = bench.image("linux/amd64", &[Tar::new().dir("a"), Tar::new().dir("b")]);
    bench.publish(&[manifest.descriptor("")]);
    let image = bench.layout().resolve(None, &amd64()).unwrap();
    assert_eq!(image.manifest_digest, manifest.digest);
    assert_eq!(image.layers.len(), 2);
    assert_eq!(
        image.config.env,
        [("A".to_owned(), "1".to_owned()), ("B".to_owned(), "x=y".to_owned())]
    );
    assert_eq!(image.config.entrypoint, ["/init"]);
    assert!(image.config.cmd.is_empty());
    assert_eq!((image.config.user.as_str(), image.config.working_dir.as_str()), ("7:8", "/srv"));
}

#[test]
fn reference_or_digest_chooses_and_a_missing_one_lists_what_is_there() {
    let bench = Bench::new();
    let (one, two) =
        (bench.image("linux/amd64", &[Tar::new().dir("a")]), bench.image("linux/amd64", &[]));
    bench.publish(&[one.descriptor("one:1"), two.descriptor("two:2")]);
    let resolve = |reference: Option<&str>| bench.layout().resolve(reference, &amd64());
    assert_eq!(resolve(Some("two:2")).unwrap().manifest_digest, two.digest);
    assert_eq!(resolve(Some(&one.digest.to_string())).unwrap().manifest_digest, one.digest);
    let text = chain(&resolve(Some("three:3")).unwrap_err());
    assert!(text.starts_with("no image `three:3` in the layout: found `one:1` (sha256:"), "{text}");
    assert!(text.contains("`two:2`"), "{text}");
    let text = chain(&resolve(None).unwrap_err());
    assert!(text.contains("several images fit") && text.contains("`two:2`"), "{text}");
}

#[test]
fn platform_chooses_in_a_nested_index_and_attestations_are_no_images() {
    let bench = Bench::new();
    let amd = bench.image("linux/amd64", &[Tar::new().dir("a")]);
    let arm = bench.image("linux/arm64", &[Tar::new().dir("b")]);
    let attestation = bench.image("unknown/unknown", &[]);
    let index = bench.index(&[
        attestation.descriptor("unknown/unknown"),
        arm.descriptor("linux/arm64"),
        amd.descriptor("linux/amd64"),
    ]);
    bench.publish(&[index.descriptor("multi:1")]);
    assert_eq!(
        bench.layout().resolve(Some("multi:1"), &amd64()).unwrap().manifest_digest,
        amd.digest
    );
    assert_eq!(bench.layout().resolve(None, &arm64()).unwrap().manifest_digest, arm.digest);
    let by_digest = Some(index.digest.to_string());
    assert_eq!(
        bench.layout().resolve(by_digest.as_deref(), &arm64()).unwrap().manifest_digest,
        arm.digest
    );
    let text = chain(&bench.layout().resolve(None, &"linux/riscv64".parse().unwrap()).unwrap_err());
    assert!(text.contains("no image for platform `linux/riscv64`"), "{text}");
    assert!(
        text.contains("linux/arm64") && text.contains("linux/amd64") && !text.contains("unknown"),
        "{text}"
    );
}

#[test]
fn platform_of_a_bare_manifest_is_its_configurations() {
    let bench = Bench::new();
    bench.publish(&[bench.image("linux/arm64", &[]).descriptor("")]);
    let error = bench.layout().resolve(None, &amd64()).unwrap_err();
    assert!(matches!(error, LayoutError::NoSuchPlatform { .. }), "{error:?}");
}

#[test]
fn missing_file_is_an_error_that_names_it() {
    let bench = Bench::new();
    let manifest = bench.image("linux/amd64", &[]);
    bench.publish(&[manifest.descriptor("")]);
    fs::remove_file(bench.blob_path(manifest.digest)).unwrap();
    let error = bench.layout().resolve(None, &amd64()).unwrap_err();
    assert!(
        matches!(error, LayoutError::Blob { source: BlobError::Missing { .. }, .. }),
        "{error:?}"
    );
    for file in ["index.json", "oci-layout"] {
        fs::remove_file(bench.path("layout").join(file)).unwrap();
        let error = Layout::open(&bench.path("layout"))
            .and_then(|layout| layout.resolve(None, &amd64()))
            .unwrap_err();
        assert!(
            matches!(error, LayoutError::File { file: found, .. } if found == file),
            "{error:?}"
        );
    }
}

#[test]
fn layers_of_all_compressions_are_accepted() {
    let bench = Bench::new();
    let resolve = |media_type: &str, diff_ids: &[Digest]| {
        let layer = bench.blob(media_type, b"");
        bench.publish(&[bench.image_of("linux/amd64", &[layer], diff_ids).descriptor("")]);
        bench.layout().resolve(None, &amd64())
    };
    let empty = [Digest::of(b"")];
    for accepted in [
        GZIP,
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.oci.image.layer.v1.tar+zstd",
    ] {
        assert_eq!(resolve(accepted, &empty).unwrap().layers.len(), 1, "{accepted}");
    }
}

#[test]
fn configuration_that_no_process_could_use_is_refused() {
    let bench = Bench::new();
    let resolve = |config: &str| {
        let document = format!(
            r#"{{"os":"linux","architecture":"amd64","rootfs":{{"type":"layers","diff_ids":[]}},"config":{config}}}"#
        );
        let manifest = bench.manifest(&bench.blob(CONFIG, document.as_bytes()), &[]);
        bench.publish(&[manifest.descriptor("")]);
        bench.layout().resolve(None, &amd64())
    };
    assert_eq!(resolve(r#"{"Env":null}"#).unwrap().config, a3s_box_oci::ImageConfig::default());
    let error = resolve(r#"{"Env":["A=1","SECRET"]}"#).unwrap_err();
    assert!(matches!(error, LayoutError::EnvSyntax { position: 1 }), "{error:?}");
    assert!(!chain(&error).contains("SECRET"));
    let error = resolve(r#"{"Cmd":["a\u0000b"]}"#).unwrap_err();
    assert!(matches!(error, LayoutError::NulInConfig { field: "cmd" }), "{error:?}");
}
