//! The guest's network: `network.mode`.
//!
//! In mode `passt`, two more processes carry the guest's frames, each in a jail of its own. With
//! egress `allow` or with rules, passt opens sockets in the host's network. With egress `deny`, it
//! opens them in an empty network namespace, which only the gate's published ports lead into, with
//! the help of a third process ([`connector`]):
//!
//! ```text
//!   guest ══ virtio-net ══ shim │ gate ── frames ── passt ── sockets of the host        egress allow,
//!                               │  │                  │                                 or rules
//!                               │  │                  └───── sockets of an empty        egress deny
//!                               │  └─ published ports ─────► network namespace
//!           one security context│ one process each, confined on its own
//! ```
//!
//! The wire is the pair of Unix sockets between libkrun's Ethernet device and the gate. The gate is
//! this same executable. It starts before the shim confines itself, and it starts passt. It filters
//! the guest's frames ([`filter`]) outside of the VMM, because a guest that has taken over the VMM
//! could bypass a filter inside it. It answers what it refuses ([`refusal`]) and tells the shim of
//! it ([`notice`]). If a rule has a name, it is the name server of the guest ([`name_server`]). The
//! shim then enters an empty network namespace.
//!
//! Gate, passt and connector exit when the shim's end of the wire closes. The kernel closes it
//! however the shim ends.

mod addresses;
mod answered;
mod carrier;
mod checksum;
mod connector;
mod dns;
mod dns_frame;
mod error;
mod filter;
mod frames;
mod gate;
mod host_addresses;
mod host_ipv6;
mod jail;
mod loopback;
mod metadata;
mod name_server;
mod names;
mod ndp;
mod notice;
mod packet;
mod passt;
mod refusal;
mod refusals;
mod relay;
mod resolver;
mod rules;
mod socket_options;
mod udp_flows;

use std::net::{IpAddr, Ipv4Addr};
use std::process::ExitCode;

use a3s_box_core::event::{EventKind, WarningCode};
use a3s_box_krun::NetDevice;
use a3s_box_proto::control::{Interface, Ipv6, NameServers};
use a3s_box_sys::HostError;
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use self::addresses::{
    GATEWAY_ADDRESS, GATEWAY_LINK_LOCAL, GUEST_ADDRESS, GUEST_ADDRESS_V6, GUEST_LINK_LOCAL,
    GUEST_MAC, MTU, NAME_SERVER_ADDRESS, PREFIX_LENGTH, PREFIX_LENGTH_V6,
};
use self::carrier::Started;
pub(crate) use self::carrier::{Carrier, lost};
pub(crate) use self::error::NetworkError;
use self::filter::Egress;
use self::gate::GateConfig;
pub(crate) use self::passt::{find as find_passt, searched as searched_for_passt};
pub(crate) use self::refusals::Refusals;
use crate::host::box_ids::BoxIds;
use crate::report::events::EventWriter;
use crate::spec::{NetworkSpec, PasstSpec, VmSpec};

/// Address from a block that is reserved for documentation and used by no network (RFC 5737).
const PLACEHOLDER_ADDRESS: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);

/// Runs the gate or the connector to its end if the arguments of this process ask for it, and
/// returns its exit status.
///
/// Callers must do this before anything else, because both close every inherited fd.
pub(crate) fn run_if_asked() -> Option<ExitCode> {
    gate::run_if_asked().or_else(connector::run_if_asked)
}

/// The network of one box, before the VM starts.
#[derive(Debug, Default)]
pub(crate) struct Network {
    carrier: Option<Carrier>,
    /// The guest's end of the wire, for libkrun.
    pub(crate) device: Option<NetDevice>,
    /// Interface that PID 1 configures.
    pub(crate) interface: Option<Interface>,
    /// Name servers that PID 1 writes into `/etc/resolv.conf`.
    pub(crate) name_servers: Option<NameServers>,
    warning: Option<EventKind>,
}

impl Network {
    /// Starts gate and passt if the mode needs them, and then enters an empty network namespace.
    /// If the box has ids, gate and passt get one of them.
    ///
    /// Callers must be in the host's network, where passt opens its sockets, and must have one
    /// thread only: `unshare(2)` moves just the calling thread, and later threads inherit the
    /// namespace.
    pub(crate) fn start(spec: &VmSpec, ids: Option<&BoxIds>) -> Result<Self, NetworkError> {
        if spec.network != NetworkSpec::None {
            check_sockets()?;
        }
        match &spec.network {
            NetworkSpec::None => Ok(Self::default()),
            NetworkSpec::Tsi => Ok(Self {
                // The guest has no IPv6 address of its own.
                name_servers: name_servers(&without_ipv6(resolver::servers_of_host())),
                interface: Some(placeholder()),
                warning: Some(host_network()),
                ..Self::default()
            }),
            NetworkSpec::Passt(passt) => Self::start_passt(passt, spec, ids.map(BoxIds::carrier)),
        }
    }

    fn start_passt(
        passt: &PasstSpec,
        spec: &VmSpec,
        user: Option<u32>,
    ) -> Result<Self, NetworkError> {
        // A guest without egress would reach nothing by IPv6, and the gate relays connections of
        // both IP versions to its IPv4 address.
        let is_deny = passt.egress.is_deny();
        let on_host = if is_deny { None } else { host_ipv6::interface()? };
        check_published(passt, is_deny || on_host.is_some())?;
        let servers = NameServersOf::find(passt, on_host.is_some())?;
        let passt = PasstSpec { dns: servers.config, ..passt.clone() };
        let config = GateConfig {
            network: (&passt).into(),
            name_servers: servers.gate,
            seccomp: spec.seccomp,
            user,
            ipv6: on_host,
        };
        // The carrier starts first: afterwards this process is out of the host's network.
        let Started { carrier, wire, has_ipv6 } = Carrier::start(&config)?;
        check_published(&passt, is_deny || has_ipv6)?;
        unshare(CloneFlags::CLONE_NEWNET).map_err(HostError::of("make a network namespace"))?;
        let interface = Interface { ipv6: has_ipv6.then(ipv6), ..ethernet(is_deny) };
        Ok(Self {
            carrier: Some(carrier),
            device: Some(NetDevice { socket: wire.into(), mac: GUEST_MAC }),
            interface: Some(interface),
            name_servers: name_servers(&servers.guest),
            warning: None,
        })
    }

