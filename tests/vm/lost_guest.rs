//! A guest that vanishes without a report of its workload's end.
//!
//! The shim must report `guest_lost` in bounded time. libkrun's own exit code would be 0 in several
//! of these cases.

use serde_json::json;

use a3s_box_vm_tests::Shim;

fn root_shell(script: &str) -> Shim {
    Shim::start(&json!({"args": ["/bin/sh", "-c", script]}))
}

#[test]
fn a_reset_is_reported_as_a_lost_guest() {
    root_shell("reboot -f").ends_with(125, "failed", Some("guest_lost"));
}

#[test]
fn a_power_off_on_which_libkrun_hangs_ends_in_bounded_time() {
    root_shell("poweroff -f").ends_with(125, "failed", Some("guest_lost"));
}

#[test]
fn a_panic_of_the_guest_kernel_is_reported_as_a_lost_guest() {
    // dd fills one buffer that is larger than the memory, so the guest kernel runs out of memory.
    let script = "cd /proc/sys/vm; echo 2 > panic_on_oom; echo 1 > overcommit_memory; \
        dd if=/dev/zero of=/dev/null bs=256M count=1";
    let mut shim = Shim::start_with(&json!({"args": ["/bin/sh", "-c", script]}), |config| {
        config["resources"] = json!({"memory_mib": 128});
    });
    shim.ends_with(125, "failed", Some("guest_lost"));
}

#[test]
fn a_guest_that_destroys_its_pid_1_is_reported_as_lost() {
    // Root can write to the memory of any process. This overwrites the code of PID 1 with zeros.
    let script = "IFS=- read -r start end < /proc/1/maps; code=$(grep r-xp /proc/1/maps | head -n 1); \
        dd if=/dev/zero of=/proc/1/mem bs=4096 count=100 conv=notrunc seek=$((0x${code%%-*} / 4096)); sleep 60; exit 0";
    root_shell(script).ends_with(125, "failed", Some("guest_lost"));
}

#[test]
fn sigkill_to_pid_1_inside_the_guest_has_no_effect() {
    // The kernel drops a SIGKILL to PID 1 from a process of the same PID namespace.
    root_shell("kill -9 1; exit 5").ends_with(5, "exited", None);
}
