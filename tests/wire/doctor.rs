//! `--doctor`: what is told about a host, in text and JSON, and that nothing is left behind.

use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::shim;

/// What the guest of the doctor's box plays.
const WELL: &str = "connect hello serve started=7 wait-stop signaled=15 drained wait-ack exit=0";

/// A directory whose `t` is for temporary files, with a config in it.
fn directory(change: impl FnOnce(&mut Value)) -> TempDir {
    let directory = tempfile::Builder::new().prefix("d").tempdir().unwrap();
    let path = directory.path();
    fs::create_dir(path.join("t")).unwrap();
    let mut config = json!({"paths": {
        "state_dir": path.join("s"),
        "cache_dir": path.join("c"),
        "guest": "/bin/true",
    }});
    change(&mut config);
    fs::write(path.join("config"), config.to_string()).unwrap();
    // The ordinary user comes by here.
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    directory
}

/// The doctor in that directory, with a guest that plays `script`.
fn doctor(directory: &TempDir, script: &str, arguments: &[&str]) -> Command {
    let mut command = shim();
    command.env("TMPDIR", directory.path().join("t")).env("A3S_BOX_FAKE_SCRIPT", script);
    command.arg("--doctor").args(arguments).arg("--config").arg(directory.path().join("config"));
    command.stdin(Stdio::null());
    command
}

fn examine(directory: &TempDir, script: &str, arguments: &[&str]) -> Output {
    let output = doctor(directory, script, arguments).output().unwrap();
    nothing_is_left(directory.path());
    output
}

