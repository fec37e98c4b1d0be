//! The systemd unit, as systemd parses it. `tests/systemd/run` starts it.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use a3s_box_core::config::StopConfig;

/// Largest exposure of the unit that is accepted, in tenths. It was 65 before the unit had a filter
/// of system calls. With the settings of `network.conf` it is 46.
const MAX_EXPOSURE: u32 = 35;

/// Returns the unit with the path of this build's shim.
fn unit() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/a3s-box@.service");
    let unit = std::fs::read_to_string(path).unwrap();
    let installed = "ExecStart=/usr/local/bin/a3s-box-shim\n";
    assert!(unit.contains(installed), "`make install` replaces the path in this line");
    unit.replace(installed, &format!("ExecStart={}\n", env!("CARGO_BIN_EXE_a3s-box-shim")))
}

/// Returns the messages of `systemd-analyze verify`.
///
/// It only warns of an unknown key and succeeds, so its exit status does not suffice.
fn verify(unit: &str) -> String {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a3s-box@.service");
    std::fs::write(&path, unit).unwrap();
    let output = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(path).output();
    let output =
        output.unwrap_or_else(|_| panic!("this test needs systemd: install the package `systemd`"));
    let messages = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    // A failure without a message would look like a valid unit.
    assert!(
        output.status.success() || !messages.is_empty(),
        "systemd-analyze ended with {:?}",
        output.status
    );
    messages
}

#[test]
fn systemd_accepts_each_line_of_the_unit() {
    let unit = unit();
    assert_eq!(verify(&unit), "");
    // systemd must report each of these mistakes. If it did not, a unit without a message would
    // prove nothing.
    for (right, wrong, message) in [
        ("WatchdogSec=", "WatchdogSeconds=", "Unknown key"),
        ("Restart=on-failure", "Restart=on-fail", "restart specifier"),
        ("DevicePolicy=closed", "DevicePolicy=shut", "device policy"),
        ("ExecStart=", "ExecStart=/nowhere", "not executable"),
    ] {
        assert!(unit.contains(right), "the unit has no {right}");
        let messages = verify(&unit.replacen(right, wrong, 1));
        assert!(messages.contains(message), "the messages about {wrong} are {messages:?}");
    }
}

#[test]
fn systemd_accepts_each_line_of_the_settings_for_a_network() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/network.conf");
    let settings = std::fs::read_to_string(path).unwrap();
    let settings = settings.split_once("[Service]\n").unwrap().1;
    let with = |settings: &str| unit().replace("[Install]\n", &format!("{settings}[Install]\n"));
    assert_eq!(verify(&with(settings)), "");
    let wrong = settings.replace("PrivateNetwork=", "PrivateNet=");
    assert!(verify(&with(&wrong)).contains("Unknown key"));
}

/// Returns what `systemd-analyze security` says of the unit in its last line, and whether it
/// accepts [`MAX_EXPOSURE`].
fn exposure(unit: &str) -> (String, bool) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a3s-box@.service");
    std::fs::write(&path, unit).unwrap();
    let threshold = format!("--threshold={MAX_EXPOSURE}");
    let mut command = Command::new("systemd-analyze");
    command.args(["security", "--offline=yes", "--no-pager", &threshold]).arg(path);
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let last = text.lines().last().unwrap_or_default();
    // Without this line it has failed for another reason.
    assert!(last.contains("Overall exposure level"), "systemd-analyze printed {text:?}");
    (last.to_owned(), output.status.success())
}

#[test]
fn unit_takes_from_the_shim_what_it_does_not_need() {
    let unit = unit();
    let (found, is_accepted) = exposure(&unit);
    assert!(is_accepted, "{found}: more than {MAX_EXPOSURE} tenths");
    println!("{found}");
    // Without these settings, systemd must not accept the unit any more. If it did, the number
    // would not depend on the unit.
    for setting in ["PrivateNetwork=", "SystemCallFilter=", "CapabilityBoundingSet="] {
        let is_other = |line: &&str| !line.starts_with(setting);
        let weaker: Vec<&str> = unit.lines().filter(is_other).collect();
        assert!(weaker.len() < unit.lines().count(), "the unit has no {setting}");
        let (found, is_accepted) = exposure(&weaker.join("\n"));
        assert!(!is_accepted, "without {setting}: {found}");
    }
}

#[test]
fn stop_timeout_of_the_unit_is_longer_than_the_longest_stop_of_the_shim() {
    let grace = Duration::from_millis(StopConfig::default().grace_ms);
    // The guest has 20 s to shut down and 5 s after its last message. The console and the events
    // have 2 s each to reach their readers.
    let longest = grace + Duration::from_secs(29);
    let unit = unit();
    let timeout = unit.lines().find_map(|line| line.strip_prefix("TimeoutStopSec=")).unwrap();
    let timeout = Duration::from_secs(timeout.strip_suffix('s').unwrap().parse().unwrap());
    assert!(timeout > longest, "the unit waits {timeout:?}, and a stop takes up to {longest:?}");
}
