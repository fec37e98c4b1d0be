//! `--gc` and `--verify`: people or timers use them to collect and to verify the layer cache.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::{Value, json};

use crate::harness::{config, parse, run_shim};
use crate::image::image;

/// Runs the shim in a mode, such as `--gc`. Returns its output and its events.
fn run_mode(mode: &str, config: &Value) -> (Output, Vec<Value>) {
    let output = run_shim(&[mode], config.to_string().as_bytes());
    let events = parse(std::str::from_utf8(&output.stdout).unwrap());
    (output, events)
}

/// Returns the directories of everything that is ready in the cache.
fn ready(directory: &Path) -> Vec<PathBuf> {
    let ready = fs::read_dir(directory.join("c/layers-v5/ready")).unwrap();
    ready.map(|entry| entry.unwrap().path()).collect()
}

/// Returns the path of a file in the cached trees, if one of them has it.
fn cached(directory: &Path, name: &str) -> Option<PathBuf> {
    ready(directory).into_iter().map(|path| path.join("tree").join(name)).find(|path| path.exists())
}

/// Puts an image of one layer into the cache, for a root of `kind`, and returns the config.
fn prepared_config(directory: &Path, kind: &str) -> Value {
    let mut config = config(directory, &["never", "played"]);
    config["root"] = json!({"kind": kind});
    config["image"] = image(directory, "echo content >file");
    let (output, _) = run_mode("--prepare", &config);
    assert_eq!(output.status.code(), Some(0), "the shim ended with {output:?}");
    config
}

#[test]
fn gc_removes_layers_beyond_the_limits_of_the_config() {
    // A block root has a layer file and a metadata image.
    for (kind, count) in [("shared", 1), ("block", 2)] {
        let directory = tempfile::tempdir().unwrap();
        let mut config = prepared_config(directory.path(), kind);
        let (_, events) = run_mode("--gc", &config);
        let found = (&events[1]["type"], &events[1]["removed"], &events[1]["kept"]);
        assert_eq!(found, (&json!("cache.collected"), &json!(0), &json!(count)));
        assert_eq!(ready(directory.path()).len(), count);
        config["cache"] = json!({"max_mib": 0});
        let (output, events) = run_mode("--gc", &config);
        assert_eq!((output.status.code(), events.len()), (Some(0), 2));
        assert_eq!((&events[1]["removed"], &events[1]["kept"]), (&json!(count), &json!(0)));
        assert!(ready(directory.path()).is_empty());
        // A start that adds layers also collects the cache. It must succeed, since the box uses
        // its layers.
        config["cache"] = json!({"max_mib": 0, "max_age_hours": 1});
        let (output, _) = run_mode("--prepare", &config);
        assert_eq!(output.status.code(), Some(0), "the shim ended with {output:?}");
    }
}

#[test]
fn verify_rebuilds_a_changed_layer_and_requires_an_image() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = prepared_config(directory.path(), "shared");
    let file = cached(directory.path(), "file").unwrap();
    // The layer has the mode 0644, so the cached file now differs from it.
    fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    let (output, events) = run_mode("--verify", &config);
    assert_eq!(output.status.code(), Some(0), "the shim ended with {output:?}");
    let rebuilt = &events[1]["rebuilt"];
    assert_eq!(
        (&rebuilt[0]["path"], &rebuilt[0]["what"]),
        (&json!("file"), &json!("type or mode"))
    );
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o644);
    let (_, events) = run_mode("--verify", &config);
    assert_eq!((&events[1]["intact"], &events[1]["rebuilt"]), (&json!(1), &json!([])));
    config.as_object_mut().unwrap().remove("image");
    let (output, events) = run_mode("--verify", &config);
    assert_eq!(output.status.code(), Some(125));
    assert_eq!(events[1]["code"], "config_invalid");
    assert!(
        events[1]["causes"][0].as_str().unwrap().starts_with("image: found nothing"),
        "the events are {events:?}"
    );
}

#[test]
fn verify_rebuilds_the_changed_files_of_a_block_root() {
    let directory = tempfile::tempdir().unwrap();
    let config = prepared_config(directory.path(), "block");
    // The first byte of a layer file is content of `file`. The metadata image begins with 1024
    // bytes that EROFS does not use, and its inodes follow in the second block.
    for (name, offset, path) in [("layer", 0, "file"), ("root.erofs", 4096 + 40, "")] {
        let found = ready(directory.path()).into_iter().map(|path| path.join(name));
        let file = found.clone().find(|path| path.exists()).unwrap();
        let before = fs::read(&file).unwrap();
        let mut damaged = before.clone();
        damaged[offset] ^= 1;
        fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
        fs::write(&file, damaged).unwrap();
        let (output, events) = run_mode("--verify", &config);
        assert_eq!(output.status.code(), Some(0), "{events:?}");
        let rebuilt = events[1]["rebuilt"].as_array().unwrap();
        assert_eq!(rebuilt.len(), 1, "{events:?}");
        assert!(path.is_empty() || rebuilt[0]["path"] == path, "{events:?}");
        assert_eq!(fs::read(&file).unwrap(), before, "{name}");
        let (_, events) = run_mode("--verify", &config);
        assert_eq!(events[1]["rebuilt"], json!([]), "{events:?}");
    }
}

#[test]
fn layer_above_a_limit_of_the_config_is_refused_with_a_hint() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = config(directory.path(), &["never", "played"]);
    config["image"] = image(directory.path(), "head -c 3M /dev/urandom >file");
    config["image"]["limits"] = json!({"unpacked_mib": 1});
    let (output, events) = run_mode("--prepare", &config);
    assert_eq!(output.status.code(), Some(125), "the shim ended with {output:?}");
    let error = events.iter().find(|event| event["type"] == "error").unwrap();
    assert_eq!(error["code"], "layer_invalid");
    let text = error["causes"].to_string();
    assert!(text.contains("limit on unpacked bytes: expected at most 1048576"), "{text}");
    assert_eq!(error["hint"], "if the image is trusted, raise the limit in `image.limits`");
    assert!(ready(directory.path()).is_empty());
    config["image"]["limits"] = json!({"unpacked_mib": 4});
    let (output, _) = run_mode("--prepare", &config);
    assert_eq!(output.status.code(), Some(0), "the shim ended with {output:?}");
}
