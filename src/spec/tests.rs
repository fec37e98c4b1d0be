use a3s_box_core::BoxConfig;
use a3s_box_core::config::Readiness;

use super::VmSpec;

fn validate(json: &str) -> Result<VmSpec, String> {
    let config = BoxConfig::from_json(json.as_bytes()).unwrap();
    VmSpec::try_from(config).map_err(|error| error.to_string())
}

#[test]
fn the_default_config_is_an_agent_only_box_with_an_id_of_its_own() {
    let spec = validate("{}").unwrap();
    assert!(spec.id.starts_with("box-"));
    assert!(spec.image.is_none() && spec.agent.health.is_some() && spec.agent.port == 4088);
    assert_eq!(spec.agent.readiness, Readiness::Health);
    let spec = validate(r#"{"agent":{"provider":"none"}}"#).unwrap();
    assert!(spec.agent.health.is_none() && spec.agent.readiness == Readiness::Started);
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn what_makes_no_sense_is_refused_with_path_found_and_expected() {
    let long = "a".repeat(90);
    let cases = [
        (r#"{"id":""}"#, "id: found ``, expected 1 to 64 letters"),
        (r#"{"id":"../x"}"#, "id: found `../x`, expected 1 to 64 letters"),
        (r#"{"image":{"layout":"rel"}}"#, "image.layout: found `rel`, expected an absolute path"),
        (
            r#"{"image":{"layout":"/i","platform":"linux"}}"#,
            "image.platform: found `linux`, expected `os/architecture[/variant]`",
        ),
        (r#"{"process":{"args":["a\u0000b"]}}"#, "process.args[0]: found a NUL byte at 1"),
        (r#"{"process":{"env":{"A=B":""}}}"#, "process.env: found the name `A=B`"),
        (r#"{"process":{"cwd":"srv"}}"#, "process.cwd: found `srv`, expected an absolute path"),
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
        (r#"{"resources":{"timeout_ms":0}}"#, "resources.timeout_ms: found 0"),
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
            "mounts[0].source: found `/etc/passwd`, which is not a folder",
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
            r#"{"stop":{"signal":"TERM"}}"#,
            "stop.signal: found `TERM`, expected a name as `SIGTERM`",
        ),
        (r#"{"stop":{"grace_ms":3600001}}"#, "stop.grace_ms: found 3600001, expected 0 to 3600000"),
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
fn what_a_later_version_does_is_refused_by_name_and_never_ignored() {
    let cases = [
        (r#"{"network":{"mode":"passt"}}"#, "network.mode"),
        (r#"{"network":{"mode":"tsi"}}"#, "network.mode"),
        (r#"{"confinement":{"level":"required"}}"#, "confinement.level"),
        (r#"{"confinement":{"level":"best_effort"}}"#, "confinement.level"),
    ];
    for (json, path) in cases {
        let found = validate(json).unwrap_err();
        assert!(found.starts_with(&format!("{path}: not supported yet")), "{json}: {found}");
    }
}
