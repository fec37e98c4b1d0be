//! A guest that vanishes: a failure with a name, in bounded time, and never a success.

use serde_json::json;

use a3s_box_vm_tests::Shim;

fn root_shell(script: &str) -> Shim {
    Shim::start(&json!({"args": ["/bin/sh", "-c", script]}))
}

#[test]
fn a_reset_is_no_success() {
    root_shell("reboot -f").ends_with(125, "failed", Some("guest_lost"));
}

#[test]
fn a_power_off_which_libkrun_waits_for_for_ever_ends_in_bounded_time() {
    root_shell("poweroff -f").ends_with(125, "failed", Some("guest_lost"));
}

#[test]
fn killing_pid_1_from_inside_does_nothing() {
    root_shell("kill -9 1; exit 5").ends_with(5, "exited", None);
}
