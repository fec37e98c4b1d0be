//! [`Trial`]: a box for a check. It is a child that runs this executable, with a temporary
//! directory, and its events are read.

use std::fs::DirBuilder;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use a3s_box_core::event::EventKind;
use a3s_box_core::{
    BoxConfig, ErrorReport, Event, EventDecoder, EventLineError, MAX_EVENT_LINE_BYTES,
};
use a3s_box_sys::HostError;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, mkdtemp};

use crate::host::process::{self, Signals, StopRequest};

/// Time between two checks whether a child that has closed its standard output has exited.
const REAP_INTERVAL: Duration = Duration::from_millis(1);

/// Why the expected event did not come.
#[derive(Debug, thiserror::Error)]
pub(super) enum TrialError {
    #[error(transparent)]
    Host(#[from] HostError),
    /// The box emitted an `error` event.
    #[error("{}", report_line(.0))]
    Reported(ErrorReport),
    #[error("the shim ended ({0}) without an error event")]
    Ended(ExitStatus),
    #[error("the shim wrote a line of more than {MAX_EVENT_LINE_BYTES} bytes")]
    TooLong,
    #[error("not done within {} s", .0.as_secs())]
    TooLate(Duration),
    #[error("interrupted by {0}")]
    Interrupted(StopRequest),
}

/// Formats a report like `one_line` formats an error.
fn report_line(report: &ErrorReport) -> String {
    let causes = report.causes.iter().map(|cause| format!(": {cause}"));
    std::iter::once(report.message.clone()).chain(causes).collect()
}

/// A directory for temporary files, which is removed with its contents on drop.
#[derive(Debug)]
pub(super) struct Directory(PathBuf);

impl Directory {
    pub(super) fn make() -> Result<Self, TrialError> {
        // The name is short, because it is part of socket paths, which are limited to 107 bytes.
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
        // An error is not reported, because the host cleans its directory for temporary files.
        let _best_effort = a3s_box_oci::remove_path(&self.0);
    }
}

/// A running box. It is killed on drop.
#[derive(Debug)]
pub(super) struct Trial {
    child: Child,
    stdout: ChildStdout,
    decoder: EventDecoder,
    /// Time for all waits together, for the text of an error.
    limit: Duration,
    deadline: Instant,
}

impl Trial {
    /// Starts the shim with `arguments` and `config`. All later waits together may take `limit`.
    pub(super) fn start(
        arguments: &[&str],
        config: &BoxConfig,
        limit: Duration,
    ) -> Result<Self, TrialError> {
        let executable = process::executable().map_err(io::Error::other);
        let mut command = Command::new(executable.map_err(HostError::of("find this executable"))?);
        command.args(arguments).args(["--parent", &std::process::id().to_string()]);
        // If the doctor is a systemd service, the box must not send notifications in its name.
        for name in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"] {
            command.env_remove(name);
        }
        // The events contain everything that a check needs.
        command.env("A3S_BOX_LOG", "off");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let json = config.to_json().map_err(HostError::of("write a config"))?;
        let mut child = command.spawn().map_err(HostError::of("start the shim"))?;
        if let Some(mut stdin) = child.stdin.take() {
            // The config is smaller than the buffer of a pipe (64 KiB), so the write does not
            // block. A shim that has already exited (EPIPE) has emitted the reason.
            let _exited = stdin.write_all(&json);
        }
        Self::watch(child, limit)
    }

    /// Takes over a child whose standard output is a pipe.
    fn watch(mut child: Child, limit: Duration) -> Result<Self, TrialError> {
        let Some(stdout) = child.stdout.take() else {
            return Err(HostError::of("read from the shim")(io::Error::other("no pipe")).into());
        };
        let deadline = Instant::now() + limit;
        Ok(Self { child, stdout, decoder: EventDecoder::of_stream(), limit, deadline })
    }

