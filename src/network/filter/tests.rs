//! What the gate passes on and drops.

use std::time::Duration;

use a3s_box_core::config::{Egress, PublishConfig};

use super::*;
use crate::network::addresses::{GATEWAY_ADDRESS, GUEST_MAC};
use crate::network::packet::{ETHERNET_BYTES, IPV4_BYTES, PROTOCOL_TCP, TYPE_ARP, TYPE_IPV4};

const PROTOCOL_ICMP: u8 = 1;

/// A name server at a link-local address, and one at the address of Azure's metadata.
const LINK_LOCAL_SERVER: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 253);
const AZURE: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 16);

/// An ordinary host, and its address with port 53.
const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
const HOST_DNS: SocketAddrV4 = SocketAddrV4::new(HOST, PORT_DNS);

/// The UDP port of the guest that is published.
const PUBLISHED: u16 = 53;

/// A port that the guest's kernel gives to a client.
const CLIENT: u16 = 40_000;

/// Returns a frame with an IPv4 packet that ends after its ports.
fn frame(from: SocketAddrV4, to: SocketAddrV4, protocol: u8) -> Vec<u8> {
    let mut header = [0; IPV4_BYTES];
    header[0] = 0x45;
    header[9] = protocol;
    header[12..16].copy_from_slice(&from.ip().octets());
    header[16..].copy_from_slice(&to.ip().octets());
    let ports = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    [&[2; 6][..], &GUEST_MAC, &TYPE_IPV4, &header, &ports].concat()
}

fn guest(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(GUEST_ADDRESS, port)
}

/// Returns a frame of a client in the guest.
fn sent(to: [u8; 4], protocol: u8, port: u16) -> Vec<u8> {
    frame(guest(CLIENT), SocketAddrV4::new(to.into(), port), protocol)
}

fn filter() -> Filter {
    let published = |guest_port, protocol| PublishConfig {
        host_address: Ipv4Addr::LOCALHOST,
        host_port: 8053,
        guest_port,
        protocol,
    };
    Filter::new(&PasstSpec {
        egress: Egress::Allow,
        publish: vec![published(PUBLISHED, Protocol::Udp), published(80, Protocol::Tcp)],
        dns: vec![LINK_LOCAL_SERVER, AZURE],
    })
}

/// Returns whether a frame of the guest passes a new filter.
fn leaves(frame: &[u8]) -> bool {
    filter().may_leave(frame, Instant::now())
}

#[test]
fn frames_to_other_hosts_pass_and_frames_to_the_host_itself_are_dropped() {
    let others =
        [[1, 1, 1, 1], [10, 0, 2, 2], [192, 168, 0, 1], [169, 253, 0, 1], [223, 255, 0, 1]];
    for to in others {
        for protocol in [PROTOCOL_TCP, PROTOCOL_UDP, PROTOCOL_ICMP] {
            assert!(leaves(&sent(to, protocol, 80)), "{to:?} {protocol}");
        }
    }
    for to in [
        [127, 0, 0, 1],
        [127, 255, 255, 254],
        [0, 0, 0, 0],
        [0, 1, 2, 3],
        [224, 0, 0, 1],
        [255, 255, 255, 255],
        [240, 0, 0, 1],
    ] {
        for protocol in [PROTOCOL_TCP, PROTOCOL_UDP, PROTOCOL_ICMP] {
            assert!(!leaves(&sent(to, protocol, PORT_DNS)), "{to:?} {protocol}");
        }
    }
}

#[test]
fn metadata_of_clouds_is_not_reachable() {
    for to in [
        [169, 254, 169, 254],
        [169, 254, 170, 2],
        [169, 254, 0, 23],
        [100, 100, 100, 200],
        [168, 63, 129, 16],
        [192, 0, 0, 192],
        [100, 80, 80, 80],
        [100, 96, 0, 96],
    ] {
        for (protocol, port) in
            [(PROTOCOL_TCP, 80), (PROTOCOL_TCP, 32_526), (PROTOCOL_UDP, 80), (PROTOCOL_ICMP, 53)]
        {
            assert!(!leaves(&sent(to, protocol, port)), "{to:?} {protocol} {port}");
        }
        // The neighbour of such an address is an ordinary host, unless it is link-local as well.
        let [a, b, c, d] = to;
        let is_link_local = a == 169;
        assert_eq!(leaves(&sent([a, b, c, d - 1], PROTOCOL_TCP, 80)), !is_link_local, "{to:?}");
    }
}

#[test]
fn only_questions_pass_to_a_name_server_at_an_address_with_metadata() {
    for to in [LINK_LOCAL_SERVER.octets(), AZURE.octets()] {
        assert!(leaves(&sent(to, PROTOCOL_UDP, 53)) && leaves(&sent(to, PROTOCOL_TCP, 53)));
        assert!(!leaves(&sent(to, PROTOCOL_TCP, 80)) && !leaves(&sent(to, PROTOCOL_ICMP, 53)));
        // A later fragment has no port, and the first one could be combined with an overlapping
        // one.
        for (at, byte) in [(20, 0x20), (20, 0x01), (21, 0x01)] {
            let mut fragment = sent(to, PROTOCOL_TCP, 53);
            fragment[at] = byte;
            assert!(!leaves(&fragment), "{at}");
        }
        // The header length decides where the port is. Lengths below 20 bytes are not valid, and
        // larger ones move the port behind the options, past the end of this packet.
        for length in [0x40, 0x44, 0x46, 0x4f] {
            let mut other = sent(to, PROTOCOL_UDP, 53);
            other[ETHERNET_BYTES] = length;
            assert!(!leaves(&other), "{length:x}");
        }
    }
    // The address is no name server of this guest.
    assert!(!leaves(&sent([169, 254, 169, 254], PROTOCOL_UDP, 53)));
}

