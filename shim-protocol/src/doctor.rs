//! What `a3s-box-shim --doctor` finds out about a host.
//!
//! | exit status | meaning |
//! |---|---|
//! | 0 | all is well |
//! | 1 | something is degraded: boxes run, with less |
//! | 2 | something failed: no box can run as asked for |
//! | 125 | the doctor itself failed, as for a config that is not valid ([`FAILED`](crate::exit::FAILED)) |
//! | 128 + n | signal n interrupted it |

use serde::{Deserialize, Serialize};

/// Version of the report (`v`).
pub const DOCTOR_VERSION: u32 = 1;

/// All checks of a host, in the order in which they are shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DoctorReport {
    /// Version of this format: 1.
    pub v: u32,
    /// The checks.
    pub checks: Vec<DoctorCheck>,
}

/// One thing that boxes need, or are better with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DoctorCheck {
    /// Stable name of the check.
    pub name: String,
    /// How it is.
    pub status: DoctorStatus,
    /// What was found, for people.
    pub found: String,
    /// What to do about it; absent when nothing has to be done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// How a thing is that boxes need; a worse one is greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum DoctorStatus {
    /// As it should be.
    Ok,
    /// Boxes run, with less.
    Degraded,
    /// No box can run as asked for.
    Failed,
}

impl DoctorReport {
    /// A report of these checks.
    #[must_use]
    pub fn new(checks: Vec<DoctorCheck>) -> Self {
        Self { v: DOCTOR_VERSION, checks }
    }

    /// Exit status of the doctor: that of the worst check.
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
    /// A check that found what it should.
    #[must_use]
    pub fn ok(name: &str, found: impl Into<String>) -> Self {
        let (name, found) = (name.to_owned(), found.into());
        Self { name, status: DoctorStatus::Ok, found, remedy: None }
    }

    /// A check that found less than boxes are best with.
    #[must_use]
    pub fn degraded(name: &str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        let remedy = Some(remedy.into());
        Self { status: DoctorStatus::Degraded, remedy, ..Self::ok(name, found) }
    }

    /// A check that found that no box can run as asked for.
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
    fn exit_status_is_that_of_the_worst_check() {
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
    fn a_remedy_that_is_not_needed_is_absent() {
        let report = DoctorReport::new(vec![DoctorCheck::ok("a", "x")]);
        let json = serde_json::to_value(&report).unwrap();
        let expected = r#"{"v":1,"checks":[{"name":"a","status":"ok","found":"x"}]}"#;
        assert_eq!(json, serde_json::from_str::<serde_json::Value>(expected).unwrap());
    }
}
