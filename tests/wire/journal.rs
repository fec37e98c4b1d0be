//! The log in a journal and on standard error.
//!
//! The tests start a real systemd-journald in a mount namespace of its own, so that it does not
//! touch the journal of the host.

use std::io::Write;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::harness::{config, shim};

const JOURNALD: &str = "/lib/systemd/systemd-journald";

/// Script of a box that becomes ready and whose workload exits with 0.
const SUCCESS: [&str; 9] = [
    "connect",
    "hello",
    "serve",
    "started=7",
    "sleep-ms=300",
    "exited=0",
    "drained",
    "wait-ack",
    "exit=0",
];

/// Shell script that hides the journal of the host behind mounts and then executes journald.
///
/// $0 is the path of journald, and $1 is the length of the queue. The fixed machine id shows a test
/// that the mounts are complete.
const MOUNT_AND_EXECUTE: &str = r#"
mount -t tmpfs none /run && mkdir -p /run/systemd/journal /run/log/journal
mount -t tmpfs none /etc/systemd
printf '[Journal]\nStorage=volatile\nReadKMsg=no\nAudit=no\n' >/etc/systemd/journald.conf
echo 0123456789abcdef0123456789abcdef >/run/machine-id
mount --bind /run/machine-id /etc/machine-id
echo "$1" >/proc/sys/net/unix/max_dgram_qlen
exec "$0"
"#;

/// Number of datagrams that can wait for journald, as systemd sets it. All records of one shim fit.
const QUEUE: u32 = 512;

/// The kernel's default length. A journald that does not read has a full queue at once.
const SHORT_QUEUE: u32 = 10;

/// A running journald, which is killed when this value is dropped.
struct Journal(Child);

impl Journal {
    fn start() -> Self {
        Self::with_queue(QUEUE)
    }

    fn with_queue(length: u32) -> Self {
        assert!(
            Path::new(JOURNALD).exists(),
            "this test needs journald: install the package `systemd`"
        );
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "--net", "--"]);
        command.args(["bash", "-euc", MOUNT_AND_EXECUTE, JOURNALD, &length.to_string()]);
        let child = command.stderr(Stdio::null()).spawn().unwrap();
        let journal = Self(child);
        let deadline = Instant::now() + Duration::from_secs(20);
        while !journal.listens() {
            assert!(Instant::now() < deadline, "journald did not listen within 20 s");
            std::thread::sleep(Duration::from_millis(5));
        }
        journal
    }

    /// Returns whether journald accepts records.
    fn listens(&self) -> bool {
        // Until the mounts are complete, its /run is that of the host, which may have a journal
        // too.
        let mounted = std::fs::read_to_string(self.path("machine-id"));
        let probe = UnixDatagram::unbound().unwrap();
        mounted.is_ok_and(|id| id.starts_with("0123456789abcdef"))
            && probe.connect(self.path("systemd/journal/socket")).is_ok()
    }

    /// Returns the path by which this process reaches a file in journald's /run.
    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root/run/{name}", self.0.id()))
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.0.id()).unwrap()), signal).unwrap();
    }

    /// Returns `command` as one that runs in the mount namespace of journald.
    fn inside(&self, command: &Command) -> Command {
        let mut inside = Command::new("nsenter");
        inside.arg(format!("--mount=/proc/{}/ns/mnt", self.0.id())).arg("--");
        inside.arg(command.get_program()).args(command.get_args());
        inside.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        inside
    }

    /// Returns the records of the shim, after journald has written all that it received.
    fn records(&self) -> Vec<Value> {
        let output = self.inside(Command::new("journalctl").arg("--sync")).output().unwrap();
        assert!(output.status.success(), "the shim ended with {output:?}");
        let mut command = Command::new("journalctl");
        command.args(["--output=json", "--all", "--identifier=a3s-box-shim", "--directory"]);
        let output = command.arg(self.path("log/journal")).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// Returns a command that runs the shim with this log level and this `A3S_BOX_LOG_TO`.
///
/// `timeout(1)` kills a shim that waits for a journal for ever, so that the test fails instead.
fn logging(level: &str, to: &str) -> Command {
    let shim = shim();
    let mut command = Command::new("timeout");
    command.args(["--signal=KILL", "20"]).arg(shim.get_program());
    command.envs(shim.get_envs().filter_map(|(name, value)| Some((name, value?))));
    // The process that runs the tests may have a JOURNAL_STREAM of its own, which is replaced here.
    command.env("A3S_BOX_LOG", level).env("A3S_BOX_LOG_TO", to).env("JOURNAL_STREAM", "");
    command
}

/// Runs a box until the shim ends, and returns its output. Panics unless the shim exits with 0.
fn run(mut command: Command) -> Output {
    let directory = tempfile::Builder::new().prefix("w").tempdir().unwrap();
    let mut config = config(directory.path(), &SUCCESS);
    config["process"]["env"] = json!({"TOKEN": "s3cret-of-the-config"});
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "the shim ended with {output:?}");
    output
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

/// Returns the record whose field `name` is `message`. Panics unless there is exactly one.
fn only<'a>(records: &'a [Value], name: &str, message: &str) -> &'a Value {
    let mut found = records.iter().filter(|record| record[name] == message);
    let (Some(record), None) = (found.next(), found.next()) else {
        panic!("the number of records with {message:?} is not one: {records:#?}")
    };
    record
}

