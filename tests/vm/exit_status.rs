//! The exit status of the shim is the status of its workload, or names the failure.

use serde_json::json;

use a3s_box_vm_tests::Shim;

fn shell(script: &str) -> Shim {
    Shim::start(&json!({"args": ["/bin/sh", "-c", script]}))
}

#[test]
fn exit_codes_of_the_workload_become_those_of_the_shim() {
    for code in [0, 1, 7, 255] {
        shell(&format!("exit {code}")).ends_with(code, "exited", None);
    }
}

#[test]
fn a_workload_killed_by_a_signal_exits_with_128_plus_its_number() {
    let mut shim = shell("kill -9 $$");
    shim.ends_with(137, "exited", None);
    assert_eq!(shim.events.last().unwrap()["signal"], 9);
}

#[test]
fn a_missing_executable_exits_with_127() {
    Shim::start(&json!({"entrypoint": ["/no/such"]})).ends_with(
        127,
        "failed",
        Some("workload_not_found"),
    );
}

#[test]
fn a_file_that_is_not_executable_exits_with_126() {
    Shim::start(&json!({"entrypoint": ["/etc/passwd"]})).ends_with(
        126,
        "failed",
        Some("workload_not_executable"),
    );
}

#[test]
fn an_unknown_user_exits_with_125_and_a_setup_error() {
    let mut shim = Shim::start(&json!({"entrypoint": ["/bin/true"], "user": "nobody-here"}));
    shim.ends_with(125, "failed", Some("workload_setup"));
}

#[test]
fn an_invalid_config_exits_with_125_and_makes_no_box_directory() {
    let mut shim =
        Shim::start_with(&json!({}), |config| config["resources"] = json!({"vcpus": 17}));
    shim.ends_with(125, "failed", Some("config_invalid"));
    assert!(!shim.state().exists());
}

#[test]
fn the_image_of_the_demo_finds_its_layers_stacked_correctly() {
    // The workload of the image checks its own root and fails if a file is wrong.
    let mut shim = Shim::start(&json!({}));
    shim.ends_with(0, "exited", None);
    assert!(!shim.console().is_empty());
}

#[test]
fn a_timeout_exits_with_124() {
    let mut shim = Shim::start_with(&json!({"args": ["sleep", "1000"]}), |config| {
        config["resources"] = json!({"timeout_ms": 15_000});
    });
    shim.ends_with(124, "timeout", None);
}
