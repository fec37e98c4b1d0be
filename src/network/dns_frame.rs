//! The frames in which questions of the guest and the answers to them travel.

use super::addresses::{GUEST_ADDRESS, NAME_SERVER_ADDRESS};
use super::checksum::checksum;
use super::filter::PORT_DNS;
use super::packet::{ETHERNET_BYTES, IPV4_BYTES, PROTOCOL_UDP};
use super::refusal::frame_v4;

/// Size of a UDP header (RFC 768).
const UDP_BYTES: usize = 8;

/// Returns the port of the guest and the message of a frame that the filter has found to be a
/// question. Returns `None` if the lengths in the frame do not fit.
///
/// The checksum is not verified: the guest's kernel leaves it to a device that does not compute it.
pub(super) fn question(frame: &[u8]) -> Option<(u16, &[u8])> {
    let packet = frame.get(ETHERNET_BYTES..)?;
    let header_bytes = usize::from(packet.first()? & 0x0f) * 4;
    let datagram = packet.get(header_bytes..).filter(|_| header_bytes >= IPV4_BYTES)?;
    let [a, b, _, _, high, low, ..] = *datagram.first_chunk::<UDP_BYTES>()?;
    let length = usize::from(u16::from_be_bytes([high, low]));
    Some((u16::from_be_bytes([a, b]), datagram.get(UDP_BYTES..length)?))
}

/// Returns the frame with an answer for a port of the guest. An answer has less than 1 KiB.
pub(super) fn answer(port: u16, message: &[u8]) -> Vec<u8> {
    let length = u16::try_from(UDP_BYTES + message.len()).unwrap_or_default().to_be_bytes();
    let ports = [PORT_DNS.to_be_bytes(), port.to_be_bytes()].concat();
    let sum = checksum(&[
        // The pseudo header of UDP.
        &NAME_SERVER_ADDRESS.octets(),
        &GUEST_ADDRESS.octets(),
        &[0, PROTOCOL_UDP],
        &length,
        &ports,
        &length,
        message,
    ]);
    // A sum of 0 would say that there is none.
    let sum = if sum == [0, 0] { [0xff, 0xff] } else { sum };
    frame_v4(NAME_SERVER_ADDRESS, PROTOCOL_UDP, &[&ports, &length, &sum, message])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::packet::Packet;

    #[test]
    fn message_is_read_from_the_frame_whose_lengths_fit() {
        let made = answer(40_000, b"message");
        let packet = Packet::read(&made).unwrap();
        assert_eq!(
            (packet.source, packet.destination),
            (NAME_SERVER_ADDRESS.into(), GUEST_ADDRESS.into())
        );
        assert_eq!(question(&made), Some((PORT_DNS, &b"message"[..])));
        // Frames may be padded, and may have options of IPv4.
        assert_eq!(question(&[&made[..], &[0; 20]].concat()).unwrap().1, b"message");
        let (start, rest) = made.split_at(ETHERNET_BYTES + IPV4_BYTES);
        let mut with_options = [start, &[1; 4], rest].concat();
        with_options[ETHERNET_BYTES] = 0x46;
        assert_eq!(question(&with_options).unwrap().1, b"message");
        for (index, value) in [(ETHERNET_BYTES, 0x44), (39, 7), (39, 17), (38, 1)] {
            let mut broken = made.clone();
            broken[index] = value;
            assert_eq!(question(&broken), None, "{index} {value}");
        }
        for length in 0..made.len() {
            assert_eq!(question(&made[..length]), None, "{length}");
        }
    }

    #[test]
    fn checksum_of_an_answer_is_valid() {
        for message in [&b"even"[..], b"odd"] {
            let made = answer(40_000, message);
            let (_, datagram) = made.split_at(ETHERNET_BYTES + IPV4_BYTES);
            let length = u16::try_from(datagram.len()).unwrap().to_be_bytes();
            let addresses = [NAME_SERVER_ADDRESS.octets(), GUEST_ADDRESS.octets()].concat();
            // The sum of a datagram with its checksum has only ones.
            assert_eq!(checksum(&[&addresses, &[0, PROTOCOL_UDP], &length, datagram]), [0, 0]);
        }
    }
}
