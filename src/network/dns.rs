//! Messages of DNS (RFC 1035), as the gate's name server reads and writes them.
//!
//! The crate `domain` parses and composes. This module decides which messages count: a question has
//! one name, and the reply of a name server answers exactly the question that was sent. An answer
//! for the guest is composed anew, so that nothing of a reply but addresses reaches it.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use domain::base::iana::{Class, ExtendedErrorCode, Opcode, Rcode, Rtype};
use domain::base::message_builder::{AdditionalBuilder, PushError, StaticCompressor};
use domain::base::name::{Name, ParsedName, ToLabelIter, ToName};
use domain::base::opt::ExtendedError;
use domain::base::rdata::ParseRecordData;
use domain::base::wire::ParseError;
use domain::base::{Message, MessageBuilder, Ttl};
use domain::rdata::{A, Aaaa, Cname};

use crate::spec::{MAX_NAME_BYTES, is_name};

/// Size of a message over UDP that every client takes (RFC 1035), less the 11 bytes of an OPT
/// record (RFC 6891) and the 6 bytes of an extended error (RFC 8914). Every answer for the guest is
/// shorter, so that none has to be truncated.
const MAX_ANSWER_BYTES: usize = 512 - 11 - 6;

/// Longest message over UDP that the gate announces to take, from a name server and from the guest.
/// It fits into one packet of every network, so that no part of a reply can be forged as a fragment
/// of its own (RFC 9715). It has room for 70 addresses, and those of a truncated reply count all
/// the same.
pub(super) const MAX_MESSAGE_BYTES: u16 = 1232;

/// Bound on the aliases between a name and its addresses. Resolvers have bounds from 8 to 20.
const MAX_ALIASES: usize = 16;

/// The kind of the addresses that a question is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    fn of(kind: Rtype) -> Option<Self> {
        match kind {
            Rtype::A => Some(Self::V4),
            Rtype::AAAA => Some(Self::V6),
            _ => None,
        }
    }

    fn kind(self) -> Rtype {
        match self {
            Self::V4 => Rtype::A,
            Self::V6 => Rtype::AAAA,
        }
    }

    /// Bound on the addresses of a name. More do not fit into [`MAX_ANSWER_BYTES`] for the longest
    /// name.
    pub(super) fn max_addresses(self) -> usize {
        match self {
            Self::V4 => 13,
            Self::V6 => 7,
        }
    }
}

/// A question of the guest.
#[derive(Clone, Debug)]
pub(super) struct Question {
    id: u16,
    wants_recursion: bool,
    has_edns: bool,
    /// The name as the guest has written it. A client may compare the case of its letters.
    name: Name<Vec<u8>>,
    kind: Rtype,
}

/// What is not a question.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NoQuestion {
    /// It must not be answered, because it has no header or is an answer itself.
    Ignored,
    /// The answer to it is this error.
    Refused(Vec<u8>),
}

/// The answer to a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The name has these addresses, for this time.
    Addresses(Vec<IpAddr>, Duration),
    /// The name exists and has no record of this type.
    NoRecord,
    /// The name has addresses, and may lead to none of them.
    Filtered,
    /// The name does not exist.
    NoName,
    /// No rule has the name.
    Prohibited,
    /// No name server has answered.
    Failed,
}

/// The reply of a name server.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// The name has these addresses, for this time.
    Addresses(Vec<IpAddr>, Duration),
    /// The name has no address.
    NoRecord,
    /// The name does not exist.
    NoName,
    /// The server does not understand the question. It may be older than EDNS (RFC 6891).
    NotUnderstood,
    /// The server could not answer, or its reply is malformed.
    Failed,
}

impl Question {
    /// Reads a message of the guest.
    pub(super) fn read(message: &[u8]) -> Result<Self, NoQuestion> {
        let Ok(message) = Message::from_octets(message) else { return Err(NoQuestion::Ignored) };
        let header = message.header();
        if header.qr() {
            return Err(NoQuestion::Ignored);
        }
        let refused = |code| NoQuestion::Refused(error(header.id(), header.opcode(), code));
        if header.opcode() != Opcode::QUERY {
            return Err(refused(Rcode::NOTIMP));
        }
        let question = message.sole_question();
        let Ok(question) = question else { return Err(refused(Rcode::FORMERR)) };
        if question.qclass() != Class::IN {
            return Err(refused(Rcode::REFUSED));
        }
        Ok(Self {
            id: header.id(),
            wants_recursion: header.rd(),
            has_edns: message.opt().is_some(),
            name: question.qname().to_vec(),
            kind: question.qtype(),
        })
    }

