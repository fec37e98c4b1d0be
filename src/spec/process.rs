//! The workload's process and its stop: `process` and `stop` of the config, validated.

use std::path::Path;

use a3s_box_core::config::{ConfigError, ProcessConfig, StopConfig, variable_path};

use super::field::{MAX_WAIT_MS, no_nul, within};
use super::signal::StopSignal;

/// Checks that execve(2) in the guest can accept the arguments and the environment. No error quotes
/// a value, because it can be a secret.
pub(super) fn check(process: &ProcessConfig) -> Result<(), ConfigError> {
    let lists = [
        ("process.entrypoint", process.entrypoint.as_deref()),
        ("process.args", Some(&process.args)),
    ];
    for (field, arguments) in lists {
        for (i, argument) in arguments.unwrap_or_default().iter().enumerate() {
            no_nul(&format!("{field}[{i}]"), argument)?;
        }
    }
    for (name, value) in &process.env.0 {
        if name.is_empty() || name.contains(['=', '\0']) {
            // The rest of such a name can be the value, which is a secret.
            let found = format!("a name of {} bytes with `=` or NUL", name.len());
            let found = if name.is_empty() { "an empty name".to_owned() } else { found };
            let expected = "a name without `=` and NUL, with its value in the place of the value";
            return Err(ConfigError::invalid("process.env", found, expected));
        }
        no_nul(&variable_path(name), value)?;
    }
    if let Some(cwd) = &process.cwd {
        no_nul("process.cwd", cwd)?;
        if !Path::new(cwd).is_absolute() {
            let found = format!("a text of {} bytes that does not begin with `/`", cwd.len());
            return Err(ConfigError::invalid("process.cwd", found, "an absolute path"));
        }
    }
    no_nul("process.user", process.user.as_deref().unwrap_or_default())
}

/// Returns the signal that stops the workload, if the config names one, and checks the grace
/// period.
pub(super) fn stop_signal(stop: &StopConfig) -> Result<Option<StopSignal>, ConfigError> {
    within("stop.grace_ms", stop.grace_ms, 0..=MAX_WAIT_MS)?;
    let parse = |name: &String| {
        name.parse().map_err(|_unknown| {
            let found = format!("`{}`", name.escape_debug());
            let expected = "a signal as `SIGTERM`, `SIGRTMIN+3` or `15`";
            ConfigError::invalid("stop.signal", found, expected)
        })
    };
    stop.signal.as_ref().map(parse).transpose()
}
