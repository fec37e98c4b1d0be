//! Which frames the gate passes on, in both directions.
//!
//! | frames | that pass |
//! |---|---|
//! | of the guest | from its own addresses, to an address that a guest may reach and that the egress of the box allows; UDP only from a port of a client or from a published port; of IPv6 only TCP, UDP and echo requests. Questions to the gate's name server stay in the gate |
//! | for the guest | all of IPv4 but UDP; UDP if it answers the guest or goes to a published port; of IPv6 besides TCP, echo messages and errors |
//! | of both | ARP; questions and answers about the hardware address of the IPv6 gateway |
//!
//! A guest whose egress has rules still answers on its published ports, whoever asks. Its answers
//! must not become a way out:
//!
//! - A TCP packet from a published port passes if it does not open a connection. passt looks up the
//!   connection of each packet by both addresses and ports. For a packet without one, it opens a
//!   connection only if the packet has SYN and not ACK. It drops all others (passt of Debian 12) or
//!   answers them with a reset (`tcp_rst_no_conn`, newer versions). So what passes belongs to a
//!   connection that the peer has opened.
//! - A UDP packet from a published port passes if the peer has sent one to it recently. passt keeps
//!   no such state for the sockets of published ports.
//!
//! passt gives the address of the IPv6 gateway to clients on the host's loopback address. The guest
//! reaches this address only to answer them.
//!
//! If a rule has a name, what the gate has answered for the name decides which addresses may be
//! reached, until the answer expires. Connections and flows of UDP that are open then go on: of
//! TCP, all packets but the first one of a connection pass, for the reason above.
//!
//! The filter is necessary because passt of Debian 12 connects to any address that a frame names,
//! the host's loopback address included (also as `::ffff:127.0.0.1`), and binds the source port of
//! each UDP packet on the host.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use a3s_box_core::config::Protocol;

use super::addresses::{
    GATEWAY_ADDRESS, GATEWAY_LINK_LOCAL, GUEST_ADDRESS, GUEST_ADDRESS_V6, GUEST_LINK_LOCAL,
    NAME_SERVER_ADDRESS,
};
use super::answered::Answered;
use super::metadata::is_metadata;
use super::names::NameRules;
use super::ndp;
use super::notice::Destination;
use super::packet::{PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP, Packet, Ports, is_arp};
use super::rules::Rules;
use super::udp_flows::{UdpFlow, UdpFlows};
use crate::spec::{EgressSpec, PasstSpec, behind_translator, is_reachable};

/// First port from which a client of the guest may send UDP packets. It is the first port that
/// Linux gives to a client by default (`net.ipv4.ip_local_port_range`). Services of the host
/// usually have a port below it, which the guest must not take from them.
const FIRST_CLIENT_PORT: u16 = 32_768;

/// Port of name servers (RFC 1035).
pub(super) const PORT_DNS: u16 = 53;

/// What happens to a frame of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is passed on.
    Pass,
    /// It is dropped silently, because it is malformed, or because nobody may learn of it.
    Drop,
    /// It is dropped, because the guest may not reach this destination.
    Refuse(Destination),
    /// It is for the name server of the gate.
    Ask,
}

/// The rules for the frames of one box, and what the gate remembers of earlier frames.
#[derive(Debug)]
pub(super) struct Filter {
    egress: Egress,
    /// If present, the gate is the guest's only name server.
    names: Option<Names>,
    name_servers: Vec<IpAddr>,
    /// TCP ports of the guest that passt forwards to.
    published_tcp: Vec<u16>,
    /// UDP ports of the guest that passt forwards to. passt has opened their sockets at its start,
    /// so a packet from such a port binds no further port of the host.
    published_udp: Vec<u16>,
    /// Flows that the guest has opened.
    flows: UdpFlows,
    /// Flows that peers have opened, to published ports.
    arrivals: UdpFlows,
}

/// The names that the config of a box allows, and the addresses that were answered for them.
#[derive(Debug)]
struct Names {
    rules: Rc<NameRules>,
    answered: Answered,
}

/// The destinations that the config of a box allows by their addresses.
#[derive(Debug)]
pub(super) struct Egress {
    /// If absent, all of them.
    rules: Option<Rules>,
    /// Addresses that no rule makes reachable.
    excluded: BTreeSet<IpAddr>,
}

