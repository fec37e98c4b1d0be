//! A box on trial: this executable as a child, with a directory of its own, whose events are read.

use std::fs::DirBuilder;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use a3s_box_core::event::EventKind;
use a3s_box_core::{BoxConfig, ErrorReport, Event};
use a3s_box_sys::HostError;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, mkdtemp};

use crate::host::process::{self, Signals, StopRequest};

/// Longest event, as every reader takes it.
const MAX_LINE_BYTES: usize = 1 << 20;

/// Time between two looks at a child that has closed its standard output: it is about to end.
const STEP: Duration = Duration::from_millis(1);

/// Why a box did not do what was waited for.
#[derive(Debug, thiserror::Error)]
pub(super) enum TrialError {
    #[error(transparent)]
    Host(#[from] HostError),
    #[error("{}", told(.0))]
    Told(ErrorReport),
    #[error("the shim ended ({0}) without saying why")]
    Ended(ExitStatus),
    #[error("the shim wrote a line of more than {MAX_LINE_BYTES} bytes")]
    TooLong,
    #[error("not done within {} s", .0.as_secs())]
    TooLate(Duration),
    #[error("interrupted by {0}")]
    Interrupted(StopRequest),
}

fn told(report: &ErrorReport) -> String {
    let causes = report.causes.iter().map(|cause| format!(": {cause}"));
    std::iter::once(report.message.clone()).chain(causes).collect()
}

/// A directory in the system's directory for temporary files, removed with all in it.
#[derive(Debug)]
pub(super) struct Directory(PathBuf);

impl Directory {
    pub(super) fn make() -> Result<Self, TrialError> {
        // A short name: paths of sockets are in it.
        let directory = mkdtemp(&std::env::temp_dir().join("a3s-doctor-XXXXXX"))
            .map(Self)
            .map_err(HostError::of("make a temporary directory"))?;
        let made = DirBuilder::new().mode(0o700).create(directory.state_dir());
        made.map_err(HostError::of("make a directory in a temporary one"))?;
        Ok(directory)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    pub(super) fn state_dir(&self) -> PathBuf {
        self.0.join("s")
    }

    pub(super) fn cache_dir(&self) -> PathBuf {
        self.0.join("c")
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // What is left is in the system's directory for such things.
        let _best_effort = a3s_box_oci::remove_path(&self.0);
    }
}

/// A running box; dropping it kills it.
#[derive(Debug)]
pub(super) struct Trial {
    child: Child,
    stdout: ChildStdout,
    received: Vec<u8>,
    limit: Duration,
    deadline: Instant,
}

impl Trial {
    /// Starts the shim with `arguments` and `config`. It has `limit` for all that is waited for.
    pub(super) fn start(
        arguments: &[&str],
        config: &BoxConfig,
        limit: Duration,
    ) -> Result<Self, TrialError> {
        let executable = process::executable().map_err(io::Error::other);
        let mut command = Command::new(executable.map_err(HostError::of("find this executable"))?);
        command.args(arguments).args(["--parent", &std::process::id().to_string()]);
        // The box is not the service that this process may be, and its events say enough.
        for name in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"] {
            command.env_remove(name);
        }
        command.env("A3S_BOX_LOG", "off");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let json = config.to_json().map_err(HostError::of("write a config"))?;
        let mut child = command.spawn().map_err(HostError::of("start the shim"))?;
        if let Some(mut stdin) = child.stdin.take() {
            // The pipe takes a config of ours at once; a shim that is gone already has said why.
            let _gone = stdin.write_all(&json);
        }
        Self::watch(child, limit)
    }

    /// Watches a child whose standard output is a pipe.
    fn watch(mut child: Child, limit: Duration) -> Result<Self, TrialError> {
        let Some(stdout) = child.stdout.take() else {
            return Err(HostError::of("read from the shim")(io::Error::other("no pipe")).into());
        };
        let deadline = Instant::now() + limit;
        Ok(Self { child, stdout, received: Vec::new(), limit, deadline })
    }

    /// Reads events until `seek` finds something in one. An `error` event ends the search.
    pub(super) fn wait_for<T>(
        &mut self,
        signals: &Signals,
        seek: impl Fn(&EventKind) -> Option<T>,
    ) -> Result<T, TrialError> {
        while let Some(event) = self.next_event(signals)? {
            if let EventKind::Error(report) = event.kind {
                return Err(TrialError::Told(report));
            }
            if let Some(found) = seek(&event.kind) {
                return Ok(found);
            }
        }
        Err(TrialError::Ended(self.wait()?))
    }