    /// Reads events until `select` returns something for one. An `error` event ends the search.
    pub(super) fn wait_for<T>(
        &mut self,
        signals: &Signals,
        select: impl Fn(&EventKind) -> Option<T>,
    ) -> Result<T, TrialError> {
        while let Some(event) = self.next_event(signals)? {
            if let EventKind::Error(report) = event.kind {
                return Err(TrialError::Reported(report));
            }
            if let Some(found) = select(&event.kind) {
                return Ok(found);
            }
        }
        Err(TrialError::Ended(self.wait()?))
    }

    /// Sends a stop request to the box.
    pub(super) fn stop(&self) -> Result<(), TrialError> {
        // The process id still belongs to the child, because it has not been reaped. Process ids
        // are below 2^22, so the conversion cannot fail.
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap_or(i32::MAX));
        Ok(kill(pid, Signal::SIGTERM).map_err(HostError::of("stop the shim"))?)
    }

    /// Waits until the process has exited.
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
            std::thread::sleep(REAP_INTERVAL);
        }
    }

    /// Returns the next event of a known type, or none at the end of the stream.
    fn next_event(&mut self, signals: &Signals) -> Result<Option<Event>, TrialError> {
        loop {
            match self.decoder.next_event() {
                Ok(Some(event)) => return Ok(Some(event)),
                Ok(None) => {}
                // Lines of later versions are skipped, as the contract requires of a reader.
                Err(EventLineError::NotAnEvent { .. } | EventLineError::Version { .. }) => continue,
                Err(EventLineError::TooLong { .. }) => return Err(TrialError::TooLong),
            }
            if !self.receive(signals)? {
                return Ok(None);
            }
        }
    }

    /// Waits for output and passes it to the decoder. Returns false at the end of the stream.
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
        // The signal was not a request to stop, so the wait goes on.
        if fds.first().and_then(PollFd::any) != Some(true) {
            return Ok(true);
        }
        let mut buffer = [0; 16 * 1024];
        let count = self.stdout.read(&mut buffer).map_err(HostError::of("read events"))?;
        self.decoder.push(buffer.get(..count).unwrap_or_default());
        Ok(count > 0)
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        // Neither call fails for a child that has exited, and a destructor cannot report an error.
        let _killed = self.child.kill();
        let _reaped = self.child.wait();
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
    fn event_is_found_between_other_lines_and_in_two_parts() {
        let (begin, end) = READY.split_at(20);
        let script = format!(
            "echo; echo unknown; echo '{{\"type\":\"future.event\"}}'; printf '%s' '{begin}'; sleep 0.1; echo '{end}'"
        );
        wait(&script, LONG).unwrap();
    }

    #[test]
    fn wait_for_an_event_that_does_not_come_ends() {
        let short = Duration::from_millis(200);
        let error = wait("exec sleep 60", short).unwrap_err();
        assert!(matches!(error, TrialError::TooLate(limit) if limit == short), "{error}");
        let error = wait("exec sleep 60 >/dev/null", short).unwrap_err();
        assert!(matches!(error, TrialError::TooLate(_)), "{error}");
        let error = wait("exit 3", LONG).unwrap_err();
        assert_eq!(error.to_string(), "the shim ended (exit status: 3) without an error event");
        let error = wait("head -c 2000000 /dev/zero; exec sleep 60", LONG).unwrap_err();
        assert!(matches!(error, TrialError::TooLong), "{error}");
    }

    #[test]
    fn error_event_ends_the_wait_with_its_causes() {
        let report = r#""type":"error","code":"internal","message":"m","causes":["a","b"],"retryable":false"#;
        let event = READY.replace(r#""type":"prepare.done""#, report);
        let error = wait(&format!("echo '{event}'; echo '{READY}'; exec sleep 60"), LONG);
        assert_eq!(error.unwrap_err().to_string(), "m: a: b");
    }

    #[test]
    fn child_is_killed_when_its_trial_is_dropped() {
        let (trial, _signals) = trial("exec sleep 60", LONG);
        let pid = Pid::from_raw(i32::try_from(trial.child.id()).unwrap());
        kill(pid, None).unwrap();
        drop(trial);
        assert_eq!(kill(pid, None), Err(Errno::ESRCH));
    }
}
