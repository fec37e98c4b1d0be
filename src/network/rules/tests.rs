//! The look-up of destinations, compared with a scan of all rules.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use a3s_box_core::config::{Egress, EgressRule};

use super::*;
use crate::spec::EgressSpec;

const PROTOCOL_ICMP: u8 = 1;

fn specs(rules: Vec<EgressRule>) -> Vec<RuleSpec> {
    match EgressSpec::try_from(Egress::Rules(rules)).unwrap() {
        EgressSpec::Rules(rules) => rules,
        other => panic!("{other:?}"),
    }
}

fn parsed(json: &str) -> Rules {
    Rules::new(&specs(serde_json::from_str(json).unwrap()))
}

/// Returns whether one of the rules names a destination, without the tables.
fn is_named(rules: &[RuleSpec], address: IpAddr, protocol: u8, port: Option<u16>) -> bool {
    rules.iter().any(|rule| {
        let Target::Network(to) = &rule.to else { return false };
        let is_in_network = match (address, to.address) {
            (IpAddr::V4(address), IpAddr::V4(network)) => {
                let distance = u64::from(u32::from(address).wrapping_sub(network.into()));
                distance < 1_u64 << (32 - to.prefix_length)
            }
            (IpAddr::V6(address), IpAddr::V6(network)) => {
                // The tests use no IPv6 network with a prefix of less than one bit.
                let distance = u128::from(address).wrapping_sub(network.into());
                distance < 1_u128 << (128 - to.prefix_length)
            }
            _ => false,
        };
        let is_of_protocol = match (rule.protocol, protocol) {
            (Some(Protocol::Tcp), protocol) => protocol == PROTOCOL_TCP,
            (Some(Protocol::Udp), protocol) => protocol == PROTOCOL_UDP,
            (None, PROTOCOL_TCP | PROTOCOL_UDP) => true,
            (None, _) => rule.ports.is_empty(),
        };
        let has_port = rule.ports.is_empty()
            || rule
                .ports
                .iter()
                .any(|range| port.is_some_and(|port| (range.first..=range.last).contains(&port)));
        is_in_network && is_of_protocol && has_port
    })
}

/// A generator of pseudo-random numbers (splitmix64), with a seed that a failed test names.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    /// Returns an address from a few networks, so that many rules overlap. The IPv6 addresses have
    /// the same 32 bits, at the start or at the end.
    fn address(&mut self) -> IpAddr {
        let network =
            [0x0a00_0000, 0x0a01_0200, 0xc000_0200, 0][usize::try_from(self.below(4)).unwrap()];
        let number = network + u32::try_from(self.below(512)).unwrap();
        match self.below(4) {
            0 => Ipv6Addr::from(u128::from(number) << 96).into(),
            1 => Ipv6Addr::from(u128::from(number)).into(),
            _ => Ipv4Addr::from(number).into(),
        }
    }

    fn port(&mut self) -> u16 {
        u16::try_from(1 + self.below(100)).unwrap()
    }

    fn protocol(&mut self) -> Option<Protocol> {
        [None, Some(Protocol::Tcp), Some(Protocol::Udp)][usize::try_from(self.below(3)).unwrap()]
    }

    fn rule(&mut self) -> EgressRule {
        let lengths = [0, 7, 8, 16, 22, 24, 30, 31, 32, 32, 32];
        let length = lengths[usize::try_from(self.below(11)).unwrap()];
        let to = match self.address() {
            IpAddr::V4(address) => {
                let mask = u32::MAX.checked_shl(32 - length).unwrap_or(0);
                format!("{}/{length}", Ipv4Addr::from(u32::from(address) & mask))
            }
            IpAddr::V6(address) => {
                // The same bits of the first or of the last 32, and a prefix of at least one bit.
                let length = if self.below(2) == 0 { length.max(1) } else { 96 + length };
                let mask = u128::MAX << (128 - length);
                format!("{}/{length}", Ipv6Addr::from(u128::from(address) & mask))
            }
        };
        let ports = (0..self.below(4)).map(|_| {
            let first = self.port();
            let last = first + u16::try_from(self.below(8)).unwrap();
            PortRange { first, last }
        });
        let ports: Vec<PortRange> = ports.collect();
        EgressRule { to, ports: (!ports.is_empty()).then_some(ports), protocol: self.protocol() }
    }
}

