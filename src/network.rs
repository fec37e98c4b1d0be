//! The guest's network: `network.mode` `passt`.
//!
//! ```text
//!   guest ══ virtio-net ══ shim │ gate ── frames ── passt ── sockets of the host        egress allow
//!                               │  │                  └───── sockets of an empty        egress deny
//!                               │  └─ published ports ─────► network, whose loopback
//!                               │                            the gate alone has
//!           one security context│each a process with a jail of its own
//! ```
//!
//! The gate is this same executable, started before the shim confines itself; it starts passt, and stands
//! between: what a guest sends is looked at outside of the VMM, so that a VMM which a guest has taken over
//! gains nothing by it ([`frames`]). The shim itself then enters an empty network.
//!
//! Gate and passt end when the socket to the VM closes, and so when the shim ends, however that happens.

mod addresses;
mod frames;
mod gate;
mod loopback;
mod passt;
mod relay;
mod resolver;

use std::io::Write;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStderr, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use a3s_box_core::config::{Egress, NetworkConfig, NetworkMode, SeccompMode};
use a3s_box_core::event::{EventKind, WarningCode};
use a3s_box_krun::NetDevice;
use a3s_box_proto::control::{Interface, NameServers};
use a3s_box_sys::HostError;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sched::{CloneFlags, unshare};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use self::addresses::{
    GATEWAY_ADDRESS, GUEST_ADDRESS, GUEST_MAC, MTU, PLACEHOLDER_ADDRESS, PREFIX_LENGTH,
};
use self::gate::GateConfig;
pub(crate) use self::gate::run_if_asked;
pub(crate) use self::passt::{find as find_passt, searched as searched_for_passt};
use crate::host::command::{self, Ended};
use crate::report::events::EventWriter;
use crate::spec::{NetworkSpec, PasstSpec, VmSpec};

/// How long gate and passt may take until they answer: they take 20 ms; longer takes a machine that is busy
/// with other things.
const PATIENCE: Duration = Duration::from_secs(20);

/// Time between two looks at a gate that has not answered.
const LOOK_STEP: u8 = 20;

/// How much is kept of what gate and passt say while the VM runs.
const LAST_WORDS_BYTES: usize = 500;

/// Time between two looks at a process that has closed its files, and is about to end.
const REAP_STEP: Duration = Duration::from_millis(50);

/// The network cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetworkError {
    #[error("`passt`, which `network.mode` `passt` needs, was not found, looked at: {searched}")]
    PasstMissing { searched: String },
    #[error("the network was refused: {complaint}")]
    Refused { complaint: String },
    #[error("passt did not answer within {} s", PATIENCE.as_secs())]
    NoAnswer,
    #[error(transparent)]
    Host(#[from] HostError),
}

impl NetworkError {
    /// What a user can do about it.
    pub(crate) fn hint(&self) -> Option<&'static str> {
        match self {
            Self::PasstMissing { .. } => Some("install the package `passt`"),
            Self::Refused { .. } => Some(
                "is an address of `network.publish` not this host's, or its port in use? Ports below 1024 take root",
            ),
            Self::NoAnswer | Self::Host(_) => None,
        }
    }
}

/// What the guest has, and who carries it.
#[derive(Debug, Default)]
pub(crate) struct Network {
    carrier: Option<Carrier>,
    /// The guest's end of the wire, for libkrun.
    pub(crate) device: Option<NetDevice>,
    /// What PID 1 is told.
    pub(crate) interface: Option<Interface>,
    pub(crate) name_servers: Option<NameServers>,
    warning: Option<EventKind>,
}

impl Network {
    /// Starts what carries the guest's network, and enters an empty one, if a guest is to have one. To be
    /// called before any thread exists, in the host's network.
    pub(crate) fn start(spec: &VmSpec) -> Result<Self, NetworkError> {
        let name_servers = |addresses: &[Ipv4Addr]| {
            Some(NameServers { addresses: addresses.iter().copied().map(u32::from).collect() })
        };
        match &spec.network {
            NetworkSpec::None => Ok(Self::default()),
            NetworkSpec::Tsi => Ok(Self {
                name_servers: name_servers(&resolver::of_host()),
                interface: Some(placeholder()),
                warning: Some(host_network()),
                ..Self::default()
            }),
            NetworkSpec::Passt(passt) => {
                let dns = match (passt.egress, passt.dns.is_empty()) {
                    (Egress::Deny, _) => Vec::new(),
                    (Egress::Allow, true) => resolver::of_host(),
                    (Egress::Allow, false) => passt.dns.clone(),
                };
                let passt = PasstSpec { dns, ..passt.clone() };
                let (carrier, wire) = Carrier::start(&passt, spec.seccomp)?;
                unshare(CloneFlags::CLONE_NEWNET)
                    .map_err(HostError::of("make a network namespace"))?;
                Ok(Self {
                    carrier: Some(carrier),
                    device: Some(NetDevice { socket: wire.into(), mac: GUEST_MAC }),
                    interface: Some(ethernet(passt.egress)),
                    name_servers: name_servers(&passt.dns),
                    warning: None,
                })
            }
        }
    }

