//! A host whose KVM makes VMs and cannot run a stock kernel: a real VM that dies abnormally.
//!
//! `tests/run` asks for it where the host is of that kind (`kvm_pvm`), outside of the lab.

use a3s_box_vm_tests::Shim;
use serde_json::json;

#[test]
fn a_vm_that_dies_of_an_internal_error_ends_with_its_own_error() {
    let mut shim = Shim::start(&json!({"args": ["/bin/true"]}));
    shim.ends_with(125, "failed", Some("vm_failed"));
    assert!(!shim.state().join("agent.sock").exists());
}
