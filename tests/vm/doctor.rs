//! `--doctor` on a host where boxes run.

use std::process::Command;

use a3s_box_vm_tests::variable;
use serde_json::Value;

#[test]
fn doctor_finds_no_problem_on_a_host_where_boxes_run_and_boots_a_box() {
    let output = Command::new(variable("A3S_BOX_SHIM"))
        .args(["--doctor", "--json"])
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let status = |name: &str| {
        let checks = report["checks"].as_array().unwrap();
        let check = checks.iter().find(|check| check["name"] == name);
        check.unwrap_or_else(|| panic!("{name}: {report:#}"))["status"].as_str().unwrap().to_owned()
    };
    for name in [
        "kvm",
        "libkrunfw",
        "root_kind",
        "guest_program",
        "namespaces",
        "overlayfs",
        "landlock",
        "seccomp",
        "boot",
    ] {
        assert_eq!(status(name), "ok", "{name}: {report:#}");
    }
    // Status 1 means that the host lacks something that is optional for boxes.
    assert!(matches!(output.status.code(), Some(0 | 1)), "{:?} {report:#}", output.status);
}