    /// The number by which the guest finds the question of an answer.
    pub(super) fn id(&self) -> u16 {
        self.id
    }

    /// Returns the kind of the addresses that the question is for, if it is for addresses.
    pub(super) fn family(&self) -> Option<Family> {
        Family::of(self.kind)
    }

    /// Returns the name in lower case and without a dot at its end. Returns `None` for a name that
    /// no rule can have.
    pub(super) fn name(&self) -> Option<Arc<str>> {
        let mut text = String::with_capacity(MAX_NAME_BYTES);
        for label in self.name.iter_labels().filter(|label| !label.is_root()) {
            if !text.is_empty() {
                text.push('.');
            }
            // A dot inside of a label would make another name of it.
            let label = std::str::from_utf8(label.as_slice()).ok()?;
            if label.contains('.') {
                return None;
            }
            text.extend(label.chars().map(|c| c.to_ascii_lowercase()));
        }
        is_name(&text).then(|| text.into())
    }

    /// Returns the message for the guest with this answer.
    pub(super) fn answer(&self, answer: &Answer) -> Vec<u8> {
        // The message is bounded, and a vector takes it, so that composing cannot fail. An empty
        // message, which the guest drops, would be the result.
        self.compose(answer).unwrap_or_default()
    }

    fn compose(&self, answer: &Answer) -> Result<Vec<u8>, PushError> {
        let mut builder = MessageBuilder::from_target(StaticCompressor::new(Vec::new()))?;
        builder.set_push_limit(MAX_ANSWER_BYTES);
        let header = builder.header_mut();
        header.set_id(self.id);
        header.set_qr(true);
        header.set_rd(self.wants_recursion);
        header.set_ra(true);
        header.set_rcode(match answer {
            Answer::Addresses(..) | Answer::NoRecord | Answer::Filtered => Rcode::NOERROR,
            Answer::NoName | Answer::Prohibited => Rcode::NXDOMAIN,
            Answer::Failed => Rcode::SERVFAIL,
        });
        let mut question = builder.question();
        question.push((&self.name, self.kind))?;
        let mut records = question.answer();
        if let Answer::Addresses(addresses, lifetime) = answer {
            // A time to live has 31 bits (RFC 2181).
            let seconds = u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX >> 1);
            let ttl = Ttl::from_secs(seconds);
            let most = self.family().map_or(0, Family::max_addresses);
            for address in addresses.iter().take(most) {
                match *address {
                    IpAddr::V4(v4) => records.push((&self.name, Class::IN, ttl, A::new(v4)))?,
                    IpAddr::V6(v6) => records.push((&self.name, Class::IN, ttl, Aaaa::new(v6)))?,
                }
            }
        }
        let mut additional = records.additional();
        additional.clear_push_limit();
        if self.has_edns {
            push_edns(&mut additional, answer)?;
        }
        Ok(additional.finish().into_target())
    }
}

/// Adds the record with which a question that has EDNS must be answered, and the reason why there
/// are no addresses (RFC 8914).
fn push_edns(
    additional: &mut AdditionalBuilder<StaticCompressor<Vec<u8>>>,
    answer: &Answer,
) -> Result<(), PushError> {
    let reason = match answer {
        Answer::Prohibited => Some(ExtendedErrorCode::PROHIBITED),
        Answer::Filtered => Some(ExtendedErrorCode::FILTERED),
        Answer::Failed => Some(ExtendedErrorCode::NO_REACHABLE_AUTHORITY),
        Answer::Addresses(..) | Answer::NoRecord | Answer::NoName => None,
    };
    additional.opt(|edns| {
        edns.set_udp_payload_size(MAX_MESSAGE_BYTES);
        reason.map_or(Ok(()), |reason| edns.push(&ExtendedError::<&[u8]>::from(reason)))
    })
}

/// Returns a message that has a header only.
fn error(id: u16, opcode: Opcode, code: Rcode) -> Vec<u8> {
    let mut builder = MessageBuilder::new_vec();
    let header = builder.header_mut();
    header.set_id(id);
    header.set_opcode(opcode);
    header.set_qr(true);
    header.set_rcode(code);
    builder.finish()
}

/// Whether a question announces that longer replies are taken (RFC 6891).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Edns {
    /// It does.
    With,
    /// It does not, because a server did not understand it.
    Without,
}

