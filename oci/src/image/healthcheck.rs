//! The health check of an image: Docker's extension of the image configuration.
//!
//! The image specification does not define the field `config.Healthcheck`, so it is read from the
//! JSON value. As in Docker, null and zero mean that a field is absent.

use std::time::Duration;

use serde_json::Value;

/// First word of a test that disables the health check of the base image.
const NONE: &str = "NONE";

/// A malformed field of a health check.
#[derive(Debug, thiserror::Error)]
#[error("`{field}` of the image's health check is malformed: expected {expected}")]
pub struct HealthcheckError {
    /// The field.
    pub field: &'static str,
    /// The valid values.
    pub expected: &'static str,
}

/// The test of whether the workload of an image works. The supervisor chooses values for absent
/// fields.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Healthcheck {
    /// `CMD` and the words of a command, or `CMD-SHELL` and one line for the shell.
    pub test: Vec<String>,
    /// Time between two tests.
    pub interval: Option<Duration>,
    /// Time after which a test counts as failed.
    pub timeout: Option<Duration>,
    /// Time after the start of the workload in which failures do not count.
    pub start_period: Option<Duration>,
    /// Number of failures in a row after which the workload is unhealthy.
    pub retries: Option<u32>,
}

impl Healthcheck {
    /// Reads the field of an image configuration. Returns `None` if there is no test to run.
    pub(crate) fn from_value(value: &Value) -> Result<Option<Self>, HealthcheckError> {
        if value.is_null() {
            return Ok(None);
        }
        if !value.is_object() {
            return Err(malformed("Healthcheck", "an object"));
        }
        // An empty test inherits the test of the base image when an image is built. In a finished
        // image there is nothing left to inherit.
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

fn texts(value: &Value) -> Result<Vec<String>, HealthcheckError> {
    let malformed = || malformed("Test", "a list of words");
    match value {
        Value::Null => Ok(Vec::new()),
        Value::Array(words) => words
            .iter()
            .map(|word| match word {
                Value::Null => Ok(String::new()),
                word => word.as_str().map(str::to_owned).ok_or_else(malformed),
            })
            .collect(),
        _ => Err(malformed()),
    }
}

/// Reads a number. Durations are in nanoseconds, because Docker writes Go's `time.Duration`.
fn number(value: &Value, field: &'static str) -> Result<Option<u64>, HealthcheckError> {
    match &value[field] {
        Value::Null => Ok(None),
        found => match found.as_u64() {
            // Docker replaces zero by its default.
            Some(number) => Ok(Some(number).filter(|number| *number > 0)),
            None => Err(malformed(field, "a whole number that is not negative")),
        },
    }
}

fn malformed(field: &'static str, expected: &'static str) -> HealthcheckError {
    HealthcheckError { field, expected }
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
        let value = json!({"Test": ["CMD", null], "Interval": null, "StartPeriod": null});
        let found = Healthcheck::from_value(&value).unwrap().unwrap();
        assert_eq!((found.test, found.interval), (vec!["CMD".to_owned(), String::new()], None));
    }

    #[test]
    fn field_without_a_command_gives_no_health_check() {
        for value in [
            json!(null),
            json!({}),
            json!({"Test": null, "Interval": 5}),
            json!({"Test": []}),
            json!({"Test": ["NONE"]}),
            json!({"Test": null, "Interval": null, "Timeout": null, "Retries": null}),
        ] {
            assert_eq!(Healthcheck::from_value(&value).unwrap(), None, "{value}");
        }
    }

    #[test]
    fn malformed_field_is_refused_and_named() {
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
