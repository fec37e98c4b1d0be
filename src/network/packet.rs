//! The IPv4 packet in an Ethernet frame, as far as the gate reads it.
//!
//! The gate must read a frame in the same way as passt. Both take the type of the frame from its
//! Ethernet header, and the place of the ports from the length of the IPv4 header.

use std::net::{IpAddr, Ipv4Addr};

/// Size of an Ethernet header: destination, source and type (IEEE 802.3).
pub(super) const ETHERNET_BYTES: usize = 14;

/// Size of an IPv4 header without options (RFC 791).
pub(super) const IPV4_BYTES: usize = 20;

/// Ethernet types (IANA IEEE 802 numbers).
pub(super) const TYPE_IPV4: [u8; 2] = [0x08, 0x00];
pub(super) const TYPE_ARP: [u8; 2] = [0x08, 0x06];

/// Protocols in an IPv4 packet (IANA protocol numbers).
pub(super) const PROTOCOL_ICMP: u8 = 1;
pub(super) const PROTOCOL_TCP: u8 = 6;
pub(super) const PROTOCOL_UDP: u8 = 17;

/// Type of an ICMP message that asks for an answer (RFC 792).
pub(super) const ECHO_REQUEST: u8 = 8;

/// Flags in byte 13 of a TCP header (RFC 9293).
pub(super) const TCP_FIN: u8 = 0x01;
pub(super) const TCP_SYN: u8 = 0x02;
pub(super) const TCP_RST: u8 = 0x04;
pub(super) const TCP_ACK: u8 = 0x10;

/// The fields of an IPv4 packet that decide whether it passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Packet {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) protocol: u8,
    /// Ports of a TCP or UDP packet. A fragment has none: only the first fragment of a packet
    /// contains the ports, and the receiver could combine it with fragments that overwrite them.
    pub(super) ports: Option<Ports>,
    /// Whether the packet is the first one of an exchange. In TCP, its flags have SYN and not ACK; a
    /// packet without flags, because it is too short, counts as one. In ICMP, it is an echo request.
    pub(super) is_opening: bool,
}

/// The ports of a TCP or UDP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ports {
    pub(super) source: u16,
    pub(super) destination: u16,
}

impl Packet {
    /// Reads the packet of a frame. Returns `None` if the frame has another type or is too short.
    pub(super) fn read(frame: &[u8]) -> Option<Self> {
        let (ethernet, packet) = frame.split_at_checked(ETHERNET_BYTES)?;
        let header: &[u8; IPV4_BYTES] = packet.first_chunk()?;
        if !ethernet.ends_with(&TYPE_IPV4) {
            return None;
        }
        let [_, _, _, _, _, _, _, _, _, protocol, _, _, a, b, c, d, e, f, g, h] = *header;
        Some(Self {
            source: Ipv4Addr::new(a, b, c, d).into(),
            destination: Ipv4Addr::new(e, f, g, h).into(),
            protocol,
            ports: ports(packet),
            is_opening: match protocol {
                PROTOCOL_TCP => tcp_flags(packet).is_none_or(opens_connection),
                PROTOCOL_ICMP => payload(packet).and_then(<[u8]>::first) == Some(&ECHO_REQUEST),
                _ => false,
            },
        })
    }
}

/// Returns whether a frame contains an ARP packet.
pub(super) fn is_arp(frame: &[u8]) -> bool {
    frame.get(..ETHERNET_BYTES).is_some_and(|ethernet| ethernet.ends_with(&TYPE_ARP))
}

fn ports(packet: &[u8]) -> Option<Ports> {
    let &[.., fragment_high, fragment_low, _, protocol] = packet.first_chunk::<10>()?;
    let has_ports = matches!(protocol, PROTOCOL_TCP | PROTOCOL_UDP);
    if is_fragment(fragment_high, fragment_low) || !has_ports {
        return None;
    }
    let [a, b, c, d] = *payload(packet)?.first_chunk()?;
    Some(Ports { source: u16::from_be_bytes([a, b]), destination: u16::from_be_bytes([c, d]) })
}

/// Returns whether a packet is a part of a larger one, by bytes 6 and 7 of its header.
pub(super) fn is_fragment(high: u8, low: u8) -> bool {
    // The mask covers the flag "more fragments" and the upper bits of the fragment's offset.
    high & 0x3f != 0 || low != 0
}

/// Returns what follows the header of an IPv4 packet and its options.
fn payload(packet: &[u8]) -> Option<&[u8]> {
    let header_bytes = usize::from(packet.first()? & 0x0f) * 4;
    packet.get(header_bytes..).filter(|_| header_bytes >= IPV4_BYTES)
}

/// Returns the flags of a TCP packet (RFC 9293).
fn tcp_flags(packet: &[u8]) -> Option<u8> {
    payload(packet)?.get(13).copied()
}

/// Returns whether passt opens a connection for a packet with these flags
/// (`th->syn && !th->ack`, `tcp_tap_handler`).
fn opens_connection(flags: u8) -> bool {
    flags & (TCP_SYN | TCP_ACK) == TCP_SYN
}