/// Returns the message that asks a name server for the addresses of a name.
pub(super) fn ask(id: u16, name: &str, family: Family, edns: Edns) -> Option<Vec<u8>> {
    let name = Name::vec_from_str(name).ok()?;
    let mut builder = MessageBuilder::new_vec();
    let header = builder.header_mut();
    header.set_id(id);
    header.set_rd(true);
    let mut question = builder.question();
    question.push((&name, family.kind())).ok()?;
    let mut additional = question.additional();
    if edns == Edns::With {
        let announce = additional.opt(|edns| {
            edns.set_udp_payload_size(MAX_MESSAGE_BYTES);
            Ok(())
        });
        announce.ok()?;
    }
    Some(additional.finish())
}

/// Returns the number of a message, by which its question is found.
pub(super) fn id_of(message: &[u8]) -> Option<u16> {
    message.first_chunk().map(|id| u16::from_be_bytes(*id))
}

/// Reads a message of a name server. Returns `None` if it is no reply to the question with this
/// number for the addresses of `name`.
pub(super) fn read_reply(message: &[u8], id: u16, name: &str, family: Family) -> Option<Reply> {
    let message = Message::from_octets(message).ok()?;
    let header = message.header();
    if !header.qr() || header.id() != id || header.opcode() != Opcode::QUERY {
        return None;
    }
    // A server that does not understand a question may leave it out of the reply. The reply has no
    // other effect than one more question.
    if matches!(header.rcode(), Rcode::FORMERR | Rcode::NOTIMP) {
        return Some(Reply::NotUnderstood);
    }
    let question = message.sole_question().ok()?;
    let asked = Name::vec_from_str(name).ok()?;
    let is_asked = question.qname().name_eq(&asked)
        && (question.qtype(), question.qclass()) == (family.kind(), Class::IN);
    if !is_asked {
        return None;
    }
    Some(match header.rcode() {
        Rcode::NXDOMAIN => Reply::NoName,
        Rcode::NOERROR => match addresses(&message, question.into_qname(), family) {
            Ok(Some((addresses, _))) if addresses.is_empty() && header.tc() => Reply::Failed,
            Ok(Some((addresses, _))) if addresses.is_empty() => Reply::NoRecord,
            Ok(Some((addresses, lifetime))) => Reply::Addresses(addresses, lifetime),
            Ok(None) | Err(_) => Reply::Failed,
        },
        _ => Reply::Failed,
    })
}

/// Follows the aliases from a name to its addresses. Returns the addresses and the shortest time to
/// live on the way, or `None` if the aliases make a circle.
///
/// Records that do not belong to this chain do not count, whoever has put them there. The length of
/// the message bounds the records.
fn addresses<'a>(
    message: &'a Message<&'a [u8]>,
    mut name: ParsedName<&'a [u8]>,
    family: Family,
) -> Result<Option<(Vec<IpAddr>, Duration)>, ParseError> {
    let mut lifetime = Duration::MAX;
    for _ in 0..=MAX_ALIASES {
        if let Some((target, ttl)) = alias(message, &name)? {
            lifetime = lifetime.min(ttl);
            name = target;
            continue;
        }
        let records = match family {
            Family::V4 => records(message, &name, |data: &A| data.addr().into())?,
            Family::V6 => records(message, &name, |data: &Aaaa| data.addr().into())?,
        };
        let mut addresses = Vec::new();
        for (address, ttl) in records {
            if addresses.len() < family.max_addresses() && !addresses.contains(&address) {
                lifetime = lifetime.min(ttl);
                addresses.push(address);
            }
        }
        return Ok(Some((addresses, lifetime)));
    }
    Ok(None)
}

/// Returns the addresses in the records of a name, and their times to live.
fn records<'a, D: ParseRecordData<'a, &'a [u8]>>(
    message: &'a Message<&'a [u8]>,
    name: &ParsedName<&[u8]>,
    address: impl Fn(&D) -> IpAddr,
) -> Result<Vec<(IpAddr, Duration)>, ParseError> {
    let mut found = Vec::new();
    for record in message.answer()?.limit_to_in::<D>() {
        let record = record?;
        if record.owner().name_eq(name) {
            found.push((address(record.data()), record.ttl().into_duration()));
        }
    }
    Ok(found)
}

/// The name for which another one is an alias, and its time to live.
type Alias<'a> = (ParsedName<&'a [u8]>, Duration);

/// Returns the name for which `name` is an alias, if there is one.
fn alias<'a>(
    message: &'a Message<&[u8]>,
    name: &ParsedName<&[u8]>,
) -> Result<Option<Alias<'a>>, ParseError> {
    for record in message.answer()?.limit_to_in::<Cname<_>>() {
        let record = record?;
        if record.owner().name_eq(name) {
            let ttl = record.ttl().into_duration();
            return Ok(Some((record.into_data().into_cname(), ttl)));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests;
