//! The lines of notices, and their limits.

use super::*;

fn tcp(port: u16) -> Destination {
    let address = IpAddr::from([192, 0, 2, 7]);
    Destination { protocol: RefusedProtocol::Tcp, address, port: Some(port), name: None }
}

/// Takes all notices that are due.
fn take_all(notices: &mut Notices, now: Instant) -> Vec<(u16, u64)> {
    let taken = std::iter::from_fn(|| notices.take(now));
    taken.map(|notice| (notice.destination.port.unwrap(), notice.count)).collect()
}

#[test]
fn line_is_read_as_it_was_written() {
    let icmp = Destination { protocol: RefusedProtocol::Icmp, port: None, ..tcp(1) };
    let udp = Destination {
        protocol: RefusedProtocol::Udp,
        address: Ipv4Addr::BROADCAST.into(),
        port: Some(u16::MAX),
        name: None,
    };
    let longest = ["a".repeat(63).as_str(); 4].join(".")[2..].to_owned();
    let dns = |name: &str, port| Destination {
        protocol: RefusedProtocol::Dns,
        address: Ipv4Addr::BROADCAST.into(),
        port,
        name: Some(name.into()),
    };
    let v6 = |text: &str| Destination { address: text.parse().unwrap(), ..udp.clone() };
    let longest_v6 = "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
    for (destination, count, expected) in [
        (tcp(443), 3, "tcp 192.0.2.7 443 3"),
        (icmp, 1, "icmp 192.0.2.7 - 1"),
        (udp.clone(), u64::MAX, "udp 255.255.255.255 65535 18446744073709551615"),
        (v6("2001:db8::7"), 1, "udp 2001:db8::7 65535 1"),
        (v6(longest_v6), u64::MAX, &format!("udp {longest_v6} 65535 18446744073709551615")),
        (dns("_a.example", None), 1, "dns 255.255.255.255 - 1 _a.example"),
        (
            dns(&longest, Some(u16::MAX)),
            u64::MAX,
            &format!("dns 255.255.255.255 65535 18446744073709551615 {longest}"),
        ),
    ] {
        let notice = Notice { destination, count };
        assert_eq!(notice.to_string(), expected);
        assert_eq!(Notice::read(expected), Some(notice));
        // With the end of the line.
        assert!(expected.len() < MAX_LINE_BYTES);
    }
}

#[test]
fn any_other_line_is_refused() {
    for line in [
        "",
        "tcp",
        "tcp 192.0.2.7 443",
        "tcp 192.0.2.7 443 0",
        "tcp 192.0.2.7 443 +3",
        "tcp 192.0.2.7 443 03",
        "tcp 192.0.2.7 0443 3",
        "tcp 192.0.2.7 443 3 ",
        "tcp 192.0.2.7 443 3 a.example 4",
        "tcp 192.0.2.7 443 3 A.example",
        "tcp 192.0.2.7 443 3 a..example",
        "tcp 192.0.2.7 443 3 a.example.",
        "tcp 192.0.2.7 443 3 a\u{1b}[2J",
        &format!("tcp 192.0.2.7 443 3 {}", "a.".repeat(127)),
        "tcp  192.0.2.7 443 3",
        "tcp 192.0.2.7 65536 3",
        "tcp 192.0.2.7 443 18446744073709551616",
        "TCP 192.0.2.7 443 3",
        "sctp 192.0.2.7 443 3",
        "tcp 192.0.2.007 443 3",
        "tcp 2001:db8::07 443 3",
        "tcp 2001:DB8::7 443 3",
        "tcp 2001:db8:0::7 443 3",
        "tcp [2001:db8::7] 443 3",
        "tcp fe80::1%eth0 443 3",
        "tcp 192.0.2.7 443 3\r",
    ] {
        assert_eq!(Notice::read(line), None, "{line:?}");
    }
}

#[test]
fn first_packet_to_a_destination_is_told_at_once_and_later_ones_together() {
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let mut notices = Notices::new(start);
    assert_eq!(notices.due(), None);
    notices.note(tcp(1), start);
    assert_eq!(notices.due().map(|due| due <= start), Some(true));
    assert_eq!(take_all(&mut notices, start), [(1, 1)]);
    assert_eq!(notices.due(), None);
    for _ in 0..5 {
        notices.note(tcp(1), start);
    }
    notices.note(tcp(2), start);
    assert_eq!(take_all(&mut notices, start), [(2, 1)]);
    assert_eq!(notices.due(), Some(at(10)));
    assert_eq!(take_all(&mut notices, at(9)), []);
    assert_eq!(take_all(&mut notices, at(10)), [(1, 5)]);
    assert_eq!(notices.due(), None);
}

#[test]
fn ten_notices_follow_at_once_and_then_one_a_second() {
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let mut notices = Notices::new(start);
    for port in 0..30 {
        notices.note(tcp(port), start);
    }
    let ports = |ports: std::ops::Range<u16>| ports.map(|port| (port, 1)).collect::<Vec<_>>();
    assert_eq!(take_all(&mut notices, start), ports(0..10));
    assert_eq!(notices.due(), Some(at(1)));
    assert_eq!(take_all(&mut notices, at(1)), ports(10..11));
    assert_eq!(take_all(&mut notices, at(4)), ports(11..14));
    // A silence of ten seconds and more allows ten at once again, and no more.
    assert_eq!(take_all(&mut notices, at(60)), ports(14..24));
}

#[test]
fn table_is_bounded_and_forgets_destinations_without_a_waiting_notice() {
    let start = Instant::now();
    let mut notices = Notices::new(start);
    for port in 0..200 {
        notices.note(tcp(port), start);
    }
    assert_eq!(notices.known.len(), MAX_DESTINATIONS);
    assert_eq!(take_all(&mut notices, start).len(), 10);
    notices.note(tcp(300), start);
    assert_eq!(notices.known.len(), MAX_DESTINATIONS);
    let last = notices.known.last().unwrap();
    assert_eq!((last.destination.clone(), last.count), (tcp(300), 1));
    // An hour of packets to changing destinations gives one notice a second.
    let told: usize = (1..=3600)
        .map(|second| {
            let now = start + Duration::from_secs(second);
            for i in 0..100 {
                notices.note(tcp(u16::try_from(second * 13 % 60_000 + i).unwrap()), now);
            }
            take_all(&mut notices, now).len()
        })
        .sum();
    assert_eq!((told, notices.known.len()), (3600, MAX_DESTINATIONS));
}
