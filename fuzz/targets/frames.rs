//! Fuzzes the Ethernet frames of a guest that the gate carries. The crate etherparse is the
//! reference for reading them.

#![no_main]
#![allow(clippy::unwrap_used, reason = "a failed setup must end the fuzzer")]

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use a3s_box_core::config;
use etherparse::{
    Ethernet2HeaderSlice, Ipv4HeaderSlice, Ipv6HeaderSlice, Ipv6Slice, NetSlice, SlicedPacket,
    TransportSlice, ether_type, ip_number,
};
use libfuzzer_sys::fuzz_target;
use scratch::pieces::Pieces;

#[expect(dead_code, reason = "only the shim uses the rest")]
#[path = "../../src/network/addresses.rs"]
mod addresses;
#[allow(dead_code, reason = "only the target `names` uses it")]
#[path = "../../src/network/answered.rs"]
mod answered;
#[allow(dead_code, reason = "only the shim uses the rest, for its config")]
#[path = "../../src/spec/egress.rs"]
mod egress;
#[path = "../../src/network/checksum.rs"]
mod checksum;
#[expect(dead_code, reason = "only the shim uses the rest, for its name servers")]
#[path = "../../src/network/filter.rs"]
mod filter;
#[expect(dead_code, reason = "only the shim uses the rest, for its ARP request")]
#[path = "../../src/network/frames.rs"]
mod frames;
#[path = "../../src/network/metadata.rs"]
mod metadata;
#[allow(dead_code, reason = "only the shim uses the rest, for its config")]
#[path = "../../src/spec/name.rs"]
mod name;
#[allow(dead_code, reason = "only the target `names` uses the rest")]
#[path = "../../src/network/names.rs"]
mod names;
#[allow(dead_code, reason = "only the shim uses the rest, for its questions")]
#[path = "../../src/network/ndp.rs"]
mod ndp;
#[allow(dead_code, reason = "only the gate uses the rest, for its notices")]
#[path = "../../src/network/notice.rs"]
mod notice;
#[path = "../../src/network/packet.rs"]
mod packet;
#[path = "../../src/spec/reach.rs"]
mod reach;
#[allow(dead_code, reason = "only the target `names` uses the rest")]
#[path = "../../src/network/refusal.rs"]
mod refusal;
#[path = "../../src/network/rules.rs"]
mod rules;
#[allow(dead_code, unused_imports, reason = "only the shim uses the rest, for its config")]
#[path = "../../src/spec/network.rs"]
mod spec;
#[path = "../../src/network/udp_flows.rs"]
mod udp_flows;

use self::addresses::{
    GATEWAY_LINK_LOCAL, GUEST_ADDRESS, GUEST_ADDRESS_V6, GUEST_LINK_LOCAL,
};
use self::filter::{Egress, Filter, Verdict};
use self::spec::{EgressSpec, PasstSpec};

/// A name server with a link-local address.
const SERVER: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 253);

/// A name server in a network with metadata.
const SERVER_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x253);

/// Length of the prefix before each frame, which is the length of the frame.
const LENGTH_BYTES: usize = 4;
const DNS_PORT: u16 = 53;

/// First source port of UDP that the gate carries.
const FIRST_CLIENT_PORT: u16 = 32_768;

/// Addresses of metadata that are not link-local.
const METADATA: [[u8; 4]; 5] = [
    [100, 100, 100, 200],
    [168, 63, 129, 16],
    [192, 0, 0, 192],
    [100, 80, 80, 80],
    [100, 96, 0, 96],
];

/// IPv6 addresses of metadata, besides the network of AWS.
const METADATA_V6: [&str; 5] = [
    "fd20:ce::254",
    "fd00:c1::a9fe:a9fe",
    "fd00:42::42",
    "fd00:a9fe:a9fe::1",
    "fd00:100::100:200",
];