#[test]
fn look_up_finds_what_a_scan_of_all_rules_finds() {
    let mut outcomes = [0, 0];
    for seed in 0..1000 {
        let mut random = Random(seed);
        let rules = specs((0..random.below(12)).map(|_| random.rule()).collect());
        let table = Rules::new(&rules);
        for _ in 0..200 {
            let address = random.address();
            let protocol = [PROTOCOL_TCP, PROTOCOL_UDP, PROTOCOL_ICMP]
                [usize::try_from(random.below(3)).unwrap()];
            let port = (protocol != PROTOCOL_ICMP && random.below(8) > 0).then(|| random.port());
            let expected = is_named(&rules, address, protocol, port);
            let found = table.allow(address, protocol, port);
            assert_eq!(found, expected, "seed {seed}: {address} {protocol} {port:?}\n{rules:#?}");
            outcomes[usize::from(found)] += 1;
        }
    }
    assert!(outcomes.iter().all(|count| *count > 10_000), "{outcomes:?}");
}

#[test]
fn each_kind_of_rule_allows_what_it_names() {
    let all = [PROTOCOL_TCP, PROTOCOL_UDP, PROTOCOL_ICMP];
    for (rule, port, expected) in [
        (r#"{"to": "192.0.2.0/24"}"#, 80, all.as_slice()),
        (r#"{"to": "192.0.2.7", "protocol": "tcp"}"#, 80, &all[..1]),
        (r#"{"to": "192.0.2.7", "protocol": "udp"}"#, 80, &all[1..2]),
        (r#"{"to": "192.0.2.7", "ports": [80]}"#, 80, &all[..2]),
        (r#"{"to": "192.0.2.7", "ports": [81]}"#, 80, &[]),
        (r#"{"to": "192.0.2.7", "ports": [1, "79-81"], "protocol": "tcp"}"#, 80, &all[..1]),
        (r#"{"to": "0.0.0.0/0", "ports": ["1-65535"]}"#, 65_535, &all[..2]),
        (r#"{"to": "192.0.2.8"}"#, 80, &[]),
        (r#"{"to": "192.0.3.0/24"}"#, 80, &[]),
        (r#"{"to": "::/0"}"#, 80, &[]),
    ] {
        let rules = parsed(&format!("[{rule}]"));
        let port = |protocol| (protocol != PROTOCOL_ICMP).then_some(port);
        let address = IpAddr::from([192, 0, 2, 7]);
        let allowed = all.into_iter().filter(|p| rules.allow(address, *p, port(*p)));
        assert_eq!(allowed.collect::<Vec<_>>(), expected, "{rule}");
        // Only a rule without ports allows a fragment, in which there is no port.
        let fragment = rules.allow(address, PROTOCOL_TCP, None);
        assert_eq!(fragment, expected.contains(&PROTOCOL_TCP) && !rule.contains("ports"), "{rule}");
    }
    assert!(!parsed("[]").allow(Ipv4Addr::LOCALHOST.into(), PROTOCOL_TCP, Some(80)));
}

/// A guest at 10 Gbit/s sends 20,000 frames of the largest size a second, and at most a million of
/// the smallest. The bound is loose, because tests are not optimized and share their cores.
#[test]
fn thousand_rules_of_all_lengths_cost_microseconds() {
    let ports: Vec<PortRange> =
        (0..64).map(|i| PortRange { first: 1000 + 10 * i, last: 1005 + 10 * i }).collect();
    let rule = |i: u32| {
        let length = 32 - i % 25;
        let mask = u32::MAX.checked_shl(32 - length).unwrap_or(0);
        let to = format!("{}/{length}", Ipv4Addr::from((i << 22) & mask));
        EgressRule { to, ports: Some(ports.clone()), protocol: None }
    };
    let rules = Rules::new(&specs((0..1000).map(rule).collect()));
    let (start, looks) = (Instant::now(), 20_000_u32);
    let allowed = (0..looks)
        .filter(|i| rules.allow(Ipv4Addr::from(i * 0x0001_2345).into(), PROTOCOL_TCP, Some(7)));
    assert_eq!(allowed.count(), 0);
    let each = start.elapsed() / looks;
    println!("a look-up in 1000 rules takes {each:?}");
    assert!(each < Duration::from_micros(100), "{each:?}");
}
