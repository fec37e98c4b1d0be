//! Events of later versions, which this version must accept.

use serde::de::DeserializeOwned;
use serde_json::json;

use super::{
    Event, EventKind, HealthCause, Layer, RefusedProtocol, RootKindReason, RootMethod, StopCause,
    StopReason, StopStep, TruncationCause, UpperPlace, WarningCode,
};
use crate::ErrorCode;

/// Reads a word that no version has used so far.
fn later_word<T: DeserializeOwned>() -> T {
    serde_json::from_value(json!("a_later_word")).unwrap()
}

#[test]
fn list_of_words_accepts_a_word_of_a_later_version() {
    assert_eq!(later_word::<ErrorCode>(), ErrorCode::Unknown);
    assert_eq!(later_word::<HealthCause>(), HealthCause::Unknown);
    assert_eq!(later_word::<Layer>(), Layer::Unknown);
    assert_eq!(later_word::<RefusedProtocol>(), RefusedProtocol::Unknown);
    assert_eq!(later_word::<RootKindReason>(), RootKindReason::Unknown);
    assert_eq!(later_word::<RootMethod>(), RootMethod::Unknown);
    assert_eq!(later_word::<StopCause>(), StopCause::Unknown);
    assert_eq!(later_word::<StopReason>(), StopReason::Unknown);
    assert_eq!(later_word::<StopStep>(), StopStep::Unknown);
    assert_eq!(later_word::<TruncationCause>(), TruncationCause::Unknown);
    assert_eq!(later_word::<UpperPlace>(), UpperPlace::Unknown);
    assert_eq!(later_word::<WarningCode>(), WarningCode::Unknown);
}

#[test]
fn ending_with_words_of_a_later_version_is_still_an_ending() {
    let line = json!({
        "v": 1, "seq": 9, "time": "2030-01-01T00:00:00.000Z", "elapsed_ms": 5, "box_id": "demo",
        "type": "box.stopped", "reason": "a_later_word", "exit_code": 125, "uptime_ms": 5,
        "stop": {"cause": "a_later_word", "ended_by": "a_later_word", "requested_ms": 1},
        "a_later_field": true,
    });
    let event: Event = serde_json::from_value(line).unwrap();
    let EventKind::BoxStopped { reason, exit_code, stop, .. } = event.kind else {
        panic!("{event:?}");
    };
    assert_eq!((reason, exit_code), (StopReason::Unknown, Some(125)));
    assert_eq!(stop.unwrap().ended_by, StopStep::Unknown);
}