#[test]
fn short_spoofed_and_foreign_frames_are_dropped() {
    let good = sent([1, 1, 1, 1], PROTOCOL_TCP, 80);
    for length in 0..ETHERNET_BYTES + IPV4_BYTES {
        assert!(!leaves(&good[..length]), "{length}");
        assert!(!filter().may_arrive(&good[..length], Instant::now()), "{length}");
    }
    let mut spoofed = good.clone();
    spoofed[ETHERNET_BYTES + 12] = 127;
    assert!(!leaves(&spoofed));
    // The types of IPv6 and of a VLAN tag.
    for kind in [[0x86, 0xdd], [0x81, 0x00]] {
        let mut other = good.clone();
        other[12..14].copy_from_slice(&kind);
        assert!(!leaves(&other), "{kind:x?}");
        assert!(!filter().may_arrive(&other, Instant::now()), "{kind:x?}");
    }
    let mut arp = good;
    arp[12..14].copy_from_slice(&TYPE_ARP);
    assert!(leaves(&arp) && filter().may_arrive(&arp, Instant::now()));
}

#[test]
fn udp_leaves_from_ports_of_clients_and_from_published_ports_only() {
    let from = |port| frame(guest(port), HOST_DNS, PROTOCOL_UDP);
    for port in [FIRST_CLIENT_PORT, CLIENT, u16::MAX, PUBLISHED] {
        assert!(leaves(&from(port)), "{port}");
    }
    // Port 80 is published for TCP, and 8053 is a port of the host.
    for port in [0, 1, 68, 80, 123, 5353, 8053, FIRST_CLIENT_PORT - 1] {
        assert!(!leaves(&from(port)), "{port}");
    }
    let tcp = frame(guest(80), HOST_DNS, PROTOCOL_TCP);
    assert!(leaves(&tcp), "passt gives a port of the host's choice to a TCP connection");
    // passt takes the start of each fragment as ports.
    for (at, byte) in [(20, 0x20), (20, 0x01), (21, 0x01)] {
        let mut fragment = from(CLIENT);
        fragment[at] = byte;
        assert!(!leaves(&fragment), "{at}");
    }
    // The options of IPv4 move the ports. These four bytes are the ports that a reader without
    // regard for the header length would see.
    let mut options = from(CLIENT);
    options[ETHERNET_BYTES] = 0x46;
    options.extend([5353_u16.to_be_bytes(), 53_u16.to_be_bytes()].concat());
    assert!(!leaves(&options));
    assert!(!leaves(&from(CLIENT)[..ETHERNET_BYTES + IPV4_BYTES + 3]), "the ports are cut off");
}

#[test]
fn udp_arrives_as_an_answer_or_at_a_published_port_only() {
    let (mut filter, now) = (filter(), Instant::now());
    let answer = |from, port| frame(from, guest(port), PROTOCOL_UDP);
    assert!(!filter.may_arrive(&answer(HOST_DNS, CLIENT), now), "the guest has not sent yet");
    assert!(filter.may_leave(&frame(guest(CLIENT), HOST_DNS, PROTOCOL_UDP), now));
    assert!(filter.may_arrive(&answer(HOST_DNS, CLIENT), now));
    assert!(filter.may_arrive(&answer(HOST_DNS, CLIENT), now), "a second answer");
    let other_port = SocketAddrV4::new(HOST, 54);
    let other_host = SocketAddrV4::new(GATEWAY_ADDRESS, 53);
    for (from, port) in [(other_port, CLIENT), (other_host, CLIENT), (HOST_DNS, CLIENT + 1)] {
        assert!(!filter.may_arrive(&answer(from, port), now), "{from} {port}");
    }
    let mut fragment = answer(HOST_DNS, CLIENT);
    fragment[20] = 0x20;
    assert!(!filter.may_arrive(&fragment, now));
    let later = now + Duration::from_secs(180);
    assert!(!filter.may_arrive(&answer(HOST_DNS, CLIENT), later));
    // A datagram that the filter drops opens no flow.
    assert!(!filter.may_leave(&frame(guest(5353), HOST_DNS, PROTOCOL_UDP), now));
    assert!(!filter.may_arrive(&answer(HOST_DNS, 5353), now));
    assert!(filter.may_arrive(&answer(other_host, PUBLISHED), now), "a published port");
    for protocol in [PROTOCOL_TCP, PROTOCOL_ICMP] {
        assert!(filter.may_arrive(&frame(HOST_DNS, guest(CLIENT + 1), protocol), now));
    }
}