#[test]
fn each_record_in_the_journal_names_the_box_and_its_phase() {
    let journal = Journal::start();
    let mut command = logging("trace", "journal");
    command.env("A3S_BOX_LOG_FORMAT", "xml");
    let output = run(journal.inside(&command));
    assert_eq!(stderr(&output), "a library prints to standard output\n");
    let records = journal.records();
    let record = |message| {
        let record = only(&records, "MESSAGE", message);
        ["BOX_ID", "PHASE", "PRIORITY"].map(|name| record[name].as_str().unwrap_or("none"))
    };
    // The shim has no box id before it has read the config.
    assert_eq!(record("unknown A3S_BOX_LOG_FORMAT=xml"), ["none", "config", "4"]);
    assert_eq!(record("phase rootfs"), ["golden", "rootfs", "6"]);
    assert_eq!(record("phase vm"), ["golden", "vm", "6"]);
    assert_eq!(record("phase kernel"), ["golden", "kernel", "6"]);
    // A thread of libkrun logs by the crate `log`. It has entered no span of the shim, so the shim
    // adds box and phase itself.
    assert_eq!(record("a worker logs"), ["golden", "kernel", "6"]);
    assert_eq!(only(&records, "MESSAGE", "a worker logs")["F_LOG_TARGET"], "krun_devices::fake");
    assert_eq!(only(&records, "MESSAGE", "phase vm")["TARGET"], "a3s_box_shim::report::log");
    for record in &records {
        assert!(record["PHASE"].is_string(), "the record is {record}");
        assert_eq!(
            record["BOX_ID"] == "golden",
            record["PHASE"] != "config",
            "the record is {record}"
        );
        assert_eq!(record["_COMM"], "a3s-box-shim", "the record is {record}");
    }
}

#[test]
fn standard_error_that_is_the_journal_is_recognized() {
    let journal = Journal::start();
    // JOURNAL_STREAM has the device and inode number of standard error, as systemd sets it for a
    // service (systemd.exec(5)).
    let connected = "JOURNAL_STREAM=$(stat -Lc %d:%i /proc/self/fd/2) exec \"$@\"";
    let mut service = Command::new("systemd-cat");
    let shim = logging("info", "");
    service.args(["--identifier=stream", "sh", "-c", connected, "sh"]);
    service.arg(shim.get_program()).args(shim.get_args());
    service.envs(shim.get_envs().filter_map(|(name, value)| Some((name, value?))));
    run(journal.inside(&service));
    assert_eq!(only(&journal.records(), "MESSAGE", "phase vm")["BOX_ID"], "golden");

    // A process can pass its JOURNAL_STREAM on to a shim with another standard error. The number of
    // the file then differs, so the log goes to standard error.
    let mut inherited = logging("info", "");
    inherited.env("JOURNAL_STREAM", "1:1");
    let output = run(journal.inside(&inherited));
    assert!(stderr(&output).contains(" INFO golden vm a3s_box_shim::report::log: phase vm\n"));
    // With `A3S_BOX_LOG_TO=stderr` nothing goes to the journal.
    let output = run(journal.inside(&logging("info", "stderr")));
    assert!(stderr(&output).contains(" INFO golden vm a3s_box_shim::report::log: phase vm\n"));
    assert_eq!(journal.records().iter().filter(|it| it["MESSAGE"] == "phase vm").count(), 1);
}

