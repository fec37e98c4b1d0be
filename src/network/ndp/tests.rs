//! The two messages that pass, compared with the bytes of a Linux guest and of passt, and changes to
//! them that make them other messages.

use super::*;

/// A question of a guest's kernel, from the link-local address to the group.
const QUESTION: &str = "3333ff000002 02a35300000f 86dd 60000000 0020 3a ff \
    fe80000000000000 00a353fffe00000f ff02000000000000 00000001ff000002 \
    87004c7d 00000000 fe80000000000000 00a353fffe000002 0101 02a35300000f";

/// An answer of passt of Debian 12.
const ANSWER: &str = "02a35300000f 02a353000002 86dd 60000000 0020 3a ff \
    fe80000000000000 00a353fffe000002 fe80000000000000 00a353fffe00000f \
    88004c7e e0000000 fe80000000000000 00a353fffe000002 0201 02a353000002";

/// Positions in a frame.
const LENGTH: usize = 18;
const NEXT_HEADER: usize = 20;
const HOP: usize = 21;
const SOURCE: usize = 22;
const DESTINATION: usize = 38;
const TYPE: usize = 54;
const TARGET: usize = 62;

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<char> = hex.chars().filter(|c| !c.is_whitespace()).collect();
    let pairs = digits.chunks(2).map(|pair| pair.iter().collect::<String>());
    pairs.map(|pair| u8::from_str_radix(&pair, 16).unwrap()).collect()
}

fn with_address(frame: &[u8], at: usize, address: Ipv6Addr) -> Vec<u8> {
    let mut changed = frame.to_vec();
    changed[at..at + 16].copy_from_slice(&address.octets());
    changed
}

/// Adds up all words, with the checksum among them. The sum of a valid message is 0xffff.
fn ones_complement_sum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u32;
    for word in parts.concat().chunks(2) {
        sum += u32::from(word[0]) << 8 | u32::from(word.get(1).copied().unwrap_or(0));
    }
    while sum >> 16 != 0 {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    u16::try_from(sum).unwrap()
}

#[test]
fn question_of_the_shim_is_that_of_a_guest() {
    let framed = solicitation();
    let frame = &framed[4..];
    assert_eq!(framed[..4], 86_u32.to_be_bytes());
    // The checksum, which `QUESTION` has no valid one of, is compared by its sum.
    let expected = bytes(QUESTION);
    assert_eq!(frame[..TYPE + 2], expected[..TYPE + 2]);
    assert_eq!(frame[TYPE + 4..], expected[TYPE + 4..]);
    let pseudo = [&frame[SOURCE..TYPE], &[0, 0, 0, 32, 0, 0, 0, 58]].concat();
    assert_eq!(ones_complement_sum(&[&pseudo, &frame[TYPE..]]), 0xffff);
}

#[test]
fn only_questions_about_the_gateway_leave() {
    let question = bytes(QUESTION);
    assert!(is_solicitation(&question));
    assert!(is_solicitation(&with_address(&question, SOURCE, GUEST_ADDRESS_V6)));
    assert!(is_solicitation(&with_address(&question, DESTINATION, GATEWAY_LINK_LOCAL)));
    // Without the option, as for a neighbour whose address is known.
    let mut short = question[..question.len() - 8].to_vec();
    short[LENGTH + 1] = 24;
    assert!(is_solicitation(&short));

    let address = |text: &str| text.parse::<Ipv6Addr>().unwrap();
    for (at, text) in [
        (SOURCE, "::"),
        (SOURCE, "fe80::1"),
        (SOURCE, "2001:db8::1"),
        (DESTINATION, "ff02::1"),
        (DESTINATION, "ff02::1:ff00:15"),
        (DESTINATION, "2001:db8::1"),
        (TARGET, "fe80::1"),
        (TARGET, "2001:db8::1"),
        (TARGET, "fdfb:61f7:afae::15"),
    ] {
        assert!(!is_solicitation(&with_address(&question, at, address(text))), "{at} {text}");
    }
    refuse_changes(&question, is_solicitation);
    // Solicitations of routers, advertisements, and redirects.
    for kind in [133, 134, 136, 137] {
        let mut other = question.clone();
        other[TYPE] = kind;
        assert!(!is_solicitation(&other), "{kind}");
    }
}

#[test]
fn only_answers_of_the_gateway_arrive() {
    let answer = bytes(ANSWER);
    assert!(is_advertisement(&answer));
    assert!(is_advertisement(&with_address(&answer, DESTINATION, GUEST_ADDRESS_V6)));
    let other: Ipv6Addr = "fe80::1".parse().unwrap();
    for at in [SOURCE, DESTINATION, TARGET] {
        assert!(!is_advertisement(&with_address(&answer, at, other)), "{at}");
    }
    refuse_changes(&answer, is_advertisement);
    for kind in [133, 134, 135, 137] {
        let mut other = answer.clone();
        other[TYPE] = kind;
        assert!(!is_advertisement(&other), "{kind}");
    }
}

/// Asserts that a message is no message any more after one of many changes.
fn refuse_changes(message: &[u8], is_message: fn(&[u8]) -> bool) {
    for (at, byte, what) in [
        (12, 0x08, "another type of frame"),
        (14, 0x40, "another version"),
        (NEXT_HEADER, 0, "an extension header"),
        (NEXT_HEADER, 44, "a fragment"),
        (HOP, 254, "from another network"),
        (TYPE + 1, 1, "another code"),
        (LENGTH + 1, 23, "a message that is cut off"),
        (LENGTH + 1, 33, "a message that is longer than its frame"),
        (LENGTH, 1, "a message that is longer than its frame"),
    ] {
        let mut changed = message.to_vec();
        changed[at] = byte;
        assert!(!is_message(&changed), "{what}");
    }
    for length in 0..message.len() {
        assert!(!is_message(&message[..length]), "{length}");
    }
}
