//! The event `image.resolved`: it reports what the box will run before the shim unpacks a layer.
//!
//! It contains the names of environment variables but not their values, which can be secrets.
//! Images whose documents are odd, but run in container engines, are here as well.

use std::fs;
use std::path::{Path, PathBuf};

use a3s_box_oci::Digest;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::faults::send;
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

/// Script of a guest whose workload is killed by the signal that the stop message has.
const OBEYS: [&str; 7] =
    ["connect", "hello", "started=7", "obey-stop", "drained", "wait-ack", "exit=0"];

#[test]
fn stop_signal_is_read_in_each_spelling_and_can_be_a_real_time_signal() {
    // The image's signal, the config's, the full name, and the number in the guest.
    for (of_image, of_config, name, number) in [
        ("SIGRTMIN+3", None, "SIGRTMIN+3", 37),
        ("37", None, "SIGRTMIN+3", 37),
        ("sigquit", None, "SIGQUIT", 3),
        ("QUIT", Some("rtmax-2"), "SIGRTMAX-2", 62),
        ("SIGMAYBE", Some("int"), "SIGINT", 2),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let layout = layout(directory.path(), &json!({"StopSignal": of_image}));
        let running = start(&OBEYS, |config| {
            config["image"] = json!({"layout": layout});
            config["stop"]["signal"] = json!(of_config);
        });
        std::thread::sleep(std::time::Duration::from_millis(1000));
        send(&running, Signal::SIGTERM);
        let run = running.wait();
        let event = |kind: &str| run.events.iter().find(|event| event["type"] == kind).unwrap();
        assert_eq!(event("image.resolved")["run"]["stop_signal"], name, "{}", run.stdout);
        assert_eq!(event("stop.requested")["signal"], name, "{}", run.stdout);
        assert_eq!(event("guest.exited")["signal"], number, "{}", run.stdout);
        assert_eq!(run.ending(), (Some(128 + number), "stopped", None), "{}", run.stdout);
    }
}

#[test]
fn unknown_stop_signal_of_an_image_is_refused_unless_the_config_has_one() {
    let directory = tempfile::tempdir().unwrap();
    let layout = layout(directory.path(), &json!({"StopSignal": "SIGMAYBE"}));
    let run = start(&OBEYS, |config| config["image"] = json!({"layout": layout})).wait();
    assert_eq!(run.ending(), (Some(125), "failed", Some("image_invalid")), "{}", run.stdout);
}

#[test]
fn entrypoint_of_one_empty_word_leaves_the_command_alone() {
    let script = ["connect", "hello", "started=7", "exited=0", "drained", "wait-ack", "exit=0"];
    let directory = tempfile::tempdir().unwrap();
    let layout = layout(directory.path(), &json!({"Entrypoint": [""], "Cmd": script}));
    // The fake guest would refuse an empty step.
    let run = start(&[], |config| {
        config["image"] = json!({"layout": layout});
        config["process"]["args"] = json!([]);
    })
    .wait();
    assert_eq!(run.ending(), (Some(0), "exited", None), "the log is: {}", run.stderr);
    assert_eq!(run.events[1]["run"]["entrypoint"], json!([]));
    assert_eq!(run.events[1]["run"]["args"], json!(script));
}

#[test]
fn image_config_of_nulls_runs_the_command_of_the_config() {
    let script = ["connect", "hello", "started=7", "exited=0", "drained", "wait-ack", "exit=0"];
    let directory = tempfile::tempdir().unwrap();
    let config = json!({
        "Entrypoint": null, "Cmd": null, "Env": ["HUNTER", null, "A=1"], "User": null,
        "Volumes": {"/data": null}, "ExposedPorts": {"80/tcp": null}, "Labels": {"a": null},
        "StopSignal": null, "Healthcheck": null,
    });
    let layout = layout(directory.path(), &config);
    let run = start(&script, |config| config["image"] = json!({"layout": layout})).wait();
    assert_eq!(run.ending(), (Some(0), "exited", None), "the log is: {}", run.stderr);
    let expected = json!({
        "entrypoint": [], "args": script, "env": ["A", "PATH"], "cwd": "/", "user": "",
        "stop_signal": "SIGTERM", "volumes": ["/data"], "exposed_ports": ["80/tcp"],
        "truncated": false,
    });
    assert_eq!(run.events[1]["run"], expected);
}
