//! Ethernet frames between the VM and passt. On the stream, each frame follows its length: four
//! bytes, big endian.
//!
//! A frame of the guest is passed on only if its source is the guest's own address and its
//! destination is one that a guest may reach. The filter is necessary because passt of Debian 12
//! connects to any address that a frame names, the host's loopback address included.

use std::io::{self, Read};
use std::net::Ipv4Addr;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};

use super::addresses::{GATEWAY_ADDRESS, GUEST_ADDRESS, GUEST_MAC};
use crate::spec::is_reachable;

/// Longest frame. libkrun reads a frame into a buffer of 65562 bytes, behind a header of 12 bytes,
/// and does not check the length (`read_frame`, krun-devices 1.19.7).
const MAX_FRAME_BYTES: usize = 65_550;

/// Size of an Ethernet header: destination, source and type (IEEE 802.3).
const ETHERNET_BYTES: usize = 14;

/// Size of the length in front of a frame.
const LENGTH_BYTES: usize = 4;

/// Size of an IPv4 header without options (RFC 791).
const IPV4_BYTES: usize = 20;

/// Ethernet types (IANA IEEE 802 numbers).
const TYPE_IPV4: [u8; 2] = [0x08, 0x00];
const TYPE_ARP: [u8; 2] = [0x08, 0x06];

/// Start of every ARP packet here: Ethernet, IPv4, the lengths of their addresses, and the first
/// byte of the operation, whose second byte follows (RFC 826).
const ARP_START: [u8; 7] = [0, 1, 0x08, 0x00, 6, 4, 0];
const ARP_REQUEST: u8 = 1;
const ARP_REPLY: u8 = 2;

const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;
const PORT_DNS: [u8; 2] = [0, 53];

/// Passes frames on until `from` ends.
///
/// Frames that `may_pass` rejects are dropped silently, like packets that a network filters.
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

/// Returns whether the gate passes on a frame of the guest.
///
/// To link-local addresses, only questions to `name_servers` pass: clouds serve name resolution
/// there, but also the credentials of the host (`169.254.169.254`).
pub(super) fn may_leave(frame: &[u8], name_servers: &[Ipv4Addr]) -> bool {
    let Some((ethernet, packet)) = frame.split_at_checked(ETHERNET_BYTES) else { return false };
    // ARP is answered by passt and goes no further.
    if ethernet.ends_with(&TYPE_ARP) {
        return true;
    }
    let Some((header, _)) = packet.split_at_checked(IPV4_BYTES) else { return false };
    let address = |at: usize| {
        header.get(at..).and_then(<[u8]>::first_chunk).map(|bytes: &[u8; 4]| Ipv4Addr::from(*bytes))
    };
    let (Some(source), Some(destination)) = (address(12), address(16)) else { return false };
    let is_ipv4 = ethernet.ends_with(&TYPE_IPV4);
    if !is_ipv4 || source != GUEST_ADDRESS || !is_reachable(destination) {
        return false;
    }
    !destination.is_link_local() || (name_servers.contains(&destination) && is_question(packet))
}

/// Returns whether an IPv4 packet goes to port 53 of TCP or UDP.
///
/// A fragment never does: only the first fragment of a packet contains the port, and the receiver
/// could combine it with fragments that overwrite it.
fn is_question(packet: &[u8]) -> bool {
    let Some(&[version_length, .., fragment_high, fragment_low, _, protocol]) =
        packet.first_chunk::<10>()
    else {
        return false;
    };
    // The mask covers the flag "more fragments" and the upper bits of the fragment's offset.
    let is_whole = fragment_high & 0x3f == 0 && fragment_low == 0;
    let header_bytes = usize::from(version_length & 0x0f) * 4;
    let port = packet.get(header_bytes + 2..header_bytes + 4);
    is_whole
        && header_bytes >= IPV4_BYTES
        && matches!(protocol, PROTOCOL_TCP | PROTOCOL_UDP)
        && port == Some(&PORT_DNS)
}

/// Returns the guest's ARP request for the address of its gateway, with the length in front of it.
pub(super) fn arp_request() -> Vec<u8> {
    let parts: [&[u8]; 10] = [
        // 14 bytes of Ethernet header and 28 bytes of ARP.
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

/// Returns whether a frame is the gateway's reply to [`arp_request`].
pub(super) fn is_arp_reply(frame: &[u8]) -> bool {
    let Some((ethernet, arp)) = frame.split_at_checked(ETHERNET_BYTES) else { return false };
    let sender = arp.get(14..18);
    ethernet.ends_with(&TYPE_ARP)
        && arp.strip_prefix(&ARP_START).is_some_and(|rest| rest.first() == Some(&ARP_REPLY))
        && sender == Some(&GATEWAY_ADDRESS.octets())
}

#[cfg(test)]
mod tests;
