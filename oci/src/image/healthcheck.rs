//! The health check that an image brings along: Docker's extension of the configuration.
//!
//! The image specification does not know the field, so it is read from the JSON value itself, and as
//! Docker reads it: null and zero are the same as nothing.

use std::time::Duration;

use serde_json::Value;

use crate::layout::LayoutError;

/// First word of a test that takes the one of the base image away.
const NONE: &str = "NONE";

/// How an image wants to be asked whether it is well; what is absent is up to who asks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Healthcheck {
    /// `CMD` and a command, or `CMD-SHELL` and a line for the shell.
    pub test: Vec<String>,
    /// Time between two tests.
    pub interval: Option<Duration>,
    /// Time that a test may take.
    pub timeout: Option<Duration>,
    /// Time after the start in which failures do not count.
    pub start_period: Option<Duration>,
    /// Failures in a row that mean that the workload is not well.
    pub retries: Option<u32>,
}

impl Healthcheck {
    /// Reads the field of an image's configuration; `None` when there is no test to run.
    pub(crate) fn from_value(value: &Value) -> Result<Option<Self>, LayoutError> {
        if value.is_null() {
            return Ok(None);
        }
        if !value.is_object() {
            return Err(malformed("Healthcheck", "an object"));
        }
        let test = texts(&value["Test"])?;
        if test.first().is_none_or(|word| word == NONE) {
            return Ok(None);
        }
        let duration = |field| number(value, field).map(|found| found.map(Duration::from_nanos));
        let retries = number(value, "Retries")?.map(u32::try_from).transpose();
        Ok(Some(Self {
            test,
            interval: duration("Interval")?,
            timeout: duration("Timeout")?,
            start_period: duration("StartPeriod")?,
            retries: retries.or(Err(malformed("Retries", "a small number")))?,
        }))
    }
}

fn texts(value: &Value) -> Result<Vec<String>, LayoutError> {
    let malformed = || malformed("Test", "a list of words");
    match value {
        Value::Null => Ok(Vec::new()),
        Value::Array(words) => words
            .iter()
            .map(|word| word.as_str().map(str::to_owned).ok_or_else(malformed))
            .collect(),
        _ => Err(malformed()),
    }
}

/// Reads a number; durations are in nanoseconds, as Go writes them.
fn number(value: &Value, field: &'static str) -> Result<Option<u64>, LayoutError> {
    match &value[field] {
        Value::Null => Ok(None),
        found => match found.as_u64() {
            Some(number) => Ok(Some(number).filter(|number| *number > 0)),
            None => Err(malformed(field, "a whole number that is not negative")),
        },
    }
}

fn malformed(field: &'static str, expected: &'static str) -> LayoutError {
    LayoutError::Healthcheck { field, expected }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn health_check_is_read_as_docker_reads_it() {
        let value = json!({
            "Test": ["CMD-SHELL", "curl -f localhost || exit 1"], "Interval": 5_000_000_000_u64,
            "Timeout": 0, "StartPeriod": null, "Retries": 3, "StartInterval": 1, "Mystery": {},
        });
        let expected = Healthcheck {
            test: vec!["CMD-SHELL".into(), "curl -f localhost || exit 1".into()],
            interval: Some(Duration::from_secs(5)),
            retries: Some(3),
            ..Healthcheck::default()
        };
        assert_eq!(Healthcheck::from_value(&value).unwrap(), Some(expected));
    }

    #[test]
    fn nothing_to_run_is_no_health_check() {
        for value in [
            json!(null),
            json!({}),
            json!({"Test": null, "Interval": 5}),
            json!({"Test": []}),
            json!({"Test": ["NONE"]}),
        ] {
            assert_eq!(Healthcheck::from_value(&value).unwrap(), None, "{value}");
        }
    }

    #[test]
    fn malformed_health_check_is_refused_by_its_field() {
        for (value, field) in [
            (json!([]), "Healthcheck"),
            (json!({"Test": "CMD"}), "Test"),
            (json!({"Test": ["CMD", 1]}), "Test"),
            (json!({"Test": ["CMD"], "Interval": -1}), "Interval"),
            (json!({"Test": ["CMD"], "Timeout": "5s"}), "Timeout"),
            (json!({"Test": ["CMD"], "StartPeriod": 1.5}), "StartPeriod"),
            (json!({"Test": ["CMD"], "Retries": 1_u64 << 40}), "Retries"),
        ] {
            let text = Healthcheck::from_value(&value).unwrap_err().to_string();
            assert!(text.contains(&format!("`{field}`")), "{value}: {text}");
        }
    }
}