fuzz_target!(|input: &[u8]| {
    let pieces = Pieces::new(input);
    let sent = split(pieces.stream());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut arrived = Vec::new();
    let spec = passt(EgressSpec::Allow);
    let mut filter = Filter::new(&spec, Egress::new(&spec, &[]), None);
    let mut strict = strict_filter();
    let carry = async |framed: &[u8]| -> std::io::Result<()> {
        let frame = frames::without_length(framed);
        // Frames of passt have the same form, and must cause no panic either.
        let _may_arrive = filter.may_arrive(frame, Instant::now());
        let verdict = filter.leave(frame, Instant::now());
        // Rules only take away.
        let with_rules = strict.leave(frame, Instant::now());
        assert!(
            verdict == Verdict::Pass || with_rules != Verdict::Pass,
            "{}",
            frame.escape_ascii()
        );
        for verdict in [&verdict, &with_rules] {
            if let Verdict::Refuse(_) = verdict {
                check_answer(frame);
            }
        }
        if verdict == Verdict::Pass {
            arrived.extend_from_slice(framed);
        }
        Ok(())
    };
    // An invalid length ends the stream with an error. The frames before it have arrived.
    let _ended = runtime.block_on(frames::carry(pieces, carry));
    let mut arrived = split(&arrived).into_iter().peekable();
    for frame in sent {
        let has_arrived = arrived.next_if_eq(&frame).is_some();
        // The gate may carry or drop a frame without a complete packet.
        if let Some(expected) = expected(frame) {
            assert_eq!(has_arrived, expected, "{}", frame.escape_ascii());
        }
    }
    assert_eq!(arrived.next(), None, "a frame arrived that was not sent");
});

fn passt(egress: EgressSpec) -> PasstSpec {
    PasstSpec { egress, not_host: false, publish: Vec::new(), dns: vec![SERVER.into(), SERVER_V6.into()] }
}

/// Returns a filter with rules for some networks.
fn strict_filter() -> Filter {
    let json = r#"[{"to": "0.0.0.0/1", "ports": ["1-1024"]}, {"to": "192.0.0.0/8"},
                   {"to": "2000::/3", "ports": ["1-1024"]}, {"to": "fd00::/8"}]"#;
    let config: config::Egress = serde_json::from_str(json).unwrap();
    let spec = passt(config.try_into().unwrap());
    Filter::new(&spec, Egress::new(&spec, &[]), None)
}

/// Checks that the answer to a refused frame, if there is one, is a short and valid packet.
fn check_answer(frame: &[u8]) {
    let Some(answer) = refusal::answer(frame) else { return };
    let packet = SlicedPacket::from_ethernet(&answer).unwrap();
    let ipv4 = match packet.net {
        Some(NetSlice::Ipv4(ipv4)) => ipv4,
        Some(NetSlice::Ipv6(ipv6)) => return check_ipv6_answer(&answer, &ipv6, packet.transport),
        _ => panic!("{}", answer.escape_ascii()),
    };
    assert!(answer.len() < 120, "{}", answer.escape_ascii());
    let header = ipv4.header();
    assert_eq!(header.to_header().calc_header_checksum(), header.header_checksum());
    assert_eq!(header.destination_addr(), GUEST_ADDRESS);
    match packet.transport {
        Some(TransportSlice::Tcp(tcp)) => {
            assert!(tcp.rst() && !tcp.syn());
            let sum = tcp.calc_checksum_ipv4(header.source(), header.destination()).unwrap();
            assert_eq!(sum, tcp.checksum());
        }
        Some(TransportSlice::Icmpv4(icmp)) => {
            assert_eq!(icmp.icmp_type().calc_checksum(icmp.payload()), icmp.checksum());
        }
        _ => panic!("{}", answer.escape_ascii()),
    }
}

fn check_ipv6_answer(
    answer: &[u8],
    ipv6: &Ipv6Slice<'_>,
    transport: Option<TransportSlice<'_>>,
) {
    let header = ipv6.header();
    assert!(answer.len() <= 14 + 1280, "{}", answer.escape_ascii());
    let to = header.destination_addr();
    assert!([GUEST_ADDRESS_V6, GUEST_LINK_LOCAL].contains(&to), "{to}");
    match transport {
        Some(TransportSlice::Tcp(tcp)) => {
            assert!(tcp.rst() && !tcp.syn());
            let sum = tcp.calc_checksum_ipv6(header.source(), header.destination()).unwrap();
            assert_eq!(sum, tcp.checksum());
        }
        Some(TransportSlice::Icmpv6(icmp)) => {
            assert!(icmp.is_checksum_valid(header.source(), header.destination()));
        }
        _ => panic!("{}", answer.escape_ascii()),
    }
}

/// Returns the frames of a stream, up to an invalid or incomplete one.
fn split(mut stream: &[u8]) -> Vec<&[u8]> {
    let mut frames = Vec::new();
    while let Some((length, rest)) = stream.split_first_chunk::<LENGTH_BYTES>()
        && let length @ 14..=65_550 = u32::from_be_bytes(*length)
        && let Some((frame, rest)) = rest.split_at_checked(length.try_into().unwrap())
    {
        frames.push(frame);
        stream = rest;
    }
    frames
}

