//! A service like a database or a web server: its image has files of several owners, and its
//! entrypoint begins as root and drops to a user of its own.
//!
//! The shim runs it as root and as an ordinary user with subordinate ids (subuid(5)).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use a3s_box_vm_tests::{Shim, config};

/// A user id that no user of the host has, and its first subordinate id.
const USER: u32 = 65533;
const SUB_IDS: u32 = 700_000;

/// Shell script that starts a program as [`USER`]. `$1` is a directory with the files `passwd`,
/// `subuid` and `subgid`, which are mounted over those in `/etc`. The program and its arguments
/// follow.
const AS_USER: &str = r#"
mount --make-rprivate /
for table in passwd subuid subgid; do mount --bind "$1/$table" "/etc/$table"; done
shift
exec setpriv --reuid=65533 --regid=65533 --clear-groups -- "$@"
"#;

/// Output of the service if its user, groups and owners are right.
const OUTPUT: &str = "user 999 groups 998 70\n\
    owners 999:998 999:998 999:998 33:33 0:70 \n\
    page served\n";

fn service(directory: &Path) -> Value {
    let mut config = config(directory, &json!({}));
    config["image"]["reference"] = json!("service");
    config
}

#[test]
fn a_service_drops_to_its_user_under_a_shim_of_root() {
    let directory = tempfile::Builder::new().prefix("b").tempdir().unwrap();
    let config = service(directory.path());
    let mut shim = Shim::spawn(directory, &config);
    shim.ends_with(0, "exited", None);
    assert_eq!(String::from_utf8(shim.console()).unwrap(), OUTPUT, "{shim}");
}

/// Returns a command that starts a shim as [`USER`], and writes the tables for it.
pub(crate) fn as_user(tables: &Path, has_sub_ids: bool) -> Command {
    let table = |name: &str, text: String| fs::write(tables.join(name), text).unwrap();
    let users = fs::read_to_string("/etc/passwd").unwrap();
    table("passwd", format!("{users}ordinary:x:{USER}:{USER}::/nonexistent:/bin/false\n"));
    for name in ["subuid", "subgid"] {
        let range = if has_sub_ids { format!("ordinary:{SUB_IDS}:65536\n") } else { String::new() };
        table(name, range);
    }
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-euc", AS_USER, "sh"]).arg(tables);
    command
}

/// Makes `/dev/kvm` accessible to all users in the lab. Elsewhere the test must not change the
/// permissions of the host.
pub(crate) fn allow_kvm() {
    if std::env::var_os("A3S_BOX_IN_LAB").is_some() {
        fs::set_permissions("/dev/kvm", fs::Permissions::from_mode(0o666)).unwrap();
    }
}

/// Makes [`USER`] the owner of a directory.
pub(crate) fn give_to_user(directory: &Path) {
    std::os::unix::fs::chown(directory, Some(USER), None).unwrap();
}

#[test]
fn a_service_drops_to_its_user_under_a_shim_of_an_ordinary_user() {
    allow_kvm();
    let directory = tempfile::Builder::new().prefix("b").tempdir().unwrap();
    let tables = tempfile::tempdir().unwrap();
    let mut config = service(directory.path());
    // The user cannot write to the cache of the other tests.
    config["paths"]["cache_dir"] = json!(directory.path().join("c"));
    give_to_user(directory.path());
    let mut shim = Shim::spawn_by(as_user(tables.path(), true), directory, &config);
    shim.ends_with(0, "exited", None);
    assert_eq!(String::from_utf8(shim.console()).unwrap(), OUTPUT, "{shim}");
    let user_namespace = shim.events.iter().any(|event| {
        event["layers"]
            .as_array()
            .is_some_and(|layers| layers.iter().any(|layer| layer["layer"] == "user_namespace"))
    });
    assert!(user_namespace, "{shim}");
}
