//! The checksum of the internet protocols, for the frames that the gate and the shim make.

use std::net::Ipv6Addr;

/// Returns the checksum of all parts together (RFC 1071). All parts but the last have an even
/// length.
pub(super) fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let value = |word: &[u8]| {
        let [high, low] = [word.first(), word.get(1)].map(|byte| byte.copied().unwrap_or_default());
        u32::from(u16::from_be_bytes([high, low]))
    };
    let mut sum: u32 = words.map(value).sum();
    while sum > u16::MAX.into() {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    // The loop leaves 16 bits, so the conversion cannot fail.
    (!u16::try_from(sum).unwrap_or_default()).to_be_bytes()
}

/// Returns what precedes the payload of an IPv6 packet in its checksum (RFC 8200, 8.1).
pub(super) fn pseudo_header(
    source: Ipv6Addr,
    destination: Ipv6Addr,
    protocol: u8,
    payload_bytes: u16,
) -> [u8; 40] {
    let mut header = [0; 40];
    let bytes = source.octets().into_iter().chain(destination.octets());
    let tail = u32::from(payload_bytes).to_be_bytes().into_iter().chain([0, 0, 0, protocol]);
    for (to, from) in header.iter_mut().zip(bytes.chain(tail)) {
        *to = from;
    }
    header
}
