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
fn a_panic_of_the_guests_kernel_is_no_success() {
    // One buffer that is larger than the memory, and all of it written to.
    let script = "cd /proc/sys/vm; echo 2 > panic_on_oom; echo 1 > overcommit_memory; \
        dd if=/dev/zero of=/dev/null bs=256M count=1";
    let mut shim = Shim::start_with(&json!({"args": ["/bin/sh", "-c", script]}), |config| {
        config["resources"] = json!({"memory_mib": 128});
    });
    shim.ends_with(125, "failed", Some("guest_lost"));
}

#[test]
fn a_guest_that_destroys_its_pid_1_is_no_success() {
    // Root may write to the memory of any process: the code of PID 1 becomes zeros.
    let script = "IFS=- read -r start end < /proc/1/maps; code=$(grep r-xp /proc/1/maps | head -n 1); \
        dd if=/dev/zero of=/proc/1/mem bs=4096 count=100 conv=notrunc seek=$((0x${code%%-*} / 4096)); sleep 60; exit 0";
    root_shell(script).ends_with(125, "failed", Some("guest_lost"));
}

#[test]
fn killing_pid_1_from_inside_does_nothing() {
    root_shell("kill -9 1; exit 5").ends_with(5, "exited", None);
}
