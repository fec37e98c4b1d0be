//! The agent-only box, and the size of the guest program.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use a3s_box_vm_tests::{Shim, variable};

#[test]
fn a_box_without_image_and_workload_becomes_ready_and_runs_until_its_stop() {
    let mut shim = Shim::start_with(&json!({}), |config| {
        config.as_object_mut().unwrap().remove("image");
    });
    let ready = shim.wait_for("agent.ready");
    assert!(ready["phases"]["total_ms"].as_u64().unwrap() > 0);
    let changed = shim.wait_for("state.changed");
    assert_eq!((&changed["from"], &changed["to"]), (&json!("created"), &json!("ready")));
    kill(Pid::from_raw(shim.child.id().cast_signed()), Signal::SIGTERM).unwrap();
    shim.ends_with(0, "stopped", None);
}

#[test]
fn the_guest_program_is_small_on_disk_and_in_memory() {
    const LIMIT: u64 = 6 << 20;
    let on_disk = std::fs::metadata(variable("A3S_BOX_GUEST")).unwrap().len();
    assert!(on_disk < LIMIT, "{on_disk} bytes on disk, expected less than {LIMIT}");
    // VmHWM is the peak resident set size (proc(5)).
    let mut shim = Shim::start(&json!({"args": ["grep", "VmHWM", "/proc/1/status"]}));
    shim.ends_with(0, "exited", None);
    let line = String::from_utf8(shim.console()).unwrap();
    let peak_kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(peak_kib << 10 < LIMIT, "{line}, expected less than {LIMIT} bytes");
}
