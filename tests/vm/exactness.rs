//! Arguments, environment and config arrive exactly, and the output is complete.

use std::fmt::Write as _;

use serde_json::json;

use a3s_box_vm_tests::Shim;

/// Words that a shell, a kernel command line or a careless parser would change.
const WORDS: [&str; 9] = ["", "a b", "\"", "'", "new\nline", "--", "uid", "ünï→", "$HOME\\"];

#[test]
fn a_thousand_arguments_arrive_unchanged() {
    let args: Vec<String> = (0..1000).map(|i| format!("{i}{}", WORDS[i % WORDS.len()])).collect();
    let mut all =
        vec!["/bin/sh".to_owned(), "-c".into(), "printf '<%s>' \"$@\"".into(), "sh".into()];
    all.extend(args.clone());
    let mut shim = Shim::start(&json!({"args": all}));
    shim.ends_with(0, "exited", None);
    let expected: String = args.iter().fold(String::new(), |mut text, arg| {
        write!(text, "<{arg}>").unwrap();
        text
    });
    assert_eq!(String::from_utf8(shim.console()).unwrap(), expected);
}

#[test]
fn an_environment_of_64_kib_arrives_unchanged() {
    let mut env = serde_json::Map::new();
    for i in 0..64 {
        env.insert(
            format!("V{i}"),
            json!(format!("{}{}", WORDS[i % WORDS.len()], "x".repeat(1020))),
        );
    }
    env.insert("EMPTY".into(), json!(""));
    let script = "printf '%s|' \"$EMPTY\" \"${EMPTY-unset}\"; i=0; while [ $i -lt 64 ]; do eval \"printf '%s|' \\\"\\$V$i\\\"\"; i=$((i+1)); done";
    let mut shim = Shim::start(&json!({"args": ["/bin/sh", "-c", script], "env": env}));
    shim.ends_with(0, "exited", None);
    let mut expected = "||".to_owned();
    for i in 0..64 {
        write!(expected, "{}|", env[&format!("V{i}")].as_str().unwrap()).unwrap();
    }
    assert_eq!(String::from_utf8(shim.console()).unwrap(), expected);
    assert!(
        shim.events.iter().all(|event| !event.to_string().contains("xxxx")),
        "an event contains a value of the environment"
    );
}

#[test]
fn ten_mebibytes_of_output_are_complete_when_the_program_exits_at_once() {
    let script = "seq 1 1500000; echo last >&2";
    let mut shim = Shim::start(&json!({"args": ["/bin/sh", "-c", script]}));
    shim.ends_with(0, "exited", None);
    let console = String::from_utf8(shim.console()).unwrap();
    let mut numbers = 0_u64;
    let mut last = 0;
    for line in console.lines() {
        if line == "last" {
            last += 1;
        } else {
            numbers += 1;
        }
    }
    assert!(console.len() > 10 * 1024 * 1024, "{}", console.len());
    assert_eq!((numbers, last), (1_500_000, 1));
}

#[test]
fn a_user_by_name_has_the_ids_and_groups_of_the_image_and_the_working_directory_is_made() {
    let process = json!({"args": ["/bin/sh", "-c", "id -u; id -g; id -G; pwd"], "user": "app", "cwd": "/made/for/it"});
    let mut shim = Shim::start(&process);
    shim.ends_with(0, "exited", None);
    assert_eq!(String::from_utf8(shim.console()).unwrap(), "1000\n1000\n1000 2000\n/made/for/it\n");
}

#[test]
fn mounts_and_resource_limits_match_the_config() {
    let script =
        "ulimit -n; cat /w/file; echo no > /w/x || echo refused; echo yes > /t/x && cat /t/x";
    let shared = tempfile::tempdir().unwrap();
    std::fs::write(shared.path().join("file"), "from the host\n").unwrap();
    let mut shim = Shim::start_with(&json!({"args": ["/bin/sh", "-c", script]}), |config| {
        config["mounts"] = json!([
            {"type": "virtiofs", "source": shared.path(), "target": "/w", "read_only": true},
            {"type": "tmpfs", "target": "/t", "size_mib": 1},
        ]);
        config["resources"] = json!({"rlimits": {"nofile": [77, 88]}});
    });
    shim.ends_with(0, "exited", None);
    let console = String::from_utf8(shim.console()).unwrap();
    assert!(console.starts_with("77\nfrom the host\n"), "{console}");
    assert!(console.contains("refused") && console.ends_with("yes\n"), "{console}");
    assert!(!shared.path().join("x").exists());
}
