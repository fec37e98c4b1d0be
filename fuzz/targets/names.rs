//! Fuzzes the gate's name server: messages of a guest, and replies of name servers, in any order. A
//! name that no rule has, or an address that no name may lead to, must never be opened.

#![no_main]
#![allow(clippy::unwrap_used, reason = "a failed setup must end the fuzzer")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use a3s_box_core::config;
use domain::base::Message;
use domain::rdata::{A, Aaaa};
use libfuzzer_sys::fuzz_target;

#[expect(dead_code, reason = "only the shim uses the rest")]
#[path = "../../src/network/addresses.rs"]
mod addresses;
#[path = "../../src/network/answered.rs"]
mod answered;
#[allow(dead_code, reason = "only the filter of IPv6 uses the rest")]
#[path = "../../src/network/checksum.rs"]
mod checksum;
#[path = "../../src/network/dns.rs"]
mod dns;
#[path = "../../src/network/dns_frame.rs"]
mod dns_frame;
#[allow(dead_code, reason = "only the shim uses the rest, for its config")]
#[path = "../../src/spec/egress.rs"]
mod egress;
#[allow(dead_code, reason = "only the gate uses the rest")]
#[path = "../../src/network/filter.rs"]
mod filter;
#[allow(dead_code, reason = "only the shim uses the rest, for its ARP request")]
#[path = "../../src/network/frames.rs"]
mod frames;
#[path = "../../src/network/metadata.rs"]
mod metadata;
#[allow(dead_code, reason = "only the shim uses the rest, for its config")]
#[path = "../../src/spec/name.rs"]
mod name;
#[path = "../../src/network/name_server.rs"]
mod name_server;
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
#[allow(dead_code, reason = "only the gate uses the rest")]
#[path = "../../src/network/refusal.rs"]
mod refusal;
#[path = "../../src/network/rules.rs"]
mod rules;
#[allow(dead_code, unused_imports, reason = "only the shim uses the rest, for its config")]
#[path = "../../src/spec/network.rs"]
mod spec;
#[path = "../../src/network/udp_flows.rs"]
mod udp_flows;

use self::filter::{Egress, Filter, Verdict};
use self::name_server::{Effect, NameServer};
use self::names::NameRules;
use self::spec::{EgressSpec, PasstSpec};

const SERVERS: usize = 2;

/// An address of the host.
const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
const HOST_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10);

/// Size of a header (RFC 1035).
const HEADER_BYTES: usize = 12;

/// Longest message over UDP that every client takes (RFC 1035).
const MAX_ANSWER_BYTES: usize = 512;

/// The name server of a gate with its filter, and what was last asked.
struct Tested {
    server: NameServer,
    filter: Filter,
    now: Instant,
    /// Index of the name server, and the message.
    asked: Option<(usize, Vec<u8>)>,
}

fuzz_target!(|input: &[u8]| {
    let mut tested = Tested::new();
    let mut rest = input;
    // A step is its kind, an argument, the length of its data, and the data.
    while let [kind, argument, length, data @ ..] = rest {
        let (data, behind) = data.split_at(data.len().min((*length).into()));
        rest = behind;
        let effects = tested.step(*kind, *argument, data);
        tested.check(effects);
    }
});

impl Tested {
    fn new() -> Self {
        let json = r#"[{"to": "a.test", "ports": [443]}, {"to": "*.b.test"}, {"to": "*.c.d"}]"#;
        let config: config::Egress = serde_json::from_str(json).unwrap();
        let egress = EgressSpec::try_from(config).unwrap();
        let EgressSpec::Rules(rules) = &egress else { unreachable!("it has rules") };
        let names = Rc::new(NameRules::new(rules, &[HOST.into(), HOST_V6.into()]).unwrap());
        let spec = PasstSpec { egress, not_host: false, publish: Vec::new(), dns: Vec::new() };
        let filter = Filter::new(&spec, Egress::new(&spec, &[]), Some(Rc::clone(&names)));
        let server = NameServer::new(names, SERVERS, true);
        Self { server, filter, now: Instant::now(), asked: None }
    }

