//! The agent-only box.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use a3s_box_vm_tests::Shim;

#[test]
fn a_box_without_image_and_workload_becomes_ready_and_waits_for_its_stop() {
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
