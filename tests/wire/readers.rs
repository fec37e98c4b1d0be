//! Events and console output with a slow reader, without a reader, and on a full disk.
//!
//! No reader may delay or end a box, and only the shim's events may be on its standard output.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{OpenOptionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::{Value, json};

use crate::harness::{config, parse, run, run_shim, shim, start};

/// Script of a workload that exits with 0 at once.
const SUCCESS: [&str; 7] =
    ["connect", "hello", "started=7", "exited=0", "drained", "wait-ack", "exit=0"];

/// Returns a path in the directory of the test, next to the state directory.
fn sibling_path(config: &Value, name: &str) -> PathBuf {
    Path::new(config["paths"]["state_dir"].as_str().unwrap()).with_file_name(name)
}

/// Returns the bytes that the fake guest writes in the step `print=<count>`.
fn printed(count: usize) -> Vec<u8> {
    (0..).flat_map(|i| format!("{i:07}\n").into_bytes()).take(count).collect()
}

#[test]
fn output_of_a_library_goes_to_standard_error_and_not_between_the_events() {
    let run = run(&["connect", "hello", "started=7", "exited=0", "drained", "wait-ack", "exit=0"]);
    // The fake VM writes this line to fd 1.
    assert!(
        run.stderr.contains("a library prints to standard output"),
        "the log is: {}",
        run.stderr
    );
    assert!(!run.stdout.contains("a library prints"), "the events are: {}", run.stdout);
}

#[test]
fn box_continues_after_the_reader_of_its_events_has_closed_the_pipe() {
    let script = [
        "connect",
        "hello",
        "started=7",
        "sleep-ms=300",
        "exited=4",
        "drained",
        "wait-ack",
        "exit=0",
    ];
    let mut running = start(&script, |_| {});
    drop(running.child.stdout.take());
    assert_eq!(running.wait().status.code(), Some(4));
}

#[test]
fn late_reader_receives_all_events() {
    let script = ["connect", "hello", "started=7", "exited=4", "drained", "wait-ack", "exit=0"];
    let running = start(&script, |_| {});
    std::thread::sleep(Duration::from_secs(1));
    let run = running.wait();
    assert_eq!(run.ending(), (Some(4), "exited", None));
}

#[test]
fn console_has_the_complete_output_of_the_workload() {
    let script = [
        "connect",
        "hello",
        "started=7",
        "print=3000000",
        "exited=0",
        "drained",
        "wait-ack",
        "exit=0",
    ];
    let run = run(&script);
    assert_eq!(run.ending(), (Some(0), "exited", None));
    let console = fs::read(run.directory.path().join("s/golden/console.log")).unwrap();
    // `assert_eq!` would print six megabytes.
    let is_complete = console == printed(3_000_000);
    assert!(is_complete, "the console has {} bytes, which differ", console.len());
}

#[test]
fn standard_output_can_be_a_file() {
    let directory = tempfile::tempdir().unwrap();
    let events = directory.path().join("events");
    let config = directory.path().join("config.json");
    fs::write(&config, crate::harness::config(directory.path(), &SUCCESS).to_string()).unwrap();
    let status = shim()
        .arg("--config")
        .arg(&config)
        .stdout(File::create(&events).unwrap())
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(0));
    let events = parse(&fs::read_to_string(events).unwrap());
    assert_eq!(events.last().unwrap()["reason"], json!("exited"));
}

#[test]
fn console_keeps_the_latest_output_within_its_size_limit() {
    let script = ["connect", "hello", "started=7", "print=20000000"];
    let script: Vec<_> = script.into_iter().chain(SUCCESS[3..].iter().copied()).collect();
    // The default path is in the box directory, the other is not.
    for name in [None, Some("own")] {
        let run = start(&script, |config| {
            config["console"] = json!({"max_mib": 1});
            if let Some(name) = name {
                config["console"]["path"] = json!(sibling_path(config, name));
            }
        });
        let run = run.wait();
        assert_eq!(run.ending(), (Some(0), "exited", None));
        let path = run.directory.path().join(name.unwrap_or("s/golden/console.log"));
        let previous = path.with_file_name(match name {
            None => "console.log.1",
            Some(_) => "own.1",
        });
        let kept = [fs::read(previous).unwrap(), fs::read(path).unwrap()].concat();
        // The previous file has half of the limit. The current one has between nothing and the
        // other half.
        assert!((1 << 19..=1 << 20).contains(&kept.len()), "the console has {} bytes", kept.len());
        assert!(printed(20_000_000).ends_with(&kept), "the console has not the latest output");
    }
}