    /// Tells what whoever runs the box should know.
    pub(crate) fn warn(&mut self, events: &EventWriter) {
        self.warning.take().into_iter().for_each(|warning| events.emit(warning));
    }

    /// Who carries it; the control thread watches them.
    pub(crate) fn take_carrier(&mut self) -> Option<Carrier> {
        self.carrier.take()
    }
}

fn ethernet(egress: Egress) -> Interface {
    Interface {
        name: "eth0".to_owned(),
        address: GUEST_ADDRESS.into(),
        prefix_length: PREFIX_LENGTH,
        // Without a route the guest's own kernel says at once that nothing is to be reached.
        gateway: match egress {
            Egress::Allow => GATEWAY_ADDRESS.into(),
            Egress::Deny => 0,
        },
        mtu: MTU,
    }
}

/// With TSI nothing goes through a device, but resolvers ask for IPv4 addresses only where there is one that
/// is not loopback (`AI_ADDRCONFIG`, getaddrinfo(3)).
fn placeholder() -> Interface {
    Interface {
        name: "dummy0".to_owned(),
        address: PLACEHOLDER_ADDRESS.into(),
        prefix_length: 32,
        gateway: 0,
        mtu: 0,
    }
}

fn host_network() -> EventKind {
    let message = "the guest has the host's own network (`network.mode` `tsi`): it reaches what listens on the \
                   host's loopback address, and what listens in it, listens on the host";
    EventKind::Warning { code: WarningCode::HostNetwork, message: message.to_owned() }
}

/// Gate and passt, as the shim sees them.
#[derive(Debug)]
pub(crate) struct Carrier {
    gate: Child,
    says: ChildStderr,
    /// The gate's end of the wire. Should the gate end, libkrun's end must not see it: a read that has
    /// begun goes on without end where the file ends (`read_loop`, krun-devices 1.19.7).
    _spare: OwnedFd,
}

impl Carrier {
    /// Starts gate and passt; returns when passt has answered.
    fn start(spec: &PasstSpec, seccomp: SeccompMode) -> Result<(Self, UnixStream), NetworkError> {
        let passt = passt::find()
            .ok_or_else(|| NetworkError::PasstMissing { searched: passt::searched() })?;
        let network = NetworkConfig {
            mode: NetworkMode::Passt,
            egress: Some(spec.egress),
            publish: spec.publish.clone(),
            dns: spec.dns.clone(),
        };
        let config = serde_json::to_string(&GateConfig { network, seccomp })
            .map_err(HostError::of("write the gate's config"))?;
        let (mut wire, theirs) =
            UnixStream::pair().map_err(HostError::of("make a pair of sockets"))?;
        let theirs = OwnedFd::from(theirs);
        let spare = theirs.try_clone().map_err(HostError::of("duplicate a socket"))?;
        // Whatever has become of the executable's path; and no signal of a terminal.
        let mut command = command::new("/proc/self/exe");
        command.env_clear().arg0("a3s-box-shim").process_group(0);
        command.arg(gate::ARGUMENT).arg(passt).arg(config);
        command.stdin(theirs).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut gate = command.spawn().map_err(HostError::of("start the network's gate"))?;
        // The command holds the gate's end, too.
        drop(command);
        match ask_for_gateway(&mut wire, &mut gate) {
            Ok(true) => {}
            Ok(false) => return Err(refused(gate)),
            Err(error) => {
                // It has ended if this fails.
                let _ended = gate.kill();
                return Err(error);
            }
        }
        match gate.stderr.take() {
            Some(says) => Ok((Self { gate, says, _spare: spare }, wire)),
            None => Err(NetworkError::NoAnswer),
        }
    }