    /// Returns whether the guest has IPv6. Returns `None` if it has no Ethernet device.
    pub(crate) fn has_ipv6(&self) -> Option<bool> {
        self.device.as_ref().and(self.interface.as_ref()).map(|it| it.ipv6.is_some())
    }

    /// Emits the warning about the mode, if there is one.
    pub(crate) fn warn(&mut self, events: &EventWriter) {
        self.warning.take().into_iter().for_each(|warning| events.emit(warning));
    }

    /// Returns gate and passt for the control thread, which watches them.
    pub(crate) fn take_carrier(&mut self) -> Option<Carrier> {
        self.carrier.take()
    }
}

/// Fails if a filter of system calls refuses the sockets of the network, as the systemd unit has
/// one for boxes without a network. passt would report an error that does not tell this cause, and
/// with TSI only the programs in the guest would see one.
fn check_sockets() -> Result<(), NetworkError> {
    match socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None) {
        Err(Errno::EAFNOSUPPORT) => Err(NetworkError::NoSockets),
        // passt and libkrun report other errors, which may be temporary.
        Ok(_) | Err(_) => Ok(()),
    }
}

fn name_servers(addresses: &[IpAddr]) -> Option<NameServers> {
    let octets = |address: &IpAddr| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    Some(NameServers { addresses: addresses.iter().map(octets).collect() })
}

/// The name servers of a box with passt, by those who ask them.
struct NameServersOf {
    guest: Vec<IpAddr>,
    /// Servers to which the filter of the gate passes the guest's questions.
    config: Vec<IpAddr>,
    gate: Vec<IpAddr>,
}

impl NameServersOf {
    /// Finds the name servers. Those of the host that the guest cannot reach are left out, so that
    /// its resolver fails at once and does not wait for an answer.
    fn find(passt: &PasstSpec, has_ipv6: bool) -> Result<Self, NetworkError> {
        if passt.egress.has_names() {
            let of_config = passt.dns.clone();
            let gate = if of_config.is_empty() { resolver::servers_for_gate() } else { of_config };
            if gate.is_empty() {
                return Err(NetworkError::NoNameServer);
            }
            let (guest, config) = (vec![NAME_SERVER_ADDRESS.into()], passt.dns.clone());
            return Ok(Self { guest, config, gate });
        }
        let asked_by_guest =
            |servers: Vec<_>| Self { guest: servers.clone(), config: servers, gate: Vec::new() };
        if passt.egress.is_deny() || !passt.dns.is_empty() {
            // A guest that reaches nothing reaches no name server either, and its list is empty.
            return Ok(asked_by_guest(passt.dns.clone()));
        }
        let egress = Egress::new(passt, &host_addresses::out_of_reach(passt)?);
        let mut servers = resolver::servers_of_host();
        servers.retain(|server| egress.allows_questions_to(*server));
        let servers = if has_ipv6 { servers } else { without_ipv6(servers) };
        Ok(asked_by_guest(servers))
    }
}

fn without_ipv6(mut servers: Vec<IpAddr>) -> Vec<IpAddr> {
    servers.retain(IpAddr::is_ipv4);
    servers
}

/// Fails if a port is published on an IPv6 address of the host although passt does not carry IPv6.
fn check_published(passt: &PasstSpec, has_ipv6: bool) -> Result<(), NetworkError> {
    let is_impossible = |address: &IpAddr| address.is_ipv6() && !has_ipv6;
    let mut addresses = passt.publish.iter().map(|port| port.host_address);
    match addresses.find(is_impossible) {
        Some(address) => Err(NetworkError::NoIpv6 { address }),
        None => Ok(()),
    }
}

fn ethernet(is_deny: bool) -> Interface {
    Interface {
        name: "eth0".to_owned(),
        address: GUEST_ADDRESS.into(),
        prefix_length: PREFIX_LENGTH,
        // Without a default route, the guest kernel fails a connection at once (ENETUNREACH). With
        // one, the connection would fail only after a timeout.
        gateway: if is_deny { 0 } else { GATEWAY_ADDRESS.into() },
        mtu: MTU,
        ipv6: None,
    }
}

fn ipv6() -> Ipv6 {
    Ipv6 {
        address: GUEST_ADDRESS_V6.octets().into(),
        prefix_length: PREFIX_LENGTH_V6,
        link_local: GUEST_LINK_LOCAL.octets().into(),
        gateway: GATEWAY_LINK_LOCAL.octets().into(),
    }
}

/// With TSI no traffic passes through a device. But `getaddrinfo(3)` with `AI_ADDRCONFIG` asks for
/// IPv4 addresses only if some interface other than loopback has one.
fn placeholder() -> Interface {
    Interface {
        name: "dummy0".to_owned(),
        address: PLACEHOLDER_ADDRESS.into(),
        prefix_length: 32,
        gateway: 0,
        mtu: 0,
        ipv6: None,
    }
}

fn host_network() -> EventKind {
    let message = "the guest uses the host's own network (`network.mode` `tsi`): it can connect to services on the \
                   host's loopback address, and its listening sockets listen on the host";
    EventKind::Warning { code: WarningCode::HostNetwork, message: message.to_owned() }
}
