//! `--doctor`: its report about a host as text and as JSON.
//!
//! The doctor boots a box in temporary directories. Each test also checks that it removes them.

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

/// Script of a guest that becomes ready, and whose workload ends when the shim asks it to stop.
const HEALTHY: &str = "connect hello serve started=7 wait-stop signaled=15 drained wait-ack exit=0";

/// Returns a directory with the doctor's config and with the directory `t` for its temporary files.
///
/// `change` can edit the config.
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
    // An ordinary user must be able to open paths in it, and temporary directories have mode 0700.
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    directory
}

/// Returns a command that runs the doctor with the config of `directory` and a guest that plays
/// `script`.
fn doctor(directory: &TempDir, script: &str, arguments: &[&str]) -> Command {
    let mut command = shim();
    command.env("TMPDIR", directory.path().join("t")).env("A3S_BOX_FAKE_SCRIPT", script);
    command.arg("--doctor").args(arguments).arg("--config").arg(directory.path().join("config"));
    command.stdin(Stdio::null());
    command
}

/// Runs the doctor, and checks that it leaves nothing behind.
fn examine(directory: &TempDir, script: &str, arguments: &[&str]) -> Output {
    let output = doctor(directory, script, arguments).output().unwrap();
    assert_nothing_is_left(directory.path());
    output
}

/// Panics if the doctor has left a temporary file, a state or cache directory, or a process.
fn assert_nothing_is_left(directory: &Path) {
    let left: Vec<_> = fs::read_dir(directory.join("t")).unwrap().collect();
    assert!(left.is_empty(), "these temporary files are left: {left:?}");
    let has_stores = directory.join("s").exists() || directory.join("c").exists();
    assert!(!has_stores, "the doctor made a state or cache directory");
    // The fake guest ends a moment after its shim.
    let deadline = Instant::now() + Duration::from_secs(5);
    while count_processes(directory) > 0 {
        assert!(Instant::now() < deadline, "a process of the doctor still runs");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Counts the processes that have the path of the directory in their environment.
fn count_processes(directory: &Path) -> usize {
    let needle = directory.as_os_str().as_bytes();
    let has_path =
        |environment: Vec<u8>| environment.windows(needle.len()).any(|part| part == needle);
    let all = fs::read_dir("/proc").unwrap();
    // A process can end after its entry was read, so failed reads are ignored.
    let environments = all.filter_map(|entry| fs::read(entry.ok()?.path().join("environ")).ok());
    environments.filter(|environment| has_path(environment.clone())).count()
}

/// Parses a report into the name, the status and the text of each check.
///
/// Panics if its shape is unknown, or if the exit status is not the one of the worst check.
fn parse_report(output: &Output) -> Vec<(String, String, String)> {
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
            other => panic!("unknown status `{other}`"),
        };
        worst = worst.max(rank);
        let expected: &[&str] = match rank {
            0 => &["found", "name", "status"],
            _ => &["found", "name", "remedy", "status"],
        };
        // Only a check that is not `ok` has a remedy.
        assert_eq!(keys(check), expected, "the check is {check}");
        assert!(expected.iter().all(|key| !text(key).is_empty()), "a field is empty: {check}");
        let text_of_both = format!("{}; {}", text("found"), text("remedy"));
        checks.push((text("name"), text("status"), text_of_both));
    }
    assert_eq!(output.status.code(), Some(worst), "the report is {report:#}");
    checks
}

/// Returns the status and the text of the check with this name.
fn check<'a>(checks: &'a [(String, String, String)], name: &str) -> (&'a str, &'a str) {
    let found: Vec<_> = checks.iter().filter(|(found, ..)| found == name).collect();
    assert_eq!(found.len(), 1, "the number of checks named {name} is not one: {checks:?}");
    (&found[0].1, &found[0].2)
}

