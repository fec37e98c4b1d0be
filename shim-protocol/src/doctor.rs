//! [`DoctorReport`]: what `a3s-box-shim --doctor --json` reports about a host.
//!
//! | exit status | meaning |
//! |---|---|
//! | 0 | every check is ok |
//! | 1 | a check is degraded: boxes run, but without a feature or with less performance |
//! | 2 | a check failed: no box can run with this config |
//! | 125 | the doctor itself failed, for example on an invalid config |
//! | 128 + n | signal n interrupted the doctor |

use serde::{Deserialize, Serialize};

/// Version of the format of the report, the value of its `v`.
pub const DOCTOR_VERSION: u32 = 1;

/// The results of all checks of a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DoctorReport {
    /// Version of the format: 1.
    pub v: u32,
    /// The checks, in the order in which people read them.
    pub checks: Vec<DoctorCheck>,
}

/// The result of one check, of a requirement or a recommendation for boxes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DoctorCheck {
    /// Stable name of the check.
    pub name: String,
    /// Whether the host meets the requirement.
    pub status: DoctorStatus,
    /// Description of what was found, for people.
    pub found: String,
    /// Instruction for the user that improves the status. Absent: the status is `ok`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// The status of a check. The order is from the best status to the worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum DoctorStatus {
    /// The host meets the requirement.
    Ok,
    /// Boxes run, but without a feature or with less performance.
    Degraded,
    /// No box can run with this config.
    Failed,
}

impl DoctorReport {
    /// Makes a report of `checks`.
    #[must_use]
    pub fn new(checks: Vec<DoctorCheck>) -> Self {
        Self { v: DOCTOR_VERSION, checks }
    }

    /// Returns the exit status of the doctor: 0, 1 or 2, by the worst status of a check.
    #[must_use]
    pub fn exit_status(&self) -> u8 {
        match self.checks.iter().map(|check| check.status).max() {
            None | Some(DoctorStatus::Ok) => 0,
            Some(DoctorStatus::Degraded) => 1,
            Some(DoctorStatus::Failed) => 2,
        }
    }
}

impl DoctorCheck {
    /// Makes the result of a check with status `ok`.
    #[must_use]
    pub fn ok(name: &str, found: impl Into<String>) -> Self {
        let (name, found) = (name.to_owned(), found.into());
        Self { name, status: DoctorStatus::Ok, found, remedy: None }
    }

    /// Makes the result of a check with status `degraded`.
    #[must_use]
    pub fn degraded(name: &str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        let remedy = Some(remedy.into());
        Self { status: DoctorStatus::Degraded, remedy, ..Self::ok(name, found) }
    }

    /// Makes the result of a check with status `failed`.
    #[must_use]
    pub fn failed(name: &str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        let remedy = Some(remedy.into());
        Self { status: DoctorStatus::Failed, remedy, ..Self::ok(name, found) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_status_is_the_one_of_the_worst_check() {
        let ok = DoctorCheck::ok("a", "x");
        let degraded = DoctorCheck::degraded("b", "x", "y");
        let failed = DoctorCheck::failed("c", "x", "y");
        let status = |checks: &[&DoctorCheck]| {
            DoctorReport::new(checks.iter().map(|&check| check.clone()).collect()).exit_status()
        };
        assert_eq!(status(&[]), 0);
        assert_eq!(status(&[&ok, &ok]), 0);
        assert_eq!(status(&[&ok, &degraded, &ok]), 1);
        assert_eq!(status(&[&failed, &degraded, &ok]), 2);
    }

    #[test]
    fn json_of_an_ok_check_has_no_remedy() {
        let report = DoctorReport::new(vec![DoctorCheck::ok("a", "x")]);
        let json = serde_json::to_value(&report).unwrap();
        let expected = r#"{"v":1,"checks":[{"name":"a","status":"ok","found":"x"}]}"#;
        assert_eq!(json, serde_json::from_str::<serde_json::Value>(expected).unwrap());
    }
}
