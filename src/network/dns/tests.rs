//! Messages, read and composed.

use std::net::{Ipv4Addr, Ipv6Addr};

use domain::base::iana::OptionCode;
use domain::base::opt::UnknownOptData;

use super::*;

const FIRST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const SECOND: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

/// A record of a reply.
#[derive(Clone, Copy, Debug)]
enum Record {
    Address(&'static str, Ipv4Addr, u32),
    Alias(&'static str, &'static str, u32),
}

use Record::{Address, Alias};

fn named(text: &str) -> Name<Vec<u8>> {
    Name::vec_from_str(text).unwrap()
}

/// Returns the reply to the question 7 for the addresses of a name.
fn reply(name: &str, code: Rcode, records: &[Record]) -> Vec<u8> {
    let mut builder = MessageBuilder::from_target(StaticCompressor::new(Vec::new())).unwrap();
    builder.header_mut().set_id(7);
    builder.header_mut().set_qr(true);
    builder.header_mut().set_rcode(code);
    let mut question = builder.question();
    question.push((named(name), Rtype::A)).unwrap();
    let mut answer = question.answer();
    for record in records {
        match *record {
            Address(owner, address, ttl) => {
                answer.push((named(owner), ttl, A::new(address))).unwrap();
            }
            Alias(owner, target, ttl) => {
                answer.push((named(owner), ttl, Cname::new(named(target)))).unwrap();
            }
        }
    }
    answer.finish().into_target()
}

fn addresses_of(records: &[Record]) -> Option<Reply> {
    read_reply(&reply("a.test", Rcode::NOERROR, records), 7, "a.test", Family::V4)
}

fn found(addresses: &[Ipv4Addr], seconds: u64) -> Option<Reply> {
    Some(Reply::Addresses(
        addresses.iter().copied().map(IpAddr::from).collect(),
        Duration::from_secs(seconds),
    ))
}

#[test]
fn chain_of_aliases_is_followed_and_other_records_do_not_count() {
    let cases: [(&[Record], Option<Reply>); 10] = [
        (&[Address("a.test", FIRST, 30)], found(&[FIRST], 30)),
        (
            &[Address("A.Test", FIRST, 30), Address("a.test", SECOND, 20)],
            found(&[FIRST, SECOND], 20),
        ),
        (&[Address("a.test", FIRST, 30), Address("a.test", FIRST, 20)], found(&[FIRST], 30)),
        (&[Alias("a.test", "b.test", 9), Address("b.test", FIRST, 30)], found(&[FIRST], 9)),
        // The order of the records does not matter.
        (
            &[
                Address("c.test", FIRST, 30),
                Alias("b.test", "c.test", 50),
                Alias("a.test", "b.test", 60),
            ],
            found(&[FIRST], 30),
        ),
        // Addresses of other names: without an alias, beside it, and of the alias itself.
        (&[Address("evil.test", FIRST, 30)], Some(Reply::NoRecord)),
        (
            &[
                Alias("a.test", "b.test", 60),
                Address("a.test", SECOND, 60),
                Address("evil.test", SECOND, 60),
                Address("b.test", FIRST, 60),
            ],
            found(&[FIRST], 60),
        ),
        (&[Alias("evil.test", "b.test", 60), Address("b.test", FIRST, 60)], Some(Reply::NoRecord)),
        (&[Alias("a.test", "b.test", 60)], Some(Reply::NoRecord)),
        // A circle.
        (
            &[
                Alias("a.test", "b.test", 60),
                Alias("b.test", "a.test", 60),
                Address("a.test", FIRST, 60),
            ],
            Some(Reply::Failed),
        ),
    ];
    for (records, expected) in cases {
        assert_eq!(addresses_of(records), expected, "{records:?}");
    }
}

#[test]
fn chain_and_addresses_are_bounded() {
    let name = |i: usize| -> &'static str { format!("n{i}.test").leak() };
    for (aliases, expected) in [(MAX_ALIASES, found(&[FIRST], 60)), (MAX_ALIASES + 1, None)] {
        let mut records = vec![Alias("a.test", name(1), 60)];
        records.extend((1..aliases).map(|i| Alias(name(i), name(i + 1), 60)));
        records.push(Address(name(aliases), FIRST, 60));
        assert_eq!(addresses_of(&records), expected.or(Some(Reply::Failed)), "{aliases}");
    }
    let many: Vec<Record> =
        (1..=100).map(|i| Address("a.test", Ipv4Addr::new(192, 0, 2, i), 60)).collect();
    let Some(Reply::Addresses(addresses, _)) = addresses_of(&many) else { panic!("no addresses") };
    assert_eq!(addresses.len(), Family::V4.max_addresses());
}

#[test]
fn reply_must_answer_the_question() {
    let records = [Address("a.test", FIRST, 30)];
    let good = reply("a.test", Rcode::NOERROR, &records);
    assert_eq!(read_reply(&good, 7, "a.test", Family::V4), found(&[FIRST], 30));
    assert_eq!(read_reply(&good, 8, "a.test", Family::V4), None, "another number");
    assert_eq!(read_reply(&good, 7, "b.test", Family::V4), None, "another name");
    assert_eq!(
        read_reply(&reply("A.TEST", Rcode::NOERROR, &records), 7, "a.test", Family::V4),
        found(&[FIRST], 30)
    );
    let changed = |at: usize, value: u8| {
        let mut message = good.clone();
        message[at] = value;
        read_reply(&message, 7, "a.test", Family::V4)
    };
    assert_eq!(changed(2, 0), None, "no reply");
    assert_eq!(changed(2, 0x80 | 5 << 3), None, "an update");
    assert_eq!(changed(21, 28), None, "another type");
    assert_eq!(changed(23, 3), None, "another class");
    assert_eq!(changed(5, 2), None, "two questions");
    assert_eq!(changed(5, 0), None, "no question");
    assert_eq!(changed(7, 2), Some(Reply::Failed), "a missing record");
    for length in 0..good.len() {
        let found = read_reply(&good[..length], 7, "a.test", Family::V4);
        assert!(matches!(found, None | Some(Reply::Failed)), "{length}: {found:?}");
    }
}

#[test]
fn code_of_a_reply_decides_unless_the_reply_is_truncated() {
    for (code, expected) in [
        (Rcode::NXDOMAIN, Reply::NoName),
        (Rcode::NOERROR, Reply::NoRecord),
        (Rcode::SERVFAIL, Reply::Failed),
        (Rcode::REFUSED, Reply::Failed),
        (Rcode::FORMERR, Reply::NotUnderstood),
        (Rcode::NOTIMP, Reply::NotUnderstood),
    ] {
        let message = reply("a.test", code, &[]);
        assert_eq!(read_reply(&message, 7, "a.test", Family::V4), Some(expected), "{code}");
    }
    for (records, expected) in
        [(&[][..], Some(Reply::Failed)), (&[Address("a.test", FIRST, 5)], found(&[FIRST], 5))]
    {
        let mut message = reply("a.test", Rcode::NOERROR, records);
        message[2] |= 2;
        assert_eq!(read_reply(&message, 7, "a.test", Family::V4), expected);
    }
    // A server without EDNS may repeat the header only.
    let mut header = reply("a.test", Rcode::FORMERR, &[])[..12].to_vec();
    header[5] = 0;
    assert_eq!(read_reply(&header, 7, "a.test", Family::V4), Some(Reply::NotUnderstood));
    assert_eq!(read_reply(&header, 8, "a.test", Family::V4), None);
}

/// Returns a question of the guest.
fn question(name: &str, kind: Rtype, edns: bool) -> Vec<u8> {
    let mut builder = MessageBuilder::new_vec();
    builder.header_mut().set_id(0x1234);
    builder.header_mut().set_rd(true);
    let mut question = builder.question();
    question.push((named(name), kind)).unwrap();
    let mut additional = question.additional();
    if edns {
        additional.opt(|_| Ok(())).unwrap();
    }
    additional.finish()
}

#[test]
fn question_has_a_name_in_lower_case_and_the_answer_has_it_as_it_was_written() {
    let read = Question::read(&question("aPi.Example.ORG", Rtype::A, false)).unwrap();
    assert_eq!((read.name().as_deref(), read.id()), (Some("api.example.org"), 0x1234));
    assert_eq!(read.family(), Some(Family::V4));
    let answer =
        read.answer(&Answer::Addresses(vec![FIRST.into(), SECOND.into()], Duration::from_secs(30)));
    let message = Message::from_octets(answer.as_slice()).unwrap();
    let header = message.header();
    assert_eq!((header.id(), header.rcode()), (0x1234, Rcode::NOERROR));
    assert!(header.qr() && header.rd() && header.ra() && !header.tc());
    let name = message.sole_question().unwrap().into_qname();
    assert_eq!(name.to_string(), "aPi.Example.ORG");
    let records: Vec<_> =
        message.answer().unwrap().limit_to_in::<A>().map(Result::unwrap).collect();
    let found: Vec<_> = records.iter().map(|record| (record.data().addr(), record.ttl())).collect();
    assert_eq!(found, [(FIRST, Ttl::from_secs(30)), (SECOND, Ttl::from_secs(30))]);
    assert!(message.opt().is_none());
    let family = |kind| Question::read(&question("a.test", kind, false)).unwrap().family();
    assert_eq!(family(Rtype::AAAA), Some(Family::V6));
    assert_eq!(family(Rtype::TXT), None);
}

#[test]
fn answer_has_a_code_and_with_edns_the_reason() {
    for (answer, code, reason) in [
        (Answer::NoRecord, Rcode::NOERROR, None),
        (Answer::Filtered, Rcode::NOERROR, Some(17_u16)),
        (Answer::NoName, Rcode::NXDOMAIN, None),
        (Answer::Prohibited, Rcode::NXDOMAIN, Some(18)),
        (Answer::Failed, Rcode::SERVFAIL, Some(22)),
    ] {
        let read = Question::read(&question("a.test", Rtype::A, true)).unwrap();
        let made = read.answer(&answer);
        let message = Message::from_octets(made.as_slice()).unwrap();
        assert_eq!(message.header().rcode(), code, "{answer:?}");
        assert_eq!(message.header_counts().ancount(), 0);
        let edns = message.opt().unwrap();
        let options = edns.opt().iter::<UnknownOptData<_>>().map(Result::unwrap);
        let found: Vec<_> = options.map(|option| (option.code(), option.data().to_vec())).collect();
        let reason = reason.map(|code| (OptionCode::EXTENDED_ERROR, code.to_be_bytes().to_vec()));
        assert_eq!(found, Vec::from_iter(reason), "{answer:?}");
        // The record must not come without a question that has it (RFC 6891).
        let read = Question::read(&question("a.test", Rtype::A, false)).unwrap();
        let made = read.answer(&answer);
        assert!(Message::from_octets(made.as_slice()).unwrap().opt().is_none());
    }
}

#[test]
fn longest_answer_fits_into_512_bytes() {
    let longest = ["a".repeat(63).as_str(); 4].join(".")[2..].to_owned();
    let read = Question::read(&question(&longest, Rtype::A, true)).unwrap();
    assert_eq!(read.name().as_deref(), Some(longest.as_str()));
    let addresses: Vec<_> = (0..100).map(|i| IpAddr::from([192, 0, 2, i])).collect();
    let made = read.answer(&Answer::Addresses(addresses, Duration::MAX));
    let message = Message::from_octets(made.as_slice()).unwrap();
    let count = usize::from(message.header_counts().ancount());
    assert!(count == Family::V4.max_addresses() && made.len() <= 512, "{count} in {}", made.len());
}

#[test]
fn what_is_no_question_is_ignored_or_gets_an_error() {
    let good = question("a.test", Rtype::A, false);
    let changed = |at: usize, value: u8| {
        let mut message = good.clone();
        message[at] = value;
        Question::read(&message).map(drop)
    };
    assert_eq!(changed(3, 0), Ok(()));
    assert_eq!(changed(2, 0x80), Err(NoQuestion::Ignored), "an answer");
    for (at, value, code, what) in [
        (2, 4 << 3, 4, "a notification"),
        (5, 0, 1, "no question"),
        (5, 2, 1, "two questions"),
        (12, 0xc0, 1, "a name that points to itself"),
        (12, 0x40, 1, "a label of an unknown kind"),
        (23, 3, 5, "another class"),
    ] {
        let opcode = if at == 2 { value } else { 0 };
        let error = vec![0x12, 0x34, 0x80 | opcode, code, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(changed(at, value), Err(NoQuestion::Refused(error)), "{what}");
    }
    for length in 0..good.len() {
        assert!(Question::read(&good[..length]).is_err(), "{length}");
    }
}

#[test]
fn name_that_no_rule_can_have_is_none() {
    let with_label = |label: &[u8]| {
        let head = [0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        let length = [u8::try_from(label.len()).unwrap()];
        let message = [&head[..], &length, label, &[4], b"test", &[0, 0, 1, 0, 1]].concat();
        Question::read(&message).unwrap().name()
    };
    assert_eq!(with_label(b"a").as_deref(), Some("a.test"));
    for label in [&b"a.b"[..], b"a b", b"\0", b"\xff", b"*", "ä".as_bytes()] {
        assert_eq!(with_label(label), None, "{label:?}");
    }
    let root = [&[0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], &[0, 0, 1, 0, 1]].concat();
    assert_eq!(Question::read(&root).unwrap().name(), None);
}

#[test]
fn question_to_a_name_server_asks_for_recursion_and_announces_its_size() {
    for edns in [Edns::With, Edns::Without] {
        let made = ask(9, "a.test", Family::V4, edns).unwrap();
        let message = Message::from_octets(made.as_slice()).unwrap();
        let question = message.sole_question().unwrap();
        assert_eq!(question.to_string(), "a.test.\tA\tIN");
        assert!(message.header().rd() && !message.header().qr());
        assert_eq!((message.header().id(), id_of(&made)), (9, Some(9)));
        let size = message.opt().map(|opt| opt.udp_payload_size());
        assert_eq!(size, (edns == Edns::With).then_some(1232));
    }
    assert_eq!(id_of(&[1]), None);
}

#[test]
fn ipv6_addresses_are_read_and_composed_in_records_of_their_own_type() {
    let asked = ask(7, "a.test", Family::V6, Edns::With).unwrap();
    let asked = Message::from_octets(asked).unwrap();
    assert_eq!(asked.sole_question().unwrap().qtype(), Rtype::AAAA);
    let builder = MessageBuilder::from_target(StaticCompressor::new(Vec::new())).unwrap();
    let mut answer = builder.start_answer(&asked, Rcode::NOERROR).unwrap();
    // Records of the other type do not count.
    answer.push((named("a.test"), 9, A::new(FIRST))).unwrap();
    let address = |i: u16| Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, i);
    for i in 0..20 {
        answer.push((named("a.test"), 60, Aaaa::new(address(i)))).unwrap();
    }
    let reply = answer.finish().into_target();
    let expected: Vec<IpAddr> = (0..7).map(|i| address(i).into()).collect();
    let found = read_reply(&reply, 7, "a.test", Family::V6);
    assert_eq!(found, Some(Reply::Addresses(expected.clone(), Duration::from_secs(60))));
    assert_eq!(read_reply(&reply, 7, "a.test", Family::V4), None, "another type");
    // The most addresses fit into an answer for the longest name.
    let longest = ["a".repeat(63).as_str(); 4].join(".")[2..].to_owned();
    let read = Question::read(&question(&longest, Rtype::AAAA, true)).unwrap();
    let made = read.answer(&Answer::Addresses(expected.clone(), Duration::from_secs(30)));
    assert!(made.len() <= 512, "{}", made.len());
    let made = Message::from_octets(made).unwrap();
    let records = made.answer().unwrap().limit_to_in::<Aaaa>();
    let found: Vec<IpAddr> = records.map(|record| record.unwrap().data().addr().into()).collect();
    assert_eq!(found, expected);
}
