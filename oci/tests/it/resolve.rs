//! Selects an image from a layout, and refuses malformed, missing or ambiguous documents.

use std::fs;

use a3s_box_oci::{
    BlobError, Digest, DocumentError, HealthcheckError, ImageConfigError, ImageError, Layout,
    LayoutError, Platform, SelectError,
};

use crate::archive::Tar;
use crate::bench::{Bench, CONFIG, GZIP, INDEX, MANIFEST, amd64, chain, gzip, names};

fn arm64() -> Platform {
    "linux/arm64".parse().unwrap()
}

#[test]
fn only_image_of_a_layout_is_selected_without_a_reference() {
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
fn reference_or_digest_selects_an_image_and_a_missing_one_lists_the_images() {
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
fn platform_selects_in_a_nested_index_and_attestations_are_ignored() {
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
fn platform_of_a_manifest_without_one_is_read_from_its_configuration() {
    let bench = Bench::new();
    bench.publish(&[bench.image("linux/arm64", &[]).descriptor("")]);
    let error = bench.layout().resolve(None, &amd64()).unwrap_err();
    assert!(matches!(error, LayoutError::Select(SelectError::NoSuchPlatform { .. })), "{error:?}");
}

#[test]
fn error_names_the_missing_file() {
    let bench = Bench::new();
    let manifest = bench.image("linux/amd64", &[]);
    bench.publish(&[manifest.descriptor("")]);
    fs::remove_file(bench.blob_path(manifest.digest)).unwrap();
    let error = bench.layout().resolve(None, &amd64()).unwrap_err();
    assert!(
        matches!(
            error,
            LayoutError::Document(DocumentError::Blob { source: BlobError::Missing { .. }, .. })
        ),
        "{error:?}"
    );
    for file in ["index.json", "oci-layout"] {
        fs::remove_file(bench.path("layout").join(file)).unwrap();
        let error = Layout::open(&bench.path("layout"))
            .and_then(|layout| layout.resolve(None, &amd64()))
            .unwrap_err();
        assert!(
            matches!(error, LayoutError::Document(DocumentError::File { file: found, .. }) if found == file),
            "{error:?}"
        );
    }
}

#[test]
fn document_with_the_fields_of_two_types_is_refused() {
    let bench = Bench::new();
    let both = bench.blob(
        "application/vnd.oci.image.index.v1+json",
        br#"{"schemaVersion":2,"manifests":[],"layers":[],"config":{}}"#,
    );
    bench.publish(&[both.descriptor("")]);
    let error = bench.layout().resolve(None, &amd64()).unwrap_err();
    assert!(
        matches!(error, LayoutError::Document(DocumentError::DocumentType { .. })),
        "{error:?}"
    );
    let manifest = bench.image("linux/amd64", &[]);
    let text = fs::read_to_string(bench.blob_path(manifest.digest)).unwrap();
    let resolve = |document: String| {
        bench.publish(&[bench.blob(MANIFEST, document.as_bytes()).descriptor("")]);
        bench.layout().resolve(None, &amd64())
    };
    let also = |field: &str| {
        text.replace(r#""schemaVersion":2"#, &format!(r#""schemaVersion":2,{field}"#))
    };
    let error = resolve(also(r#""manifests":[]"#)).unwrap_err();
    assert!(
        matches!(error, LayoutError::Document(DocumentError::DocumentType { .. })),
        "{error:?}"
    );
    let error = resolve(also(&format!(r#""mediaType":"{INDEX}""#))).unwrap_err();
    assert!(
        matches!(error, LayoutError::Document(DocumentError::DocumentType { .. })),
        "{error:?}"
    );
    // Some tools write `null` or an empty string for an absent field.
    for field in [r#""manifests":null"#, r#""mediaType":"""#, r#""subject":null,"mystery":7"#] {
        resolve(also(field)).unwrap_or_else(|error| panic!("{field}: {}", chain(&error)));
    }
    let error = resolve(text.replace(":2,", ":1,")).unwrap_err();
    assert!(chain(&error).ends_with("has schema version 1: expected 2"), "{error:?}");
}

#[test]
fn layer_of_an_unknown_media_type_or_without_a_diff_id_is_refused() {
    let bench = Bench::new();
    let resolve = |media_type: &str, diff_ids: &[Digest]| {
        let layer = bench.blob(media_type, b"");
        bench.publish(&[bench.image_of("linux/amd64", &[layer], diff_ids).descriptor("")]);
        bench.layout().resolve(None, &amd64())
    };
    let empty = [Digest::of(b"")];
    let oci =
        ["", "+gzip", "+zstd"].map(|end| format!("application/vnd.oci.image.layer.v1.tar{end}"));
    let nondistributable =
        oci.clone().map(|known| known.replace("layer", "layer.nondistributable"));
    let docker = ["", ".gzip", ".zstd"]
        .map(|end| format!("application/vnd.docker.image.rootfs.diff.tar{end}"));
    let foreign = ["", ".gzip"]
        .map(|end| format!("application/vnd.docker.image.rootfs.foreign.diff.tar{end}"));
    for accepted in oci.iter().chain(&nondistributable).chain(&docker).chain(&foreign) {
        let image = resolve(accepted, &empty).unwrap();
        bench.unpack(&image.layers[0]).unwrap_or_else(|error| panic!("{}", chain(&error)));
    }
    // Layers in other encodings, and contents of artifacts that are not images.
    for refused in [
        "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
        "application/vnd.oci.image.layer.v1.tar+bzip2",
        "application/vnd.in-toto+json",
        "application/vnd.dev.cosign.simplesigning.v1+json",
        "application/vnd.cncf.helm.chart.content.v1.tar+gzip",
        "application/vnd.wasm.content.layer.v1+wasm",
        "application/octet-stream",
    ] {
        let text = chain(&resolve(refused, &empty).unwrap_err());
        let expected = "are not supported: expected tar, tar+gzip or tar+zstd";
        assert_eq!(text, format!("layers of media type `{refused}` {expected}"));
    }
    let error = resolve(GZIP, &[]).unwrap_err();
    assert!(
        matches!(error, LayoutError::Image(ImageError::LayerCount { layers: 1, diff_ids: 0 })),
        "{error:?}"
    );
}

#[test]
fn foreign_layer_is_used_if_present_and_else_the_error_lists_its_urls() {
    let bench = Bench::new();
    let tar = Tar::new().file("a", "").bytes();
    let media_type = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
    let layer = bench.blob(media_type, &gzip(&tar));
    let config = bench.config("linux/amd64", &[Digest::of(&tar)]).descriptor("");
    let urls = r#","urls":["https://vendor.example/a\u001b","https://mirror.example/b"]}"#;
    let descriptor = layer.descriptor("").replace('}', urls);
    let text = format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{descriptor}]}}"#);
    bench.publish(&[bench.blob(MANIFEST, text.as_bytes()).descriptor("")]);
    let image = bench.layout().resolve(None, &amd64()).unwrap();
    assert_eq!(names(&bench.unpack(&image.layers[0]).unwrap().path), ["a"]);
    fs::remove_file(bench.blob_path(layer.digest)).unwrap();
    let text = chain(&bench.layout().resolve(None, &amd64()).unwrap_err());
    let kept = r"`https://vendor.example/a\u{1b}`, `https://mirror.example/b`";
    let expected = "is not in the layout: fetch it from where its vendor keeps it";
    assert_eq!(text, format!("layer `{}` {expected}, {kept}", layer.digest));
}

#[test]
fn malformed_or_oversized_process_configuration_is_refused() {
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
    let error = resolve(r#"{"Env":["A=1","=SECRET"]}"#).unwrap_err();
    assert!(
        matches!(
            error,
            LayoutError::Image(ImageError::Config(ImageConfigError::EnvSyntax { position: 1 }))
        ),
        "{error:?}"
    );
    // The environment can hold passwords, so no part of it is in the error.
    assert!(!chain(&error).contains("SECRET"));
    let error = resolve(r#"{"Cmd":["a\u0000b"]}"#).unwrap_err();
    assert!(
        matches!(
            error,
            LayoutError::Image(ImageError::Config(ImageConfigError::Nul { field: "cmd" }))
        ),
        "{error:?}"
    );
    let error = resolve(r#"{"Healthcheck":{"Test":["CMD","a\u0000b"]}}"#).unwrap_err();
    assert!(
        matches!(
            error,
            LayoutError::Image(ImageError::Config(ImageConfigError::Nul { field: "healthcheck" }))
        ),
        "{error:?}"
    );
    let error = resolve(r#"{"Healthcheck":{"Test":["CMD"],"Retries":-1}}"#).unwrap_err();
    assert!(
        matches!(
            error,
            LayoutError::Image(ImageError::Healthcheck(HealthcheckError { field: "Retries", .. }))
        ),
        "{error:?}"
    );
    // Longer than an argument or a variable of a process can be (`MAX_ARG_STRLEN`, `execve(2)`).
    let long = "x".repeat(128 * 1024 + 1);
    for (field, config) in [
        ("cmd", format!(r#"{{"Cmd":["{long}"]}}"#)),
        ("labels", format!(r#"{{"Labels":{{"a":"{long}"}}}}"#)),
        ("entrypoint", format!(r#"{{"Entrypoint":["a"{}]}}"#, r#","a""#.repeat(4096))),
    ] {
        match resolve(&config).unwrap_err() {
            LayoutError::Image(ImageError::Config(ImageConfigError::TooLarge { field: found })) => {
                assert_eq!(found, field);
            }
            other => panic!("{field}: {other:?}"),
        }
    }
}

#[test]
fn each_field_of_the_process_configuration_is_read() {
    let bench = Bench::new();
    let config = r#"{"Volumes":{"/var/lib/b":{},"/a":{}},"ExposedPorts":{"80/tcp":{},"53/udp":{}},
        "Labels":{"org.example.b":"2","org.example.a":"1"},"StopSignal":"SIGQUIT",
        "Healthcheck":{"Test":["CMD","true"],"Interval":30000000000,"Timeout":1000000,"Retries":2}}"#;
    let empty_fields =
        r#"{"Volumes":null,"ExposedPorts":null,"Labels":null,"Healthcheck":null,"StopSignal":""}"#;
    let resolve = |config: &str| {
        let document = format!(
            r#"{{"os":"linux","architecture":"amd64","rootfs":{{"type":"layers","diff_ids":[]}},"config":{config}}}"#
        );
        let manifest = bench.manifest(&bench.blob(CONFIG, document.as_bytes()), &[]);
        bench.publish(&[manifest.descriptor("")]);
        bench.layout().resolve(None, &amd64()).unwrap().config
    };
    let found = resolve(config);
    assert_eq!(found.volumes, ["/a", "/var/lib/b"]);
    assert_eq!(found.exposed_ports, ["53/udp", "80/tcp"]);
    assert_eq!(found.labels.values().collect::<Vec<_>>(), ["1", "2"]);
    assert_eq!(found.stop_signal.as_deref(), Some("SIGQUIT"));
    let check = found.healthcheck.unwrap();
    assert_eq!((check.test, check.retries), (vec!["CMD".to_owned(), "true".to_owned()], Some(2)));
    assert_eq!(check.interval.unwrap().as_secs(), 30);
    assert_eq!((check.timeout.unwrap().as_millis(), check.start_period), (1, None));
    for empty in [empty_fields, "{}", "null"] {
        assert_eq!(resolve(empty), a3s_box_oci::ImageConfig::default(), "{empty}");
    }
}
