//! `--gc` and `--verify`: the layer cache, cleared up and verified by hand or by a timer.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::{Value, json};

use crate::harness::{config, parse, run_shim};
use crate::image::image;

/// Runs the shim in a mode; what it says is the events but the first.
fn says(mode: &str, config: &Value) -> (Output, Vec<Value>) {
    let output = run_shim(&[mode], config.to_string().as_bytes());
    let events = parse(std::str::from_utf8(&output.stdout).unwrap());
    (output, events)
}

/// Finds what the only layer in the cache has.
fn cached(directory: &Path, name: &str) -> Option<PathBuf> {
    let ready = fs::read_dir(directory.join("c/layers-v2/ready")).unwrap();
    ready.map(|entry| entry.unwrap().path().join("tree").join(name)).find(|path| path.exists())
}

fn prepared(directory: &Path) -> Value {
    let mut config = config(directory, &["never", "played"]);
    config["image"] = image(directory, "echo content >file");
    let (output, _) = says("--prepare", &config);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    config
}

#[test]
fn gc_keeps_to_the_configs_limits() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = prepared(directory.path());
    let (_, events) = says("--gc", &config);
    assert_eq!((&events[1]["type"], &events[1]["removed"]), (&json!("cache.collected"), &json!(0)));
    assert!(cached(directory.path(), "file").is_some());
    config["cache"] = json!({"max_mib": 0});
    let (output, events) = says("--gc", &config);
    assert_eq!((output.status.code(), events.len()), (Some(0), 2));
    assert_eq!((&events[1]["removed"], &events[1]["kept"]), (&json!(1), &json!(0)));
    assert_eq!(cached(directory.path(), "file"), None);
    // A start keeps to them as well, once it is over.
    config["cache"] = json!({"max_mib": 0, "max_age_hours": 1});
    let (output, _) = says("--prepare", &config);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

#[test]
fn verify_mends_what_was_changed_and_needs_an_image() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = prepared(directory.path());
    let file = cached(directory.path(), "file").unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    let (output, events) = says("--verify", &config);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let rebuilt = &events[1]["rebuilt"];
    assert_eq!(
        (&rebuilt[0]["path"], &rebuilt[0]["what"]),
        (&json!("file"), &json!("type or mode"))
    );
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o644);
    let (_, events) = says("--verify", &config);
    assert_eq!((&events[1]["intact"], &events[1]["rebuilt"]), (&json!(1), &json!([])));
    config.as_object_mut().unwrap().remove("image");
    let (output, events) = says("--verify", &config);
    assert_eq!(output.status.code(), Some(125));
    assert_eq!(events[1]["code"], "config_invalid");
    assert!(
        events[1]["causes"][0].as_str().unwrap().starts_with("image: found nothing"),
        "{events:?}"
    );
}
