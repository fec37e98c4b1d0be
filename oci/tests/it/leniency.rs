//! Reads documents that differ from the image specification, and that umoci, containerd, podman
//! and Docker run. Decision 0014 lists them.

use std::fs;
use std::os::unix::fs::symlink;

use a3s_box_oci::{Image, ImageConfig, LayoutError, SelectError};

use crate::archive::Tar;
use crate::bench::{Bench, Blob, CONFIG, GZIP, MANIFEST, amd64, chain, gzip};

/// The end of each image configuration here.
const ROOT: &str = r#""rootfs":{"type":"layers","diff_ids":[]}"#;

/// Resolves `t`, which must be found.
fn resolved(bench: &Bench, reference: Option<&str>) -> Image {
    let image = bench.layout().resolve(reference, &amd64());
    image.unwrap_or_else(|error| panic!("{}", chain(&error)))
}

/// Resolves `t`, which must be refused, and returns the error's text.
fn refusal(bench: &Bench, reference: Option<&str>) -> String {
    chain(&bench.layout().resolve(reference, &amd64()).unwrap_err())
}

/// Returns the descriptor of a blob with further fields, given as JSON.
fn with(blob: &Blob, fields: &str) -> String {
    blob.descriptor("").replace('}', &format!(",{fields}}}"))
}