#[test]
fn box_continues_when_the_reader_of_its_console_fifo_stops_reading() {
    let script = ["connect", "hello", "started=7", "print=5000000"];
    let script: Vec<_> = script.into_iter().chain(SUCCESS[3..].iter().copied()).collect();
    let mut reader = None;
    let run = start(&script, |config| {
        let path = sibling_path(config, "fifo");
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        // Without O_NONBLOCK the open waits for a writer (fifo(7)).
        let non_blocking = OFlag::O_NONBLOCK.bits();
        let opened = OpenOptions::new().read(true).custom_flags(non_blocking).open(&path);
        reader = Some(opened.unwrap());
        config["console"] = json!({"path": path});
    });
    let run = run.wait();
    assert_eq!(run.ending(), (Some(0), "exited", None));
    // The shim waits for the reader once, for a second. A wait for each chunk of the output would
    // take over a minute.
    assert!(run.duration < Duration::from_secs(10), "the box took {:?}", run.duration);
    // The pipe still holds the first output.
    let mut received = Vec::new();
    reader.unwrap().read_to_end(&mut received).unwrap();
    let is_beginning = printed(5_000_000).starts_with(&received);
    assert!(is_beginning && received.len() >= 32 * 1024, "the FIFO held {} bytes", received.len());
}

#[test]
fn event_file_has_the_standard_output_of_all_boxes() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("events");
    let mut expected = String::new();
    for arguments in [&[][..], &["--prepare"], &[]] {
        let mut config = config(directory.path(), &SUCCESS);
        config["events"] = json!({"file": path});
        let output = run_shim(arguments, config.to_string().as_bytes());
        assert_eq!(output.status.code(), Some(0), "the shim ended with {output:?}");
        expected += std::str::from_utf8(&output.stdout).unwrap();
    }
    // `--gc` runs no box, so its events are not in the file.
    let mut config = config(directory.path(), &[]);
    config["events"] = json!({"file": path});
    let output = run_shim(&["--gc"], config.to_string().as_bytes());
    assert_eq!(output.status.code(), Some(0), "the shim ended with {output:?}");
    assert_eq!(fs::read_to_string(&path).unwrap(), expected);
    assert_eq!(expected.matches("shim.started").count(), 3);
}

#[test]
fn event_file_is_complete_when_standard_output_cannot_be_written() {
    let directory = tempfile::tempdir().unwrap();
    for redirection in [">&-", "| true", ">/dev/full"] {
        let path = directory.path().join("events");
        let mut config = config(directory.path(), &SUCCESS);
        config["events"] = json!({"file": path});
        let file = directory.path().join("config.json");
        fs::write(&file, config.to_string()).unwrap();
        let shim = shim();
        let environment = shim.get_envs().map(|(name, value)| (name, value.unwrap()));
        let status = Command::new("sh")
            .args(["-c", &format!(r#""$0" --config "$1" {redirection}"#)])
            .arg(shim.get_program())
            .arg(&file)
            .envs(environment)
            .status()
            .unwrap();
        assert_eq!(status.code(), Some(0), "the redirection is `{redirection}`");
        let events = parse(&fs::read_to_string(&path).unwrap());
        assert_eq!(events[0]["type"], "shim.started", "the redirection is `{redirection}`");
        assert_eq!(
            events.last().unwrap()["reason"],
            "exited",
            "the redirection is `{redirection}`"
        );
        fs::remove_file(&path).unwrap();
    }
}

#[test]
fn confined_shim_rotates_its_event_file_and_its_console() {
    let script = ["connect", "hello", "started=7", "print=1000000"];
    let script: Vec<_> = script.into_iter().chain(SUCCESS[3..].iter().copied()).collect();
    // An ordinary user's shim is also in a user namespace.
    for user in [0, 65533] {
        let directory = tempfile::tempdir().unwrap();
        let logs = directory.path().join("logs");
        fs::create_dir(&logs).unwrap();
        let mut config = config(directory.path(), &script);
        config["events"] = json!({"file": logs.join("events"), "file_max_kib": 64});
        config["console"] = json!({"path": logs.join("console"), "max_mib": 1});
        config["agent"] = json!({"provider": "none"});
        // One file may have half of 64 KiB. These bytes leave room for the first events only, so
        // the shim must rotate the file while it runs.
        let before = format!("{}\n", "-".repeat((32 << 10) - 601));
        fs::write(logs.join("events"), &before).unwrap();
        let file = directory.path().join("config.json");
        fs::write(&file, config.to_string()).unwrap();
        for path in [directory.path(), &logs, &logs.join("events"), &file] {
            chown(path, Some(user), Some(user)).unwrap();
        }
        let shim = shim();
        let environment = shim.get_envs().map(|(name, value)| (name, value.unwrap()));
        let mut command = Command::new("unshare");
        command.args(["--mount", "setpriv", "--clear-groups"]);
        command.args([format!("--reuid={user}"), format!("--regid={user}"), "--".to_owned()]);
        command.arg(shim.get_program()).arg("--config").arg(&file).envs(environment);
        let output = command.stdin(Stdio::null()).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "the shim of user {user} failed: {output:?}");
        let read = |name: &str| fs::read_to_string(logs.join(name)).unwrap();
        let (current, previous) = (read("events"), read("events.1"));
        // A rotation happens between two events.
        let is_rotated = previous.len() <= 32 << 10 && current.starts_with('{');
        assert!(is_rotated, "the event file of user {user} was not rotated: {previous}");
        let kept = previous + &current;
        let stdout = String::from_utf8(output.stdout).unwrap();
        assert_eq!(kept.strip_prefix(&before).unwrap(), stdout, "the user is {user}");
        assert_eq!((read("console.1") + &read("console")).into_bytes(), printed(1_000_000));
    }
}

/// Shell script that runs the shim with its event file on a full disk, and makes room after a
/// second.
///
/// The disk is a tmpfs of two pages. The event file fills the first page except for 96 bytes, and
/// `filler` takes the second page. $1 is the directory of the test, and the other arguments are the
/// command line of the shim.
const RUN_ON_FULL_DISK: &str = r#"
mount --make-rprivate /
directory=$1
mkdir "$directory/disk"
mount -t tmpfs -o size=8k tmpfs "$directory/disk"
cp "$directory/before" "$directory/disk/events"
head -c 4096 /dev/zero >"$directory/disk/filler"
shift
"$@" &
sleep 1
rm "$directory/disk/filler"
wait $!
cp "$directory/disk/events" "$directory/after"
"#;

#[test]
fn event_file_on_a_full_disk_lacks_events_but_the_box_succeeds() {
    let directory = tempfile::tempdir().unwrap();
    let before = format!("{}\n", "-".repeat(3999));
    fs::write(directory.path().join("before"), &before).unwrap();
    let script = ["connect", "hello", "started=7", "sleep-ms=2000"];
    let script: Vec<_> = script.into_iter().chain(SUCCESS[3..].iter().copied()).collect();
    let mut config = config(directory.path(), &script);
    config["events"] = json!({"file": directory.path().join("disk/events")});
    config["agent"] = json!({"provider": "none"});
    let file = directory.path().join("config.json");
    fs::write(&file, config.to_string()).unwrap();
    let shim = shim();
    let environment = shim.get_envs().map(|(name, value)| (name, value.unwrap()));
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-euc", RUN_ON_FULL_DISK, "sh"]).arg(directory.path());
    command.arg(shim.get_program()).arg("--config").arg(&file).envs(environment);
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "the shim ended with {output:?}");
    let stdout = String::from_utf8(output.stdout).unwrap();
    let events = parse(&stdout);
    assert_eq!(events.last().unwrap()["type"], "box.stopped");
    let after = fs::read_to_string(directory.path().join("after")).unwrap();
    let kept = after.strip_prefix(&before).unwrap();
    // The file lacks the events from before there was room, and has all later ones.
    assert!(stdout.ends_with(kept), "the file lacks later events: {kept}");
    let has_later_ones = !kept.contains("shim.started") && kept.contains("guest.exited");
    assert!(has_later_ones, "the file has the wrong events: {kept}");
    // The shim warns once for a series of failures, and not for each event.
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        stderr.matches("the file of events lacks a line").count(),
        1,
        "standard error is: {stderr}"
    );
}

