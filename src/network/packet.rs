//! The IP packet in an Ethernet frame, as far as the gate reads it.
//!
//! The gate must read a frame in the same way as passt. Both take the type of the frame from its
//! Ethernet header, and the place of the ports in an IPv4 packet from the length of its header.
//!
//! An IPv6 packet can have extension headers in front of its ports. Where the ports then are depends
//! on the version of passt (`ipv6_l4hdr`: some do not skip the last of these headers). The gate reads
//! no such packet, and therefore passes none. This includes fragments. Clients send no extension
//! headers, except for datagrams that are longer than the MTU of 65520 bytes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Size of an Ethernet header: destination, source and type (IEEE 802.3).
pub(super) const ETHERNET_BYTES: usize = 14;

/// Size of an IPv4 header without options (RFC 791).
pub(super) const IPV4_BYTES: usize = 20;

/// Size of an IPv6 header (RFC 8200).
pub(super) const IPV6_BYTES: usize = 40;

/// Ethernet types (IANA IEEE 802 numbers).
pub(super) const TYPE_IPV4: [u8; 2] = [0x08, 0x00];
pub(super) const TYPE_IPV6: [u8; 2] = [0x86, 0xdd];
pub(super) const TYPE_ARP: [u8; 2] = [0x08, 0x06];

/// Protocols in an IP packet (IANA protocol numbers).
pub(super) const PROTOCOL_ICMP: u8 = 1;
pub(super) const PROTOCOL_ICMPV6: u8 = 58;
pub(super) const PROTOCOL_TCP: u8 = 6;
pub(super) const PROTOCOL_UDP: u8 = 17;

/// Type of an ICMP message that asks for an answer (RFC 792).
pub(super) const ECHO_REQUEST: u8 = 8;

/// Types of ICMPv6 messages (RFC 4443): a question, its answer, and the last type of an error. The
/// types of neighbour discovery and of multicast groups come after them.
pub(super) const ECHO_REQUEST_V6: u8 = 128;
const ECHO_REPLY_V6: u8 = 129;
const LAST_ERROR_V6: u8 = 127;

/// Flags in byte 13 of a TCP header (RFC 9293).
pub(super) const TCP_FIN: u8 = 0x01;
pub(super) const TCP_SYN: u8 = 0x02;
pub(super) const TCP_RST: u8 = 0x04;
pub(super) const TCP_ACK: u8 = 0x10;

/// The fields of an IP packet that decide whether it passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Packet {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) protocol: u8,
    /// Ports of a TCP or UDP packet. A fragment of an IPv4 packet has none: only the first fragment
    /// contains the ports, and the receiver could combine it with fragments that overwrite them.
    pub(super) ports: Option<Ports>,
    /// Whether the packet is the first one of an exchange. In TCP, its flags have SYN and not ACK; a
    /// packet without flags, because it is too short, counts as one. In ICMP and ICMPv6, it is an
    /// echo request.
    pub(super) is_opening: bool,
}

/// The ports of a TCP or UDP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ports {
    pub(super) source: u16,
    pub(super) destination: u16,
}

impl Packet {
    /// Reads the packet of a frame. Returns `None` if the frame has another type or is too short, and
    /// for an IPv6 packet that passt does not carry.
    pub(super) fn read(frame: &[u8]) -> Option<Self> {
        Self::read_v4(frame).or_else(|| Packet6::read(frame)?.summary())
    }

    fn read_v4(frame: &[u8]) -> Option<Self> {
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

/// An IPv6 packet of a frame, without what may follow it in the frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packet6<'a> {
    pub(super) source: Ipv6Addr,
    pub(super) destination: Ipv6Addr,
    /// Protocol of the payload, or kind of the first extension header.
    pub(super) next_header: u8,
    pub(super) hop_limit: u8,
    pub(super) header: &'a [u8],
    pub(super) payload: &'a [u8],
}

impl<'a> Packet6<'a> {
    /// Reads the packet of a frame. Returns `None` if the frame has another type, or if the packet is
    /// longer than the frame.
    pub(super) fn read(frame: &'a [u8]) -> Option<Self> {
        let (ethernet, packet) = frame.split_at_checked(ETHERNET_BYTES)?;
        let (header, rest) = packet.split_at_checked(IPV6_BYTES)?;
        let ([version, _, _, _, high, low, next_header, hop_limit], addresses) =
            header.split_first_chunk()?;
        let (source, destination): (&[u8; 16], _) = addresses.split_first_chunk()?;
        let destination: &[u8; 16] = destination.first_chunk()?;
        let is_ipv6 = ethernet.ends_with(&TYPE_IPV6) && version >> 4 == 6;
        let payload = rest.get(..usize::from(u16::from_be_bytes([*high, *low])))?;
        is_ipv6.then_some(Self {
            source: (*source).into(),
            destination: (*destination).into(),
            next_header: *next_header,
            hop_limit: *hop_limit,
            header,
            payload,
        })
    }

    /// Returns the fields that decide whether the packet passes. Returns `None` if its payload is not
    /// TCP, UDP, an echo message or an ICMPv6 error, or is too short to have ports or a type.
    fn summary(&self) -> Option<Packet> {
        let (mut ports, mut is_opening) = (None, false);
        match self.next_header {
            PROTOCOL_TCP | PROTOCOL_UDP => {
                ports = Some(read_ports(self.payload)?);
                is_opening = self.next_header == PROTOCOL_TCP
                    && flags_of(self.payload).is_none_or(opens_connection);
            }
            PROTOCOL_ICMPV6 => match self.payload.first()? {
                &ECHO_REQUEST_V6 => is_opening = true,
                ..=LAST_ERROR_V6 | &ECHO_REPLY_V6 => {}
                _ => return None,
            },
            _ => return None,
        }
        let (source, destination) = (self.source.into(), self.destination.into());
        Some(Packet { source, destination, protocol: self.next_header, ports, is_opening })
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
    read_ports(payload(packet)?)
}

/// Reads the ports at the start of a TCP or UDP header.
fn read_ports(payload: &[u8]) -> Option<Ports> {
    let [a, b, c, d] = *payload.first_chunk()?;
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

fn tcp_flags(packet: &[u8]) -> Option<u8> {
    flags_of(payload(packet)?)
}

/// Returns the flags in a TCP header (RFC 9293).
fn flags_of(payload: &[u8]) -> Option<u8> {
    payload.get(13).copied()
}

/// Returns whether passt opens a connection for a packet with these flags
/// (`th->syn && !th->ack`, `tcp_tap_handler`).
fn opens_connection(flags: u8) -> bool {
    flags & (TCP_SYN | TCP_ACK) == TCP_SYN
}
