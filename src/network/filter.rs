//! Which frames the gate passes on, in both directions.
//!
//! | frames | that pass |
//! |---|---|
//! | of the guest | from its own address, to an address that a guest may reach; UDP only from a port of a client or from a published port |
//! | for the guest | all but UDP; UDP if it answers the guest or goes to a published port |
//!
//! The filter is necessary because passt of Debian 12 connects to any address that a frame names,
//! the host's loopback address included, and binds the source port of each UDP packet on the host.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Instant;

use a3s_box_core::config::Protocol;

use super::addresses::GUEST_ADDRESS;
use super::metadata::is_metadata;
use super::packet::{PROTOCOL_UDP, Packet, Ports, is_arp};
use super::udp_flows::{UdpFlow, UdpFlows};
use crate::spec::{PasstSpec, is_reachable};

/// First port from which a client of the guest may send UDP packets. It is the first port that
/// Linux gives to a client by default (`net.ipv4.ip_local_port_range`). Services of the host
/// usually have a port below it, which the guest must not take from them.
const FIRST_CLIENT_PORT: u16 = 32_768;

const PORT_DNS: u16 = 53;

/// The rules for the frames of one box, and what the gate remembers of earlier frames.
#[derive(Debug)]
pub(super) struct Filter {
    name_servers: Vec<Ipv4Addr>,
    /// UDP ports of the guest that passt forwards to. passt has opened their sockets at its start,
    /// so a packet from such a port binds no further port of the host.
    published: Vec<u16>,
    flows: UdpFlows,
}

impl Filter {
    /// Returns the filter for a box that has sent no frame yet.
    pub(super) fn new(spec: &PasstSpec) -> Self {
        let udp = spec.publish.iter().filter(|port| port.protocol == Protocol::Udp);
        Self {
            name_servers: spec.dns.clone(),
            published: udp.map(|port| port.guest_port).collect(),
            flows: UdpFlows::default(),
        }
    }

    /// Returns whether the gate passes on a frame of the guest, and notes what answers may follow.
    ///
    /// Where clouds serve metadata, only questions to the name servers pass: some clouds serve
    /// name resolution at the same addresses as the credentials of the host.
    pub(super) fn may_leave(&mut self, frame: &[u8], now: Instant) -> bool {
        // ARP is answered by passt and goes no further.
        if is_arp(frame) {
            return true;
        }
        let Some(packet) = Packet::read(frame) else { return false };
        if packet.source != GUEST_ADDRESS || !is_reachable(packet.destination) {
            return false;
        }
        let is_question = packet.ports.is_some_and(|ports| ports.destination == PORT_DNS)
            && self.name_servers.contains(&packet.destination);
        if is_metadata(packet.destination) && !is_question {
            return false;
        }
        packet.protocol != PROTOCOL_UDP || self.may_send(packet, now)
    }

    /// Returns whether a UDP packet may leave. A fragment may not: passt does not put fragments
    /// together, and takes the start of each one as ports.
    fn may_send(&mut self, packet: Packet, now: Instant) -> bool {
        let Some(ports) = packet.ports else { return false };
        if self.published.contains(&ports.source) {
            return true;
        }
        if ports.source < FIRST_CLIENT_PORT {
            return false;
        }
        let remote = SocketAddrV4::new(packet.destination, ports.destination);
        self.flows.note(UdpFlow { guest_port: ports.source, remote }, now);
        true
    }

    /// Returns whether the gate passes on a frame of passt.
    ///
    /// TCP and ICMP need no rule, because passt itself forwards only what belongs to a connection
    /// or a request of the guest, or to a published port.
    pub(super) fn may_arrive(&self, frame: &[u8], now: Instant) -> bool {
        match Packet::read(frame) {
            None => is_arp(frame),
            Some(Packet { protocol: PROTOCOL_UDP, source, ports, .. }) => {
                ports.is_some_and(|Ports { source: remote_port, destination }| {
                    let remote = SocketAddrV4::new(source, remote_port);
                    self.published.contains(&destination)
                        || self.flows.is_open(UdpFlow { guest_port: destination, remote }, now)
                })
            }
            Some(_) => true,
        }
    }
}

#[cfg(test)]
mod tests;
