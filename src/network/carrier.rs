//! [`Carrier`]: gate and passt as the shim sees them, from their start to their end.

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStderr, ChildStdout, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use a3s_box_core::event::{EventKind, WarningCode};
use a3s_box_sys::HostError;
use nix::poll::{PollFd, PollFlags, poll};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use super::error::{ANSWER_TIMEOUT, NetworkError};
use super::gate::{self, GateConfig};
use super::refusals::Refusals;
use super::{frames, ndp, passt};
use crate::host::command::{self, Ended};
use crate::report::printable::printable;

/// Milliseconds between two checks whether the gate has answered or exited.
const CHECK_INTERVAL_MS: u8 = 20;

/// Bound on the output of gate and passt that is kept for a report.
const MAX_COMPLAINT_BYTES: usize = 500;

/// Time between two checks whether a process that has closed its files has exited.
const REAP_INTERVAL: Duration = Duration::from_millis(50);

/// What [`Carrier::start`] has started.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) carrier: Carrier,
    /// The guest's end of the wire.
    pub(super) wire: UnixStream,
    /// Whether passt carries IPv6.
    pub(super) has_ipv6: bool,
}

/// The gate, a child of the shim, and through it passt, which is the gate's child.
#[derive(Debug)]
pub(crate) struct Carrier {
    gate: Child,
    stderr: ChildStderr,
    /// The pipe with the gate's notices, until it is taken.
    notices: Option<ChildStdout>,
    /// A duplicate of the gate's end of the wire. It keeps libkrun from reading an end of file when
    /// the gate exits: libkrun repeats a partial read for ever if it returns 0 (`read_loop`,
    /// krun-devices 1.19.7).
    _spare: OwnedFd,
}

impl Carrier {
    /// Starts gate and passt, and returns once passt has answered. With root, gate and passt become
    /// the user of the config, or else `nobody`.
    pub(super) fn start(config: &GateConfig) -> Result<Started, NetworkError> {
        let passt = passt::find()
            .ok_or_else(|| NetworkError::PasstMissing { searched: passt::searched() })?;
        let (mut wire, gates_end) =
            UnixStream::pair().map_err(HostError::of("make a pair of sockets"))?;
        let gates_end = OwnedFd::from(gates_end);
        let spare = gates_end.try_clone().map_err(HostError::of("duplicate a socket"))?;
        // `/proc/self/exe` names this executable even if its file was moved or removed. A process
        // group of its own keeps the signals of a terminal away from the gate.
        let mut command = command::new("/proc/self/exe");
        command.env_clear().arg0("a3s-box-shim").process_group(0);
        command.arg(gate::ARGUMENT).arg(passt);
        command.stdin(gates_end).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut gate = command.spawn().map_err(HostError::of("start the network's gate"))?;
        // The command owns an fd of the gate's end, which must close before the wire is watched.
        drop(command);
        let answered = configure(&wire, config)
            .map_err(|error| HostError::of("write the gate's config")(error).into())
            .and_then(|()| ask_for_gateways(&mut wire, &mut gate, config.ipv6.is_some()));
        let has_ipv6 = match answered {
            Ok(Answer::Ready { has_ipv6 }) => has_ipv6,
            Ok(Answer::Exited) => return Err(refused(gate)),
            Err(error) => {
                // `kill` fails only if the gate has already exited.
                let _killed = gate.kill();
                return Err(error);
            }
        };
        let notices = gate.stdout.take();
        let stderr = gate.stderr.take().ok_or(NetworkError::NoAnswer)?;
        let carrier = Self { gate, stderr, notices, _spare: spare };
        Ok(Started { carrier, wire, has_ipv6 })
    }

    /// Takes the gate's notices, and registers them with the event loop of the calling task.
    pub(crate) fn take_refusals(&mut self) -> io::Result<Option<Refusals>> {
        self.notices.take().map(Refusals::new).transpose()
    }

    /// Waits until gate and passt have ended, and returns the end of their output as the reason.
    pub(crate) async fn end(self) -> String {
        let Self { mut gate, stderr, notices: _, _spare } = self;
        let mut tail = Vec::new();
        if let Ok(mut stderr) = pipe::Receiver::from_owned_fd(stderr.into()) {
            let mut buffer = [0; MAX_COMPLAINT_BYTES];
            // A read error is treated as the end of the output.
            while let Ok(count @ 1..) = stderr.read(&mut buffer).await {
                let output = buffer.get(..count).unwrap_or_default();
                if let Some(line) = complaint(&String::from_utf8_lossy(output)) {
                    tracing::debug!("network: {line}");
                }
                tail.extend_from_slice(output);
                tail.drain(..tail.len().saturating_sub(MAX_COMPLAINT_BYTES));
            }
        }
        // The gate has closed its standard error, so it is about to exit. The wait is bounded in
        // case it does not.
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        let mut status = gate.try_wait();
        while matches!(status, Ok(None)) && Instant::now() < deadline {
            tokio::time::sleep(REAP_INTERVAL).await;
            status = gate.try_wait();
        }
        complaint(&String::from_utf8_lossy(&tail)).unwrap_or_else(|| match status {
            Ok(Some(status)) => gate_ended(status),
            Ok(None) | Err(_) => "the gate has closed its files".to_owned(),
        })
    }
}