impl Egress {
    /// `addresses_of_host` are out of reach with `network.not_host`, and the gateway with them. passt
    /// does not map the gateway to the host (`--no-map-gw`), but a user would expect that it did.
    ///
    /// With egress `deny` all packets pass: they reach the empty network of passt only.
    pub(super) fn new(spec: &PasstSpec, addresses_of_host: &[IpAddr]) -> Self {
        let rules = match &spec.egress {
            EgressSpec::Deny | EgressSpec::Allow => None,
            EgressSpec::Rules(rules) => Some(Rules::new(rules)),
        };
        let of_host = addresses_of_host.iter().copied().chain([GATEWAY_ADDRESS.into()]);
        Self { rules, excluded: of_host.filter(|_| spec.not_host).collect() }
    }

    /// Returns whether the guest can ask a name server.
    pub(super) fn allows_questions_to(&self, server: IpAddr) -> bool {
        self.allows(behind_translator(server), PROTOCOL_UDP, Some(PORT_DNS))
    }

    /// Callers give the address behind a translator, if there is one.
    fn allows(&self, address: IpAddr, protocol: u8, port: Option<u16>) -> bool {
        !self.excluded.contains(&address)
            && self.rules.as_ref().is_none_or(|rules| rules.allow(address, protocol, port))
    }
}

impl Filter {
    /// Returns the filter for a box that has sent no frame yet. `names` are those of its rules.
    pub(super) fn new(spec: &PasstSpec, egress: Egress, names: Option<Rc<NameRules>>) -> Self {
        let published = |protocol| {
            let ports = spec.publish.iter().filter(move |port| port.protocol == protocol);
            ports.map(|port| port.guest_port).collect()
        };
        Self {
            egress,
            // The gate asks the name servers of the config itself.
            name_servers: if names.is_some() { Vec::new() } else { spec.dns.clone() },
            names: names.map(|rules| Names { rules, answered: Answered::default() }),
            published_tcp: published(Protocol::Tcp),
            published_udp: published(Protocol::Udp),
            flows: UdpFlows::default(),
            arrivals: UdpFlows::default(),
        }
    }

    /// Returns what happens to a frame of the guest, and notes what answers may follow.
    pub(super) fn leave(&mut self, frame: &[u8], now: Instant) -> Verdict {
        // These are answered by passt and go no further.
        if is_arp(frame) || ndp::is_solicitation(frame) {
            return Verdict::Pass;
        }
        let Some(packet) = Packet::read(frame) else { return Verdict::Drop };
        if !is_of_guest(&packet) {
            return Verdict::Drop;
        }
        if self.is_question(&packet) {
            return Verdict::Ask;
        }
        if !self.may_reach(&packet, now) {
            return self.refused(&packet).map_or(Verdict::Drop, Verdict::Refuse);
        }
        if packet.protocol == PROTOCOL_UDP && !self.may_send(packet, now) {
            return Verdict::Drop;
        }
        Verdict::Pass
    }

    /// Notes that the gate has answered addresses for a name, which the guest may now reach.
    pub(super) fn note_answer(&mut self, name: &Arc<str>, addresses: &[IpAddr], expires: Instant) {
        let Some(Names { rules, answered }) = &mut self.names else { return };
        let grants = rules.grants_of(name);
        for &address in addresses {
            answered.note(name, behind_translator(address), &grants, expires);
        }
    }

    /// Returns whether a packet is a question to the name server of the gate, which has UDP only.
    fn is_question(&self, packet: &Packet) -> bool {
        self.names.is_some()
            && packet.destination == IpAddr::from(NAME_SERVER_ADDRESS)
            && packet.protocol == PROTOCOL_UDP
            && packet.ports.is_some_and(|ports| ports.destination == PORT_DNS)
    }

    fn refused(&self, packet: &Packet) -> Option<Destination> {
        let destination = Destination::of(packet)?;
        let answered = self.names.as_ref().map(|names| &names.answered);
        let name =
            answered.and_then(|answered| answered.name_of(behind_translator(packet.destination)));
        Some(Destination { name, ..destination })
    }

    /// Returns whether the guest may send a packet to its destination.
    ///
    /// Where clouds serve metadata, only questions to the name servers pass: some clouds serve
    /// name resolution at the same addresses as the credentials of the host. These and the addresses
    /// that no guest reaches come before the rules of the box, which therefore cannot allow them.
    fn may_reach(&self, packet: &Packet, now: Instant) -> bool {
        let Packet { destination, protocol, ports, .. } = *packet;
        let port = ports.map(|ports| ports.destination);
        if destination == IpAddr::from(GATEWAY_LINK_LOCAL) {
            return self.is_answer(packet, now);
        }
        let is_of_gate = self.names.is_some() && is_name_server(destination);
        if !is_reachable(destination) || is_of_gate {
            return false;
        }
        if port == Some(PORT_DNS) && self.name_servers.contains(&destination) {
            return true;
        }
        let host = behind_translator(destination);
        !is_metadata(host)
            && (self.egress.allows(host, protocol, port)
                || self.is_answer(packet, now)
                || self.has_name(packet, now))
    }