/// No temporary file, nothing where boxes and layers would be, and no process.
fn nothing_is_left(directory: &Path) {
    let left: Vec<_> = fs::read_dir(directory.join("t")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(!directory.join("s").exists() && !directory.join("c").exists());
    let deadline = Instant::now() + Duration::from_secs(5);
    while processes(directory) > 0 {
        assert!(Instant::now() < deadline, "a process is left");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Processes that have the directory in their environment.
fn processes(directory: &Path) -> usize {
    let needle = directory.as_os_str().as_bytes();
    let has_it =
        |environment: Vec<u8>| environment.windows(needle.len()).any(|part| part == needle);
    let all = fs::read_dir("/proc").unwrap();
    // A process may be gone by now.
    let environments = all.filter_map(|entry| fs::read(entry.ok()?.path().join("environ")).ok());
    environments.filter(|environment| has_it(environment.clone())).count()
}

/// The report, of the known shape, with an exit status that goes with it.
fn report(output: &Output) -> Vec<(String, String, String)> {
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!((keys(&report), &report["v"]), (vec!["checks".into(), "v".into()], &json!(1)));
    let mut worst = 0;
    let mut checks = Vec::new();
    for check in report["checks"].as_array().unwrap() {
        let text = |key: &str| check[key].as_str().unwrap_or_default().to_owned();
        let rank = match check["status"].as_str().unwrap() {
            "ok" => 0,
            "degraded" => 1,
            "failed" => 2,
            other => panic!("{other}"),
        };
        worst = worst.max(rank);
        let expected: &[&str] = match rank {
            0 => &["found", "name", "status"],
            _ => &["found", "name", "remedy", "status"],
        };
        assert_eq!(keys(check), expected, "{check}");
        assert!(expected.iter().all(|key| !text(key).is_empty()), "{check}");
        let said = format!("{}; {}", text("found"), text("remedy"));
        checks.push((text("name"), text("status"), said));
    }
    assert_eq!(output.status.code(), Some(worst), "{report:#}");
    checks
}

/// Status and text of one check.
fn check<'a>(checks: &'a [(String, String, String)], name: &str) -> (&'a str, &'a str) {
    let found: Vec<_> = checks.iter().filter(|(found, ..)| found == name).collect();
    assert_eq!(found.len(), 1, "{name} in {checks:?}");
    (&found[0].1, &found[0].2)
}

#[test]
fn doctor_boots_a_box_and_reports_the_same_in_both_forms() {
    let directory = directory(|_| {});
    let checks = report(&examine(&directory, WELL, &["--json"]));
    let names: Vec<&str> = checks.iter().map(|(name, ..)| name.as_str()).collect();
    let expected = [
        "kernel",
        "kvm",
        "virtualization",
        "libkrunfw",
        "guest_program",
        "user_namespaces",
        "sub_ids",
        "namespaces",
        "overlayfs",
        "landlock",
        "seccomp",
        "cgroup",
        "open_files",
        "locked_memory",
        "state_dir",
        "cache_dir",
        "passt",
        "service_manager",
        "boot",
    ];
    assert_eq!(names, expected);
    // That much every test of the shim needs.
    for name in ["kernel", "libkrunfw", "guest_program", "sub_ids", "namespaces", "overlayfs"] {
        assert_eq!(check(&checks, name).0, "ok", "{checks:?}");
    }
    let (status, text) = check(&checks, "boot");
    assert!(status == "ok" && text.starts_with("a box was ready after "), "{text}");

    let output = examine(&directory, WELL, &[]);
    let text = String::from_utf8(output.stdout).unwrap();
    let of_text: Vec<(&str, &str)> = text
        .lines()
        .map(|line| line.split_once(' ').unwrap())
        .map(|(status, rest)| (rest.split_whitespace().next().unwrap(), status))
        .collect();
    let of_json: Vec<(&str, &str)> =
        checks.iter().map(|(name, status, _)| (name.as_str(), status.as_str())).collect();
    assert_eq!(of_text, of_json, "{text}");
    assert!(output.stderr.is_empty());
}

#[test]
fn missing_guest_program_is_told_with_its_remedy_and_nothing_is_booted() {
    let directory = directory(|config| config["paths"]["guest"] = json!("/nowhere/guest"));
    let output = examine(&directory, WELL, &["--json"]);
    assert_eq!(output.status.code(), Some(2));
    let checks = report(&output);
    let (status, text) = check(&checks, "guest_program");
    assert_eq!(status, "failed");
    assert!(text.contains("`/nowhere/guest`") && text.contains("set `paths.guest`"), "{text}");
    let (status, text) = check(&checks, "boot");
    assert!(status == "failed" && text.starts_with("not tried"), "{text}");
    assert_eq!(check(&checks, "namespaces").0, "ok");
}

#[test]
fn missing_passt_is_a_failure_only_for_a_box_that_needs_it() {
    for (mode, expected) in [("none", "degraded"), ("passt", "failed")] {
        let directory = directory(|config| config["network"] = json!({"mode": mode}));
        let mut doctor = doctor(&directory, WELL, &["--json"]);
        let checks = report(&doctor.env("PATH", directory.path()).output().unwrap());
        nothing_is_left(directory.path());
        let (status, text) = check(&checks, "passt");
        assert_eq!(status, expected);
        assert!(text.contains("install the package `passt`"), "{text}");
    }
}

#[test]
fn directory_that_others_can_read_is_told() {
    let directory = directory(|config| config["paths"]["state_dir"] = json!("/usr"));
    let checks = report(&examine(&directory, WELL, &["--json"]));
    let (status, text) = check(&checks, "state_dir");
    assert!(status == "failed" && text.contains("`/usr`: of user 0 with mode 0755"), "{text}");
    assert!(text.contains("set `paths.state_dir`"), "{text}");
}

#[test]
fn box_that_does_not_boot_is_told_with_the_error() {
    let directory = directory(|_| {});
    let output = examine(&directory, "connect hello abort", &["--json"]);
    assert_eq!(output.status.code(), Some(2));
    let checks = report(&output);
    let (status, text) = check(&checks, "boot");
    assert!(status == "failed" && text.contains("dmesg"), "{text}");
    assert_eq!(check(&checks, "overlayfs").0, "ok");
}

#[test]
fn ordinary_user_is_told_what_root_does_not_need() {
    let directory = directory(|config| config["paths"]["cache_dir"] = json!("/usr/nowhere/c"));
    let status = Command::new("chown").arg("-R").arg("65533:65533").arg(directory.path()).status();
    assert!(status.unwrap().success());
    let doctor = doctor(&directory, WELL, &["--json"]);
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65533", "--regid=65533", "--clear-groups", "env", "PATH=/nowhere"]);
    command.arg(doctor.get_program()).args(doctor.get_args());
    command.envs(doctor.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = command.output().unwrap();
    nothing_is_left(directory.path());
    assert!(output.status.code() == Some(2), "{output:?}");
    let checks = report(&output);
    let (status, text) = check(&checks, "sub_ids");
    assert!(status == "degraded" && text.contains("install the package `uidmap`"), "{text}");
    for name in ["user_namespaces", "namespaces"] {
        let (status, text) = check(&checks, name);
        assert!(status == "ok" && !text.contains("root"), "{text}");
    }
    assert_eq!(check(&checks, "state_dir").0, "ok", "{checks:?}");
    let (status, text) = check(&checks, "cache_dir");
    let expected = "`/usr/nowhere/c`: cannot be made in `/usr`: Permission denied";
    assert!(status == "failed" && text.starts_with(expected), "{text}");
}

#[test]
fn doctor_that_is_interrupted_leaves_nothing_behind() {
    let directory = directory(|_| {});
    let mut child = doctor(&directory, "hang", &[]).spawn().unwrap();
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    let deadline = Instant::now() + Duration::from_secs(20);
    // The doctor, the shim of its box, and the fake guest.
    while processes(directory.path()) < 3 {
        assert!(Instant::now() < deadline, "no box");
        std::thread::sleep(Duration::from_millis(10));
    }
    kill(pid, Signal::SIGTERM).unwrap();
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(143));
    nothing_is_left(directory.path());
    let mut said = String::new();
    child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(said, "");
}

#[test]
fn config_that_is_not_valid_is_no_fault_of_the_host() {
    let directory = directory(|config| config["resources"] = json!({"vcpus": 0}));
    let output = examine(&directory, WELL, &["--json"]);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(125), 0));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("resources.vcpus"), "{said}");
}
