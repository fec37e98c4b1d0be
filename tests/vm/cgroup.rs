//! Limits of a box that has a cgroup of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use a3s_box_vm_tests::{Shim, config, eventually, variable};
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
        fs::write(Path::new(ROOT).join("cgroup.subtree_control"), "+memory +pids +cpu +io")
            .unwrap();
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
    // A kernel that does not count swap has no such file.
    if own.join("memory.swap.max").exists() {
        assert_eq!(limit("memory.swap.max"), limit("memory.max"), "{shim}");
    }
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

/// Runs a command of the host, and panics if it fails.
fn run(program: &str, args: &[&Path]) {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
}

#[test]
fn the_disk_of_a_box_has_limits_and_memory_has_none() {
    let parent = DelegatedCgroup::new();
    let own = parent.0.join("demo");
    let directory = tempfile::Builder::new().prefix("b").tempdir().unwrap();
    let [image, disk] = ["image", "disk"].map(|name| directory.path().join(name));
    fs::File::create(&image).unwrap().set_len(512 << 20).unwrap();
    run("mkfs.ext4", &[Path::new("-q"), &image]);
    fs::create_dir(&disk).unwrap();
    run("mount", &[Path::new("-oloop"), &image, &disk]);
    let layout = disk.join("demo");
    run("cp", &[Path::new("-r"), &variable("A3S_BOX_IMAGES").join("demo"), &layout]);
    let mut config = config(directory.path(), &json!({"args": ["/bin/sh", "-c", "sleep 1000"]}));
    config["image"]["layout"] = json!(layout);
    // The state directory stays on the tmpfs of the test.
    config["paths"]["cache_dir"] = json!(disk.join("cache"));
    config["resources"] =
        json!({"cgroup": own, "io": {"read_mib_per_s": 64, "write_mib_per_s": 8}});
    let mut shim = Shim::spawn(directory, &config);
    shim.wait_for("agent.ready");
    let limits = fs::read_to_string(own.join("io.max")).unwrap();
    kill(Pid::from_raw(shim.child.id().cast_signed()), Signal::SIGTERM).unwrap();
    shim.end();
    run("umount", &[&disk]);
    let (device, limits) = limits.trim_end().split_once(' ').unwrap();
    assert!(device.starts_with("7:"), "{device} is a loop device\n{shim}");
    assert_eq!(limits, "rbps=67108864 wbps=8388608 riops=max wiops=max", "{shim}");
    eventually("the cgroup can be removed", || fs::remove_dir(&own).is_ok());
}
