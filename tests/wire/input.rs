//! Refused configs, and the flags for people.

use std::process::Output;

use crate::harness::{config, parse, run_shim};

/// Returns the code and the first cause of the error. Panics unless only `box.stopped` follows it.
fn error_of(output: &Output) -> (String, String) {
    assert_eq!(output.status.code(), Some(125));
    let events = parse(std::str::from_utf8(&output.stdout).unwrap());
    assert_eq!(events.len(), 2, "the events are {events:?}");
    assert_eq!(events[1]["type"], "box.stopped");
    (
        events[0]["code"].as_str().unwrap().to_owned(),
        events[0]["causes"][0].as_str().unwrap().to_owned(),
    )
}

#[test]
fn invalid_config_is_refused_with_the_place_of_the_error() {
    // The limit is 4 MiB.
    let too_long = vec![b' '; 5 * 1024 * 1024];
    let cases: [(&[u8], &str, &str); 4] = [
        (b"", "config_invalid", "config is not valid JSON at line 1"),
        (b"\xff\xfe", "config_invalid", "config is not valid JSON"),
        (&too_long, "config_invalid", "config is longer than 4194304 bytes"),
        (br#"{"resources":{"vcpu":2}}"#, "config_invalid", "resources.vcpu: unknown field"),
    ];
    for (json, code, cause) in cases {
        let found = error_of(&run_shim(&[], json));
        assert_eq!(found.0, code);
        assert!(found.1.starts_with(cause), "found {found:?}");
    }
}

#[test]
fn configs_in_the_readme_are_valid() {
    let readme =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let examples: Vec<&str> =
        readme.split("```json\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert!(!examples.is_empty(), "the README has no example");
    for example in examples {
        let output = run_shim(&["--check"], example.as_bytes());
        assert_eq!(output.status.code(), Some(0), "{example}\n{output:?}");
    }
}

#[test]
fn check_validates_the_config_without_side_effects() {
    let directory = tempfile::tempdir().unwrap();
    let config = config(directory.path(), &["never", "played"]).to_string();
    let output = run_shim(&["--check"], config.as_bytes());
    assert_eq!((output.status.code(), output.stdout.len()), (Some(0), 0));
    assert_eq!(
        std::fs::read_dir(directory.path()).unwrap().count(),
        0,
        "`--check` must not create a file"
    );
}

#[test]
fn prepare_mounts_the_root_and_removes_it_again() {
    let directory = tempfile::tempdir().unwrap();
    let config = config(directory.path(), &["never", "played"]).to_string();
    let output = run_shim(&["--prepare"], config.as_bytes());
    assert_eq!(output.status.code(), Some(0), "the shim ended with {output:?}");
    let events = parse(std::str::from_utf8(&output.stdout).unwrap());
    let types: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(types, ["shim.started", "rootfs.ready", "prepare.done"]);
    assert!(!directory.path().join("s/golden").exists());
}

#[test]
fn printed_schema_equals_the_checked_in_schema() {
    let output = run_shim(&["--print-schema"], b"");
    let printed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/shim-protocol/schema/box-config.json");
    let checked_in: serde_json::Value =
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert_eq!(printed, checked_in);
}

#[test]
fn version_and_help_are_printed_and_unknown_arguments_are_refused() {
    assert!(run_shim(&["--version"], b"").stdout.starts_with(b"a3s-box-shim 0."));
    assert!(run_shim(&["--help"], b"").stdout.starts_with(b"usage: "));
    let output = run_shim(&["--nonsense"], b"");
    assert_eq!(output.status.code(), Some(125));
    assert!(String::from_utf8(output.stderr).unwrap().contains("unknown argument `--nonsense`"));
}
