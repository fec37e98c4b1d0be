//! Limits of a box that has a cgroup of its own.

use std::fs;
use std::path::{Path, PathBuf};

use a3s_box_vm_tests::{Shim, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

const ROOT: &str = "/sys/fs/cgroup";

/// A cgroup in which the shim can make others, like one that is delegated to a supervisor.
struct DelegatedCgroup(PathBuf);

impl DelegatedCgroup {
    fn new() -> Self {
        assert!(
            Path::new(ROOT).join("cgroup.controllers").exists(),
            "this test needs cgroup v2 in {ROOT}"
        );
        fs::write(Path::new(ROOT).join("cgroup.subtree_control"), "+memory +pids +cpu").unwrap();
        let directory = Path::new(ROOT).join(format!("a3s-box-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        Self(directory)
    }
}

impl Drop for DelegatedCgroup {
    fn drop(&mut self) {
        fs::remove_dir(&self.0).unwrap();
    }
}

#[test]
fn a_box_is_limited_by_a_cgroup_of_its_own() {
    let parent = DelegatedCgroup::new();
    let own = parent.0.join("demo");
    let mut shim = Shim::start_with(&json!({"args": ["/bin/sh", "-c", "sleep 1000"]}), |config| {
        config["resources"] = json!({"vcpus": 1, "memory_mib": 256, "cgroup": own});
    });
    shim.wait_for("agent.ready");
    let limit = |name: &str| fs::read_to_string(own.join(name)).unwrap().trim().to_owned();
    let number = |name: &str| limit(name).parse::<u64>().unwrap();
    assert_eq!(limit("cgroup.procs"), shim.child.id().to_string(), "{shim}");
    assert_eq!(number("memory.max"), (256 + 128) << 20, "{shim}");
    assert_eq!(limit("memory.oom.group"), "1", "{shim}");
    assert_eq!(limit("pids.max"), "65", "{shim}");
    assert_eq!(limit("cpu.max"), "100000 100000", "{shim}");
    let (memory, tasks) = (number("memory.current") >> 20, number("pids.current"));
    println!("a ready box uses {memory} MiB of its cgroup, and {tasks} threads");
    assert!(memory < 256 && tasks < 65, "{memory} MiB, {tasks} threads");
    kill(Pid::from_raw(shim.child.id().cast_signed()), Signal::SIGTERM).unwrap();
    shim.end();
    assert_eq!(limit("cgroup.procs"), "", "{shim}");
    eventually("the cgroup can be removed", || fs::remove_dir(&own).is_ok());
}
