//! The event `image.resolved`: it reports what the box will run before the shim unpacks a layer.
//!
//! It contains the names of environment variables but not their values, which can be secrets.

use std::fs;
use std::path::{Path, PathBuf};

use a3s_box_oci::Digest;
use serde_json::{Value, json};

use crate::harness::start;

/// An empty tar archive, which consists of two blocks of zeros.
const ARCHIVE: [u8; 1024] = [0; 1024];

/// Writes an OCI image layout with one image of one layer, and returns its path.
///
/// `config` is the `config` of the image's configuration.
fn layout(directory: &Path, config: &Value) -> PathBuf {
    let blob = |media_type: &str, bytes: &[u8]| {
        let digest = Digest::of(bytes);
        fs::write(directory.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
        json!({
            "mediaType": format!("application/vnd.oci.image.{media_type}"),
            "digest": digest.to_string(),
            "size": bytes.len(),
        })
    };
    fs::create_dir_all(directory.join("blobs/sha256")).unwrap();
    let document = json!({
        "os": "linux",
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "rootfs": {"type": "layers", "diff_ids": [Digest::of(&ARCHIVE).to_string()]},
        "config": config,
    });
    let config = blob("config.v1+json", document.to_string().as_bytes());
    let layers = [blob("layer.v1.tar", &ARCHIVE)];
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers});
    let mut entry = blob("manifest.v1+json", manifest.to_string().as_bytes());
    entry["annotations"] = json!({"org.opencontainers.image.ref.name": "app:1"});
    let index = json!({"schemaVersion": 2, "manifests": [entry]});
    fs::write(directory.join("index.json"), index.to_string()).unwrap();
    fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    directory.to_owned()
}

#[test]
fn reports_image_and_config_merged_before_a_layer_is_unpacked() {
    let directory = tempfile::tempdir().unwrap();
    let image_config = json!({
        // The fake guest plays the command line, so its beginning must be valid steps.
        "Entrypoint": ["connect", "hello"],
        "Cmd": ["never-played"],
        "Env": ["A=hunter2", "B=hunter2"],
        "WorkingDir": "/srv",
        "User": "7:8",
        "StopSignal": "QUIT",
        "Volumes": {"/var/lib/b": {}, "/a": {}},
        "ExposedPorts": {"80/tcp": {}},
        "Healthcheck": {"Test": ["CMD", "true"], "Interval": 5_000_000_000_u64, "Retries": 2},
    });
    let layout = layout(directory.path(), &image_config);
    let script = ["started=7", "exited=3", "drained", "wait-ack", "exit=0"];
    let run = start(&script, |config| {
        config["image"] = json!({"layout": layout, "reference": "app:1"});
        config["process"]["env"] = json!({"B": "hunter3", "C": "hunter3"});
        config["process"]["cwd"] = json!("/tmp");
    })
    .wait();
    assert_eq!(run.ending(), (Some(3), "exited", None), "the log is: {}", run.stderr);
    let types: Vec<&str> =
        run.events.iter().map(|event| event["type"].as_str().unwrap()).take(3).collect();
    assert_eq!(types, ["shim.started", "image.resolved", "rootfs.progress"]);
    let event = &run.events[1];
    let ready = run.events.iter().find(|event| event["type"] == "rootfs.ready").unwrap();
    assert_eq!((&event["image"], &event["layers"]), (&ready["image"], &ready["layers"]));
    assert_eq!((&event["reference"], &event["image_bytes_total"]), (&json!("app:1"), &json!(1024)));
    assert!(event["platform"].as_str().unwrap().starts_with("linux/"), "the event is {event}");
    let expected = json!({
        "entrypoint": ["connect", "hello"],
        "args": script,
        "env": ["A", "B", "C", "PATH"],
        "cwd": "/tmp",
        "user": "7:8",
        "stop_signal": "SIGQUIT",
        "healthcheck": {"test": ["CMD", "true"], "interval_ms": 5000, "retries": 2},
        "volumes": ["/a", "/var/lib/b"],
        "exposed_ports": ["80/tcp"],
        "truncated": false,
    });
    assert_eq!(event["run"], expected);
    for output in [&run.stdout, &run.stderr] {
        assert!(!output.contains("hunter"), "the value of a variable is in: {output}");
    }
}

#[test]
fn reports_defaults_for_an_image_with_an_empty_config() {
    let directory = tempfile::tempdir().unwrap();
    let layout = layout(directory.path(), &Value::Null);
    let script = ["connect", "hello", "started=7", "exited=0", "drained", "wait-ack", "exit=0"];
    let run = start(&script, |config| config["image"] = json!({"layout": layout})).wait();
    assert_eq!(run.ending(), (Some(0), "exited", None), "the log is: {}", run.stderr);
    let event = &run.events[1];
    assert_eq!((&event["type"], &event["reference"]), (&json!("image.resolved"), &Value::Null));
    let expected = json!({
        "entrypoint": [], "args": script, "env": ["PATH"], "cwd": "/", "user": "",
        "stop_signal": "SIGTERM", "volumes": [], "exposed_ports": [], "truncated": false,
    });
    assert_eq!(event["run"], expected);
}
