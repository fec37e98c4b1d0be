//! The gate's name server, as a machine without sockets: questions of the guest and replies of name
//! servers go in, and what the gate has to do comes out.
//!
//! ```text
//!   question ─► no rule has the name ────────────────────────► no such name, and a notice
//!            ─► not for addresses that the guest can use ────► no record
//!            ─► answered a moment ago ───────────────────────► the same answer
//!            ─► asked already: waits with the others ┐
//!            ─► asks the first name server ──────────┴─ reply ─► addresses that a name may lead to
//!                    no reply, or a failure: asks the next one; at last: failure
//! ```
//!
//! An address becomes reachable together with the answer that has it, for the time to live of the
//! answer, and never for less than [`LEAST_REACHABLE`].

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use a3s_box_core::event::RefusedProtocol;

use super::addresses::NAME_SERVER_ADDRESS;
use super::dns::{self, Answer, Edns, Family, NoQuestion, Question, Reply};
use super::filter::PORT_DNS;
use super::names::NameRules;
use super::notice::Destination;

/// Least time for which an answered address may be reached. A client connects after it has the
/// answer, whose time to live may be 0, and many clients keep an answer for up to a minute
/// whatever its time to live is (curl, JVMs, browsers).
pub(super) const LEAST_REACHABLE: Duration = Duration::from_secs(60);

/// Longest time for which an answer counts. A name server may give any time up to 136 years.
const LONGEST: Duration = Duration::from_secs(3600);

/// Time for which the gate remembers that a name has no address. Zones give minutes, but a name
/// whose record was just made should not be missing for so long.
const NEGATIVE: Duration = Duration::from_secs(5);

/// Time that a name server gets for a reply. Resolvers answer most questions within 100 ms. A
/// resolver of the guest waits five seconds and then asks again.
const TRY_TIMEOUT: Duration = Duration::from_secs(2);

/// Least number of questions about one name, so that a single server is asked for 8 seconds.
const LEAST_TRIES: usize = 4;

/// Times that each name server is asked.
const ROUNDS: usize = 2;

/// Bound on the pairs of a name and a family that are asked for at the same time. With what waits for each, they take less
/// than 2 MiB.
const MAX_PENDING: usize = 256;

/// Bound on the questions that wait for the same name.
const MAX_WAITING: usize = 16;

/// Bound on the answers that are kept for the next question.
const MAX_CACHED: usize = 1024;

/// What the gate has to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Send a message to the name server with this index.
    Ask { server: usize, message: Vec<u8> },
    /// Let the guest reach the addresses of a name. Callers must do this before the answer, which
    /// follows.
    Open { name: Arc<str>, addresses: Vec<IpAddr>, expires: Instant },
    /// Send a message to this port of the guest.
    Answer { port: u16, message: Vec<u8> },
    /// Tell the shim of a name or of an address.
    Tell(Destination),
}

/// The state of the name server of one guest. Its collections are trees for the reason that is
/// given in `udp_flows.rs`.
#[derive(Debug)]
pub(super) struct NameServer {
    rules: Rc<NameRules>,
    /// Number of name servers of the host or of the config. There is at least one.
    servers: usize,
    /// Whether names are resolved to IPv6 addresses, too.
    has_ipv6: bool,
    cache: Cache,
    pending: BTreeMap<Key, Pending>,
    /// What is pending, by the numbers of the questions.
    by_id: BTreeMap<u16, Key>,
    ids: Ids,
}

/// What is asked for: a name, and the kind of its addresses.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    name: Arc<str>,
    family: Family,
}

/// A name that was asked for.
#[derive(Debug)]
struct Pending {
    /// Number of the last question.
    id: u16,
    /// Questions before the last one.
    tries: usize,
    edns: Edns,
    /// Time at which the next server is asked.
    deadline: Instant,
    waiting: Vec<Waiting>,
}

/// A question of the guest that has no answer yet.
#[derive(Debug)]
struct Waiting {
    port: u16,
    question: Question,
}

impl NameServer {
    /// Makes a name server in front of this number of others. Without `has_ipv6`, names have IPv4
    /// addresses only.
    ///
    /// Callers must do this before system calls are given up, because it takes a random seed.
    pub(super) fn new(rules: Rc<NameRules>, servers: usize, has_ipv6: bool) -> Self {
        Self {
            rules,
            servers: servers.max(1),
            has_ipv6,
            cache: Cache::default(),
            pending: BTreeMap::new(),
            by_id: BTreeMap::new(),
            ids: Ids::default(),
        }
    }

