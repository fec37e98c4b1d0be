//! A real VM that dies abnormally, on a host whose KVM creates VMs but cannot run a stock kernel.
//!
//! `tests/run` runs this test only on such a host (kernel module `kvm_pvm`), and not in the lab.

use a3s_box_vm_tests::Shim;
use serde_json::json;

#[test]
fn an_internal_error_of_the_vm_is_reported_as_vm_failed() {
    let mut shim = Shim::start(&json!({"args": ["/bin/true"]}));
    shim.ends_with(125, "failed", Some("vm_failed"));
    assert!(!shim.state().join("agent.sock").exists());
}