    /// Returns whether a packet goes to an address that was answered for a name, or belongs to what
    /// began while it did.
    ///
    /// A fragment does not pass. It has no ports by which a rule could allow it, and passt does not
    /// put fragments together.
    fn has_name(&self, packet: &Packet, now: Instant) -> bool {
        let Some(Names { rules, answered }) = &self.names else { return false };
        let Packet { destination, protocol, ports, is_opening, .. } = *packet;
        let port = ports.map(|ports| ports.destination);
        let host = behind_translator(destination);
        let is_whole = ports.is_some() || !matches!(protocol, PROTOCOL_TCP | PROTOCOL_UDP);
        if !is_whole || !rules.may_lead_to(host) {
            return false;
        }
        answered.grants(host, now).any(|grant| rules.grant_allows(grant, protocol, port))
            || match (protocol, ports) {
                (PROTOCOL_TCP, Some(_)) => !is_opening,
                (PROTOCOL_UDP, Some(ports)) => {
                    let remote = SocketAddr::new(destination, ports.destination);
                    self.flows.is_open(UdpFlow { guest_port: ports.source, remote }, now)
                }
                _ => false,
            }
    }

    /// Returns whether a packet answers a peer that has reached a published port.
    fn is_answer(&self, packet: &Packet, now: Instant) -> bool {
        let Some(ports) = packet.ports else { return false };
        match packet.protocol {
            PROTOCOL_TCP => self.published_tcp.contains(&ports.source) && !packet.is_opening,
            PROTOCOL_UDP => {
                let remote = SocketAddr::new(packet.destination, ports.destination);
                self.arrivals.is_open(UdpFlow { guest_port: ports.source, remote }, now)
            }
            _ => false,
        }
    }

    /// Returns whether a UDP packet may leave. A fragment may not: passt does not put fragments
    /// together, and takes the start of each one as ports.
    fn may_send(&mut self, packet: Packet, now: Instant) -> bool {
        let Some(ports) = packet.ports else { return false };
        if self.published_udp.contains(&ports.source) {
            return true;
        }
        if ports.source < FIRST_CLIENT_PORT {
            return false;
        }
        let remote = SocketAddr::new(packet.destination, ports.destination);
        self.flows.note(UdpFlow { guest_port: ports.source, remote }, now);
        true
    }

    /// Returns whether the gate passes on a frame of passt, and notes whom the guest may answer.
    ///
    /// TCP and ICMP need no rule, because passt itself forwards only what belongs to a connection
    /// or a request of the guest, or to a published port.
    pub(super) fn may_arrive(&mut self, frame: &[u8], now: Instant) -> bool {
        match Packet::read(frame) {
            None => is_arp(frame) || ndp::is_advertisement(frame),
            Some(Packet { protocol: PROTOCOL_UDP, source, ports: Some(ports), .. }) => {
                let Ports { source: remote_port, destination: guest_port } = ports;
                let flow = UdpFlow { guest_port, remote: SocketAddr::new(source, remote_port) };
                if self.published_udp.contains(&guest_port) {
                    self.arrivals.note(flow, now);
                    return true;
                }
                self.flows.is_open(flow, now)
            }
            Some(packet) => packet.protocol != PROTOCOL_UDP,
        }
    }
}

/// Returns whether an address is that of the gate's name server, or leads to it.
fn is_name_server(address: IpAddr) -> bool {
    behind_translator(address) == IpAddr::from(NAME_SERVER_ADDRESS)
}

/// Returns whether the guest may send a packet from its source. It may send no ICMPv6 message but
/// echo requests, because passt carries no other.
fn is_of_guest(packet: &Packet) -> bool {
    let is_to_gateway = packet.destination == IpAddr::from(GATEWAY_LINK_LOCAL);
    match packet.source {
        IpAddr::V4(source) => source == GUEST_ADDRESS,
        IpAddr::V6(_) if packet.protocol == PROTOCOL_ICMPV6 && !packet.is_opening => false,
        IpAddr::V6(source) if is_to_gateway => source == GUEST_LINK_LOCAL,
        IpAddr::V6(source) => source == GUEST_ADDRESS_V6,
    }
}

#[cfg(test)]
mod tests;
