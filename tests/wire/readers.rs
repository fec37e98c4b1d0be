//! Standard output and the console: slow, gone, full, and nobody else's.

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

/// A guest whose workload ends at once.
const SHORT: [&str; 7] =
    ["connect", "hello", "started=7", "exited=0", "drained", "wait-ack", "exit=0"];

/// A path in the directory of the test.
fn beside(config: &Value, name: &str) -> PathBuf {
    Path::new(config["paths"]["state_dir"].as_str().unwrap()).with_file_name(name)
}

/// What the fake guest prints.
fn printed(count: usize) -> Vec<u8> {
    (0..).flat_map(|i| format!("{i:07}\n").into_bytes()).take(count).collect()
}

#[test]
fn a_library_that_prints_does_not_reach_the_stream() {
    let run = run(&["connect", "hello", "started=7", "exited=0", "drained", "wait-ack", "exit=0"]);
    assert!(run.stderr.contains("a library prints to standard output"), "{}", run.stderr);
    assert!(!run.stdout.contains("a library prints"), "{}", run.stdout);
}

#[test]
fn a_reader_that_is_gone_does_not_end_the_box() {
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
fn a_reader_that_comes_late_still_gets_everything() {
    let script = ["connect", "hello", "started=7", "exited=4", "drained", "wait-ack", "exit=0"];
    let running = start(&script, |_| {});
    std::thread::sleep(Duration::from_secs(1));
    let run = running.wait();
    assert_eq!(run.ending(), (Some(4), "exited", None));
}

#[test]
fn output_of_the_workload_is_complete_and_not_in_the_stream() {
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
    assert!(console == printed(3_000_000), "{} bytes", console.len());
}

#[test]
fn events_go_to_a_file_as_well_as_to_a_pipe() {
    let directory = tempfile::tempdir().unwrap();
    let events = directory.path().join("events");
    let config = directory.path().join("config.json");
    fs::write(&config, crate::harness::config(directory.path(), &SHORT).to_string()).unwrap();
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
fn a_flood_costs_the_disk_what_was_agreed_and_its_end_is_kept() {
    let script = ["connect", "hello", "started=7", "print=20000000"];
    let script: Vec<_> = script.into_iter().chain(SHORT[3..].iter().copied()).collect();
    for name in [None, Some("own")] {
        let run = start(&script, |config| {
            config["console"] = json!({"max_mib": 1});
            if let Some(name) = name {
                config["console"]["path"] = json!(beside(config, name));
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
        assert!((1 << 19..=1 << 20).contains(&kept.len()), "{}", kept.len());
        assert!(printed(20_000_000).ends_with(&kept));
    }
}

#[test]
fn a_fifo_as_console_whose_reader_stops_does_not_stop_the_box() {
    let script = ["connect", "hello", "started=7", "print=5000000"];
    let script: Vec<_> = script.into_iter().chain(SHORT[3..].iter().copied()).collect();
    let mut reader = None;
    let run = start(&script, |config| {
        let path = beside(config, "fifo");
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        let non_blocking = OFlag::O_NONBLOCK.bits();
        let opened = OpenOptions::new().read(true).custom_flags(non_blocking).open(&path);
        reader = Some(opened.unwrap());
        config["console"] = json!({"path": path});
    });
    let run = run.wait();
    assert_eq!(run.ending(), (Some(0), "exited", None));
    // Waiting for each chunk would take over a minute.
    assert!(run.duration < Duration::from_secs(10), "{:?}", run.duration);
    // It gets what the pipe holds.
    let mut received = Vec::new();
    reader.unwrap().read_to_end(&mut received).unwrap();
    assert!(received.len() >= 32 * 1024 && printed(5_000_000).starts_with(&received));
}

#[test]
fn a_file_of_events_has_the_lines_of_standard_output_of_each_box() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("events");
    let mut expected = String::new();
    for arguments in [&[][..], &["--prepare"], &[]] {
        let mut config = config(directory.path(), &SHORT);
        config["events"] = json!({"file": path});
        let output = run_shim(arguments, config.to_string().as_bytes());
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        expected += std::str::from_utf8(&output.stdout).unwrap();
    }
    // Upkeep is not the life of a box.
    let mut config = config(directory.path(), &[]);
    config["events"] = json!({"file": path});
    let output = run_shim(&["--gc"], config.to_string().as_bytes());
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(fs::read_to_string(&path).unwrap(), expected);
    assert_eq!(expected.matches("shim.started").count(), 3);
}

#[test]
fn a_file_of_events_is_complete_where_nobody_reads_them() {
    let directory = tempfile::tempdir().unwrap();
    for redirection in [">&-", "| true", ">/dev/full"] {
        let path = directory.path().join("events");
        let mut config = config(directory.path(), &SHORT);
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
        assert_eq!(status.code(), Some(0), "{redirection}");
        let events = parse(&fs::read_to_string(&path).unwrap());
        assert_eq!(events[0]["type"], "shim.started", "{redirection}");
        assert_eq!(events.last().unwrap()["reason"], "exited", "{redirection}");
        fs::remove_file(&path).unwrap();
    }
}

#[test]
fn files_are_rotated_by_a_shim_in_namespaces_of_its_own() {
    let script = ["connect", "hello", "started=7", "print=1000000"];
    let script: Vec<_> = script.into_iter().chain(SHORT[3..].iter().copied()).collect();
    for user in [0, 65533] {
        let directory = tempfile::tempdir().unwrap();
        let logs = directory.path().join("logs");
        fs::create_dir(&logs).unwrap();
        let mut config = config(directory.path(), &script);
        config["events"] = json!({"file": logs.join("events"), "file_max_kib": 64});
        config["console"] = json!({"path": logs.join("console"), "max_mib": 1});
        config["agent"] = json!({"provider": "none"});
        // Half of the bound, but for the first events.
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
        assert_eq!(output.status.code(), Some(0), "{user}: {output:?}");
        let read = |name: &str| fs::read_to_string(logs.join(name)).unwrap();
        let (current, previous) = (read("events"), read("events.1"));
        assert!(previous.len() <= 32 << 10 && current.starts_with('{'), "{user}: {previous}");
        let kept = previous + &current;
        let stdout = String::from_utf8(output.stdout).unwrap();
        assert_eq!(kept.strip_prefix(&before).unwrap(), stdout, "{user}");
        assert_eq!((read("console.1") + &read("console")).into_bytes(), printed(1_000_000));
    }
}

/// Runs the shim with a file of events on a disk of two pages: the file has one, but for 96 bytes of
/// it, and the other is taken until a second has gone. $1 is the test's directory, the rest the shim's
/// command line.
const ON_FULL_DISK: &str = r#"
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
fn a_full_disk_costs_lines_of_the_file_of_events_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let before = format!("{}\n", "-".repeat(3999));
    fs::write(directory.path().join("before"), &before).unwrap();
    let script = ["connect", "hello", "started=7", "sleep-ms=2000"];
    let script: Vec<_> = script.into_iter().chain(SHORT[3..].iter().copied()).collect();
    let mut config = config(directory.path(), &script);
    config["events"] = json!({"file": directory.path().join("disk/events")});
    config["agent"] = json!({"provider": "none"});
    let file = directory.path().join("config.json");
    fs::write(&file, config.to_string()).unwrap();
    let shim = shim();
    let environment = shim.get_envs().map(|(name, value)| (name, value.unwrap()));
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-euc", ON_FULL_DISK, "sh"]).arg(directory.path());
    command.arg(shim.get_program()).arg("--config").arg(&file).envs(environment);
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let stdout = String::from_utf8(output.stdout).unwrap();
    let events = parse(&stdout);
    assert_eq!(events.last().unwrap()["type"], "box.stopped");
    let after = fs::read_to_string(directory.path().join("after")).unwrap();
    let kept = after.strip_prefix(&before).unwrap();
    // Nothing of the time without room, and all since.
    assert!(stdout.ends_with(kept), "{kept}");
    assert!(!kept.contains("shim.started") && kept.contains("guest.exited"), "{kept}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said.matches("the file of events lacks a line").count(), 1, "{said}");
}

#[test]
fn a_file_of_events_that_is_none_or_in_use_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("fifo");
    mkfifo(&path, Mode::S_IRWXU).unwrap();
    let mut box_config = config(directory.path(), &SHORT);
    box_config["events"] = json!({"file": path});
    let failed = |config: &Value, code: &str, cause: &str| {
        let output = run_shim(&[], config.to_string().as_bytes());
        assert_eq!(output.status.code(), Some(125), "{output:?}");
        let events = parse(std::str::from_utf8(&output.stdout).unwrap());
        let error = events.iter().find(|event| event["type"] == "error").unwrap();
        assert_eq!(error["code"], code);
        assert!(error["causes"].to_string().contains(cause), "{error}");
    };
    failed(&box_config, "state_dir", "found a FIFO, expected a regular file");

    let path = directory.path().join("events");
    let mut running = start(&["connect", "hello", "started=7", "hang"], |config| {
        config["events"] = json!({"file": path});
        config["agent"] = json!({"provider": "none"});
        box_config["paths"]["state_dir"] = config["paths"]["state_dir"].clone();
    });
    let has_started = || fs::read_to_string(&path).is_ok_and(|text| text.contains("guest.started"));
    while !has_started() {
        assert!(running.child.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(5));
    }
    let before = fs::read_to_string(&path).unwrap();
    box_config["events"] = json!({"file": path});
    // The same box: that is what is wrong. Another box with the same file: that is.
    failed(&box_config, "id_in_use", "");
    box_config["id"] = json!("other");
    failed(&box_config, "state_dir", "is in use");
    assert_eq!(fs::read_to_string(&path).unwrap(), before);
    running.child.kill().unwrap();
    running.child.wait().unwrap();
}
