//! Images as databases and web servers are: files of several owners, and an entrypoint that begins as root
//! and drops to a user of its own. For root, and for an ordinary user with sub-ids.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use a3s_box_vm_tests::{Shim, config};

/// A user of the host that nobody is, and its first sub-id.
const USER: u32 = 65533;
const SUB_IDS: u32 = 700_000;

/// Starts a program as [`USER`], with tables of users and sub-ids of its own over those of the machine: $1
/// is the directory of the tables, the rest the program.
const AS_USER: &str = r#"
mount --make-rprivate /
for table in passwd subuid subgid; do mount --bind "$1/$table" "/etc/$table"; done
shift
exec setpriv --reuid=65533 --regid=65533 --clear-groups -- "$@"
"#;

/// What the service says when all is as it should be.
const SAID: &str = "user 999 groups 998 70\n\
    owners 999:998 999:998 999:998 33:33 0:70 \n\
    page served\n";

fn service(directory: &Path) -> Value {
    let mut config = config(directory, &json!({}));
    config["image"]["reference"] = json!("service");
    config
}

#[test]
fn a_service_that_drops_to_its_user_works_as_root() {
    let directory = tempfile::Builder::new().prefix("b").tempdir().unwrap();
    let config = service(directory.path());
    let mut shim = Shim::spawn(directory, &config);
    shim.ends_with(0, "exited", None);
    assert_eq!(String::from_utf8(shim.console()).unwrap(), SAID, "{shim}");
}

/// What an ordinary user runs a shim with.
fn as_user(tables: &Path) -> Command {
    let table = |name: &str, text: String| fs::write(tables.join(name), text).unwrap();
    let users = fs::read_to_string("/etc/passwd").unwrap();
    table("passwd", format!("{users}ordinary:x:{USER}:{USER}::/nonexistent:/bin/false\n"));
    for name in ["subuid", "subgid"] {
        table(name, format!("ordinary:{SUB_IDS}:65536\n"));
    }
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-euc", AS_USER, "sh"]).arg(tables);
    command
}

/// Gives the user the right to use KVM, in the lab. Elsewhere it is the machine's to give: there `/dev/kvm`
/// is left alone.
fn allow_kvm() {
    if std::env::var_os("A3S_BOX_IN_LAB").is_some() {
        fs::set_permissions("/dev/kvm", fs::Permissions::from_mode(0o666)).unwrap();
    }
}

#[test]
fn a_service_that_drops_to_its_user_works_for_an_ordinary_user_with_sub_ids() {
    allow_kvm();
    let directory = tempfile::Builder::new().prefix("b").tempdir().unwrap();
    let tables = tempfile::tempdir().unwrap();
    let mut config = service(directory.path());
    config["paths"]["cache_dir"] = json!(directory.path().join("c"));
    let chown = Command::new("chown").arg(USER.to_string()).arg(directory.path()).status().unwrap();
    assert!(chown.success());
    let mut shim = Shim::spawn_by(as_user(tables.path()), directory, &config);
    shim.ends_with(0, "exited", None);
    assert_eq!(String::from_utf8(shim.console()).unwrap(), SAID, "{shim}");
    let user_namespace = shim.events.iter().any(|event| {
        event["layers"]
            .as_array()
            .is_some_and(|layers| layers.iter().any(|layer| layer["layer"] == "user_namespace"))
    });
    assert!(user_namespace, "{shim}");
}
