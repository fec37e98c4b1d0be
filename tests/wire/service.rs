//! The unit of systemd. `tests/systemd/run` starts it for real.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use a3s_box_core::config::StopConfig;

/// The unit, with the executable that is here.
fn unit() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/a3s-box@.service");
    let unit = std::fs::read_to_string(path).unwrap();
    let installed = "ExecStart=/usr/local/bin/a3s-box-shim\n";
    assert!(unit.contains(installed), "`make install` replaces the path in this line");
    unit.replace(installed, &format!("ExecStart={}\n", env!("CARGO_BIN_EXE_a3s-box-shim")))
}

/// What `systemd-analyze verify` has to say: it warns of what it does not know, and succeeds.
fn complaints(unit: &str) -> String {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a3s-box@.service");
    std::fs::write(&path, unit).unwrap();
    let output = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(path).output();
    let output = output.unwrap_or_else(|_| panic!("this test needs systemd: install `systemd`"));
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(output.status.success() || !said.is_empty(), "{:?}", output.status);
    said
}

#[test]
fn systemd_understands_each_line_of_the_unit() {
    let unit = unit();
    assert_eq!(complaints(&unit), "");
    for (right, wrong, complaint) in [
        ("WatchdogSec=", "WatchdogSeconds=", "Unknown key"),
        ("Restart=on-failure", "Restart=on-fail", "restart specifier"),
        ("DevicePolicy=closed", "DevicePolicy=shut", "device policy"),
        ("ExecStart=", "ExecStart=/nowhere", "not executable"),
    ] {
        assert!(unit.contains(right), "{right}");
        let said = complaints(&unit.replacen(right, wrong, 1));
        assert!(said.contains(complaint), "{wrong}: {said:?}");
    }
}

#[test]
fn systemd_waits_longer_for_a_stop_than_the_shim_takes() {
    let grace = Duration::from_millis(StopConfig::default().grace_ms);
    // The guest's way down (20 s), its last word (5 s), the console and the events (2 s each).
    let longest = grace + Duration::from_secs(29);
    let unit = unit();
    let timeout = unit.lines().find_map(|line| line.strip_prefix("TimeoutStopSec=")).unwrap();
    let timeout = Duration::from_secs(timeout.strip_suffix('s').unwrap().parse().unwrap());
    assert!(timeout > longest, "{timeout:?} {longest:?}");
}
