//! The workload's end is the shim's.

use serde_json::json;

use a3s_box_vm_tests::Shim;

fn shell(script: &str) -> Shim {
    Shim::start(&json!({"args": ["/bin/sh", "-c", script]}))
}

#[test]
fn exit_codes_come_through() {
    for code in [0, 1, 7, 255] {
        shell(&format!("exit {code}")).ends_with(code, "exited", None);
    }
}

#[test]
fn death_by_signal_is_128_and_the_signal() {
    let mut shim = shell("kill -9 $$");
    shim.ends_with(137, "exited", None);
    assert_eq!(shim.events.last().unwrap()["signal"], 9);
}

#[test]
fn a_missing_program_is_127() {
    Shim::start(&json!({"entrypoint": ["/no/such"]})).ends_with(
        127,
        "failed",
        Some("workload_not_found"),
    );
}

#[test]
fn a_file_that_is_no_program_is_126() {
    Shim::start(&json!({"entrypoint": ["/etc/passwd"]})).ends_with(
        126,
        "failed",
        Some("workload_not_executable"),
    );
}

#[test]
fn an_unknown_user_is_125_and_says_so() {
    let mut shim = Shim::start(&json!({"entrypoint": ["/bin/true"], "user": "nobody-here"}));
    shim.ends_with(125, "failed", Some("workload_setup"));
}

#[test]
fn a_bad_config_is_125_before_any_side_effect() {
    let mut shim =
        Shim::start_with(&json!({}), |config| config["resources"] = json!({"vcpus": 17}));
    shim.ends_with(125, "failed", Some("config_invalid"));
    assert!(!shim.state().exists());
}

#[test]
fn the_image_of_the_demo_says_that_its_layers_were_put_together_right() {
    let mut shim = Shim::start(&json!({}));
    shim.ends_with(0, "exited", None);
    assert!(!shim.console().is_empty());
}

#[test]
fn a_timeout_is_124() {
    let mut shim = Shim::start_with(&json!({"args": ["sleep", "1000"]}), |config| {
        config["resources"] = json!({"timeout_ms": 15_000});
    });
    shim.ends_with(124, "timeout", None);
}