/// Logs that gate and passt have ended while the VM runs, and returns the event for it.
pub(crate) fn lost(reason: &str) -> EventKind {
    let message = format!("the guest's network is gone: {reason}");
    tracing::warn!("{message}");
    EventKind::Warning { code: WarningCode::NetworkLost, message }
}

/// Sends the gate its config. The timeout is for a gate that does not read, and does not apply to the
/// frames of the guest.
fn configure(wire: &UnixStream, config: &GateConfig) -> io::Result<()> {
    wire.set_write_timeout(Some(ANSWER_TIMEOUT))?;
    config.send(wire)?;
    wire.set_write_timeout(None)
}

/// What came of the shim's questions to passt.
#[derive(Clone, Copy, Debug)]
enum Answer {
    /// passt has answered.
    Ready { has_ipv6: bool },
    /// The gate has exited instead.
    Exited,
}

/// Asks passt for the hardware addresses of the gateways, as the guest would.
///
/// The answers show that the whole way through gate and passt works. The questions also let passt
/// learn the guest's hardware address and its link-local address before the guest sends its first
/// frame.
fn ask_for_gateways(
    wire: &mut UnixStream,
    gate: &mut Child,
    asks_for_ipv6: bool,
) -> Result<Answer, NetworkError> {
    let deadline = Instant::now() + ANSWER_TIMEOUT;
    // The timeout also covers a frame that stops in the middle. It is removed below, because
    // libkrun's reads do not expect EAGAIN from a timeout.
    wire.set_read_timeout(Some(ANSWER_TIMEOUT))
        .map_err(HostError::of("limit a wait for the network"))?;
    let mut has_ipv6 = false;
    let mut note = |frame: &[u8]| has_ipv6 |= ndp::is_advertisement(frame);
    let arp = frames::arp_request();
    let mut questions = vec![arp.clone()];
    if asks_for_ipv6 {
        // A passt without IPv6 does not answer the solicitation. passt handles ARP packets before the
        // IPv6 packets that it has read with them, so only a second ARP reply shows that no answer
        // follows.
        questions.insert(0, [ndp::solicitation(), arp].concat());
    }
    for question in questions {
        wire.write_all(&question).map_err(HostError::of("write to the network"))?;
        if !wait_for_arp_reply(wire, gate, deadline, &mut note)? {
            return Ok(Answer::Exited);
        }
    }
    wire.set_read_timeout(None).map_err(HostError::of("unlimit the network"))?;
    Ok(Answer::Ready { has_ipv6 })
}

/// Waits for an ARP reply of the gateway, and gives all other frames to `note`. Returns false if the
/// gate exited instead.
fn wait_for_arp_reply(
    wire: &mut UnixStream,
    gate: &mut Child,
    deadline: Instant,
    note: &mut dyn FnMut(&[u8]),
) -> Result<bool, NetworkError> {
    while Instant::now() < deadline {
        let ready = poll(&mut [PollFd::new(wire.as_fd(), PollFlags::POLLIN)], CHECK_INTERVAL_MS)
            .map_err(HostError::of("wait for the network"))?;
        match (ready > 0).then(|| frames::read(&mut *wire)) {
            Some(Ok(frame)) if frames::is_arp_reply(&frame) => return Ok(true),
            Some(Ok(frame)) => note(&frame),
            _ if gate
                .try_wait()
                .map_err(HostError::of("wait for the network's gate"))?
                .is_some() =>
            {
                return Ok(false);
            }
            // An exiting gate that leaves data unread resets the wire (ECONNRESET) shortly before
            // `try_wait` reports its exit. The loop goes on until then, or until the deadline.
            Some(Err(_)) => thread::sleep(Duration::from_millis(CHECK_INTERVAL_MS.into())),
            None => {}
        }
    }
    Err(NetworkError::NoAnswer)
}

/// Returns the reason for which the gate, which has exited, did not start the network.
fn refused(gate: Child) -> NetworkError {
    match command::finish(gate) {
        Ok(Ended { status, complaint: output }) => {
            let complaint = complaint(&output).unwrap_or_else(|| gate_ended(status));
            NetworkError::Refused { complaint }
        }
        Err(source) => HostError::of("wait for the network's gate")(source).into(),
    }
}

/// Describes the end of a gate that wrote nothing. It was killed by its own filter of system calls
/// (SIGSYS) or by another process.
fn gate_ended(status: ExitStatus) -> String {
    format!("the gate ended: {status}")
}

/// Puts the output of gate and passt in one line; none if there is nothing of interest in it.
///
/// passt first complains if there is no system log, which is no error here.
fn complaint(output: &str) -> Option<String> {
    let is_noise = |line: &str| line.is_empty() || line.ends_with(" to syslog");
    let lines: Vec<&str> = output.lines().map(str::trim).filter(|line| !is_noise(line)).collect();
    (!lines.is_empty()).then(|| printable(&lines.join("; "), MAX_COMPLAINT_BYTES))
}
