//! Selects an image in layouts that also hold other artifacts, several images of one name, or
//! references to missing documents.

use std::fs;

use a3s_box_oci::{LayoutError, Platform, SelectError};

use crate::archive::Tar;
use crate::bench::{Bench, Blob, CONFIG, INDEX, MANIFEST, amd64, chain};

/// Returns a blob's descriptor with further fields, given as JSON.
fn with(blob: &Blob, fields: &str) -> String {
    blob.descriptor("").replace('}', &format!(",{fields}}}"))
}

/// Returns the annotation with the reference name, as a JSON field.
fn named(name: &str) -> String {
    format!(r#""annotations":{{"org.opencontainers.image.ref.name":"{name}"}}"#)
}

/// Writes an image whose layer has only the directory `name`, so that images differ by name.
fn image(bench: &Bench, name: &str) -> Blob {
    bench.image("linux/amd64", &[Tar::new().dir(name)])
}

/// Resolves a reference that must be refused, and returns the error's text.
fn refusal(bench: &Bench, reference: Option<&str>) -> String {
    chain(&bench.layout().resolve(reference, &amd64()).unwrap_err())
}

/// Writes the manifest of an artifact that is not an image: its configuration has another type.
fn artifact(bench: &Bench, config_type: &str, fields: &str) -> Blob {
    let config = bench.blob(config_type, b"{}").descriptor("");
    let text = format!(r#"{{"schemaVersion":2,"config":{config},"layers":[]{fields}}}"#);
    bench.blob(MANIFEST, text.as_bytes())
}

#[test]
fn two_images_of_one_name_are_reported() {
    let bench = Bench::new();
    let (one, two, other) = (image(&bench, "1"), image(&bench, "2"), image(&bench, "3"));
    let twins = [one.descriptor("app:1"), two.descriptor("app:1"), other.descriptor("other")];
    bench.publish(&twins);
    let expected = "several images are named `app:1`, choose one of them by its digest: found \
                    `app:1` (sha256:";
    let text = refusal(&bench, Some("app:1"));
    assert!(text.starts_with(expected) && !text.contains("other"), "{text}");
    for one in [&one, &two] {
        let digest = one.digest.to_string();
        let image = bench.layout().resolve(Some(&digest), &amd64()).unwrap();
        assert_eq!(image.manifest_digest, one.digest);
    }
    // Two descriptors of the same image are not ambiguous.
    bench.publish(&[one.descriptor("app:1"), one.descriptor("app:1")]);
    bench.layout().resolve(Some("app:1"), &amd64()).unwrap();
    bench.layout().resolve(None, &amd64()).unwrap();
}

#[test]
fn artifacts_beside_an_image_are_ignored() {
    let bench = Bench::new();
    let app = image(&bench, "app");
    let helm = "application/vnd.cncf.helm.config.v1+json";
    let empty = "application/vnd.oci.empty.v1+json";
    let sbom = r#","artifactType":"application/spdx+json""#;
    let amd = r#""platform":{"os":"linux","architecture":"amd64"}"#;
    let reference = r#""annotations":{"vnd.docker.reference.type":"attestation-manifest"}"#;
    bench.publish(&[
        // Artifacts with a configuration of another type: a Helm chart, a bill of materials, and a
        // manifest that claims the platform of the image.
        artifact(&bench, helm, "").descriptor("chart:1"),
        artifact(&bench, empty, sbom).descriptor("sbom:1"),
        with(&artifact(&bench, empty, ""), amd),
        // Artifacts with an image configuration: the descriptor's annotation, its artifact type or
        // its unknown platform shows that they are not images.
        with(&artifact(&bench, CONFIG, ""), &format!("{amd},{reference}")),
        with(&artifact(&bench, CONFIG, ""), r#""artifactType":"application/vnd.example""#),
        with(
            &bench.image("unknown/unknown", &[]),
            r#""platform":{"os":"unknown","architecture":"unknown"}"#,
        ),
        // A document that is neither a manifest nor an index.
        bench.blob("application/vnd.example+json", b"{}").descriptor(""),
        app.descriptor("app:1"),
    ]);
    for reference in [None, Some("app:1")] {
        let image = bench.layout().resolve(reference, &amd64());
        let image = image.unwrap_or_else(|error| panic!("{}", chain(&error)));
        assert_eq!(image.manifest_digest, app.digest);
    }
    let text = refusal(&bench, Some("nothing:1"));
    let listed =
        ["no image `nothing:1` in the layout: found", "`app:1` (", "`chart:1` (", "`sbom:1`"];
    assert!(listed.iter().all(|part| text.contains(part)), "{text}");
    assert!(!text.contains("attestation") && !text.contains("vnd.example"), "{text}");
}

#[test]
fn error_names_the_requested_artifact_and_its_type() {
    let bench = Bench::new();
    let app = image(&bench, "app");
    let wasm = "application/vnd.wasm.config.v0+json";
    let helm = "application/vnd.cncf.helm.config.v1+json";
    let old = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    let attestation = bench.image("unknown/unknown", &[]);
    let index = bench.index(&[attestation.descriptor("unknown/unknown")]);
    bench.publish(&[
        app.descriptor("app:1"),
        artifact(&bench, wasm, "").descriptor("wasm:1"),
        artifact(&bench, helm, "").descriptor("chart:1"),
        bench.blob(old, b"{}").descriptor("old:1"),
        with(
            &artifact(&bench, CONFIG, ""),
            &format!(r#""artifactType":"a/b",{}"#, named("typed:1")),
        ),
        index.descriptor("bare:1"),
    ]);
    for (name, found) in [
        ("wasm:1", wasm),
        ("chart:1", helm),
        ("old:1", old),
        ("typed:1", "a/b"),
        ("bare:1", "attestation"),
    ] {
        let text = refusal(&bench, Some(name));
        let expected = format!("expected an image, found `{name}` (sha256:");
        assert!(text.starts_with(&expected), "{name}: {text}");
        assert!(text.contains(&format!("of type `{found}`)")), "{name}: {text}");
    }
    bench.publish(&[artifact(&bench, helm, "").descriptor("")]);
    let error = bench.layout().resolve(None, &amd64()).unwrap_err();
    assert!(matches!(error, LayoutError::Select(SelectError::NotAnImage { .. })), "{error:?}");
    bench.publish(&[]);
    assert_eq!(refusal(&bench, None), "no image for platform `linux/amd64`: found nothing");
}

#[test]
fn missing_document_is_an_error_only_if_it_is_needed() {
    let bench = Bench::new();
    let (app, gone) = (image(&bench, "app"), image(&bench, "gone"));
    let (arm, index) = (bench.image("linux/arm64", &[]), bench.index(&[gone.descriptor("")]));
    let multi = bench.index(&[arm.descriptor("linux/arm64"), app.descriptor("linux/amd64")]);
    bench.publish(&[index.descriptor("gone:1"), multi.descriptor("app:1")]);
    for blob in [&index, &gone, &arm] {
        fs::remove_file(bench.blob_path(blob.digest)).unwrap();
    }
    let by_digest = [app.digest.to_string(), multi.digest.to_string()];
    for reference in ["app:1", &by_digest[0], &by_digest[1]] {
        let image = bench.layout().resolve(Some(reference), &amd64());
        let image = image.unwrap_or_else(|error| panic!("{reference}: {}", chain(&error)));
        assert_eq!(image.manifest_digest, app.digest);
    }
    // An index that is damaged is not read for a reference to another name.
    let damaged = bench.blob(INDEX, b"{");
    bench.publish(&[damaged.descriptor("damaged:1"), multi.descriptor("app:1")]);
    bench.layout().resolve(Some("app:1"), &amd64()).unwrap();
    assert!(refusal(&bench, None).contains("is malformed"));
    bench.publish(&[index.descriptor("gone:1"), multi.descriptor("app:1")]);
    let in_the_index = gone.digest.to_string();
    for reference in [None, Some("gone:1"), Some(&in_the_index)] {
        let text = refusal(&bench, reference);
        let expected = format!("blob `{}` is missing from the layout", index.digest);
        assert!(text.ends_with(&expected), "{reference:?}: {text}");
    }
    let arm64: Platform = "linux/arm64".parse().unwrap();
    let text = chain(&bench.layout().resolve(Some("app:1"), &arm64).unwrap_err());
    assert!(text.ends_with(&format!("blob `{}` is missing from the layout", arm.digest)), "{text}");
}

#[test]
fn newest_variant_that_the_platform_runs_is_selected() {
    let bench = Bench::new();
    let of = |variant: &str| {
        let platform = format!(r#""os":"linux","architecture":"amd64","variant":"{variant}""#);
        let image = image(&bench, variant);
        (with(&image, &format!(r#""platform":{{{platform}}}"#)), image.digest)
    };
    let all = ["", "v3", "v2", "v4"].map(of);
    bench.publish(&[bench.index(&all.clone().map(|(descriptor, _)| descriptor)).descriptor("")]);
    for (requested, selected) in [("", 0), ("/v1", 0), ("/v2", 2), ("/v3", 1), ("/v4", 3)] {
        let platform: Platform = format!("linux/amd64{requested}").parse().unwrap();
        let image = bench.layout().resolve(None, &platform).unwrap();
        assert_eq!(image.manifest_digest, all[selected].1, "{requested}");
    }
    bench.publish(&[bench.index(&[all[3].0.clone()]).descriptor("")]);
    let text = refusal(&bench, None);
    assert!(text.starts_with("no image for platform `linux/amd64`: found"), "{text}");
    assert!(text.contains("linux/amd64/v4"), "{text}");
}

#[test]
fn indexes_with_more_entries_than_the_limit_are_refused() {
    let bench = Bench::new();
    let app = image(&bench, "app").descriptor("");
    // 64 indexes of 64 entries each, and the entries of `index.json`, are more than 4096.
    let index = bench.index(&vec![app; 64]);
    bench.publish(&vec![index.descriptor(""); 64]);
    let error = bench.layout().resolve(None, &amd64()).unwrap_err();
    assert!(matches!(error, LayoutError::Select(SelectError::IndexBounds { .. })), "{error:?}");
}