#[test]
fn event_file_that_is_a_fifo_or_in_use_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("fifo");
    mkfifo(&path, Mode::S_IRWXU).unwrap();
    let mut box_config = config(directory.path(), &SUCCESS);
    box_config["events"] = json!({"file": path});
    let assert_fails = |config: &Value, code: &str, cause: &str| {
        let output = run_shim(&[], config.to_string().as_bytes());
        assert_eq!(output.status.code(), Some(125), "the shim ended with {output:?}");
        let events = parse(std::str::from_utf8(&output.stdout).unwrap());
        let error = events.iter().find(|event| event["type"] == "error").unwrap();
        assert_eq!(error["code"], code);
        assert!(error["causes"].to_string().contains(cause), "the error is {error}");
    };
    assert_fails(&box_config, "state_dir", "found a FIFO, expected a regular file");

    let path = directory.path().join("events");
    let mut running = start(&["connect", "hello", "started=7", "hang"], |config| {
        config["events"] = json!({"file": path});
        config["agent"] = json!({"provider": "none"});
        box_config["paths"]["state_dir"] = config["paths"]["state_dir"].clone();
    });
    let has_started = || fs::read_to_string(&path).is_ok_and(|text| text.contains("guest.started"));
    while !has_started() {
        let has_ended = running.child.try_wait().unwrap().is_some();
        assert!(!has_ended, "the shim ended before its guest started");
        std::thread::sleep(Duration::from_millis(5));
    }
    let before = fs::read_to_string(&path).unwrap();
    box_config["events"] = json!({"file": path});
    // A second shim with the same id fails because of the id. A box with another id fails because
    // of the file.
    assert_fails(&box_config, "id_in_use", "");
    box_config["id"] = json!("other");
    assert_fails(&box_config, "state_dir", "is in use");
    assert_eq!(fs::read_to_string(&path).unwrap(), before);
    running.child.kill().unwrap();
    running.child.wait().unwrap();
}