fn named(blob: &Blob) -> String {
    with(blob, r#""annotations":{"org.opencontainers.image.ref.name":"t"}"#)
}

/// Writes an image without layers, given its configuration as JSON.
fn image(bench: &Bench, configuration: &str) -> Blob {
    bench.manifest(&bench.blob(CONFIG, configuration.as_bytes()), &[])
}

/// Returns the process of an image whose configuration has this field `config`.
fn process(config: &str) -> ImageConfig {
    let bench = Bench::new();
    let text = format!(r#"{{"os":"linux","architecture":"amd64",{ROOT},"config":{config}}}"#);
    bench.publish(&[image(&bench, &text).descriptor("")]);
    resolved(&bench, None).config
}

#[test]
fn artifact_type_of_a_descriptor_or_manifest_leaves_an_image_an_image() {
    let bench = Bench::new();
    let app = bench.image("linux/amd64", &[Tar::new().dir("a")]);
    let text = fs::read_to_string(bench.blob_path(app.digest)).unwrap();
    let typed = text.replacen('{', r#"{"artifactType":"application/vnd.example+type","#, 1);
    let typed = bench.blob(MANIFEST, typed.as_bytes());
    let platform = r#""platform":{"os":"linux","architecture":"amd64"}"#;
    for entry in [
        with(&app, &format!(r#""artifactType":"{CONFIG}""#)),
        with(&app, r#""artifactType":"application/vnd.example+type""#),
        with(&app, &format!(r#""artifactType":"application/vnd.example+type",{platform}"#)),
        typed.descriptor(""),
        with(&typed, platform),
    ] {
        bench.publish(std::slice::from_ref(&entry));
        assert_eq!(resolved(&bench, None).layers.len(), 1, "{entry}");
    }
    // A stub in place of the configuration shows an artifact, in spite of its media type.
    let stub = image(&bench, "{}");
    bench.publish(&[with(&stub, r#""artifactType":"application/spdx+json""#)]);
    let error = bench.layout().resolve(None, &amd64()).unwrap_err();
    assert!(matches!(error, LayoutError::Select(SelectError::NotAnImage { .. })), "{error:?}");
}

#[test]
fn odd_neighbour_of_an_image_refuses_nothing() {
    let bench = Bench::new();
    let app = bench.image("linux/amd64", &[Tar::new().dir("a")]);
    let other = bench.image("linux/amd64", &[Tar::new().dir("b")]);
    let gone = Blob { digest: a3s_box_oci::Digest::of(b"gone"), ..other.clone() };
    let damaged = bench.blob(MANIFEST, b"{");
    let old = bench.blob(MANIFEST, br#"{"schemaVersion":1}"#);
    let digest = other.digest;
    let no_type = format!(r#"{{"digest":"{digest}","size":{}}}"#, other.size);
    let no_digest = format!(r#"{{"mediaType":"{MANIFEST}","size":3}}"#);
    for neighbour in [
        with(&other, r#""platform":{}"#),
        with(&other, r#""platform":{"os":"linux"}"#),
        with(&other, r#""platform":{"architecture":"amd64"}"#),
        with(&other, r#""platform":{"os":null,"architecture":null,"variant":null}"#),
        with(&other, r#""platform":7"#),
        with(&other, r#""annotations":[]"#),
        other.descriptor("").replace("\"size\":", "\"size\":-"),
        other.descriptor("").replace("sha256:", "sha256:../"),
        other.descriptor("").replace("sha256:", "md4:"),
        gone.descriptor(""),
        damaged.descriptor(""),
        old.descriptor(""),
        no_type,
        no_digest,
        "null".to_owned(),
        "{}".to_owned(),
        "7".to_owned(),
    ] {
        // The neighbour is before and behind the image, in `index.json` and in a nested index.
        for entries in [[neighbour.clone(), named(&app)], [named(&app), neighbour.clone()]] {
            bench.publish(&entries);
            for reference in [None, Some("t")] {
                assert_eq!(resolved(&bench, reference).manifest_digest, app.digest, "{neighbour}");
            }
            bench.publish(&[named(&bench.index(&entries))]);
            assert_eq!(resolved(&bench, Some("t")).manifest_digest, app.digest, "{neighbour}");
        }
    }
    // A null in a map is an empty text, so this neighbour is a second image.
    bench.publish(&[with(&other, r#""annotations":{"a":null}"#), named(&app)]);
    assert_eq!(resolved(&bench, Some("t")).manifest_digest, app.digest);
    assert!(refusal(&bench, None).starts_with("several images fit"));
}

#[test]
fn odd_entry_that_was_asked_for_is_used_or_named_by_the_error() {
    let bench = Bench::new();
    let app = bench.image("linux/amd64", &[Tar::new().dir("a")]);
    let good = bench.image("linux/amd64", &[]);
    let name = r#""annotations":{"org.opencontainers.image.ref.name":"t"}"#;
    for platform in ["{}", r#"{"os":"linux"}"#, "null"] {
        bench.publish(&[
            with(&app, &format!(r#"{name},"platform":{platform}"#)),
            named(&good).replace("\"t\"", "\"u\""),
        ]);
        assert_eq!(resolved(&bench, Some("t")).manifest_digest, app.digest, "{platform}");
        assert_eq!(resolved(&bench, Some("u")).manifest_digest, good.digest, "{platform}");
    }
    let malformed = with(&app, &format!(r#"{name},"platform":7"#));
    for entries in [vec![malformed.clone()], vec![good.descriptor(""), malformed]] {
        bench.publish(&entries);
        let by_digest = app.digest.to_string();
        for reference in [Some("t"), Some(by_digest.as_str())] {
            let text = refusal(&bench, reference);
            let position = entries.len() - 1;
            let expected = format!(
                "the entry `manifests[{position}]` of the index `index.json` is malformed: invalid type"
            );
            assert!(text.starts_with(&expected), "{text}");
        }
    }
    bench.publish(&[with(&app, name).replace(MANIFEST, "")]);
    let expected = format!("expected an image, found `t` ({}, without a media type)", app.digest);
    assert_eq!(refusal(&bench, Some("t")), expected);
    bench.publish(&["null".to_owned()]);
    let expected = "expected an image, found (without a digest, without a media type)";
    assert_eq!(refusal(&bench, None), expected);
}

#[test]
fn suitable_manifest_that_cannot_be_read_is_an_error() {
    let bench = Bench::new();
    let damaged = bench.blob(MANIFEST, b"{").descriptor("linux/amd64");
    let arm = bench.image("linux/arm64", &[]).descriptor("linux/arm64");
    bench.publish(&[named(&bench.index(&[arm, damaged]))]);
    assert!(refusal(&bench, Some("t")).contains("is malformed"));
}

#[test]
fn null_in_the_process_configuration_is_an_empty_value() {
    let found = process(
        r#"{"Volumes":{"/data":null},"ExposedPorts":{"80/tcp":null},"Labels":{"label":null},
            "Env":["A=1",null],"Cmd":["a",null],"Entrypoint":null,"User":null,"WorkingDir":null,
            "StopSignal":null,"Healthcheck":{"Test":["CMD",null],"Interval":null}}"#,
    );
    assert_eq!((found.volumes, found.exposed_ports), (vec!["/data".into()], vec!["80/tcp".into()]));
    assert_eq!(found.labels.into_iter().collect::<Vec<_>>(), [("label".into(), String::new())]);
    assert_eq!(
        (found.env, found.cmd),
        (vec![("A".into(), "1".into())], vec!["a".into(), String::new()])
    );
    assert_eq!((found.entrypoint.len(), found.stop_signal), (0, None));
    assert_eq!((found.user, found.working_dir), (String::new(), String::new()));
    assert_eq!(found.healthcheck.unwrap().test, ["CMD", ""]);
}

#[test]
fn null_in_any_document_is_an_empty_value() {
    let bench = Bench::new();
    let configuration = bench
        .blob(
            CONFIG,
            br#"{"os":"linux","architecture":"amd64","variant":null,"created":null,"author":null,
                "history":[null],"os.features":null,"config":null,"rootfs":null}"#,
        )
        .descriptor("")
        .replace('}', r#","urls":null,"annotations":null,"platform":null,"data":null}"#);
    let manifest = format!(
        r#"{{"schemaVersion":null,"mediaType":null,"artifactType":null,"config":{configuration},
           "layers":null,"subject":null,"annotations":{{"a":null}}}}"#
    );
    let manifest = bench.blob(MANIFEST, manifest.as_bytes());
    let entry =
        with(&manifest, r#""urls":[null],"annotations":null,"artifactType":null,"data":null"#);
    let index = format!(
        r#"{{"schemaVersion":0,"mediaType":null,"manifests":[{entry}],"subject":null,"annotations":null}}"#
    );
    fs::write(bench.path("layout/index.json"), index).unwrap();
    assert_eq!(resolved(&bench, None).config, ImageConfig::default());
    fs::write(bench.path("layout/index.json"), r#"{"manifests":null}"#).unwrap();
    assert_eq!(refusal(&bench, None), "no image for platform `linux/amd64`: found nothing");
}

#[test]
fn names_of_fields_match_in_any_case() {
    let bench = Bench::new();
    let tar = Tar::new().dir("a").bytes();
    let (layer, diff_id) = (bench.blob(GZIP, &gzip(&tar)), a3s_box_oci::Digest::of(&tar));
    let configuration = format!(
        r#"{{"OS":"linux","Architecture":"amd64","RootFS":{{"Type":"layers","Diff_IDs":["{diff_id}"]}},
           "Config":{{"entrypoint":["/a"],"ENV":["A=1"]}}}}"#
    );
    let manifest = format!(
        r#"{{"SchemaVersion":2,"Config":{},"Layers":[{}]}}"#,
        bench
            .blob(CONFIG, configuration.as_bytes())
            .descriptor("")
            .replace("mediaType", "MediaType"),
        layer.descriptor("").replace("digest", "Digest"),
    );
    let manifest = bench.blob(MANIFEST, manifest.as_bytes());
    bench.publish(&[manifest.descriptor("t:1").replace("annotations", "Annotations")]);
    let image = resolved(&bench, Some("t:1"));
    assert_eq!((image.layers.len(), image.config.entrypoint), (1, vec!["/a".to_owned()]));
    // Two readers could take such a document for two things.
    let text = fs::read_to_string(bench.blob_path(manifest.digest)).unwrap();
    for (field, expected) in [
        (r#""Manifests":[]"#, "has the wrong type"),
        (r#""layers":[]"#, "duplicate field `layers`"),
        (r#""schemaversion":1"#, "has schema version 1"),
    ] {
        let text = text.replacen('{', &format!("{{{field},"), 1);
        bench.publish(&[bench.blob(MANIFEST, text.as_bytes()).descriptor("")]);
        assert!(refusal(&bench, None).contains(expected), "{}", refusal(&bench, None));
    }
}

#[test]
fn image_without_layers_has_an_empty_root() {
    for (root, layers) in [
        (r#"{"type":"layers","diff_ids":[]}"#, "[]"),
        (r#"{"type":"layers","diff_ids":null}"#, "[]"),
        (r#"{"type":"layers"}"#, "null"),
        (r#"{"type":""}"#, "null"),
        ("{}", "[]"),
        ("null", "null"),
    ] {
        let bench = Bench::new();
        let text = format!(r#"{{"os":"linux","architecture":"amd64","rootfs":{root}}}"#);
        let config = bench.blob(CONFIG, text.as_bytes()).descriptor("");
        let text = format!(r#"{{"schemaVersion":2,"config":{config},"layers":{layers}}}"#);
        bench.publish(&[bench.blob(MANIFEST, text.as_bytes()).descriptor("")]);
        assert_eq!(resolved(&bench, None).layers, [], "{root} {layers}");
    }
    // Without the field `layers`, too.
    let bench = Bench::new();
    let config = bench.blob(CONFIG, br#"{"os":"linux","architecture":"amd64"}"#).descriptor("");
    let text = format!(r#"{{"schemaVersion":2,"config":{config}}}"#);
    bench.publish(&[bench.blob(MANIFEST, text.as_bytes()).descriptor("")]);
    let image = resolved(&bench, None);
    assert_eq!(bench.compose(&image).unwrap().trees().count(), 0);
}

#[test]
fn entrypoint_of_one_empty_word_is_none() {
    for entrypoint in [r#"[""]"#, "[null]", "[]", "null"] {
        let found = process(&format!(r#"{{"Entrypoint":{entrypoint},"Cmd":["/bin/sh"]}}"#));
        assert_eq!((found.entrypoint.len(), found.cmd), (0, vec!["/bin/sh".to_owned()]));
    }
    assert_eq!(process(r#"{"Entrypoint":["",""]}"#).entrypoint, ["", ""]);
}

#[test]
fn entry_of_the_environment_without_an_equals_sign_sets_nothing() {
    let found = process(r#"{"Env":["A=1","SECRET","","B=x=y","C=","A=2","PATH"]}"#);
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    // The last value of a name counts, in the place of the first.
    assert_eq!(found.env, [pair("A", "2"), pair("B", "x=y"), pair("C", "")]);
}

#[test]
fn platform_is_found_in_each_spelling_that_engines_take() {
    let bench = Bench::new();
    for (os, architecture, variant) in [
        ("linux", "x86_64", ""),
        ("linux", "x86-64", "v1"),
        ("Linux", "AMD64", ""),
        ("", "amd64", ""),
        ("linux", "", ""),
    ] {
        let fields =
            format!(r#""os":"{os}","architecture":"{architecture}","variant":"{variant}""#);
        let app = image(&bench, &format!("{{{fields},{ROOT}}}"));
        // The platform is in the configuration, and then in the descriptor as well.
        for entry in [app.descriptor(""), with(&app, &format!(r#""platform":{{{fields}}}"#))] {
            bench.publish(std::slice::from_ref(&entry));
            let found = resolved(&bench, None).platform;
            assert!(found.to_string().starts_with("linux/amd64"), "{entry}: {found}");
        }
    }
    let arm = [("aarch64", ""), ("arm64", "v8"), ("ARM64", "8"), ("arm64", "")];
    for (architecture, variant) in arm {
        let fields =
            format!(r#""os":"linux","architecture":"{architecture}","variant":"{variant}""#);
        let app = image(&bench, &format!("{{{fields},{ROOT}}}"));
        bench.publish(&[app.descriptor("")]);
        for wanted in ["linux/arm64", "linux/arm64/v8", "linux/aarch64", "Linux/ARM64/"] {
            bench.layout().resolve(None, &wanted.parse().unwrap()).unwrap();
        }
        assert!(refusal(&bench, None).starts_with("no image for platform `linux/amd64`"));
    }
}

#[test]
fn image_without_an_architecture_yields_to_one_that_has_it() {
    let bench = Bench::new();
    let vague = image(&bench, &format!("{{{ROOT}}}"));
    let app = bench.image("linux/amd64", &[]);
    bench.publish(&[vague.descriptor(""), app.descriptor("")]);
    assert_eq!(resolved(&bench, None).manifest_digest, app.digest);
    bench.publish(&[vague.descriptor("")]);
    assert_eq!(resolved(&bench, None).platform, amd64());
}

#[test]
fn index_json_can_be_the_list_of_docker() {
    let bench = Bench::new();
    let entry = bench.image("linux/amd64", &[]).descriptor("");
    let docker = "application/vnd.docker.distribution.manifest.list.v2+json";
    let text = format!(r#"{{"schemaVersion":2,"mediaType":"{docker}","manifests":[{entry}]}}"#);
    fs::write(bench.path("layout/index.json"), text).unwrap();
    resolved(&bench, None);
}

#[test]
fn error_names_the_symbolic_link_and_the_remedy() {
    let remedy =
        "is a symbolic link, and links in a layout are not followed: copy the layout with `cp -rL`";
    let bench = Bench::new();
    let app = bench.image("linux/amd64", &[]);
    bench.publish(&[app.descriptor("")]);
    // The link is the blob, the directory of the algorithm, or the directory of all blobs.
    let blob = format!("blobs/sha256/{}", app.digest.hex());
    for link in [blob.as_str(), "blobs/sha256", "blobs"] {
        let path = bench.path("layout").join(link);
        let target = bench.path("elsewhere");
        fs::rename(&path, &target).unwrap();
        symlink(&target, &path).unwrap();
        let text = refusal(&bench, None);
        assert!(text.ends_with(&format!("cannot be read: `{link}` {remedy}")), "{text}");
        fs::remove_file(&path).unwrap();
        fs::rename(&target, &path).unwrap();
    }
    let index = bench.path("layout/index.json");
    fs::rename(&index, bench.path("layout/moved")).unwrap();
    symlink("moved", &index).unwrap();
    let expected = format!("`{}` {remedy}", index.display());
    assert_eq!(refusal(&bench, None), expected);
}
