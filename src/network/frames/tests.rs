//! The framing of the stream, and the ARP packets of the shim.

use super::*;

/// Returns a frame of this length with `mark` in each byte.
fn frame(length: usize, mark: u8) -> Vec<u8> {
    vec![mark; length]
}

#[test]
fn only_an_arp_reply_of_the_gateway_is_recognised() {
    let mut reply = arp_request()[LENGTH_BYTES..].to_vec();
    assert!(!is_arp_reply(&reply));
    reply[ETHERNET_BYTES + 7] = ARP_REPLY;
    assert!(!is_arp_reply(&reply), "its sender is the guest");
    reply[ETHERNET_BYTES + 14..ETHERNET_BYTES + 18].copy_from_slice(&GATEWAY_ADDRESS.octets());
    assert!(is_arp_reply(&reply));
    for length in 0..ETHERNET_BYTES + 18 {
        assert!(!is_arp_reply(&reply[..length]), "{length}");
    }
}

/// Carries the frames that do not begin with 0.
async fn carried(bytes: &[u8]) -> (io::Result<()>, Vec<u8>) {
    let mut to = Vec::new();
    let end = carry(bytes, async |framed: &[u8]| -> io::Result<()> {
        if without_length(framed).first() != Some(&0) {
            to.extend_from_slice(framed);
        }
        Ok(())
    });
    (end.await, to)
}

#[tokio::test]
async fn allowed_frames_arrive_whole_and_in_order() {
    let (a, b) = (frame(ETHERNET_BYTES, 1), frame(60, 2));
    let (dropped, largest) = (frame(60, 0), frame(MAX_FRAME_BYTES, 3));
    let sent: Vec<u8> = [&a, &dropped, &largest, &b].map(|frame| with_length(frame)).concat();
    let expected: Vec<u8> = [&a, &largest, &b].map(|frame| with_length(frame)).concat();
    let (end, arrived) = carried(&sent).await;
    end.unwrap();
    assert!(arrived == expected);
}

#[tokio::test]
async fn invalid_length_and_incomplete_frame_end_the_stream() {
    for length in [0, 13, 65_551, u32::MAX] {
        let error = carried(&length.to_be_bytes()).await.0.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{length}");
    }
    let cut = with_length(&frame(60, 1));
    let (end, arrived) = carried(&cut[..cut.len() - 1]).await;
    assert!(end.is_err() && arrived.is_empty());
}