#[test]
fn journald_that_does_not_read_loses_records_but_does_not_delay_the_box() {
    let journal = Journal::with_queue(SHORT_QUEUE);
    journal.signal(Signal::SIGSTOP);
    let start = Instant::now();
    let output = run(journal.inside(&logging("trace", "journal")));
    let duration = start.elapsed();
    assert!(duration < Duration::from_secs(10), "the box took {duration:?}");
    assert_eq!(stderr(&output), "a library prints to standard output\n");
    journal.signal(Signal::SIGCONT);
    // If this late record had arrived, the queue would not have been full, and the test would show
    // nothing.
    let records = journal.records();
    let is_lost = records.iter().all(|record| record["MESSAGE"] != "a worker logs");
    assert!(is_lost, "the queue was not full: {records:#?}");
}

#[test]
fn log_goes_to_standard_error_with_a_warning_if_the_journal_is_full_or_missing() {
    let journal = Journal::with_queue(SHORT_QUEUE);
    let check = |output: &Output, reason: &str| {
        let text = stderr(output);
        let warning = format!(
            " WARN - config a3s_box_shim::report::log: no journal, so the log is on standard error: {reason}"
        );
        assert!(text.contains(&warning), "the log is: {text}");
        assert!(
            text.contains(" INFO golden kernel krun_devices::fake: a worker logs\n"),
            "the log is: {text}"
        );
    };
    journal.signal(Signal::SIGSTOP);
    let full = UnixDatagram::unbound().unwrap();
    full.set_nonblocking(true).unwrap();
    full.connect(journal.path("systemd/journal/socket")).unwrap();
    while full.send(b"MESSAGE=full").is_ok() {}
    check(&run(journal.inside(&logging("info", "journal"))), "its queue is full");
    std::fs::remove_file(journal.path("systemd/journal/socket")).unwrap();
    check(&run(journal.inside(&logging("info", "journal"))), "No such file or directory");
}

#[test]
fn log_on_standard_error_can_be_json() {
    let mut command = logging("info", "stderr");
    command.env("A3S_BOX_LOG_FORMAT", "json");
    let output = run(command);
    let lines =
        stderr(&output).lines().filter(|line| *line != "a library prints to standard output");
    let records: Vec<Value> = lines.map(|line| serde_json::from_str(line).unwrap()).collect();
    let worker = only(&records, "message", "a worker logs");
    let found = ["level", "target", "box_id", "phase"].map(|name| worker[name].as_str().unwrap());
    assert_eq!(found, ["INFO", "krun_devices::fake", "golden", "kernel"]);
    assert!(worker["time"].as_str().unwrap().ends_with('Z'), "the record is {worker}");
    for record in &records {
        assert_eq!(record["box_id"], "golden", "the record is {record}");
    }
}

#[test]
fn no_log_contains_a_value_of_the_environment() {
    let journal = Journal::start();
    let mut logs = Vec::new();
    for (to, form) in [("journal", "text"), ("stderr", "text"), ("stderr", "json")] {
        let mut command = logging("trace", to);
        command.env("A3S_BOX_LOG_FORMAT", form).env("OWN", "s3cret-of-the-shim");
        logs.push(String::from_utf8(run(journal.inside(&command)).stderr).unwrap());
    }
    logs[0] = json!(journal.records()).to_string();
    for log in logs {
        assert!(log.contains("phase vm"), "the log is: {log}");
        assert!(!log.contains("s3cret"), "the log is: {log}");
    }
}
