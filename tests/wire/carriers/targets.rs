//! The processes that the attempts are made in, and what they try to reach.

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::PathBuf;

use serde_json::json;
use tempfile::TempDir;

use crate::harness::{RunningShim, shim, start_with};
use crate::network::{child_of, eventually, free_port, published};
use crate::user::{self, SubIds};

/// A process that carries the guest's network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Gate,
    Connector,
    Passt,
}

/// The user that runs the shim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ShimUser {
    Root,
    Ordinary,
}

/// `confinement.seccomp`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seccomp {
    Enforce,
    Log,
}

/// A box, and the processes of its network. It is killed when this value is dropped.
pub(crate) struct Carriers {
    shim: RunningShim,
    pub(crate) gate: i32,
    pub(crate) passt: i32,
    connector: Option<i32>,
    /// The published port, on the loopback address of the host.
    pub(crate) port: u16,
    directory: TempDir,
    _tables: Option<TempDir>,
}

impl Carriers {
    /// Starts a box with a published port. passt is attacked with egress `allow`, where it is in the
    /// network of the host, and the others with `deny`, where they hold sockets of that network.
    pub(super) fn start(user: ShimUser, attacked: Kind, seccomp: Seccomp) -> Self {
        let egress = if attacked == Kind::Passt { "allow" } else { "deny" };
        let seccomp = if seccomp == Seccomp::Log { "log" } else { "enforce" };
        Self::start_box(user, egress, seccomp)
    }

    /// Starts a box with a published port.
    pub(crate) fn start_box(user: ShimUser, egress: &str, seccomp: &str) -> Self {
        let directory = tempfile::Builder::new().prefix("w").tempdir().unwrap();
        let port = free_port();
        let (command, tables) = match user {
            ShimUser::Root => (shim(), None),
            ShimUser::Ordinary => {
                user::give_to_user(directory.path());
                let (command, tables) = user::command(&shim(), SubIds::None);
                (command, Some(tables))
            }
        };
        let script = ["connect", "hello", "started=7", "hang"];
        let mut shim = start_with(command, &script, |config| {
            config["paths"]["state_dir"] = json!(directory.path().join("s"));
            config["paths"]["cache_dir"] = json!(directory.path().join("c"));
            // The box lives until the test ends, and its guest never reports that it is ready.
            config["agent"] = json!({"boot_timeout_ms": 600_000});
            let level = if seccomp == "log" { "best_effort" } else { "required" };
            config["confinement"] = json!({"level": level, "seccomp": seccomp});
            config["network"] =
                json!({"mode": "passt", "egress": egress, "publish": published(port)});
        });
        shim.wait_for("guest.started");
        let gate = eventually("the gate", || child_of(shim.pid(), "a3s-box-gate"));
        let passt = eventually("passt", || child_of(gate, "passt"));
        let connector = child_of(gate, "a3s-box-connect");
        Self { shim, gate, passt, connector, port, directory, _tables: tables }
    }

    pub(crate) fn vmm(&self) -> i32 {
        self.shim.pid()
    }

    pub(crate) fn box_directory(&self) -> PathBuf {
        self.directory.path().join("s/golden")
    }

    /// Finds the fd of a socket of the published port by its state in `/proc/net/tcp`.
    fn socket_of_gate(&self, state: &str) -> i64 {
        let local = format!("0100007F:{:04X}", self.port);
        eventually("a socket of the gate", || {
            let sockets = fs::read_to_string("/proc/net/tcp").unwrap();
            let mut lines = sockets.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
            let line = lines.find(|line| line[1] == local && line[3] == state && line[9] != "0")?;
            let link = format!("socket:[{}]", line[9]);
            let mut fds = fs::read_dir(format!("/proc/{}/fd", self.gate)).unwrap().flatten();
            let fd =
                fds.find(|fd| fs::read_link(fd.path()).is_ok_and(|it| it.as_os_str() == &*link));
            fd?.file_name().to_str()?.parse().ok()
        })
    }

    pub(crate) fn process(&self, kind: Kind) -> i32 {
        match kind {
            Kind::Gate => self.gate,
            Kind::Connector => self.connector.unwrap(),
            Kind::Passt => self.passt,
        }
    }
}

impl Drop for Carriers {
    fn drop(&mut self) {
        // The shim may have ended with its network.
        let _killed = self.shim.child.kill();
        let _waited = self.shim.child.wait();
    }
}

/// What the attempts try to reach.
pub(super) struct Targets {
    pub(super) supervisor: i32,
    pub(super) vmm: i32,
    pub(super) gate: i32,
    pub(super) passt: i32,
    /// VMM, gate and passt of another box.
    pub(super) other: [i32; 3],
    /// Port of the loopback address on which the other box publishes its guest.
    pub(super) other_port: u16,
    /// The fds by which the gate listens on the published port, and serves a client there. They are
    /// none in a box with egress, in which passt does that.
    pub(super) listener: i64,
    pub(super) connection: i64,
    host: TcpListener,
    /// Name of the abstract address, and the socket that listens there.
    pub(super) abstract_name: String,
    _abstract: UnixListener,
    /// A client of the published port.
    _client: TcpStream,
}

impl Targets {
    pub(super) fn new(own: &Carriers, other: &Carriers) -> Self {
        let host = TcpListener::bind("127.0.0.1:0").unwrap();
        let abstract_name = format!("carriers-{}", host.local_addr().unwrap().port());
        let client = TcpStream::connect(("127.0.0.1", own.port)).unwrap();
        // The states of a socket (`include/net/tcp_states.h`) that listens or is connected.
        let [listener, connection] =
            ["0A", "01"].map(|state| own.connector.map_or(-1, |_| own.socket_of_gate(state)));
        let address = SocketAddr::from_abstract_name(&abstract_name).unwrap();
        Self {
            supervisor: std::process::id().cast_signed(),
            vmm: own.vmm(),
            gate: own.gate,
            passt: own.passt,
            other: [other.vmm(), other.gate, other.passt],
            other_port: other.port,
            listener,
            connection,
            host,
            abstract_name,
            _abstract: UnixListener::bind_addr(&address).unwrap(),
            _client: client,
        }
    }

    /// Returns an address on which the test listens, as the kernel reads it.
    pub(super) fn tcp_of_host(&self) -> [u8; 16] {
        tcp_address(Ipv4Addr::LOCALHOST, self.host.local_addr().unwrap().port())
    }

    /// Returns an address outside of the host (from TEST-NET-1, RFC 5737).
    #[expect(clippy::unused_self, reason = "it is a target as the others are")]
    pub(super) fn address_of_another_host(&self) -> [u8; 16] {
        tcp_address(Ipv4Addr::new(192, 0, 2, 1), 80)
    }
}

/// Returns a `struct sockaddr_in`.
pub(crate) fn tcp_address(address: Ipv4Addr, port: u16) -> [u8; 16] {
    let address = SocketAddrV4::new(address, port);
    let mut bytes = [0; 16];
    bytes[..2].copy_from_slice(&u16::try_from(libc::AF_INET).unwrap().to_ne_bytes());
    bytes[2..4].copy_from_slice(&address.port().to_be_bytes());
    bytes[4..8].copy_from_slice(&address.ip().octets());
    bytes
}
