//! Ethernet frames between the VM and passt. On the stream, each frame follows its length: four
//! bytes, big endian.

use std::io::{self, Read};

use tokio::io::{AsyncRead, AsyncReadExt, BufReader};

use super::addresses::{GATEWAY_ADDRESS, GUEST_ADDRESS, GUEST_MAC};
use super::packet::{ETHERNET_BYTES, TYPE_ARP, is_arp};

/// Longest frame. libkrun reads a frame into a buffer of 65562 bytes, behind a header of 12 bytes,
/// and does not check the length (`read_frame`, krun-devices 1.19.7).
const MAX_FRAME_BYTES: usize = 65_550;

/// Size of the length in front of a frame.
const LENGTH_BYTES: usize = 4;

/// Start of every ARP packet here: Ethernet, IPv4, the lengths of their addresses, and the first
/// byte of the operation, whose second byte follows (RFC 826).
const ARP_START: [u8; 7] = [0, 1, 0x08, 0x00, 6, 4, 0];
const ARP_REQUEST: u8 = 1;
const ARP_REPLY: u8 = 2;

/// Gives each frame to `pass` until `from` ends. The frame has its length in front, as it goes on
/// the stream to the other side.
pub(super) async fn carry(
    from: impl AsyncRead + Unpin,
    mut pass: impl AsyncFnMut(&[u8]) -> io::Result<()>,
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
        from.read_exact(body.get_mut(..length).unwrap_or_default()).await?;
        pass(buffer.get(..LENGTH_BYTES + length).unwrap_or_default()).await?;
    }
}

/// Returns a frame without the length in front of it.
pub(super) fn without_length(framed: &[u8]) -> &[u8] {
    framed.get(LENGTH_BYTES..).unwrap_or_default()
}

/// Returns a frame with its length in front of it.
pub(super) fn with_length(frame: &[u8]) -> Vec<u8> {
    // A frame has at most 65550 bytes, so the conversion cannot fail.
    let length = u32::try_from(frame.len()).unwrap_or_default();
    [&length.to_be_bytes(), frame].concat()
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

/// Returns the guest's ARP request for the address of its gateway, with the length in front of it.
pub(super) fn arp_request() -> Vec<u8> {
    let parts: [&[u8]; 9] = [
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
    with_length(&parts.concat())
}

/// Returns whether a frame is the gateway's reply to [`arp_request`].
pub(super) fn is_arp_reply(frame: &[u8]) -> bool {
    let Some((_, arp)) = frame.split_at_checked(ETHERNET_BYTES) else { return false };
    let sender = arp.get(14..18);
    is_arp(frame)
        && arp.strip_prefix(&ARP_START).is_some_and(|rest| rest.first() == Some(&ARP_REPLY))
        && sender == Some(&GATEWAY_ADDRESS.octets())
}

#[cfg(test)]
mod tests;
