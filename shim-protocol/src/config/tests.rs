use super::{BoxConfig, ConfigError, MAX_CONFIG_BYTES};

fn refused(json: &str) -> String {
    BoxConfig::from_json(json.as_bytes()).unwrap_err().to_string()
}

#[test]
fn empty_object_is_the_default_config() {
    assert_eq!(BoxConfig::from_json(b"{}").unwrap(), BoxConfig::default());
}

#[test]
fn config_is_equal_after_a_round_trip() {
    let json = br#"{"id": "demo", "image": {"layout": "/srv/i", "reference": "3.12"},
        "process": {"args": ["a", "b c"], "env": {"A": ""}, "user": "1000:1000"},
        "resources": {"vcpus": 2, "rlimits": {"nofile": [1024, 4096]}, "timeout_ms": 5, "disk_mib": 64, "disk": "memory"},
        "mounts": [{"type": "virtiofs", "source": "/h", "target": "/w", "read_only": true, "cache": "auto"},
                   {"type": "tmpfs", "target": "/tmp", "size_mib": 64}],
        "network": {"mode": "passt", "not_host": true, "egress": [
            {"to": "10.0.0.0/8", "ports": [443, "8000-8100"], "protocol": "tcp"}, {"to": "192.0.2.7"}]},
        "console": {"path": "/var/log/c"}, "stop": {"signal": "SIGINT"}}"#;
    let config = BoxConfig::from_json(json).unwrap();
    assert_eq!(config.process.args, ["a", "b c"]);
    assert_eq!(BoxConfig::from_json(&config.to_json().unwrap()).unwrap(), config);
}

