//! Questions and replies, in the order in which they come.

use std::net::{Ipv4Addr, Ipv6Addr};

use a3s_box_core::config::Egress;
use domain::base::iana::{Rcode, Rtype};
use domain::base::message_builder::StaticCompressor;
use domain::base::{Message, MessageBuilder, Name};
use domain::rdata::{A, Aaaa, AllRecordData};

use super::*;
use crate::spec::EgressSpec;

const FIRST: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const FIRST_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));
const HOST_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10));
const HOST: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 10));

/// A name server, and what has to be known of its last question.
struct Tested {
    server: NameServer,
    start: Instant,
}

/// What a test expects of an effect.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    /// A question to this server.
    Asked(usize),
    /// Addresses are open for this number of seconds after the start.
    Opened(Vec<IpAddr>, u64),
    /// The guest's port, the code, the addresses and the seconds of an answer.
    Answered(u16, Rcode, Vec<IpAddr>, Option<u32>),
    Told(String),
}

use Seen::{Answered, Asked, Opened, Told};

fn named(text: &str) -> Name<Vec<u8>> {
    Name::vec_from_str(text).unwrap()
}

fn question(id: u16, name: &str, kind: Rtype) -> Vec<u8> {
    let mut builder = MessageBuilder::new_vec();
    builder.header_mut().set_id(id);
    let mut question = builder.question();
    question.push((named(name), kind)).unwrap();
    question.finish()
}

/// Returns the reply to a question of the gate.
fn reply(asked: &[u8], code: Rcode, addresses: &[IpAddr], ttl: u32) -> Vec<u8> {
    let asked = Message::from_octets(asked).unwrap();
    let builder = MessageBuilder::from_target(StaticCompressor::new(Vec::new())).unwrap();
    let mut answer = builder.start_answer(&asked, code).unwrap();
    let name = asked.sole_question().unwrap().into_qname();
    for address in addresses {
        match *address {
            IpAddr::V4(address) => answer.push((&name, ttl, A::new(address))).unwrap(),
            IpAddr::V6(address) => answer.push((&name, ttl, Aaaa::new(address))).unwrap(),
        }
    }
    answer.finish().into_target()
}

impl Tested {
    fn new(servers: usize) -> Self {
        Self::with(servers, true)
    }

    fn with(servers: usize, has_ipv6: bool) -> Self {
        let json = r#"[{"to": "a.test"}, {"to": "*.b.test"}]"#;
        let egress: Egress = serde_json::from_str(json).unwrap();
        let EgressSpec::Rules(rules) = egress.try_into().unwrap() else { panic!("no rules") };
        let rules = Rc::new(NameRules::new(&rules, &[HOST, HOST_V6]).unwrap());
        Self { server: NameServer::new(rules, servers, has_ipv6), start: Instant::now() }
    }

    fn at(&self, milliseconds: u64) -> Instant {
        self.start + Duration::from_millis(milliseconds)
    }

    /// Asks from port 1000 with the number 1.
    fn ask(&mut self, name: &str, milliseconds: u64) -> Vec<Effect> {
        let now = self.at(milliseconds);
        self.server.ask(1000, &question(1, name, Rtype::A), now)
    }

    fn hear(&mut self, server: usize, message: &[u8], milliseconds: u64) -> Vec<Seen> {
        let now = self.at(milliseconds);
        let effects = self.server.hear(server, message, now);
        self.seen(&effects)
    }

    fn seen(&self, effects: &[Effect]) -> Vec<Seen> {
        let seen = |effect: &Effect| match effect {
            Effect::Ask { server, .. } => Asked(*server),
            Effect::Open { addresses, expires, .. } => {
                Opened(addresses.clone(), (*expires - self.start).as_secs())
            }
            Effect::Answer { port, message } => {
                let message = Message::from_octets(message.as_slice()).unwrap();
                let records = message.answer().unwrap().limit_to_in::<AllRecordData<_, _>>();
                let records: Vec<_> = records.map(Result::unwrap).collect();
                let address = |data: &AllRecordData<_, _>| match data {
                    AllRecordData::A(data) => IpAddr::from(data.addr()),
                    AllRecordData::Aaaa(data) => data.addr().into(),
                    _ => panic!("the answer has another record"),
                };
                let addresses = records.iter().map(|record| address(record.data())).collect();
                let ttl = records.first().map(|record| record.ttl().as_secs());
                Answered(*port, message.header().rcode(), addresses, ttl)
            }
            Effect::Tell(destination) => {
                let Destination { address, port, name, .. } = destination;
                Told(format!("{address} {port:?} {name:?}"))
            }
        };
        effects.iter().map(seen).collect()
    }
}

/// Returns the message of the only effect, which must be a question.
fn asked(effects: &[Effect]) -> Vec<u8> {
    match effects {
        [Effect::Ask { message, .. }] => message.clone(),
        other => panic!("{other:?}"),
    }
}