    fn step(&mut self, kind: u8, argument: u8, data: &[u8]) -> Vec<Effect> {
        let server = usize::from(argument) % SERVERS;
        match kind % 5 {
            0 => {
                // The message also takes the way through a frame.
                let frame = dns_frame::answer(argument.into(), data);
                let (_, message) = dns_frame::question(&frame).unwrap();
                assert_eq!(message, data);
                let _malformed = dns_frame::question(data);
                self.server.ask(argument.into(), data, self.now)
            }
            // A reply with this number of records to the last question.
            1 => match &self.asked {
                Some((server, asked)) if asked.len() > HEADER_BYTES => {
                    let mut reply = asked.clone();
                    // The record of EDNS takes the last 11 bytes, if there is one.
                    reply.truncate(reply.len() - 11 * usize::from(reply[11]));
                    reply[2..4].copy_from_slice(&[0x81 | argument & 2, 0x80 | argument >> 4 & 5]);
                    reply[6..12].copy_from_slice(&[0, argument & 0x0f, 0, 0, 0, 0]);
                    let server = *server;
                    self.server.hear(server, &[&reply, data].concat(), self.now)
                }
                _ => Vec::new(),
            },
            2 => self.server.hear(server, data, self.now),
            3 => {
                self.now += Duration::from_millis(500) * u32::from(argument);
                self.server.tick(self.now)
            }
            _ => self.server.lose(server, self.now),
        }
    }

    fn check(&mut self, effects: Vec<Effect>) {
        let mut open = Vec::new();
        for effect in effects {
            match effect {
                Effect::Ask { server, message } => {
                    assert!(server < SERVERS);
                    self.asked = Some((server, message));
                }
                Effect::Open { name, addresses, expires } => {
                    let is_allowed =
                        &*name == "a.test" || [".b.test", ".c.d"].iter().any(|end| name.ends_with(end));
                    assert!(is_allowed, "{name}");
                    self.filter.note_answer(&name, &addresses, expires);
                    addresses.iter().for_each(|address| self.check_open(*address));
                    open = addresses;
                }
                Effect::Answer { message, .. } => check_answer(&message, &open),
                Effect::Tell(_) => {}
            }
        }
        assert!(self.server.due().is_none_or(|due| due <= self.now + Duration::from_secs(2)));
    }

    /// Checks that no address is open which no guest may reach, and that the others are.
    fn check_open(&mut self, address: IpAddr) {
        let v4 = match spec::behind_translator(address) {
            IpAddr::V4(v4) => v4,
            IpAddr::V6(v6) => return self.check_open_v6(v6),
        };
        let [a, b, c, d] = v4.octets();
        let is_own = [HOST.octets(), [10, 0, 2, 2], [10, 0, 2, 3], [10, 0, 2, 15]];
        let is_forbidden = is_own.contains(&[a, b, c, d])
            || matches!((a, b), (0 | 127 | 224.., _) | (169, 254))
            || metadata::is_metadata(v4.into());
        assert!(!is_forbidden, "{address}");
        // TCP from port 40000 to port 443, with SYN.
        let ethernet = [2, 0xa3, 0x53, 0, 0, 2, 2, 0xa3, 0x53, 0, 0, 0x0f, 8, 0];
        let ipv4 = [0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 2, 15, a, b, c, d];
        let tcp = [0x9c, 0x40, 1, 0xbb, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0, 0, 0, 0, 0, 0];
        let frame = [&ethernet[..], &ipv4, &tcp].concat();
        assert_eq!(self.filter.leave(&frame, self.now), Verdict::Pass, "{address}");
    }
}

impl Tested {
    /// Does the same for an IPv6 address.
    fn check_open_v6(&mut self, address: Ipv6Addr) {
        let is_in_reach = (0x2000..0x4000).contains(&address.segments()[0])
            || matches!(address.octets()[0], 0xfc | 0xfd);
        let is_own = [HOST_V6, addresses::GUEST_ADDRESS_V6].contains(&address);
        assert!(is_in_reach && !is_own && !metadata::is_metadata(address.into()), "{address}");
        // TCP from port 40000 to port 443, with SYN.
        let ethernet = [2, 0xa3, 0x53, 0, 0, 2, 2, 0xa3, 0x53, 0, 0, 0x0f, 0x86, 0xdd];
        let ipv6 = [0x60, 0, 0, 0, 0, 20, 6, 64];
        let ips = [addresses::GUEST_ADDRESS_V6.octets(), address.octets()].concat();
        let tcp = [0x9c, 0x40, 1, 0xbb, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0, 0, 0, 0, 0, 0];
        let frame = [&ethernet[..], &ipv6, &ips, &tcp].concat();
        assert_eq!(self.filter.leave(&frame, self.now), Verdict::Pass, "{address}");
    }
}

/// Checks that an answer is short and valid, and that it has only addresses that are open.
fn check_answer(message: &[u8], open: &[IpAddr]) {
    assert!(message.len() <= MAX_ANSWER_BYTES, "{}", message.len());
    let message = Message::from_octets(message).unwrap();
    assert!(message.header().qr() && !message.header().tc());
    for record in message.answer().unwrap().limit_to_in::<A>() {
        assert!(open.contains(&record.unwrap().data().addr().into()));
    }
    for record in message.answer().unwrap().limit_to_in::<Aaaa>() {
        assert!(open.contains(&record.unwrap().data().addr().into()));
    }
}
