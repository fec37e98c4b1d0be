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

/// Returns the path of a file in the cached layers, if one of them has it.
fn cached(directory: &Path, name: &str) -> Option<PathBuf> {
    let ready = fs::read_dir(directory.join("c/layers-v3/ready")).unwrap();
    ready.map(|entry| entry.unwrap().path().join("tree").join(name)).find(|path| path.exists())
}

/// Puts an image of one layer into the cache, and returns the config.
fn prepared_config(directory: &Path) -> Value {
    let mut config = config(directory, &["never", "played"]);
    config["image"] = image(directory, "echo content >file");
    let (output, _) = run_mode("--prepare", &config);
    assert_eq!(output.status.code(), Some(0), "the shim ended with {output:?}");
    config
}

#[test]
fn gc_removes_layers_beyond_the_limits_of_the_config() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = prepared_config(directory.path());
    let (_, events) = run_mode("--gc", &config);
    assert_eq!((&events[1]["type"], &events[1]["removed"]), (&json!("cache.collected"), &json!(0)));
    assert!(cached(directory.path(), "file").is_some());
    config["cache"] = json!({"max_mib": 0});
    let (output, events) = run_mode("--gc", &config);
    assert_eq!((output.status.code(), events.len()), (Some(0), 2));
    assert_eq!((&events[1]["removed"], &events[1]["kept"]), (&json!(1), &json!(0)));
    assert_eq!(cached(directory.path(), "file"), None);
    // A start that adds layers also collects the cache. It must succeed, since the box uses its
    // layers.
    config["cache"] = json!({"max_mib": 0, "max_age_hours": 1});
    let (output, _) = run_mode("--prepare", &config);
    assert_eq!(output.status.code(), Some(0), "the shim ended with {output:?}");
}

#[test]
fn verify_rebuilds_a_changed_layer_and_requires_an_image() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = prepared_config(directory.path());
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
    assert_eq!(cached(directory.path(), "file"), None);
    config["image"]["limits"] = json!({"unpacked_mib": 4});
    let (output, _) = run_mode("--prepare", &config);
    assert_eq!(output.status.code(), Some(0), "the shim ended with {output:?}");
    assert!(cached(directory.path(), "file").is_some());
}
