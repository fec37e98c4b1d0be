//! Neighbour discovery between the guest and passt (RFC 4861): the guest asks for the hardware
//! address of its gateway, and passt answers.
//!
//! The gate passes these two messages and no other. The guest has a fixed address and route, so it
//! needs no router advertisement, and passt learns the addresses of the guest from its packets.

use std::net::Ipv6Addr;

use super::addresses::{GATEWAY_LINK_LOCAL, GUEST_ADDRESS_V6, GUEST_LINK_LOCAL, GUEST_MAC};
use super::checksum::{checksum, pseudo_header};
use super::frames::with_length;
use super::packet::{IPV6_BYTES, PROTOCOL_ICMPV6, Packet6, TYPE_IPV6};

/// Types of the two messages.
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;

/// Hop limit of a message that no router has passed on. Receivers drop all others.
const HOP_LIMIT: u8 = 255;

/// Type of the option that has the sender's hardware address, and its length in units of 8 bytes.
const SOURCE_OPTION: [u8; 2] = [1, 1];

/// Size of a message without options: type, code, checksum, flags, and the address in question.
const MESSAGE_BYTES: usize = 24;

/// The first three bytes of the hardware address of a multicast group (RFC 2464) and the first 13
/// bytes of the group that a neighbour with a certain address is in (RFC 4291). In both, the last
/// three bytes of the address follow.
const GROUP_MAC: [u8; 3] = [0x33, 0x33, 0xff];
const GROUP: [u8; 13] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff];

/// Returns whether a frame is a question of the guest for the hardware address of its gateway.
///
/// passt answers for every address, so a guest that gets no other answer sends all packets to its
/// gateway, as it should.
pub(super) fn is_solicitation(frame: &[u8]) -> bool {
    Packet6::read(frame).is_some_and(|packet| {
        [GUEST_ADDRESS_V6, GUEST_LINK_LOCAL].contains(&packet.source)
            && [GATEWAY_LINK_LOCAL, group_of(GATEWAY_LINK_LOCAL)].contains(&packet.destination)
            && concerns_gateway(&packet, SOLICITATION)
    })
}

/// Returns whether a frame tells the guest the hardware address of its gateway.
pub(super) fn is_advertisement(frame: &[u8]) -> bool {
    Packet6::read(frame).is_some_and(|packet| {
        packet.source == GATEWAY_LINK_LOCAL
            && [GUEST_ADDRESS_V6, GUEST_LINK_LOCAL].contains(&packet.destination)
            && concerns_gateway(&packet, ADVERTISEMENT)
    })
}

/// Returns whether a packet is a message of this type about the gateway.
fn concerns_gateway(packet: &Packet6<'_>, kind: u8) -> bool {
    let message = packet.payload.first_chunk::<MESSAGE_BYTES>();
    packet.next_header == PROTOCOL_ICMPV6
        && packet.hop_limit == HOP_LIMIT
        && message.is_some_and(|[found, code, _, _, _, _, _, _, target @ ..]| {
            (*found, *code) == (kind, 0) && *target == GATEWAY_LINK_LOCAL.octets()
        })
}

/// Returns the group that a neighbour with this address is in (the solicited-node multicast group).
fn group_of(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    let mut group = [0; 16];
    for (to, from) in group.iter_mut().zip(GROUP.into_iter().chain([a, b, c])) {
        *to = from;
    }
    group.into()
}

/// Returns the guest's question for the hardware address of its gateway, with the length in front of
/// it. Its source is the link-local address of the guest, because passt sends packets for this
/// address only once it has seen it.
pub(super) fn solicitation() -> Vec<u8> {
    let target = GATEWAY_LINK_LOCAL.octets();
    let [.., a, b, c] = target;
    let (source, destination) = (GUEST_LINK_LOCAL, group_of(GATEWAY_LINK_LOCAL));
    let (start, reserved) = ([SOLICITATION, 0], [0; 4]);
    let rest: [&[u8]; 4] = [&reserved, &target, &SOURCE_OPTION, &GUEST_MAC];
    let rest = rest.concat();
    // A message has 32 bytes, so the conversion cannot fail.
    let length = u16::try_from(start.len() + 2 + rest.len()).unwrap_or_default();
    let pseudo = pseudo_header(source, destination, PROTOCOL_ICMPV6, length);
    let sum = checksum(&[&pseudo, &start, &rest]);
    let [high, low] = length.to_be_bytes();
    let header = [0x60, 0, 0, 0, high, low, PROTOCOL_ICMPV6, HOP_LIMIT];
    let parts: [&[u8]; 10] = [
        &GROUP_MAC,
        &[a, b, c],
        &GUEST_MAC,
        &TYPE_IPV6,
        &header,
        &source.octets(),
        &destination.octets(),
        &start,
        &sum,
        &rest,
    ];
    debug_assert_eq!(IPV6_BYTES, header.len() + 32);
    with_length(&parts.concat())
}

#[cfg(test)]
mod tests;