    /// Takes a message from a port of the guest.
    pub(super) fn ask(&mut self, port: u16, message: &[u8], now: Instant) -> Vec<Effect> {
        let question = match Question::read(message) {
            Ok(question) => question,
            Err(NoQuestion::Ignored) => return Vec::new(),
            Err(NoQuestion::Refused(message)) => return vec![Effect::Answer { port, message }],
        };
        let name = question.name();
        let Some(name) = name.clone().filter(|name| self.rules.have(name)) else {
            let refused = refusal(NAME_SERVER_ADDRESS.into(), Some(PORT_DNS), name);
            let message = question.answer(&Answer::Prohibited);
            return vec![Effect::Tell(refused), Effect::Answer { port, message }];
        };
        let family = question.family().filter(|family| *family == Family::V4 || self.has_ipv6);
        let Some(family) = family else {
            let message = question.answer(&Answer::NoRecord);
            return vec![Effect::Answer { port, message }];
        };
        let (key, waiting) = (Key { name, family }, Waiting { port, question });
        if let Some(answer) = self.cache.get(&key, now) {
            return answers(&key.name, &answer, &[waiting], now);
        }
        self.wait(&key, waiting, now)
    }

    /// Takes a message from the name server with this index.
    pub(super) fn hear(&mut self, server: usize, message: &[u8], now: Instant) -> Vec<Effect> {
        let Some(id) = dns::id_of(message) else { return Vec::new() };
        let Some(key) = self.by_id.get(&id).cloned() else { return Vec::new() };
        let Some(pending) = self.pending.get_mut(&key) else { return Vec::new() };
        if pending.tries % self.servers != server {
            return Vec::new();
        }
        match dns::read_reply(message, id, &key.name, key.family) {
            None => Vec::new(),
            Some(Reply::Addresses(addresses, lifetime)) => {
                self.have_addresses(&key, addresses, lifetime, now)
            }
            Some(Reply::NoRecord) => self.finish(&key, &Answer::NoRecord, NEGATIVE, now),
            Some(Reply::NoName) => self.finish(&key, &Answer::NoName, NEGATIVE, now),
            Some(Reply::NotUnderstood) if pending.edns == Edns::With => {
                pending.edns = Edns::Without;
                self.send(&key, now).into_iter().collect()
            }
            Some(Reply::NotUnderstood | Reply::Failed) => self.try_next(&key, now),
        }
    }

    /// Notes that the name server with this index cannot be reached.
    pub(super) fn lose(&mut self, server: usize, now: Instant) -> Vec<Effect> {
        self.try_next_where(|pending, servers| pending.tries % servers == server, now)
    }

    /// Asks the next name server for each name whose last one has not replied in time.
    pub(super) fn tick(&mut self, now: Instant) -> Vec<Effect> {
        self.try_next_where(|pending, _| pending.deadline <= now, now)
    }

    /// Returns the time at which [`tick`](Self::tick) has something to do.
    pub(super) fn due(&self) -> Option<Instant> {
        self.pending.values().map(|pending| pending.deadline).min()
    }

    /// Has a question wait for a reply, and asks for its name unless that was done already.
    fn wait(&mut self, key: &Key, waiting: Waiting, now: Instant) -> Vec<Effect> {
        if let Some(Pending { waiting: others, .. }) = self.pending.get_mut(key) {
            let is_same = |other: &Waiting| {
                (other.port, other.question.id()) == (waiting.port, waiting.question.id())
            };
            // The guest repeats a question after some seconds. It gets one answer.
            if others.iter().any(is_same) {
                return Vec::new();
            }
            if others.len() < MAX_WAITING {
                others.push(waiting);
                return Vec::new();
            }
            return answers(&key.name, &Answer::Failed, &[waiting], now);
        }
        if self.pending.len() >= MAX_PENDING {
            return answers(&key.name, &Answer::Failed, &[waiting], now);
        }
        let id = self.fresh_id();
        let pending =
            Pending { id, tries: 0, edns: Edns::With, deadline: now, waiting: vec![waiting] };
        self.by_id.insert(id, key.clone());
        self.pending.insert(key.clone(), pending);
        self.send(key, now).into_iter().collect()
    }

    /// Asks the current name server for a pending name, under a new number.
    fn send(&mut self, key: &Key, now: Instant) -> Option<Effect> {
        let id = self.fresh_id();
        let pending = self.pending.get_mut(key)?;
        self.by_id.remove(&pending.id);
        self.by_id.insert(id, key.clone());
        pending.id = id;
        pending.deadline = now + TRY_TIMEOUT;
        let message = dns::ask(id, &key.name, key.family, pending.edns)?;
        Some(Effect::Ask { server: pending.tries % self.servers, message })
    }

    fn fresh_id(&mut self) -> u16 {
        // At most 256 of the 65536 numbers are in use.
        loop {
            let id = self.ids.next();
            if !self.by_id.contains_key(&id) {
                return id;
            }
        }
    }

