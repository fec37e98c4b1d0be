//! The confinement of the unpacker, and its death.

use std::fs;
use std::path::Path;
use std::process::Output;

use serde_json::{Value, json};

use crate::harness::{config, parse, shim};
use crate::image::image;

/// Makes an image, and the config of a box with it.
fn make(directory: &Path) {
    let mut config = config(directory, &["hang"]);
    config["image"] = image(directory, "echo lower >of-the-image");
    fs::write(directory.join("config.json"), config.to_string()).unwrap();
}

/// Runs `--prepare`. The unpacker makes this act when it is confined (`late`) or before (`early`).
fn prepare(directory: &Path, act: &str) -> Output {
    let config = directory.join("config.json");
    let mut command = shim();
    command.arg("--prepare").arg("--config").arg(config).env("A3S_BOX_FAKE_UNPACKER", act);
    command.output().unwrap()
}

/// Returns the error event of a run.
fn error(output: &Output) -> Value {
    let events = parse(std::str::from_utf8(&output.stdout).unwrap());
    events.into_iter().find(|event| event["type"] == "error").unwrap()
}

#[test]
fn unpacker_that_a_layer_has_taken_over_reaches_only_the_layout_and_the_cache() {
    // What the unpacker may not do, and whether Landlock refuses it. The filter of system calls
    // kills the unpacker at the others.
    for (act, place, is_refused) in [
        ("read", "/etc/passwd", true),
        ("write", "outside", true),
        ("socket", "0.0.0.0:0", false),
        ("run", "/bin/true", false),
        ("signal", "", false),
        ("mount", "", false),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let place = match act {
            "write" => directory.path().join(place).display().to_string(),
            _ => place.to_owned(),
        };
        make(directory.path());
        let early = prepare(directory.path(), &format!("early {act} {place}"));
        let log = String::from_utf8_lossy(&early.stderr).into_owned();
        assert!(early.status.success(), "{act}: {early:?}");
        assert!(log.contains(&format!("fake unpacker: {act}: Ok(")), "{act}: {log}");

        let directory = tempfile::tempdir().unwrap();
        make(directory.path());
        let late = prepare(directory.path(), &format!("late {act} {place}"));
        let log = String::from_utf8_lossy(&late.stderr).into_owned();
        if is_refused {
            let refused = format!("fake unpacker: {act}: Err(Os {{ code: 13");
            assert!(late.status.success() && log.contains(&refused), "{act}: {log}");
        } else {
            assert!(!log.contains("fake unpacker"), "{act}: {log}");
            let error = error(&late);
            assert_eq!(error["code"], "layer_invalid", "{act}: {error}");
            assert!(error["causes"][0].as_str().unwrap().contains("system call"), "{error}");
        }
    }
}

#[test]
fn unpacker_that_dies_is_an_error_and_the_next_start_works() {
    let directory = tempfile::tempdir().unwrap();
    make(directory.path());
    let output = prepare(directory.path(), "late abort");
    let error = error(&output);
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    assert_eq!(error["code"], "rootfs_failed", "{error}");
    let cause = "the unpacker has ended without a result (signal: 6 (SIGABRT))";
    assert_eq!(error["causes"], json!([cause]), "{error}");
    let output = prepare(directory.path(), "");
    assert!(output.status.success(), "{output:?}");
}