    /// Asks the box to stop.
    pub(super) fn stop(&self) -> Result<(), TrialError> {
        // It was not waited for yet, so the id is its own. Process ids are below 2^22.
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap_or(i32::MAX));
        Ok(kill(pid, Signal::SIGTERM).map_err(HostError::of("stop the shim"))?)
    }

    /// Waits for the end of the process.
    pub(super) fn wait(&mut self) -> Result<ExitStatus, TrialError> {
        loop {
            if let Some(status) =
                self.child.try_wait().map_err(HostError::of("wait for the shim"))?
            {
                return Ok(status);
            }
            if Instant::now() >= self.deadline {
                return Err(TrialError::TooLate(self.limit));
            }
            std::thread::sleep(STEP);
        }
    }

    /// The next event of a known type, or none at the end.
    fn next_event(&mut self, signals: &Signals) -> Result<Option<Event>, TrialError> {
        loop {
            while let Some(end) = self.received.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.received.drain(..=end).collect();
                if let Ok(event) = serde_json::from_slice(&line) {
                    return Ok(Some(event));
                }
            }
            if self.received.len() > MAX_LINE_BYTES {
                return Err(TrialError::TooLong);
            }
            if !self.receive(signals)? {
                return Ok(None);
            }
        }
    }

    /// Reads what has come, or says that no more will.
    fn receive(&mut self, signals: &Signals) -> Result<bool, TrialError> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut fds =
            [self.stdout.as_fd(), signals.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        if poll(&mut fds, timeout).map_err(HostError::of("wait for events"))? == 0 {
            return Err(TrialError::TooLate(self.limit));
        }
        if let Some(request) = signals.next() {
            return Err(TrialError::Interrupted(request));
        }
        if fds.first().and_then(PollFd::any) != Some(true) {
            return Ok(true);
        }
        let mut buffer = [0; 16 * 1024];
        let count = self.stdout.read(&mut buffer).map_err(HostError::of("read events"))?;
        self.received.extend(buffer.iter().take(count));
        Ok(count > 0)
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        // Neither fails for a child that has ended, and there is nobody to tell.
        let _killed = self.child.kill();
        let _ended = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    use super::*;

    const READY: &str =
        r#"{"v":1,"seq":0,"time":"","elapsed_ms":0,"box_id":"","type":"prepare.done"}"#;

    fn trial(script: &str, limit: Duration) -> (Trial, Signals) {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]).stdout(Stdio::piped());
        let trial = Trial::watch(command.spawn().unwrap(), limit).unwrap();
        (trial, Signals::block(None).unwrap())
    }

    fn wait(script: &str, limit: Duration) -> Result<(), TrialError> {
        let (mut trial, signals) = trial(script, limit);
        trial.wait_for(&signals, |event| matches!(event, EventKind::PrepareDone {}).then_some(()))
    }

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn event_is_found_among_others_and_in_pieces() {
        let (begin, end) = READY.split_at(20);
        let script = format!(
            "echo; echo odd; echo '{{\"type\":\"of.later\"}}'; printf '%s' '{begin}'; sleep 0.1; echo '{end}'"
        );
        wait(&script, LONG).unwrap();
    }

    #[test]
    fn child_that_says_nothing_of_it_is_not_waited_for_longer_than_allowed() {
        let short = Duration::from_millis(200);
        let error = wait("exec sleep 60", short).unwrap_err();
        assert!(matches!(error, TrialError::TooLate(limit) if limit == short), "{error}");
        let error = wait("exec sleep 60 >/dev/null", short).unwrap_err();
        assert!(matches!(error, TrialError::TooLate(_)), "{error}");
        let error = wait("exit 3", LONG).unwrap_err();
        assert_eq!(error.to_string(), "the shim ended (exit status: 3) without saying why");
        let error = wait("head -c 2000000 /dev/zero; exec sleep 60", LONG).unwrap_err();
        assert!(matches!(error, TrialError::TooLong), "{error}");
    }

    #[test]
    fn error_event_ends_the_search_with_its_causes() {
        let report = r#""type":"error","code":"internal","message":"m","causes":["a","b"],"retryable":false"#;
        let event = READY.replace(r#""type":"prepare.done""#, report);
        let error = wait(&format!("echo '{event}'; echo '{READY}'; exec sleep 60"), LONG);
        assert_eq!(error.unwrap_err().to_string(), "m: a: b");
    }

    #[test]
    fn child_is_gone_with_its_trial() {
        let (trial, _signals) = trial("exec sleep 60", LONG);
        let pid = Pid::from_raw(i32::try_from(trial.child.id()).unwrap());
        kill(pid, None).unwrap();
        drop(trial);
        assert_eq!(kill(pid, None), Err(Errno::ESRCH));
    }
}
