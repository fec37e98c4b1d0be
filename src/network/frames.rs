//! Ethernet frames between VM and passt: each with its length before it, four bytes, big endian.
//!
//! What a guest sends is passed on only if it comes from the guest's own address, and goes where a guest may
//! speak. passt of Debian 12 connects to whatever address a frame names, the host's loopback address
//! included.

use std::io::{self, Read};
use std::net::Ipv4Addr;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};

use super::addresses::{GATEWAY_ADDRESS, GUEST_ADDRESS, GUEST_MAC};
use crate::spec::is_reachable;

/// Longest frame: libkrun's buffer (65562) without the header that it puts before it (12). It does not
/// check (`read_frame`, krun-devices 1.19.7).
const MAX_FRAME_BYTES: usize = 65_550;

/// Destination, source, type (IEEE 802.3).
const ETHERNET_BYTES: usize = 14;

/// Length of the length.
const LENGTH_BYTES: usize = 4;

/// An IPv4 header without options (RFC 791).
const IPV4_BYTES: usize = 20;

const TYPE_IPV4: [u8; 2] = [0x08, 0x00];
const TYPE_ARP: [u8; 2] = [0x08, 0x06];

/// Ethernet, IPv4, and the lengths of their addresses (RFC 826); an operation follows.
const ARP_START: [u8; 7] = [0, 1, 0x08, 0x00, 6, 4, 0];
const ARP_REQUEST: u8 = 1;
const ARP_REPLY: u8 = 2;

const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;
const PORT_DNS: [u8; 2] = [0, 53];

/// Passes frames on, until `from` ends. Those that `may_pass` refuses are dropped, as a network does it.
pub(super) async fn carry(
    from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    may_pass: impl Fn(&[u8]) -> bool,
) -> io::Result<()> {
    let mut from = BufReader::with_capacity(LENGTH_BYTES + MAX_FRAME_BYTES, from);
    let mut buffer = vec![0; LENGTH_BYTES + MAX_FRAME_BYTES];
    loop {
        let (head, body) = buffer.split_at_mut(LENGTH_BYTES);
        match from.read_exact(head).await {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        }
        let length = length(head)?;
        let frame = body.get_mut(..length).unwrap_or_default();
        from.read_exact(frame).await?;
        if may_pass(frame) {
            to.write_all(buffer.get(..LENGTH_BYTES + length).unwrap_or_default()).await?;
        }
    }
}

/// Reads one frame.
pub(super) fn read(mut from: impl Read) -> io::Result<Vec<u8>> {
    let mut head = [0; LENGTH_BYTES];
    from.read_exact(&mut head)?;
    let mut frame = vec![0; length(&head)?];
    from.read_exact(&mut frame)?;
    Ok(frame)
}

fn length(head: &[u8]) -> io::Result<usize> {
    let length = head.first_chunk().map_or(0, |head| u32::from_be_bytes(*head));
    match usize::try_from(length) {
        Ok(length) if (ETHERNET_BYTES..=MAX_FRAME_BYTES).contains(&length) => Ok(length),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a frame of {length} bytes, expected {ETHERNET_BYTES} to {MAX_FRAME_BYTES}"),
        )),
    }
}

/// Whether a frame of the guest may leave it. To link-local addresses only questions for the name servers
/// there: the same addresses tell credentials in clouds.
pub(super) fn may_leave(frame: &[u8], name_servers: &[Ipv4Addr]) -> bool {
    let Some((ethernet, packet)) = frame.split_at_checked(ETHERNET_BYTES) else { return false };
    if ethernet.ends_with(&TYPE_ARP) {
        return true;
    }
    let Some((header, _)) = packet.split_at_checked(IPV4_BYTES) else { return false };
    let address = |at: usize| {
        header.get(at..).and_then(<[u8]>::first_chunk).map(|bytes: &[u8; 4]| Ipv4Addr::from(*bytes))
    };
    let (Some(source), Some(to)) = (address(12), address(16)) else { return false };
    if !ethernet.ends_with(&TYPE_IPV4) || source != GUEST_ADDRESS || !is_reachable(to) {
        return false;
    }
    !to.is_link_local() || (name_servers.contains(&to) && is_question(packet))
}

/// Whether a packet goes to the port of name servers. Of a fragment only the first part says so.
fn is_question(packet: &[u8]) -> bool {
    let Some(&[version_length, .., fragment_high, fragment_low, _, protocol]) =
        packet.first_chunk::<10>()
    else {
        return false;
    };
    let is_whole = fragment_high & 0x3f == 0 && fragment_low == 0;
    let header_bytes = usize::from(version_length & 0x0f) * 4;
    let port = packet.get(header_bytes + 2..header_bytes + 4);
    is_whole
        && header_bytes >= IPV4_BYTES
        && matches!(protocol, PROTOCOL_TCP | PROTOCOL_UDP)
        && port == Some(&PORT_DNS)
}

/// The guest asking for its gateway, with the length before it.
pub(super) fn arp_request() -> Vec<u8> {
    let parts: [&[u8]; 10] = [
        &42_u32.to_be_bytes(),
        &[0xff; 6],
        &GUEST_MAC,
        &TYPE_ARP,
        &ARP_START,
        &[ARP_REQUEST],
        &GUEST_MAC,
        &GUEST_ADDRESS.octets(),
        &[0; 6],
        &GATEWAY_ADDRESS.octets(),
    ];
    parts.concat()
}

/// Whether a frame answers that.
pub(super) fn is_arp_reply(frame: &[u8]) -> bool {
    let Some((ethernet, arp)) = frame.split_at_checked(ETHERNET_BYTES) else { return false };
    let from = arp.get(14..18);
    ethernet.ends_with(&TYPE_ARP)
        && arp.strip_prefix(&ARP_START).is_some_and(|rest| rest.first() == Some(&ARP_REPLY))
        && from == Some(&GATEWAY_ADDRESS.octets())
}

#[cfg(test)]
mod tests;