/// Returns whether the gate must carry a frame, or `None` if its packet has no complete header.
fn expected(frame: &[u8]) -> Option<bool> {
    let ethernet = Ethernet2HeaderSlice::from_slice(frame).unwrap();
    match ethernet.ether_type() {
        ether_type::ARP => return Some(true),
        ether_type::IPV4 => {}
        ether_type::IPV6 => return Some(expected_of_ipv6(&frame[ethernet.slice().len()..])),
        _ => return Some(false),
    }
    let packet = &frame[ethernet.slice().len()..];
    let header = Ipv4HeaderSlice::from_slice(packet).ok()?;
    let to = header.destination_addr();
    if header.source_addr() != GUEST_ADDRESS || !is_unicast(to) {
        return Some(false);
    }
    let has_metadata = has_metadata(to);
    let is_denied = has_metadata && !(to == SERVER && is_dns(&header, packet));
    let is_udp = header.protocol() == ip_number::UDP;
    Some(!is_denied && (!is_udp || is_of_client(&header, packet)))
}

fn is_unicast(to: Ipv4Addr) -> bool {
    let first = to.octets()[0];
    // 0.0.0.0/8 is "this host", 224.0.0.0/4 is multicast, and 240.0.0.0/4 is reserved.
    !to.is_loopback() && first != 0 && first < 224
}

fn has_metadata(to: Ipv4Addr) -> bool {
    to.is_link_local() || METADATA.contains(&to.octets())
}

/// Returns whether the gate must carry an IPv6 packet.
fn expected_of_ipv6(packet: &[u8]) -> bool {
    let Ok(header) = Ipv6HeaderSlice::from_slice(packet) else { return false };
    let length = usize::from(header.payload_length());
    let Some(payload) = packet.get(40..40 + length) else { return false };
    let (from, to) = (header.source_addr(), header.destination_addr());
    let ports = payload.first_chunk().map(|[a, b, c, d]| {
        (u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d]))
    });
    let is_question = match (header.next_header(), ports) {
        (ip_number::TCP, Some((_, to))) => to == DNS_PORT,
        (ip_number::UDP, Some((from, _))) if from < FIRST_CLIENT_PORT => return false,
        (ip_number::UDP, Some((_, to))) => to == DNS_PORT,
        (ip_number::IPV6_ICMP, _) if is_neighbour_question(&header, payload) => return true,
        (ip_number::IPV6_ICMP, _) if payload.first() == Some(&128) => false,
        _ => return false,
    };
    from == GUEST_ADDRESS_V6
        && match to.octets() {
            [0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0, v4 @ ..] => {
                is_unicast(v4.into()) && !has_metadata(v4.into())
            }
            // 6to4, and Teredo.
            [0x20, 2, ..] | [0x20, 1, 0, 0, ..] => false,
            [0xfd, 0, 0x0e, 0xc2, ..] => to == SERVER_V6 && is_question,
            [0x20..0x40 | 0xfc..0xfe, ..] => !METADATA_V6.contains(&to.to_string().as_str()),
            _ => false,
        }
}

/// Returns whether a packet is a question about the hardware address of the gateway.
fn is_neighbour_question(header: &Ipv6HeaderSlice<'_>, message: &[u8]) -> bool {
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 2);
    let target = GATEWAY_LINK_LOCAL.octets();
    header.hop_limit() == 255
        && [GUEST_ADDRESS_V6, GUEST_LINK_LOCAL].contains(&header.source_addr())
        && [group, GATEWAY_LINK_LOCAL].contains(&header.destination_addr())
        && message.starts_with(&[135, 0])
        && message.get(8..24) == Some(&target[..])
}

/// Returns whether a UDP packet is no fragment and comes from a port of a client.
fn is_of_client(header: &Ipv4HeaderSlice<'_>, packet: &[u8]) -> bool {
    let ports = packet.get(header.slice().len()..).and_then(<[u8]>::first_chunk::<4>);
    !header.is_fragmenting_payload()
        && ports.is_some_and(|[a, b, ..]| u16::from_be_bytes([*a, *b]) >= FIRST_CLIENT_PORT)
}

/// Returns whether a packet goes to the port of DNS.
fn is_dns(header: &Ipv4HeaderSlice<'_>, packet: &[u8]) -> bool {
    let has_ports = [ip_number::TCP, ip_number::UDP].contains(&header.protocol());
    let port = packet.get(header.slice().len() + 2..).and_then(<[u8]>::first_chunk);
    // Only the first fragment has the ports, so no fragment is accepted.
    let is_whole = !header.is_fragmenting_payload();
    has_ports && is_whole && port.map(|port| u16::from_be_bytes(*port)) == Some(DNS_PORT)
}