    fn try_next_where(
        &mut self,
        is_over: impl Fn(&Pending, usize) -> bool,
        now: Instant,
    ) -> Vec<Effect> {
        let over = self.pending.iter().filter(|(_, pending)| is_over(pending, self.servers));
        let keys: Vec<Key> = over.map(|(key, _)| key.clone()).collect();
        keys.iter().flat_map(|key| self.try_next(key, now)).collect()
    }

    fn try_next(&mut self, key: &Key, now: Instant) -> Vec<Effect> {
        let Some(pending) = self.pending.get_mut(key) else { return Vec::new() };
        pending.tries += 1;
        if pending.tries < (self.servers * ROUNDS).max(LEAST_TRIES) {
            return self.send(key, now).into_iter().collect();
        }
        self.finish(key, &Answer::Failed, Duration::ZERO, now)
    }

    fn have_addresses(
        &mut self,
        key: &Key,
        mut addresses: Vec<IpAddr>,
        lifetime: Duration,
        now: Instant,
    ) -> Vec<Effect> {
        let refused: Vec<_> =
            addresses.extract_if(.., |address| !self.rules.may_lead_to(*address)).collect();
        let tell = |address| Effect::Tell(refusal(address, None, Some(Arc::clone(&key.name))));
        let mut effects: Vec<Effect> = refused.into_iter().map(tell).collect();
        let lifetime = lifetime.min(LONGEST);
        let answer = if addresses.is_empty() {
            Answer::Filtered
        } else {
            Answer::Addresses(addresses, lifetime)
        };
        effects.extend(self.finish(key, &answer, lifetime, now));
        effects
    }

    /// Answers all questions for a name, and keeps the answer for this time.
    fn finish(
        &mut self,
        key: &Key,
        answer: &Answer,
        lifetime: Duration,
        now: Instant,
    ) -> Vec<Effect> {
        let Some(Pending { id, waiting, .. }) = self.pending.remove(key) else {
            return Vec::new();
        };
        self.by_id.remove(&id);
        self.cache.insert(key, answer, now + lifetime, now);
        answers(&key.name, answer, &waiting, now)
    }
}

fn refusal(address: IpAddr, port: Option<u16>, name: Option<Arc<str>>) -> Destination {
    Destination { protocol: RefusedProtocol::Dns, address, port, name }
}

/// Returns the effects of one answer to several questions.
fn answers(name: &Arc<str>, answer: &Answer, to: &[Waiting], now: Instant) -> Vec<Effect> {
    let open = match answer {
        Answer::Addresses(addresses, lifetime) => Some(Effect::Open {
            name: Arc::clone(name),
            addresses: addresses.clone(),
            expires: now + (*lifetime).max(LEAST_REACHABLE),
        }),
        _ => None,
    };
    let answers = to.iter().map(|Waiting { port, question }| Effect::Answer {
        port: *port,
        message: question.answer(answer),
    });
    open.into_iter().chain(answers).collect()
}

/// Answers that may be given again.
#[derive(Debug, Default)]
struct Cache {
    by_key: BTreeMap<Key, (Instant, Answer)>,
    soonest_first: BTreeSet<(Instant, Key)>,
}

impl Cache {
    /// Returns the answer for a name, with what is left of its time to live.
    fn get(&self, key: &Key, now: Instant) -> Option<Answer> {
        let (expires, answer) = self.by_key.get(key)?;
        let left = expires.checked_duration_since(now).filter(|left| !left.is_zero())?;
        Some(match answer {
            Answer::Addresses(addresses, _) => Answer::Addresses(addresses.clone(), left),
            other => other.clone(),
        })
    }

    fn insert(&mut self, key: &Key, answer: &Answer, expires: Instant, now: Instant) {
        if expires <= now {
            return;
        }
        let before = self.by_key.insert(key.clone(), (expires, answer.clone()));
        if let Some((before, _)) = before {
            self.soonest_first.remove(&(before, key.clone()));
        }
        self.soonest_first.insert((expires, key.clone()));
        if self.by_key.len() > MAX_CACHED
            && let Some((_, soonest)) = self.soonest_first.pop_first()
        {
            self.by_key.remove(&soonest);
        }
    }
}

/// Numbers of questions that nobody can guess who does not see them.
///
/// They are a keyed hash of a counter. The standard library takes the key from the kernel when it
/// makes the state, and needs no system call afterwards, which the gate's filter would not allow.
#[derive(Debug, Default)]
struct Ids {
    key: RandomState,
    counter: u64,
}

impl Ids {
    fn next(&mut self) -> u16 {
        self.counter = self.counter.wrapping_add(1);
        let [a, b, ..] = self.key.hash_one(self.counter).to_be_bytes();
        u16::from_be_bytes([a, b])
    }
}

#[cfg(test)]
mod tests;