fn answered(code: Rcode) -> Seen {
    Answered(1000, code, Vec::new(), None)
}

#[test]
fn allowed_name_is_asked_for_and_its_addresses_are_opened_before_the_answer() {
    for name in ["a.test", "A.TEST", "x.b.test"] {
        let mut tested = Tested::new(1);
        let message = asked(&tested.ask(name, 0));
        let reply = reply(&message, Rcode::NOERROR, &[FIRST], 120);
        let expected =
            [Opened(vec![FIRST], 120), Answered(1000, Rcode::NOERROR, vec![FIRST], Some(120))];
        assert_eq!(tested.hear(0, &reply, 10), expected, "{name}");
        // The same reply again is one to no question.
        assert_eq!(tested.hear(0, &reply, 11), []);
        assert!(tested.server.pending.is_empty() && tested.server.by_id.is_empty());
    }
}

#[test]
fn other_names_do_not_exist_and_are_reported() {
    let mut tested = Tested::new(1);
    for (name, told) in [
        ("evil.test", r#"10.0.2.3 Some(53) Some("evil.test")"#),
        ("b.test", r#"10.0.2.3 Some(53) Some("b.test")"#),
        ("x.a.test", r#"10.0.2.3 Some(53) Some("x.a.test")"#),
        (".", "10.0.2.3 Some(53) None"),
    ] {
        let effects = tested.ask(name, 0);
        let expected = [Told(told.to_owned()), answered(Rcode::NXDOMAIN)];
        assert_eq!(tested.seen(&effects), expected, "{name}");
    }
    assert!(tested.server.pending.is_empty());
}

#[test]
fn other_types_have_no_record_and_are_not_asked_for() {
    let mut tested = Tested::new(1);
    for kind in [Rtype::TXT, Rtype::HTTPS, Rtype::ANY, Rtype::CNAME] {
        let effects = tested.server.ask(1000, &question(1, "a.test", kind), tested.start);
        assert_eq!(tested.seen(&effects), [answered(Rcode::NOERROR)], "{kind}");
    }
    let effects = tested.server.ask(1000, &question(1, "evil.test", Rtype::TXT), tested.start);
    assert_eq!(tested.seen(&effects)[1..], [answered(Rcode::NXDOMAIN)]);
}

#[test]
fn times_to_live_are_bounded_on_both_sides() {
    for (ttl, open, answered) in
        [(0, 60, 0), (59, 60, 59), (61, 61, 61), (3601, 3600, 3600), (u32::MAX, 3600, 3600)]
    {
        let mut tested = Tested::new(1);
        let message = asked(&tested.ask("a.test", 0));
        let reply = reply(&message, Rcode::NOERROR, &[FIRST], ttl);
        let expected = [
            Opened(vec![FIRST], open),
            Answered(1000, Rcode::NOERROR, vec![FIRST], Some(answered)),
        ];
        assert_eq!(tested.hear(0, &reply, 0), expected, "{ttl}");
    }
}

#[test]
fn answer_is_given_again_with_what_is_left_of_its_time() {
    let mut tested = Tested::new(1);
    let message = asked(&tested.ask("a.test", 0));
    tested.hear(0, &reply(&message, Rcode::NOERROR, &[FIRST], 100), 0);
    let effects = tested.ask("a.test", 70_000);
    // The client may keep the answer for 30 seconds, and the address is open for 60.
    let expected =
        [Opened(vec![FIRST], 130), Answered(1000, Rcode::NOERROR, vec![FIRST], Some(30))];
    assert_eq!(tested.seen(&effects), expected);
    asked(&tested.ask("a.test", 100_000));
    // Nothing is kept of a time to live of 0.
    let message = asked(&tested.ask("x.b.test", 0));
    tested.hear(0, &reply(&message, Rcode::NOERROR, &[FIRST], 0), 0);
    asked(&tested.ask("x.b.test", 0));
}

#[test]
fn missing_names_are_remembered_for_five_seconds() {
    for code in [Rcode::NXDOMAIN, Rcode::NOERROR] {
        let mut tested = Tested::new(1);
        let message = asked(&tested.ask("a.test", 0));
        let reply = reply(&message, code, &[], 0);
        assert_eq!(tested.hear(0, &reply, 0), [answered(code)]);
        let again = tested.ask("a.test", 4999);
        assert_eq!(tested.seen(&again), [answered(code)]);
        asked(&tested.ask("a.test", 5000));
    }
}

#[test]
fn addresses_that_no_name_may_lead_to_are_left_out_and_reported() {
    let forbidden = [
        Ipv4Addr::LOCALHOST.into(),
        Ipv4Addr::new(169, 254, 169, 254).into(),
        Ipv4Addr::new(100, 100, 100, 200).into(),
        Ipv4Addr::new(10, 0, 2, 2).into(),
        Ipv4Addr::new(10, 0, 2, 15).into(),
        Ipv4Addr::new(224, 0, 0, 1).into(),
        Ipv4Addr::UNSPECIFIED.into(),
        HOST,
    ];
    for address in forbidden {
        let mut tested = Tested::new(1);
        let told = || Told(format!(r#"{address} None Some("a.test")"#));
        let message = asked(&tested.ask("a.test", 0));
        let both = reply(&message, Rcode::NOERROR, &[address, FIRST], 90);
        let expected = [
            told(),
            Opened(vec![FIRST], 90),
            Answered(1000, Rcode::NOERROR, vec![FIRST], Some(90)),
        ];
        assert_eq!(tested.hear(0, &both, 0), expected);
        let mut tested = Tested::new(1);
        let message = asked(&tested.ask("a.test", 0));
        let only = reply(&message, Rcode::NOERROR, &[address], 90);
        assert_eq!(tested.hear(0, &only, 0), [told(), answered(Rcode::NOERROR)]);
        // The next question is answered without asking, and not reported again.
        let again = tested.ask("a.test", 1);
        assert_eq!(tested.seen(&again), [answered(Rcode::NOERROR)]);
    }
}

#[test]
fn ipv6_addresses_are_asked_for_and_kept_apart_from_ipv4_ones() {
    let mut tested = Tested::new(1);
    let v6 = |tested: &mut Tested, milliseconds| {
        let now = tested.at(milliseconds);
        tested.server.ask(1001, &question(2, "a.test", Rtype::AAAA), now)
    };
    let (first, second) = (asked(&tested.ask("a.test", 0)), asked(&v6(&mut tested, 0)));
    let reply_v6 = reply(&second, Rcode::NOERROR, &[FIRST_V6], 90);
    let answered_v6 = || Answered(1001, Rcode::NOERROR, vec![FIRST_V6], Some(90));
    assert_eq!(tested.hear(0, &reply_v6, 0), [Opened(vec![FIRST_V6], 90), answered_v6()]);
    // The other question still waits, and its answer does not replace the one that is kept.
    assert_eq!(
        tested.hear(0, &reply(&first, Rcode::NXDOMAIN, &[], 0), 0),
        [answered(Rcode::NXDOMAIN)]
    );
    let again = v6(&mut tested, 0);
    assert_eq!(tested.seen(&again), [Opened(vec![FIRST_V6], 90), answered_v6()]);
}

#[test]
fn guest_without_ipv6_gets_no_ipv6_addresses() {
    let mut tested = Tested::with(1, false);
    let effects = tested.server.ask(1000, &question(1, "a.test", Rtype::AAAA), tested.start);
    assert_eq!(tested.seen(&effects), [answered(Rcode::NOERROR)]);
}

#[test]
fn ipv6_addresses_that_no_name_may_lead_to_are_left_out_and_reported() {
    let forbidden = [
        "::1",
        "::",
        "fe80::1",
        "fd00:ec2::254",
        "::ffff:127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        // The host, the gateway and the name server behind a translator.
        "64:ff9b::192.0.2.10",
        "64:ff9b::10.0.2.2",
        "64:ff9b::10.0.2.3",
        "fdfb:61f7:afae::15",
        "2001:db8::10",
    ];
    for text in forbidden {
        let address: IpAddr = text.parse().unwrap();
        let mut tested = Tested::new(1);
        let message =
            asked(&tested.server.ask(1000, &question(1, "a.test", Rtype::AAAA), tested.start));
        let both = reply(&message, Rcode::NOERROR, &[address, FIRST_V6], 90);
        let expected = [
            Told(format!(r#"{address} None Some("a.test")"#)),
            Opened(vec![FIRST_V6], 90),
            Answered(1000, Rcode::NOERROR, vec![FIRST_V6], Some(90)),
        ];
        assert_eq!(tested.hear(0, &both, 0), expected);
    }
}

#[test]
fn name_is_asked_for_once_and_all_questions_get_the_answer() {
    let mut tested = Tested::new(1);
    let message = asked(&tested.ask("a.test", 0));
    assert_eq!(tested.ask("A.test", 1), [], "the guest repeats its question");
    let mut ports = vec![1000];
    for port in 2000..2020 {
        let effects = tested.server.ask(port, &question(1, "a.test", Rtype::A), tested.at(2));
        if ports.len() < MAX_WAITING {
            assert_eq!(effects, []);
            ports.push(port);
        } else {
            let failed = Answered(port, Rcode::SERVFAIL, Vec::new(), None);
            assert_eq!(tested.seen(&effects), [failed], "too many wait");
        }
    }
    let reply = reply(&message, Rcode::NOERROR, &[FIRST], 90);
    let seen = tested.hear(0, &reply, 3);
    let answer = |port| Answered(port, Rcode::NOERROR, vec![FIRST], Some(90));
    assert_eq!(seen[1..], ports.into_iter().map(answer).collect::<Vec<_>>());
}

#[test]
fn silent_and_failing_servers_are_followed_by_the_next_one_until_the_last_try() {
    for servers in 1..=3 {
        let mut tested = Tested::new(servers);
        let mut last = asked(&tested.ask("a.test", 0));
        let tries = (2 * servers).max(4);
        for number in 1..=tries {
            let now = tested.server.due().unwrap();
            let early = tested.server.tick(now.checked_sub(Duration::from_millis(1)).unwrap());
            assert_eq!(early, []);
            // A server is silent, fails, or cannot be reached.
            let server = (number - 1) % servers;
            let effects = match number % 3 {
                0 => tested.server.tick(now),
                1 => tested.server.hear(server, &reply(&last, Rcode::SERVFAIL, &[], 0), now),
                _ => tested.server.lose(server, now),
            };
            if number < tries {
                assert_eq!(tested.seen(&effects), [Asked(number % servers)]);
                last = asked(&effects);
            } else {
                assert_eq!(tested.seen(&effects), [answered(Rcode::SERVFAIL)]);
            }
        }
        assert_eq!(tested.server.due(), None);
        assert!(tested.server.by_id.is_empty());
        // A failure is not kept.
        asked(&tested.ask("a.test", 60_000));
    }
}

#[test]
fn late_replies_and_those_of_another_server_do_not_count() {
    let mut tested = Tested::new(2);
    let first = asked(&tested.ask("a.test", 0));
    let of_first = reply(&first, Rcode::NOERROR, &[FIRST], 90);
    assert_eq!(tested.hear(1, &of_first, 1), [], "the other server");
    let second = asked(&tested.server.tick(tested.at(2000)));
    assert_eq!(tested.hear(0, &of_first, 2001), [], "it is late");
    assert_eq!(tested.hear(1, &of_first, 2001), []);
    assert_eq!(tested.hear(1, &[], 2001), []);
    let of_second = reply(&second, Rcode::NOERROR, &[FIRST], 90);
    assert_eq!(tested.hear(1, &of_second, 2002).len(), 2);
}

#[test]
fn server_without_edns_is_asked_again_without_it() {
    let mut tested = Tested::new(2);
    let first = asked(&tested.ask("a.test", 0));
    assert!(Message::from_octets(first.as_slice()).unwrap().opt().is_some());
    let formerr = reply(&first, Rcode::FORMERR, &[], 0);
    let effects = tested.server.hear(0, &formerr, tested.at(1));
    assert_eq!(tested.seen(&effects), [Asked(0)]);
    let second = asked(&effects);
    assert!(Message::from_octets(second.as_slice()).unwrap().opt().is_none());
    // If it does not understand this question either, the next one is asked.
    let formerr = reply(&second, Rcode::FORMERR, &[], 0);
    assert_eq!(tested.hear(0, &formerr, 2), [Asked(1)]);
}

#[test]
fn names_that_are_asked_for_and_kept_are_bounded() {
    let mut tested = Tested::new(1);
    let mut messages = Vec::new();
    for i in 0..MAX_PENDING {
        messages.push(asked(&tested.ask(&format!("n{i}.b.test"), 0)));
    }
    let effects = tested.ask("a.test", 0);
    assert_eq!(tested.seen(&effects), [answered(Rcode::SERVFAIL)]);
    assert_eq!((tested.server.pending.len(), tested.server.by_id.len()), (256, 256));
    tested.hear(0, &reply(&messages[0], Rcode::NXDOMAIN, &[], 0), 0);
    asked(&tested.ask("a.test", 0));
    let mut cache = Cache::default();
    let now = tested.start;
    for i in 0..=MAX_CACHED {
        let expires = now + Duration::from_secs(if i == 5 { 1 } else { 100 });
        let key = Key { name: format!("n{i}").into(), family: Family::V4 };
        cache.insert(&key, &Answer::NoName, expires, now);
    }
    assert_eq!((cache.by_key.len(), cache.soonest_first.len()), (MAX_CACHED, MAX_CACHED));
    let has = |name: &str| cache.get(&Key { name: name.into(), family: Family::V4 }, now).is_some();
    assert!(has("n4") && !has("n5") && has("n6") && has(&format!("n{MAX_CACHED}")));
}

#[test]
fn numbers_of_questions_do_not_repeat_an_order() {
    let numbers = |mut ids: Ids| -> Vec<u16> { (0..64).map(|_| ids.next()).collect() };
    let (first, second) = (numbers(Ids::default()), numbers(Ids::default()));
    assert_ne!(first, second);
    let mut different = first.clone();
    different.sort_unstable();
    different.dedup();
    assert!(different.len() > 60, "{first:?}");
}