#[test]
fn doctor_boots_a_box_and_reports_the_same_in_both_forms() {
    let directory = directory(|_| {});
    let checks = parse_report(&examine(&directory, HEALTHY, &["--json"]));
    let names: Vec<&str> = checks.iter().map(|(name, ..)| name.as_str()).collect();
    let expected = [
        "kernel",
        "kvm",
        "virtualization",
        "libkrunfw",
        "root_kind",
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
    // All tests of the shim need these, so a host that runs the tests has them.
    for name in
        ["kernel", "libkrunfw", "root_kind", "guest_program", "sub_ids", "namespaces", "overlayfs"]
    {
        assert_eq!(check(&checks, name).0, "ok", "the checks are {checks:?}");
    }
    let (status, text) = check(&checks, "boot");
    assert!(status == "ok" && text.starts_with("a box was ready after "), "the text is: {text}");

    let output = examine(&directory, HEALTHY, &[]);
    let text = String::from_utf8(output.stdout).unwrap();
    let statuses_of_text: Vec<(&str, &str)> = text
        .lines()
        .map(|line| line.split_once(' ').unwrap())
        .map(|(status, rest)| (rest.split_whitespace().next().unwrap(), status))
        .collect();
    let statuses_of_json: Vec<(&str, &str)> =
        checks.iter().map(|(name, status, _)| (name.as_str(), status.as_str())).collect();
    assert_eq!(statuses_of_text, statuses_of_json, "the text is: {text}");
    assert!(output.stderr.is_empty());
}

#[test]
fn missing_guest_program_is_a_failure_with_a_remedy_and_prevents_the_boot() {
    let directory = directory(|config| config["paths"]["guest"] = json!("/nowhere/guest"));
    let output = examine(&directory, HEALTHY, &["--json"]);
    assert_eq!(output.status.code(), Some(2));
    let checks = parse_report(&output);
    let (status, text) = check(&checks, "guest_program");
    assert_eq!(status, "failed");
    assert!(
        text.contains("`/nowhere/guest`") && text.contains("set `paths.guest`"),
        "the text is: {text}"
    );
    let (status, text) = check(&checks, "boot");
    assert!(status == "failed" && text.starts_with("not tried"), "the text is: {text}");
    assert_eq!(check(&checks, "namespaces").0, "ok");
}

#[test]
fn guest_kernel_that_cannot_mount_a_block_root_degrades_the_kind_of_root() {
    let directory = directory(|_| {});
    let mut doctor = doctor(&directory, HEALTHY, &["--json"]);
    doctor.env("A3S_BOX_FAKE_KERNEL_LACKS", "overlayfs,EROFS with extended attributes");
    let checks = parse_report(&doctor.output().unwrap());
    let (status, text) = check(&checks, "root_kind");
    assert_eq!(status, "degraded");
    assert_eq!(
        text,
        "`shared`: for a block root, this installation lacks EROFS with extended attributes, overlayfs; \
         install libkrunfw 5.4 or later, and a libkrun that was built with virtio-blk (`make BLK=1`)"
    );
    // Such a box still runs.
    assert_eq!(check(&checks, "boot").0, "ok");
}

#[test]
fn missing_passt_is_a_failure_only_for_a_config_that_needs_it() {
    for (mode, expected) in [("none", "degraded"), ("passt", "failed")] {
        let directory = directory(|config| config["network"] = json!({"mode": mode}));
        let mut doctor = doctor(&directory, HEALTHY, &["--json"]);
        let checks = parse_report(&doctor.env("PATH", directory.path()).output().unwrap());
        assert_nothing_is_left(directory.path());
        let (status, text) = check(&checks, "passt");
        assert_eq!(status, expected);
        assert!(text.contains("install the package `passt`"), "the text is: {text}");
    }
}

#[test]
fn state_directory_that_others_can_read_is_a_failure() {
    let directory = directory(|config| config["paths"]["state_dir"] = json!("/usr"));
    let checks = parse_report(&examine(&directory, HEALTHY, &["--json"]));
    let (status, text) = check(&checks, "state_dir");
    assert!(
        status == "failed" && text.contains("`/usr`: of user 0 with mode 0755"),
        "the text is: {text}"
    );
    assert!(text.contains("set `paths.state_dir`"), "the text is: {text}");
}

#[test]
fn box_that_does_not_boot_is_a_failure_with_the_error() {
    let directory = directory(|_| {});
    let output = examine(&directory, "connect hello abort", &["--json"]);
    assert_eq!(output.status.code(), Some(2));
    let checks = parse_report(&output);
    let (status, text) = check(&checks, "boot");
    assert!(status == "failed" && text.contains("dmesg"), "the text is: {text}");
    assert_eq!(check(&checks, "overlayfs").0, "ok");
}

#[test]
fn report_for_an_ordinary_user_includes_the_checks_that_root_does_not_need() {
    let directory = directory(|config| config["paths"]["cache_dir"] = json!("/usr/nowhere/c"));
    let status = Command::new("chown").arg("-R").arg("65533:65533").arg(directory.path()).status();
    assert!(status.unwrap().success());
    let doctor = doctor(&directory, HEALTHY, &["--json"]);
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65533", "--regid=65533", "--clear-groups", "env", "PATH=/nowhere"]);
    command.arg(doctor.get_program()).args(doctor.get_args());
    command.envs(doctor.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = command.output().unwrap();
    assert_nothing_is_left(directory.path());
    assert!(output.status.code() == Some(2), "the shim ended with {output:?}");
    let checks = parse_report(&output);
    let (status, text) = check(&checks, "sub_ids");
    assert!(
        status == "degraded" && text.contains("install the package `uidmap`"),
        "the text is: {text}"
    );
    for name in ["user_namespaces", "namespaces"] {
        let (status, text) = check(&checks, name);
        assert!(status == "ok" && !text.contains("root"), "the text is: {text}");
    }
    assert_eq!(check(&checks, "state_dir").0, "ok", "the checks are {checks:?}");
    let (status, text) = check(&checks, "cache_dir");
    let expected = "`/usr/nowhere/c`: cannot be made in `/usr`: Permission denied";
    assert!(status == "failed" && text.starts_with(expected), "the text is: {text}");
}

#[test]
fn interrupted_doctor_leaves_nothing_behind() {
    let directory = directory(|_| {});
    let mut child = doctor(&directory, "hang", &[]).spawn().unwrap();
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    let deadline = Instant::now() + Duration::from_secs(20);
    // Three processes run once the box has started: the doctor, the shim, and the fake guest.
    while count_processes(directory.path()) < 3 {
        assert!(Instant::now() < deadline, "the doctor started no box within 20 s");
        std::thread::sleep(Duration::from_millis(10));
    }
    kill(pid, Signal::SIGTERM).unwrap();
    let status = child.wait().unwrap();
    // 128 and the number of SIGTERM.
    assert_eq!(status.code(), Some(143));
    assert_nothing_is_left(directory.path());
    let mut stdout = String::new();
    child.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
    assert_eq!(stdout, "", "an interrupted doctor prints no report");
}

#[test]
fn invalid_config_is_an_error_without_a_report() {
    let directory = directory(|config| config["resources"] = json!({"vcpus": 0}));
    let output = examine(&directory, HEALTHY, &["--json"]);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(125), 0));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("resources.vcpus"), "the error does not name the field: {stderr}");
}