#[test]
fn error_names_the_path_the_found_value_and_the_expected_one() {
    let cases = [
        (
            r#"{"resources":{"vcpus":"two"}}"#,
            "resources.vcpus: invalid type: string \"two\", expected u8",
        ),
        (
            r#"{"resources":{"vcpus":300}}"#,
            "resources.vcpus: invalid value: integer `300`, expected u8",
        ),
        (
            r#"{"mounts":[{"type":"tmpfs","target":"/a"},{"type":"nfs"}]}"#,
            "mounts[1].type: unknown variant `nfs`, expected `virtiofs` or `tmpfs`",
        ),
        (
            r#"{"resources":{"disk":"floppy"}}"#,
            "resources.disk: unknown variant `floppy`, expected `state_dir` or `memory`",
        ),
        (
            r#"{"network":{"publish":[{"host_port":1,"guest_port":1}]}}"#,
            "network.publish[0]: missing field `host_address`",
        ),
        (
            r#"{"network":{"publish":[{"host_address":"localhost"}]}}"#,
            "network.publish[0].host_address: invalid IP address syntax",
        ),
        (
            r#"{"network":{"mode":"bridge"}}"#,
            "network.mode: unknown variant `bridge`, expected one of `none`, `passt`, `tsi`",
        ),
        (r#"{"schema_version":2}"#, "schema_version: found 2, expected 1"),
        (r#"{"proces":{}}"#, "proces: unknown field `proces`, expected one of"),
        ("[]", "config: found an array, expected an object"),
        (r#"{"resources":[2]}"#, "resources: found an array, expected an object"),
        (r#"{"mounts":[["tmpfs","/a"]]}"#, "mounts[0]"),
        ("{", "config is not valid JSON at line 1, column 1: EOF while parsing an object"),
        ("{} {}", "config is not valid JSON at line 1, column 4: trailing characters"),
        ("", "config is not valid JSON at line 1, column 0: EOF while parsing a value"),
    ];
    for (json, expected) in cases {
        let found = refused(json);
        assert!(found.starts_with(expected), "{json}\n found: {found}\n expected: {expected}");
    }
}

#[test]
fn error_about_a_rule_names_its_path() {
    let cases = [
        (
            r#"{"network":{"egress":"some"}}"#,
            "network.egress: invalid value: string \"some\", expected `deny`, `allow` or an array of",
        ),
        (
            r#"{"network":{"egress":[{"to":"1.1.1.1"},{"ports":[1]}]}}"#,
            "network.egress[1]: missing field `to`",
        ),
        (
            r#"{"network":{"egress":[{"to":"1.1.1.1","port":1}]}}"#,
            "network.egress[0].port: unknown field `port`, expected one of `to`, `ports`, `protocol`",
        ),
        (
            r#"{"network":{"egress":[{"to":"1.1.1.1","protocol":"icmp"}]}}"#,
            "network.egress[0].protocol: unknown variant `icmp`, expected `tcp` or `udp`",
        ),
        (
            r#"{"network":{"egress":[{"to":"1.1.1.1","ports":[80,65536]}]}}"#,
            "network.egress[0].ports[1]: invalid value: integer `65536`, expected a port from 1",
        ),
        (
            r#"{"network":{"egress":[{"to":"1.1.1.1","ports":["+1-2"]}]}}"#,
            "network.egress[0].ports[0]: invalid value: string \"+1-2\", expected a port from 1",
        ),
        (r#"{"network":{"egress":[["1.1.1.1"]]}}"#, "network.egress[0]"),
    ];
    for (json, expected) in cases {
        let found = refused(json);
        assert!(found.starts_with(expected), "{json}\n found: {found}\n expected: {expected}");
    }
}

#[test]
fn error_about_the_process_describes_and_never_quotes_what_was_found() {
    let cases = [
        (
            r#""TOKEN=hunter2""#,
            "process: found a string of 13 bytes at line 1, column 26, expected an object",
        ),
        ("31337", "process: found a number"),
        (r#"{"TOKEN=hunter2":1}"#, "process: found an unknown field with a name of 13 bytes"),
        (r#"{"hunter2":1}"#, "process: found an unknown field with a name of 7 bytes"),
        (r#"{"args":[],"args":["hunter2"]}"#, "process: duplicate field `args`"),
        (r#"{"args":"hunter2"}"#, "process.args: found a string of 7 bytes"),
        (r#"{"args":["a",{"hunter2":31337}]}"#, "process.args[1]: found an object of 1 fields"),
        (r#"{"entrypoint":"hunter2"}"#, "process.entrypoint: found a string of 7 bytes"),
        (r#"{"user":["hunter2"]}"#, "process.user: found an array of 1 values"),
        (r#"{"cwd":31337}"#, "process.cwd: found a number"),
        (r#"{"env":"TOKEN=hunter2"}"#, "process.env: found a string of 13 bytes"),
        (r#"{"env":["TOKEN=hunter2"]}"#, "process.env: found an array of 1 values"),
        (r#"{"env":{"TOKEN":31337}}"#, "process.env.TOKEN: found a number"),
        (r#"{"env":{"TOKEN":["hunter2"]}}"#, "process.env.TOKEN: found an array of 1 values"),
        (r#"{"env":{"TOKEN=hunter2":31337}}"#, "process.env: found a number"),
        (r#"{"env":{"TOKEN hunter2":true}}"#, "process.env: found a boolean"),
        // The document has a mistake in its syntax after the error.
        (r#"{"env":"hunter2"},,"#, "process.env: found another value"),
    ];
    for (process, expected) in cases {
        let found = refused(&format!(r#"{{"process":{process}}}"#));
        assert!(found.starts_with(expected), "{process}\n found: {found}\n expected: {expected}");
        assert!(!found.contains("hunter2") && !found.contains("31337"), "{process}: {found}");
    }
}

#[test]
fn document_that_was_encoded_twice_is_not_quoted() {
    let found = refused(r#""{\"process\":{\"env\":{\"TOKEN\":\"hunter2\"}}}""#);
    assert!(found.starts_with("config: found a string of 39 bytes"), "{found}");
    assert!(!found.contains("hunter2"), "{found}");
}

#[test]
fn environment_value_in_an_array_for_an_object_is_not_quoted() {
    // serde fills structs from arrays by position. It reports an error inside of such an array
    // before `refuse_arrays_for_objects` can refuse the array.
    let cases = [
        (r#"{"process":[null,[],{"TOKEN":31337}]}"#, "process: found an array, expected an object"),
        (
            r#"{"process":[null,[],[["TOKEN",31337]]]}"#,
            "process: found an array, expected an object",
        ),
        (r#"[1,null,null,{"env":{"TOKEN":31337}}]"#, "config: found an array, expected an object"),
        (
            r#"[1,null,null,[null,[],{"TOKEN":31337}]]"#,
            "config: found an array, expected an object",
        ),
    ];
    for (json, expected) in cases {
        assert_eq!(refused(json), expected, "{json}");
    }
}

#[test]
fn debug_output_contains_no_environment_value() {
    let config = BoxConfig::from_json(br#"{"process":{"env":{"TOKEN":"hunter2"}}}"#).unwrap();
    let shown = format!("{config:?}");
    assert!(shown.contains("TOKEN") && !shown.contains("hunter2"), "{shown}");
}

#[test]
fn config_over_the_limit_is_refused_without_parsing() {
    let json = vec![b' '; MAX_CONFIG_BYTES + 1];
    assert_eq!(BoxConfig::from_json(&json), Err(ConfigError::TooLarge));
}

#[test]
fn deep_nesting_is_an_error_without_a_stack_overflow() {
    let json = format!("{{\"process\":{{\"args\":{}", "[".repeat(100_000));
    assert!(matches!(
        BoxConfig::from_json(json.as_bytes()),
        Err(ConfigError::Invalid { .. } | ConfigError::Syntax { .. })
    ));
}