    /// Waits for the end of gate and passt, and returns their last words.
    pub(crate) async fn end(self) -> String {
        let Self { mut gate, says, _spare } = self;
        let mut tail = Vec::new();
        if let Ok(mut says) = pipe::Receiver::from_owned_fd(says.into()) {
            let mut buffer = [0; LAST_WORDS_BYTES];
            // An error is the end, too.
            while let Ok(count @ 1..) = says.read(&mut buffer).await {
                let said = buffer.get(..count).unwrap_or_default();
                if let Some(line) = complaint(&String::from_utf8_lossy(said)) {
                    tracing::debug!("network: {line}");
                }
                tail.extend_from_slice(said);
                tail.drain(..tail.len().saturating_sub(LAST_WORDS_BYTES));
            }
        }
        // It has closed its files; one that lives on all the same is not waited for any longer.
        let deadline = Instant::now() + PATIENCE;
        let mut status = gate.try_wait();
        while matches!(status, Ok(None)) && Instant::now() < deadline {
            tokio::time::sleep(REAP_STEP).await;
            status = gate.try_wait();
        }
        complaint(&String::from_utf8_lossy(&tail)).unwrap_or_else(|| match status {
            Ok(Some(status)) => ended_with(status),
            Ok(None) | Err(_) => "the gate has closed its files".to_owned(),
        })
    }
}

/// What the control thread tells of the end of gate and passt.
pub(crate) fn lost(last_words: &str) -> EventKind {
    let message = format!("the guest's network is gone: {last_words}");
    tracing::warn!("{message}");
    EventKind::Warning { code: WarningCode::NetworkLost, message }
}

/// Asks passt for the gateway's hardware address as the guest would, which shows that all of it works, and
/// tells passt where the guest is before that has sent anything. Whether it answered; if not, gate and
/// passt have ended.
fn ask_for_gateway(wire: &mut UnixStream, gate: &mut Child) -> Result<bool, NetworkError> {
    let deadline = Instant::now() + PATIENCE;
    // Also in the middle of a frame; libkrun's reads know no timeout.
    wire.set_read_timeout(Some(PATIENCE)).map_err(HostError::of("limit a wait for the network"))?;
    wire.write_all(&frames::arp_request()).map_err(HostError::of("write to the network"))?;
    while Instant::now() < deadline {
        let ready = poll(&mut [PollFd::new(wire.as_fd(), PollFlags::POLLIN)], LOOK_STEP)
            .map_err(HostError::of("wait for the network"))?;
        match (ready > 0).then(|| frames::read(&mut *wire)) {
            Some(Ok(frame)) if frames::is_arp_reply(&frame) => {
                let unlimited = wire.set_read_timeout(None);
                unlimited.map_err(HostError::of("unlimit the network"))?;
                return Ok(true);
            }
            Some(Ok(_)) => {}
            _ if gate
                .try_wait()
                .map_err(HostError::of("wait for the network's gate"))?
                .is_some() =>
            {
                return Ok(false);
            }
            // What it left unread resets the wire before it has ended.
            Some(Err(_)) => thread::sleep(Duration::from_millis(LOOK_STEP.into())),
            None => {}
        }
    }
    Err(NetworkError::NoAnswer)
}

/// Why gate and passt have ended.
fn refused(gate: Child) -> NetworkError {
    match command::finish(gate) {
        Ok(Ended { status, complaint: said }) => {
            let complaint = complaint(&said).unwrap_or_else(|| ended_with(status));
            NetworkError::Refused { complaint }
        }
        Err(error) => HostError::of("wait for the network's gate")(error).into(),
    }
}

/// A gate that says nothing was killed: by its own filter of system calls, with SIGSYS, or from outside.
fn ended_with(status: ExitStatus) -> String {
    format!("the gate ended: {status}")
}

/// What passt and gate said, in one line, if they said something. Without a system log, passt complains about
/// that first.
fn complaint(said: &str) -> Option<String> {
    let is_noise = |line: &&str| !line.is_empty() && !line.ends_with(" to syslog");
    let lines: Vec<&str> = said.lines().map(str::trim).filter(is_noise).collect();
    let has_words = !lines.is_empty();
    has_words.then(|| crate::report::printable::printable(&lines.join("; "), LAST_WORDS_BYTES))
}
