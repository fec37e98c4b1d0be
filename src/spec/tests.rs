//! What the validation accepts and refuses.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};

use a3s_box_core::BoxConfig;
use a3s_box_core::config::Readiness;
use a3s_box_oci::Limits;
use serde_json::{Value, json};

use super::{EgressSpec, MountSource, NetworkSpec, VmSpec};

fn validate(json: &str) -> Result<VmSpec, String> {
    let config = BoxConfig::from_json(json.as_bytes()).unwrap();
    VmSpec::try_from(config).map_err(|error| error.to_string())
}

#[test]
fn default_config_is_an_agent_only_box_with_a_generated_id() {
    let spec = validate("{}").unwrap();
    assert!(spec.id.starts_with("box-"));
    assert!(spec.image.is_none() && spec.agent.health.is_some() && spec.agent.port == 4088);
    assert_eq!(spec.agent.readiness, Readiness::Health);
    let spec = validate(r#"{"agent":{"provider":"none"}}"#).unwrap();
    assert!(spec.agent.health.is_none() && spec.agent.readiness == Readiness::Started);
}

#[test]
fn limits_of_an_image_have_the_defaults_of_the_crate_oci() {
    let limits = |image: &str| validate(image).unwrap().image.unwrap().limits;
    assert_eq!(limits(r#"{"image":{"layout":"/i"}}"#), Limits::default());
    let raised = limits(r#"{"image":{"layout":"/i","limits":{"unpacked_mib":1,"ratio":7}}}"#);
    assert_eq!(raised, Limits { unpacked_bytes: 1 << 20, ratio: 7, ..Limits::default() });
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn invalid_value_is_refused_with_its_field_and_what_is_expected() {
    let long = "a".repeat(90);
    let cases = [
        (r#"{"id":""}"#, "id: found ``, expected 1 to 64 letters"),
        (r#"{"id":"../x"}"#, "id: found `../x`, expected 1 to 64 letters"),
        (r#"{"image":{"layout":"rel"}}"#, "image.layout: found `rel`, expected an absolute path"),
        (
            r#"{"image":{"layout":"/i","platform":"linux"}}"#,
            "image.platform: found `linux`, expected `os/architecture[/variant]`",
        ),
        (
            r#"{"image":{"layout":"/i","limits":{"unpacked_mib":0}}}"#,
            "image.limits.unpacked_mib: found 0, expected 1 to 16777216",
        ),
        (
            r#"{"image":{"layout":"/i","limits":{"entries":0}}}"#,
            "image.limits.entries: found 0, expected 1 to 4294967295",
        ),
        (
            r#"{"image":{"layout":"/i","limits":{"ratio":0}}}"#,
            "image.limits.ratio: found 0, expected 1 to 4294967295",
        ),
        (
            r#"{"image":{"layout":"/i","limits":{"names_mib":4097}}}"#,
            "image.limits.names_mib: found 4097, expected 1 to 4096",
        ),
        (
            r#"{"image":{"layout":"/i","limits":{"zstd_window_mib":2049}}}"#,
            "image.limits.zstd_window_mib: found 2049, expected 1 to 2048",
        ),
        (r#"{"process":{"args":["a\u0000b"]}}"#, "process.args[0]: found a NUL byte at 1"),
        (
            r#"{"process":{"env":{"A=B":""}}}"#,
            "process.env: found a name of 3 bytes with `=` or NUL, expected a name without `=`",
        ),
        (r#"{"process":{"env":{"":"x"}}}"#, "process.env: found an empty name"),
        (r#"{"process":{"env":{"A":"x\u0000"}}}"#, "process.env.A: found a NUL byte at 1"),
        (
            r#"{"process":{"cwd":"srv"}}"#,
            "process.cwd: found a text of 3 bytes that does not begin with `/`, expected an absolute",
        ),
        (r#"{"resources":{"vcpus":0}}"#, "resources.vcpus: found 0, expected 1 to 16"),
        (r#"{"resources":{"vcpus":17}}"#, "resources.vcpus: found 17, expected 1 to 16"),
        (
            r#"{"resources":{"memory_mib":127}}"#,
            "resources.memory_mib: found 127, expected at least 128",
        ),
        (
            r#"{"resources":{"disk_mib":15}}"#,
            "resources.disk_mib: found 15, expected 16 to 8388608",
        ),
        (r#"{"resources":{"disk_mib":8388609}}"#, "resources.disk_mib: found 8388609, expected 16"),
        (
            r#"{"resources":{"disk":"memory","disk_keep":true}}"#,
            "resources.disk_keep: found true with `resources.disk` `memory`, expected `resources.disk` `state_dir`, or false",
        ),
        (r#"{"resources":{"timeout_ms":0}}"#, "resources.timeout_ms: found 0"),
        (
            r#"{"resources":{"cgroup":"/g","io":{"write_mib_per_s":0}}}"#,
            "resources.io.write_mib_per_s: found 0, expected at least 1",
        ),
        (
            r#"{"resources":{"io":{"read_mib_per_s":1}}}"#,
            "resources.io: found a limit, expected `resources.cgroup` beside it",
        ),
        (
            r#"{"resources":{"rlimits":{"nofile":[2,1]}}}"#,
            "resources.rlimits.nofile: found soft limit 2 over hard limit 1",
        ),
        (r#"{"mounts":[{"type":"tmpfs","target":"/"}]}"#, "mounts[0].target: found `/`"),
        (
            r#"{"mounts":[{"type":"tmpfs","target":"/a/../b"}]}"#,
            "mounts[0].target: found `/a/../b`",
        ),
        (
            r#"{"mounts":[{"type":"virtiofs","source":"/etc/passwd","target":"/a"}]}"#,
            "mounts[0].source: found `/etc/passwd`, which is not a directory",
        ),
        (r#"{"agent":{"vsock_port":4087}}"#, "agent.vsock_port: found 4087"),
        (
            r#"{"agent":{"provider":"none","readiness":"health"}}"#,
            "agent.readiness: found `health`, expected `started` or `notify`",
        ),
        (
            r#"{"agent":{"health":{"interval_ms":9}}}"#,
            "agent.health.interval_ms: found 9, expected 10 to 3600000",
        ),
        (
            r#"{"agent":{"health":{"timeout_ms":0}}}"#,
            "agent.health.timeout_ms: found 0, expected 1 to 3600000",
        ),
        (
            r#"{"agent":{"health":{"retries":0}}}"#,
            "agent.health.retries: found 0, expected 1 to 1000",
        ),
        (
            r#"{"events":{"metrics_interval_ms":99}}"#,
            "events.metrics_interval_ms: found 99, expected 100 to 3600000",
        ),
        (r#"{"events":{"file":"e"}}"#, "events.file: found `e`, expected an absolute path"),
        (
            r#"{"events":{"file_max_kib":63}}"#,
            "events.file_max_kib: found 63, expected 64 to 1048576",
        ),
        (r#"{"console":{"max_mib":0}}"#, "console.max_mib: found 0, expected 1 to 1048576"),
        (
            r#"{"stop":{"signal":"TERMS"}}"#,
            "stop.signal: found `TERMS`, expected a signal as `SIGTERM`, `SIGRTMIN+3` or `15`",
        ),
        (r#"{"stop":{"grace_ms":3600001}}"#, "stop.grace_ms: found 3600001, expected 0 to 3600000"),
        (
            r#"{"confinement":{"seccomp":"log"}}"#,
            "confinement.seccomp: found `log`, expected `enforce`, or `confinement.level` `best_effort`",
        ),
        (r#"{"console":{"path":"log"}}"#, "console.path: found `log`, expected an absolute path"),
    ];
    for (json, expected) in cases {
        let found = validate(json).unwrap_err();
        assert!(found.starts_with(expected), "{json}\n found: {found}\n expected: {expected}");
    }
    let fits = format!(r#"{{"id":"x","paths":{{"state_dir":"/{long}"}}}}"#);
    assert!(validate(&fits).is_ok(), "107 bytes fit");
    let longer = format!(r#"{{"id":"xy","paths":{{"state_dir":"/{long}x"}}}}"#);
    assert!(
        validate(&longer).unwrap_err().starts_with("paths.state_dir: found a socket path of 10")
    );
}

#[test]
fn no_error_about_the_process_quotes_a_value() {
    for process in [
        r#"{"env":{"TOKEN=hunter2":"x"}}"#,
        r#"{"env":{"TOKEN hunter2":"x\u0000"}}"#,
        r#"{"env":{"TOKEN":"hunter2\u0000"}}"#,
        r#"{"args":["hunter2\u0000"]}"#,
        r#"{"cwd":"hunter2"}"#,
        r#"{"cwd":"/hunter2\u0000"}"#,
        r#"{"user":"hunter2\u0000"}"#,
    ] {
        let found = validate(&format!(r#"{{"process":{process}}}"#)).unwrap_err();
        assert!(found.starts_with("process.") && !found.contains("hunter2"), "{process}: {found}");
    }
}

/// Makes a state directory `s` with the box `demo`, a cache `c` with a directory in it, other
/// directories beside them, and symbolic links between them.
fn host() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    for directory in ["s/demo/upper", "c/layers", "share/inner", "new"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    symlink(root.join("s/demo"), root.join("to-demo")).unwrap();
    symlink(root.join("share"), root.join("to-share")).unwrap();
    symlink(&root, root.join("share/to-root")).unwrap();
    (dir, root)
}

/// Returns a config with the state directory and the cache directory of [`host`].
fn config_in(root: &Path) -> Value {
    let paths = json!({"state_dir": root.join("s"), "cache_dir": root.join("c")});
    json!({"id": "demo", "paths": paths})
}

#[test]
fn share_that_overlaps_a_directory_of_the_shim_is_refused() {
    let (_dir, root) = host();
    let shared = |source: &str, change: &dyn Fn(&mut Value)| {
        let mut config = config_in(&root);
        let mount = json!({"type": "virtiofs", "source": root.join(source), "target": "/a"});
        config["mounts"] = json!([mount]);
        change(&mut config);
        validate(&config.to_string())
    };
    let at = |path: &str| root.join(path).display().to_string();
    let cases = [
        ("", at(""), "holds the state directory"),
        ("/", "/".to_owned(), "holds the state directory"),
        ("s", at("s"), "is the state directory"),
        ("share/../s", at("s"), "is the state directory"),
        ("s/demo", at("s/demo"), "is in the state directory"),
        ("to-demo", at("s/demo"), "is in the state directory"),
        ("to-demo/upper", at("s/demo/upper"), "is in the state directory"),
        ("share/to-root/c", at("c"), "is the layer cache"),
        ("c/layers", at("c/layers"), "is in the layer cache"),
    ];
    for (source, resolved, relation) in cases {
        let found = shared(source, &|_| {}).unwrap_err();
        let resolved = resolved.trim_end_matches('/');
        let resolved = if resolved.is_empty() { "/" } else { resolved };
        let expected = format!("mounts[0].source: found `{resolved}`, which {relation} `");
        assert!(found.starts_with(&expected), "{source}\n found: {found}\n expected: {expected}");
    }
    // A directory of the shim may not exist yet, or may be behind a symbolic link.
    let later = |source: &str, path: &str| {
        let state_dir = root.join(path);
        shared(source, &|config| config["paths"]["state_dir"] = json!(state_dir))
    };
    for path in ["new/a/s", "new/./s", "new/missing/../s", "share/to-root/new/s"] {
        let found = later("new", path).unwrap_err();
        assert!(found.contains("/new`, which holds the state directory"), "{path}: {found}");
    }
    later("share", "newer/s").unwrap();
    for source in ["share", "to-share", "new/../share", "share/to-root/share/."] {
        let spec = shared(source, &|_| {}).unwrap();
        let MountSource::Virtiofs { directory, .. } = &spec.mounts[0].source else { panic!() };
        assert_eq!(directory.path, root.join("share"), "{source}");
    }
}

#[test]
fn image_or_file_in_a_directory_that_is_cleared_is_refused() {
    let (_dir, root) = host();
    let with = |section: &str, key: &str, path: &str| {
        let mut config = config_in(&root);
        config[section] = json!({key: root.join(path)});
        validate(&config.to_string())
    };
    let in_cache = "which is in the layer cache (`paths.cache_dir`)";
    let cases = [
        ("image", "layout", "c/layers", in_cache),
        ("image", "layout", "c", in_cache),
        ("image", "layout", "s/demo/image", "which is in the box's own directory"),
        ("image", "layout", "to-demo/image", "which is in the box's own directory"),
        ("console", "path", "c/console", in_cache),
        ("console", "path", "share/to-root/c/new/console", in_cache),
        ("events", "file", "c/events", in_cache),
    ];
    for (section, key, path, expected) in cases {
        let found = with(section, key, path).unwrap_err();
        let expected =
            format!("{section}.{key}: found `{}`, {expected}", root.join(path).display());
        assert!(found.starts_with(&expected), "found: {found}\n expected: {expected}");
    }
    for (section, key, path) in [
        ("image", "layout", "share/image"),
        ("image", "layout", "s/other/image"),
        ("image", "layout", "share/inner/missing"),
        ("console", "path", "s/demo/console"),
        ("events", "file", "cc/events"),
    ] {
        with(section, key, path).unwrap();
    }
}

#[test]
fn directory_that_another_user_can_replace_is_refused_with_the_reason() {
    let (_dir, root) = host();
    let open = root.join("new");
    fs::create_dir(open.join("s")).unwrap();
    for (field, path) in [("state_dir", "new/s"), ("cache_dir", "new/missing/c")] {
        let check = || {
            let mut config = config_in(&root);
            config["paths"][field] = json!(root.join(path));
            validate(&config.to_string()).map(drop)
        };
        let chmod = |mode| fs::set_permissions(&open, Permissions::from_mode(mode)).unwrap();
        for mode in [0o777, 0o770, 0o702] {
            chmod(mode);
            let expected = format!(
                "paths.{field}: found `{}` in `{}`, a parent directory of user 0 with mode {mode:04o}, \
                 expected one of root or of user 0 that nobody else can write to",
                root.join(path).display(),
                open.display()
            );
            let found = check().unwrap_err();
            assert!(found.starts_with(&expected), "found: {found}\n expected: {expected}");
        }
        for mode in [0o1777, 0o755] {
            chmod(mode);
            check().unwrap();
        }
        chown(&open, Some(1), None).unwrap();
        let found = check().unwrap_err();
        assert!(found.contains("a parent directory of user 1 with mode 0755"), "{found}");
        chown(&open, Some(0), None).unwrap();
    }
}

#[test]
fn output_file_that_a_guest_or_another_user_can_replace_is_refused() {
    let (_dir, root) = host();
    fs::create_dir(root.join("logs")).unwrap();
    let with = |section: &str, key: &str, path: &str| {
        let mut config = config_in(&root);
        let mount = |source: &str| json!({"type": "virtiofs", "source": root.join(source), "target": format!("/{source}")});
        let tmpfs = json!({"type": "tmpfs", "target": "/t"});
        config["mounts"] = json!([tmpfs, mount("new"), mount("to-share")]);
        config[section] = json!({key: root.join(path)});
        validate(&config.to_string())
    };
    for (section, key) in [("console", "path"), ("events", "file")] {
        for path in ["share/file", "to-share/inner/file", "share/missing/file", "logs/../share/x"] {
            let expected = format!(
                "{section}.{key}: found `{}`, which is in the share `{}` (`mounts[2].source`), \
                 expected a path outside of all shares",
                root.join(path).display(),
                root.join("share").display()
            );
            let found = with(section, key, path).unwrap_err();
            assert!(found.starts_with(&expected), "found: {found}\n expected: {expected}");
        }
        with(section, key, "logs/file").unwrap();
        let chmod = |mode| {
            fs::set_permissions(root.join("logs"), Permissions::from_mode(mode)).unwrap();
        };
        chmod(0o777);
        let expected = format!(
            "{section}.{key}: found `{}` in `{}`, a parent directory of user 0 with mode 0777, \
             expected one of root",
            root.join("logs/file").display(),
            root.join("logs").display()
        );
        let found = with(section, key, "logs/file").unwrap_err();
        assert!(found.starts_with(&expected), "found: {found}\n expected: {expected}");
        chmod(0o755);
    }
}

#[test]
fn share_to_which_another_user_leads_the_path_is_refused() {
    let (_dir, root) = host();
    for directory in ["home/data", "home/own", "private"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    symlink(root.join("private"), root.join("home/link")).unwrap();
    symlink(root.join("private"), root.join("home/link-of-root")).unwrap();
    for path in ["home", "home/data", "home/link"] {
        lchown(root.join(path), Some(1), None).unwrap();
    }
    let shared = |source: &str| {
        let mut config = config_in(&root);
        let mount = json!({"type": "virtiofs", "source": root.join(source), "target": "/a"});
        config["mounts"] = json!([mount]);
        validate(&config.to_string()).map(|spec| match &spec.mounts[0].source {
            MountSource::Virtiofs { directory, .. } => directory.path.clone(),
            MountSource::Tmpfs { .. } => panic!(),
        })
    };
    let at = |path: &str| root.join(path).display().to_string();
    let cases = [
        ("home/link", "home/link", "a symbolic link of user 1, expected a directory, or a link of"),
        ("home/link/x", "home/link", "a symbolic link of user 1"),
        // Whoever owns the directory can have renamed these files to their names.
        ("home/link-of-root", "home/link-of-root", "a file of user 0 in `"),
        ("home/own", "home/own", "a file of user 0 in `"),
        ("home/data/../../private", "", "a file of user 0 in `"),
    ];
    for (source, component, reason) in cases {
        let expected = format!(
            "mounts[0].source: found `{}` with `{}`, {reason}",
            at(source),
            at(component).trim_end_matches('/')
        );
        let found = shared(source).unwrap_err();
        assert!(found.starts_with(&expected), "found: {found}\n expected: {expected}");
    }
    // Another user's own directories can be shared, and links of root are followed.
    assert_eq!(shared("home/data").unwrap(), root.join("home/data"));
    symlink("home/data", root.join("to-data")).unwrap();
    assert_eq!(shared("to-data").unwrap(), root.join("home/data"));
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn invalid_network_is_refused_with_its_field() {
    let port = |more: &str| {
        format!(r#"{{"host_address":"127.0.0.1","host_port":80,"guest_port":80{more}}}"#)
    };
    let published = |egress: &str, ports: &[&str]| {
        format!(r#"{{"mode":"passt","egress":"{egress}","publish":[{}]}}"#, ports.join(","))
    };
    let one = port("");
    let many = vec![one.as_str(); 65];
    let all = one.replace("127.0.0.1", "0.0.0.0");
    let on = |address: &str| one.replace("127.0.0.1", address);
    let other =
        one.replace("127.0.0.1", "127.0.0.2").replace(r#""guest_port":80"#, r#""guest_port":81"#);
    let cases = [
        (
            r#"{"egress":"deny"}"#.into(),
            "egress: found a value with `network.mode` `none`, expected it with `passt`",
        ),
        (format!(r#"{{"publish":[{one}]}}"#), "publish: found a value with `network.mode` `none`"),
        (
            r#"{"mode":"tsi","dns":["1.1.1.1"]}"#.into(),
            "dns: found a value with `network.mode` `tsi`",
        ),
        (
            r#"{"mode":"passt","dns":["1.1.1.1"]}"#.into(),
            "dns: found a value with egress `deny`, expected none",
        ),
        (
            r#"{"mode":"passt","egress":"allow","dns":["1.1.1.1","127.0.0.53"]}"#.into(),
            "dns[1]: found `127.0.0.53`",
        ),
        (
            r#"{"mode":"passt","egress":"allow","dns":["1.1.1.1","1.1.1.2","1.1.1.3","1.1.1.4"]}"#
                .into(),
            "dns: found 4, expected at most 3",
        ),
        (
            published("deny", &[&one.replace(r#""host_port":80"#, r#""host_port":0"#)]),
            "publish[0].host_port: found 0, expected 1 to 65535",
        ),
        (
            published("deny", &[&one.replace("127.0.0.1", "224.0.0.1")]),
            "publish[0].host_address: found `224.0.0.1`",
        ),
        (published("deny", &[&on("ff02::1")]), "publish[0].host_address: found `ff02::1`"),
        (published("deny", &[&on("fe80::1")]), "publish[0].host_address: found `fe80::1`"),
        (
            published("deny", &[&on("::ffff:127.0.0.1")]),
            "publish[0].host_address: found `::ffff:127.0.0.1`",
        ),
        (
            published("deny", &[&on("::"), &on("::1")]),
            "publish[1].host_port: found 80, expected one that `network.publish[0]`",
        ),
        (
            r#"{"mode":"passt","egress":"allow","dns":["2001:db8::53","::1"]}"#.into(),
            "dns[1]: found `::1`",
        ),
        (
            published("deny", &[&port(r#","protocol":"udp""#)]),
            "publish[0].protocol: found `udp` with egress `deny`, expected `tcp`",
        ),
        (
            published("deny", &[&one, &all]),
            "publish[1].host_port: found 80, expected one that `network.publish[0]`",
        ),
        (published("allow", &[&one, &other]), "publish[1].guest_port: found 81, expected 80"),
        (published("deny", &many), "publish: found 65 ports, expected at most 64"),
        (
            r#"{"mode":"passt","not_host":true}"#.into(),
            "not_host: found a value with egress `deny`, expected it with `network.egress` `allow`",
        ),
        (
            r#"{"mode":"tsi","not_host":true}"#.into(),
            "not_host: found a value with `network.mode` `tsi`",
        ),
    ];
    for (network, expected) in cases {
        let found = validate(&format!(r#"{{"network":{network}}}"#)).unwrap_err();
        assert!(found.starts_with(&format!("network.{expected}")), "{network}\n{found}");
    }
    for (egress, ports) in [
        ("deny", vec![one.as_str(), other.as_str()]),
        ("allow", vec![one.as_str(), &port(r#","protocol":"udp""#)]),
        // Sockets of both IP versions can have the same port.
        ("deny", vec![&on("0.0.0.0"), &on("::")]),
        ("allow", vec![&on("::"), &on("127.0.0.1"), &on("127.0.0.2")]),
    ] {
        let json = format!(r#"{{"network":{}}}"#, published(egress, &ports));
        validate(&json).unwrap();
    }
}

#[test]
fn invalid_rule_is_refused_with_its_field() {
    let rule = r#"{"to":"10.0.0.0/8"}"#;
    let with_ports = |ports: &str| format!(r#"{rule},{{"to":"10.0.0.0/8","ports":{ports}}}"#);
    let many = |item: &str, count| vec![item; count].join(",");
    let cases = [
        (
            r#"{"to":"a.example."}"#.to_owned(),
            "[0].to: found `a.example.`, expected an address, a network or a name",
        ),
        (format!(r#"{rule},{{"to":"10.0.0.7/8"}}"#), "[1].to: found `10.0.0.7/8`, expected"),
        (many(rule, 1001), ": found 1001 rules with an address, expected at most 1000"),
        (with_ports("[]"), "[1].ports: found 0 ports, expected 1 to 64, or no `ports`"),
        (
            with_ports(&format!("[{}]", many("1", 65))),
            "[1].ports: found 65 ports, expected 1 to 64",
        ),
        (with_ports("[443,0]"), "[1].ports[1]: found 0, expected 1 to 65535"),
        (with_ports(r#"["0-5"]"#), "[1].ports[0]: found `0-5`, expected 1 to 65535"),
        (with_ports(r#"["6-5"]"#), "[1].ports[0]: found `6-5`, expected 1 to 65535, or a range"),
    ];
    for (rules, expected) in cases {
        let json = format!(r#"{{"network":{{"mode":"passt","egress":[{rules}]}}}}"#);
        let found = validate(&json).unwrap_err();
        assert!(found.starts_with(&format!("network.egress{expected}")), "{rules}\n{found}");
    }
    let names = many(r#"{"to":"*.a.example"}"#, 10_000);
    for rules in [String::new(), many(rule, 1000), names, with_ports(r#"["1-65535"]"#)] {
        let more = r#""not_host":true,"dns":["1.1.1.1"]"#;
        let json = format!(r#"{{"network":{{"mode":"passt","egress":[{rules}],{more}}}}}"#);
        validate(&json).unwrap();
    }
}

#[test]
fn network_through_passt_denies_egress_by_default_and_allows_five_shares() {
    let spec = validate(r#"{"network":{"mode":"passt"}}"#).unwrap();
    let NetworkSpec::Passt(passt) = spec.network else { panic!("{:?}", spec.network) };
    assert_eq!((passt.egress, passt.not_host), (EgressSpec::Deny, false));
    let share = r#"{"type":"virtiofs","source":"/","target":"/a"}"#;
    let json = format!(r#"{{"network":{{"mode":"passt"}},"mounts":[{}]}}"#, [share; 6].join(","));
    assert!(
        validate(&json)
            .unwrap_err()
            .starts_with("mounts: found 6 of type virtiofs, expected at most 5")
    );
}
