//! Helper programs of the host, which the shim runs while it prepares a box: `newuidmap`,
//! `mkfs.ext4`, `mount`, and the gate. Their time and the output that is kept are bounded.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Longest time of a helper program. They take milliseconds, and `mkfs.ext4` on the largest sparse
/// file takes seconds. Only a disk that hangs takes longer.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Time between two checks whether a program has exited. It is short, because the checks begin when
/// the program has closed its standard error, which it does when it exits.
const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// Most bytes of standard error that are kept. They are some lines in an error text.
const MAX_COMPLAINT_BYTES: usize = 500;

/// Result of a helper program.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    /// Beginning of its standard error, as text.
    pub(crate) complaint: String,
}

/// Returns a command that passes on only `$PATH` of the shim's environment. `$NOTIFY_SOCKET` and
/// the watchdog's variables are for the shim alone, and other variables may hold secrets.
pub(crate) fn new(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env_clear();
    // Helper programs are found by `$PATH`, and run other programs by it.
    if let Some(path) = std::env::var_os("PATH") {
        command.env("PATH", path);
    }
    command
}

/// Runs a helper program and waits for its end.
pub(crate) fn run(mut command: Command) -> io::Result<Ended> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    finish(command.spawn()?)
}

/// Waits for a helper program whose standard error is a pipe. A program that exceeds the time is
/// killed, which returns an error of the kind `TimedOut`.
pub(crate) fn finish(mut child: Child) -> io::Result<Ended> {
    let deadline = Instant::now() + TIMEOUT;
    let complaint = complaint(&mut child, deadline)?;
    let complaint = String::from_utf8_lossy(&complaint).trim().to_owned();
    Ok(Ended { status: wait(child, deadline)?, complaint })
}

fn wait(mut child: Child, deadline: Instant) -> io::Result<ExitStatus> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() >= deadline {
            // The child is not waited for: a process that hangs in the kernel may never end.
            child.kill()?;
            let text = format!("the program did not end within {} s", TIMEOUT.as_secs());
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Reads standard error to its end or until the deadline, and returns its beginning. The rest is
/// read as well, because a full pipe would block the program.
fn complaint(child: &mut Child, deadline: Instant) -> io::Result<Vec<u8>> {
    let mut kept = Vec::new();
    let Some(mut stderr) = child.stderr.take() else { return Ok(kept) };
    let mut buffer = [0; MAX_COMPLAINT_BYTES];
    loop {
        // A deadline that has passed makes the timeout 0, so the last poll does not block.
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let ready = match poll(&mut [PollFd::new(stderr.as_fd(), PollFlags::POLLIN)], timeout) {
            // A signal with a handler, such as that of Rust for SIGSEGV, interrupts the wait.
            Err(Errno::EINTR) => continue,
            ready => ready?,
        };
        let count = if ready == 0 { 0 } else { stderr.read(&mut buffer)? };
        if count == 0 {
            return Ok(kept);
        }
        let left = MAX_COMPLAINT_BYTES - kept.len();
        kept.extend(&buffer[..count.min(left)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Ended {
        let mut command = new("/bin/sh");
        command.args(["-c", script]);
        run(command).unwrap()
    }

    #[test]
    fn program_inherits_only_path_of_the_environment() {
        assert!(
            std::env::vars_os().any(|(name, _)| name != "PATH"),
            "the test needs another variable"
        );
        // The shell sets these variables by itself.
        let own = "unset PWD OLDPWD SHLVL _; env >&2";
        let path = std::env::var("PATH").unwrap();
        assert_eq!(shell(own).complaint, format!("PATH={path}"));
    }

    #[test]
    fn long_complaint_is_cut_and_does_not_block_the_program() {
        let ended = shell("head -c 1000000 /dev/zero | tr '\\0' x >&2; exit 3");
        assert_eq!((ended.status.code(), ended.complaint.len()), (Some(3), MAX_COMPLAINT_BYTES));
        let ended = shell("echo ' why ' >&2");
        assert_eq!((ended.status.success(), ended.complaint.as_str()), (true, "why"));
    }

    #[test]
    fn program_that_closes_its_standard_error_is_waited_for() {
        assert_eq!(shell("exec 2>&-; sleep 0.1; exit 4").status.code(), Some(4));
    }

    #[test]
    fn program_that_does_not_end_is_killed() {
        let mut command = Command::new("/bin/sleep");
        command.arg("60").stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let id = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
        let past = Instant::now();
        assert_eq!(complaint(&mut child, past).unwrap(), b"");
        let error = wait(child, past).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let status = nix::sys::wait::waitpid(id, None).unwrap();
        let killed = nix::sys::signal::Signal::SIGKILL;
        assert_eq!(status, nix::sys::wait::WaitStatus::Signaled(id, killed, false));
    }
}
