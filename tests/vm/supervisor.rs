//! The documented example of `VmManager`, with the default config and the default paths.

use std::path::Path;
use std::process::Command;

use a3s_box_vm_tests::{boxes_in, variable};

#[test]
fn the_documented_example_boots_checks_health_and_destroys() {
    let output = Command::new(variable("A3S_BOX_EXAMPLE")).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "healthy: true\n");
    let state = Path::new("/run/a3s-box");
    assert_eq!(boxes_in(state), [""; 0], "destroy leaves a directory in {}", state.display());
}
