//! The fields of each event, independent of the shim's own types.
//!
//! The tests check every event against these tables. A change of the shim's types that also changes
//! the event format therefore fails a test. The lifecycle tests use this file too.

use serde_json::Value;

/// JSON type of a field. A plural is an array.
#[derive(Clone, Copy, Debug)]
enum FieldType {
    /// An integer that is not negative.
    Number,
    Float,
    Floats,
    Text,
    Bool,
    Texts,
    Object(Fields),
    Objects(Fields),
}

use FieldType::{Bool, Float, Floats, Number, Object, Objects, Text, Texts};

/// Names and types of the fields of an object. A field whose name ends in `?` may be absent.
type Fields = &'static [(&'static str, FieldType)];

/// Fields that every event has.
const HEADER: Fields = &[
    ("v", Number),
    ("seq", Number),
    ("time", Text),
    ("elapsed_ms", Number),
    ("box_id", Text),
    ("type", Text),
];

const PHASES: Fields = &[
    ("config_ms", Number),
    ("rootfs_ms", Number),
    ("vm_ms", Number),
    ("kernel_ms", Number),
    ("agent_ms", Number),
    ("total_ms", Number),
];

const RUN: Fields = &[
    ("entrypoint", Texts),
    ("args", Texts),
    ("env", Texts),
    ("cwd", Text),
    ("user", Text),
    ("stop_signal", Text),
    ("healthcheck?", Object(HEALTHCHECK)),
    ("volumes", Texts),
    ("exposed_ports", Texts),
    ("truncated", Bool),
];

const DAMAGE: Fields = &[("layer", Text), ("path", Text), ("what", Text)];

const HEALTHCHECK: Fields = &[
    ("test", Texts),
    ("interval_ms?", Number),
    ("timeout_ms?", Number),
    ("start_period_ms?", Number),
    ("retries?", Number),
];

const LAYER: Fields = &[("layer", Text), ("status", Text), ("detail?", Text)];

const STOP: Fields = &[
    ("cause", Text),
    ("ended_by", Text),
    ("requested_ms", Number),
    ("signaled_ms?", Number),
    ("killed_ms?", Number),
    ("exited_ms?", Number),
];

const METRICS: Fields = &[
    ("uptime_ms", Number),
    ("boot", Object(PHASES)),
    ("process", Object(PROCESS_METRICS)),
    ("guest?", Object(GUEST_METRICS)),
    ("console", Object(CONSOLE_METRICS)),
    ("events", Object(EVENT_METRICS)),
    ("health?", Object(HEALTH_METRICS)),
];

const PROCESS_METRICS: Fields = &[
    ("rss_kib", Number),
    ("pss_kib", Number),
    ("shim_pss_kib", Number),
    ("cpu_user_ms", Number),
    ("cpu_system_ms", Number),
    ("threads", Number),
    ("open_files", Number),
];

const GUEST_METRICS: Fields = &[
    ("memory_total_kib", Number),
    ("memory_available_kib", Number),
    ("load", Floats),
    ("processes", Number),
];

const CONSOLE_METRICS: Fields =
    &[("stdout_bytes", Number), ("stderr_bytes", Number), ("discarded_bytes", Number)];

const EVENT_METRICS: Fields =
    &[("emitted", Number), ("emitted_bytes", Number), ("dropped", Number), ("waiting", Number)];

const HEALTH_METRICS: Fields = &[
    ("state", Text),
    ("checks", Number),
    ("failures", Number),
    ("last_latency_us", Number),
    ("max_latency_us", Number),
];

