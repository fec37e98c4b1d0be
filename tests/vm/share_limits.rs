//! What shares and a shared root cannot do, and when a guest sees a change that the host makes.
//!
//! The tests state what libkrun 1.19.7 and Linux 6.12 do. A test that fails after an update of
//! libkrun may report an improvement: `docs/operations.md` then changes as well.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::json;

use a3s_box_vm_tests::{Shim, eventually};

/// Returns the lines of the console that begin with `prefix`, each as its first word and the rest.
fn lines(shim: &Shim, prefix: &str) -> BTreeMap<String, String> {
    let console = String::from_utf8_lossy(&shim.console()).into_owned();
    let lines = console.lines().filter_map(|line| line.trim_end().strip_prefix(prefix));
    lines.filter_map(|l| l.split_once(' ')).map(|(a, b)| (a.to_owned(), b.to_owned())).collect()
}

/// The operations of `print-limits`, and what they do on a file system of virtio-fs: 1 is EPERM, 22
/// is EINVAL, 95 is EOPNOTSUPP.
const OF_VIRTIOFS: Limits = [
    // The confinement of the shim allows no device, because it would be one of the host.
    ("device", "errno 1"),
    // libkrun does not implement FUSE_TMPFILE.
    ("tmpfile", "errno 95"),
    // The guest kernel refuses it: an upper directory needs RENAME_WHITEOUT and O_TMPFILE.
    ("overlay-upper", "errno 22"),
    // libkrun removes the flag from the request (krun-devices `src/virtio/fs/server.rs`, `rename2`)
    // and renames the file, so that the caller sees a success.
    ("rename-whiteout", "no-whiteout"),
    // libkrun does not ask for FUSE_DONT_MASK, so that the guest kernel applies the umask 022 in
    // spite of the default ACL: `r-x & rw-`.
    ("default-acl", "mask-4"),
];

/// What the operations do on a block root, which is an overlay on ext4.
const OF_BLOCK_ROOT: Limits = [
    ("device", "made"),
    ("tmpfile", "made"),
    // An overlay cannot be the upper directory of an overlay.
    ("overlay-upper", "errno 22"),
    // overlayfs refuses the flag, so that the caller knows that there is no whiteout.
    ("rename-whiteout", "errno 22"),
    // The guest kernel of libkrunfw has no ACLs on ext4.
    ("default-acl", "errno 95"),
];

/// The operations of `print-limits` with their results.
type Limits = [(&'static str, &'static str); 5];

/// Runs `print-limits` in each directory, with a root of this kind, and compares.
fn check_limits(directories: &[(&str, &str, Limits)]) {
    for (kind, directory, expected) in directories {
        let step = format!("print-limits={directory}/limits");
        let host = tempfile::Builder::new().prefix("h").tempdir().unwrap();
        let mut shim = Shim::start_workload(&[&step], |config| {
            config["root"] = json!({"kind": kind});
            config["mounts"]
                .as_array_mut()
                .unwrap()
                .push(json!({"type": "virtiofs", "source": host.path(), "target": "/share",
                       "read_only": false}));
        });
        shim.ends_with(0, "exited", None);
        let expected: BTreeMap<String, String> =
            expected.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        assert_eq!(lines(&shim, "limit "), expected, "{directory}\n{shim}");
    }
}

#[test]
fn share_and_both_kinds_of_root_have_the_documented_limits() {
    check_limits(&[
        ("block", "/share", OF_VIRTIOFS),
        ("shared", "/var", OF_VIRTIOFS),
        ("block", "/var", OF_BLOCK_ROOT),
    ]);
}

/// Changes files of a share while a guest looks at them. Returns the milliseconds after which the
/// guest has seen each change.
fn times_of_changes(cache: &str) -> BTreeMap<String, u64> {
    let host = tempfile::Builder::new().prefix("h").tempdir().unwrap();
    let path = |name: &str| host.path().join(name);
    for name in ["edited", "held", "grown", "longer", "replaced", "removed", "chmod", "done"] {
        fs::write(path(name), "before").unwrap();
    }
    let mut shim = Shim::start_workload(&["watch-host=/share"], |config| {
        config["mounts"].as_array_mut().unwrap().push(
            json!({"type": "virtiofs", "source": host.path(), "target": "/share", "read_only": true,
                   "cache": cache}),
        );
    });
    eventually("the guest has looked at the files", || {
        String::from_utf8_lossy(&shim.console()).contains("ready for changes")
    });
    for name in ["edited", "held"] {
        fs::write(path(name), "after!").unwrap();
    }
    for name in ["grown", "longer"] {
        fs::write(path(name), "after!after!").unwrap();
    }
    fs::write(path("new"), "after!").unwrap();
    fs::rename(path("new"), path("replaced")).unwrap();
    fs::remove_file(path("removed")).unwrap();
    fs::set_permissions(path("chmod"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(path("added"), "").unwrap();
    fs::write(path("done"), "after!").unwrap();
    shim.ends_with(0, "exited", None);
    assert_eq!(lines(&shim, "inotify"), BTreeMap::from([(String::new(), "silent".to_owned())]));
    let seen = lines(&shim, "seen ");
    seen.into_iter().map(|(name, ms)| (name, ms.parse().unwrap())).collect()
}

/// Fails unless the guest has seen each of these changes in less than `limit_ms`.
fn assert_seen(seen: &BTreeMap<String, u64>, names: &[&str], limit_ms: u64) {
    for name in names {
        assert!(seen.get(*name).is_some_and(|ms| *ms < limit_ms), "{name}: {seen:?}");
    }
}

#[test]
fn guest_sees_changed_files_at_once_and_changed_names_after_seconds() {
    let seen = times_of_changes("none");
    assert_seen(&seen, &["added", "listed", "edited", "held", "grown", "longer", "chmod"], 1000);
    // Names are valid for 5 seconds.
    assert_seen(&seen, &["replaced", "removed"], 9000);
    assert!(seen["removed"] > 1000, "{seen:?}");
}

#[test]
fn guest_that_caches_attributes_sees_changes_after_seconds() {
    let seen = times_of_changes("auto");
    assert_seen(&seen, &["added", "listed", "edited"], 3000);
    // Attributes and names are valid for 5 seconds.
    let late = ["held", "grown", "longer", "replaced", "removed", "chmod"];
    assert_seen(&seen, &late, 9000);
    for name in ["grown", "longer", "removed", "chmod"] {
        assert!(seen[name] > 1000, "{name}: {seen:?}");
    }
}