#[expect(clippy::too_many_lines, reason = "a table")]
fn fields(kind: &str) -> Fields {
    match kind {
        "shim.started" => &[("version", Text), ("pid", Number)],
        "image.resolved" => &[
            ("image", Text),
            ("reference?", Text),
            ("platform", Text),
            ("layers", Number),
            ("image_bytes_total", Number),
            ("run", Object(RUN)),
        ],
        "rootfs.progress" => &[
            ("layer", Text),
            ("layer_number", Number),
            ("layers", Number),
            ("bytes_done", Number),
            ("bytes_total", Number),
            ("image_bytes_done", Number),
            ("image_bytes_total", Number),
        ],
        "rootfs.ready" => &[
            ("image?", Text),
            ("layers", Number),
            ("cache_hits", Number),
            ("unpacked_bytes", Number),
            ("kind", Text),
            ("kind_reason", Text),
            ("root", Text),
            ("upper", Text),
            ("disk_mib?", Number),
            ("duration_ms", Number),
        ],
        "shim.confined" => &[("level", Text), ("layers", Objects(LAYER))],
        "warning" => &[("code", Text), ("message", Text)],
        "vm.starting" => &[("vcpus", Number), ("memory_mib", Number), ("ipv6?", Bool)],
        "guest.started" => &[("guest_version", Text), ("workload_pid?", Number)],
        "agent.ready" => &[("phases", Object(PHASES))],
        "state.changed" => &[("from", Text), ("to", Text)],
        "stop.requested" => &[("cause", Text), ("signal", Text), ("grace_ms", Number)],
        "prepare.done" | "stop.killed" => &[],
        "cache.collected" => &[
            ("removed", Number),
            ("freed_bytes", Number),
            ("kept", Number),
            ("kept_bytes", Number),
        ],
        "cache.verified" => {
            &[("intact", Number), ("rebuilt", Objects(DAMAGE)), ("in_use", Objects(DAMAGE))]
        }
        "guest.exited" => &[("exit_code?", Number), ("signal?", Number)],
        "events.dropped" => &[("count", Number)],
        "error" => &[
            ("code", Text),
            ("message", Text),
            ("causes", Texts),
            ("hint?", Text),
            ("retryable", Bool),
        ],
        "health.changed" => &[
            ("from", Text),
            ("to", Text),
            ("cause?", Text),
            ("message?", Text),
            ("failures", Number),
        ],
        "workload.notified" => &[("ready", Bool), ("stopping", Bool), ("status?", Text)],
        "metrics" => METRICS,
        "console.truncated" => &[("discarded_bytes", Number), ("cause", Text)],
        "network.refused" => &[
            ("protocol", Text),
            ("address", Text),
            ("port?", Number),
            ("name?", Text),
            ("count", Number),
        ],
        "box.stopped" => &[
            ("reason", Text),
            ("exit_code?", Number),
            ("signal?", Number),
            ("uptime_ms", Number),
            ("stop?", Object(STOP)),
        ],
        unknown => panic!("there is no event of the type `{unknown}`"),
    }
}

/// Panics unless `event` has exactly the fields of its event type, with the right JSON types.
pub(crate) fn check(event: &Value) {
    let kind = event["type"].as_str().unwrap_or_else(|| panic!("the event has no type: {event}"));
    check_fields(event, &[HEADER, fields(kind)].concat());
    assert_eq!(event["v"], 1, "the format version is not 1: {event}");
    let time = event["time"].as_str().unwrap();
    // RFC 3339 in UTC with milliseconds, as in `2000-01-31T12:00:00.000Z`.
    let is_timestamp = time.len() == 24 && time.ends_with('Z') && time.as_bytes()[10] == b'T';
    assert!(is_timestamp, "`{time}` is not a timestamp in UTC with milliseconds");
}

fn check_fields(object: &Value, expected: &[(&str, FieldType)]) {
    let found = object.as_object().unwrap_or_else(|| panic!("this is not an object: {object}"));
    for (name, field_type) in expected {
        match found.get(name.trim_end_matches('?')) {
            Some(value) => {
                assert!(has_type(value, *field_type), "`{name}` is not a {field_type:?}: {object}");
            }
            None => assert!(name.ends_with('?'), "`{name}` is missing: {object}"),
        }
    }
    for name in found.keys() {
        let known = expected.iter().any(|(known, _)| known.trim_end_matches('?') == name);
        assert!(known, "`{name}` is unknown: {object}");
    }
}

fn has_type(value: &Value, field_type: FieldType) -> bool {
    match field_type {
        Number => value.is_u64(),
        Text => value.is_string(),
        Bool => value.is_boolean(),
        Texts => value.as_array().is_some_and(|items| items.iter().all(Value::is_string)),
        Float => value.is_f64(),
        Floats => {
            value.as_array().is_some_and(|items| items.iter().all(|item| has_type(item, Float)))
        }
        Object(fields) => has_fields(value, fields),
        Objects(fields) => {
            value.as_array().is_some_and(|items| items.iter().all(|item| has_fields(item, fields)))
        }
    }
}

/// Panics if the fields differ, because the message of [`check_fields`] names the field.
fn has_fields(object: &Value, expected: Fields) -> bool {
    check_fields(object, expected);
    true
}
