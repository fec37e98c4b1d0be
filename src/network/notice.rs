//! What the gate tells the shim: destinations that it has refused, and how often.
//!
//! A notice is a line of text, such as `tcp 192.0.2.7 443 3 api.example.org`. The guest decides how
//! many packets are refused, so the gate limits the notices. The gate reads input of a hostile
//! guest, so the shim parses the lines strictly and limits them a second time.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use a3s_box_core::event::RefusedProtocol;

use super::packet::{PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP, Packet};
use crate::spec::{MAX_NAME_BYTES, is_name};

/// Notices that may follow each other at once. Most workloads try fewer destinations.
const BURST: u32 = 10;

/// Time in which one more notice may follow.
const INTERVAL: Duration = Duration::from_secs(1);

/// Least time between two notices about the same destination.
const INTERVAL_OF_DESTINATION: Duration = Duration::from_secs(10);

/// Bound on the destinations that are remembered. They take a few KiB. While as many wait for their
/// notice, further ones get none.
const MAX_DESTINATIONS: usize = 64;

/// Longest line: the others are shorter than `icmp <39 characters> 65535 <20 digits> ` and a name.
pub(super) const MAX_LINE_BYTES: usize = 80 + MAX_NAME_BYTES;

/// Where refused packets were to go, or what was refused of DNS: a question for a name, with the
/// address and port of the name server, or an address in the answer for a name, without a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Destination {
    pub(super) protocol: RefusedProtocol,
    pub(super) address: IpAddr,
    pub(super) port: Option<u16>,
    /// The name in the question, or for which the address was answered.
    pub(super) name: Option<Arc<str>>,
}

impl Destination {
    /// Returns the destination of a packet. Returns `None` for packets that passt does not carry, such
    /// as the ICMP errors of a guest's kernel, and for groups of hosts, to which every guest sends
    /// packets that nobody misses.
    pub(super) fn of(packet: &Packet) -> Option<Self> {
        let protocol = match packet.protocol {
            PROTOCOL_TCP => RefusedProtocol::Tcp,
            PROTOCOL_UDP => RefusedProtocol::Udp,
            PROTOCOL_ICMP | PROTOCOL_ICMPV6 if packet.is_opening => RefusedProtocol::Icmp,
            _ => return None,
        };
        let address = packet.destination;
        let is_group = is_group(address);
        let port = packet.ports.map(|ports| ports.destination);
        (!is_group).then_some(Self { protocol, address, port, name: None })
    }
}

/// Returns whether an address is one of many hosts.
pub(super) fn is_group(address: IpAddr) -> bool {
    address.is_multicast() || address == IpAddr::V4(Ipv4Addr::BROADCAST)
}

/// A destination, and the number of packets that were refused since its last notice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Notice {
    pub(super) destination: Destination,
    pub(super) count: u64,
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Destination { protocol, address, port, name } = &self.destination;
        write!(f, "{} {address} ", word(*protocol))?;
        match port {
            Some(port) => write!(f, "{port} {}", self.count)?,
            None => write!(f, "- {}", self.count)?,
        }
        name.iter().try_for_each(|name| write!(f, " {name}"))
    }
}

impl Notice {
    /// Reads a line. Returns `None` for any text that no notice has.
    pub(super) fn read(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let (protocol, address, port, count) =
            (words.next()?, words.next()?, words.next()?, words.next()?);
        let protocols = [
            RefusedProtocol::Tcp,
            RefusedProtocol::Udp,
            RefusedProtocol::Icmp,
            RefusedProtocol::Dns,
        ];
        let name = words.next();
        if name.is_some_and(|name| !is_name(name)) {
            return None;
        }
        let destination = Destination {
            protocol: protocols.into_iter().find(|known| word(*known) == protocol)?,
            address: address.parse().ok()?,
            port: if port == "-" { None } else { Some(port.parse().ok()?) },
            name: name.map(Arc::from),
        };
        let notice = Self { destination, count: count.parse().ok()? };
        // The comparison refuses further words, signs and leading zeros.
        (notice.count > 0 && notice.to_string() == line).then_some(notice)
    }
}

fn word(protocol: RefusedProtocol) -> &'static str {
    match protocol {
        RefusedProtocol::Udp => "udp",
        RefusedProtocol::Icmp => "icmp",
        RefusedProtocol::Dns => "dns",
        // The enum has no further protocol, but other crates may not rely on that.
        _ => "tcp",
    }
}

/// Limits notices to one an [`INTERVAL`], with [`BURST`] of them at once after a silence.
#[derive(Debug)]
pub(super) struct Limit {
    /// Time at which the limit would be as after a silence. Each notice moves it by one interval.
    full_at: Instant,
}

impl Limit {
    pub(super) fn new(now: Instant) -> Self {
        Self { full_at: now }
    }

    /// Returns the time from which the next notice may pass.
    fn free_at(&self) -> Instant {
        let ahead = INTERVAL * (BURST - 1);
        self.full_at.checked_sub(ahead).unwrap_or(self.full_at)
    }

    /// Returns whether a notice may pass now, and counts it.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let is_free = self.free_at() <= now;
        if is_free {
            self.full_at = self.full_at.max(now) + INTERVAL;
        }
        is_free
    }
}

/// The refused destinations of a box.
#[derive(Debug)]
pub(super) struct Notices {
    /// The destinations in the order in which their notices are due.
    known: Vec<Known>,
    limit: Limit,
}

#[derive(Debug)]
struct Known {
    destination: Destination,
    /// Packets since the last notice.
    count: u64,
    /// Time from which the next notice may follow.
    free_at: Instant,
}

impl Notices {
    pub(super) fn new(now: Instant) -> Self {
        Self { known: Vec::new(), limit: Limit::new(now) }
    }

    /// Counts a refused packet.
    pub(super) fn note(&mut self, destination: Destination, now: Instant) {
        if let Some(known) = self.known.iter_mut().find(|known| known.destination == destination) {
            known.count = known.count.saturating_add(1);
            return;
        }
        if self.known.len() >= MAX_DESTINATIONS {
            // A destination whose notice was given makes room for a new one.
            let Some(position) = self.known.iter().position(|known| known.count == 0) else {
                return;
            };
            self.known.remove(position);
        }
        self.known.push(Known { destination, count: 1, free_at: now });
    }

    /// Returns the time at which the next notice is due.
    pub(super) fn due(&self) -> Option<Instant> {
        let waiting = self.known.iter().filter(|known| known.count > 0);
        waiting.map(|known| known.free_at).min().map(|free_at| free_at.max(self.limit.free_at()))
    }

    /// Returns the next notice, if it is due.
    pub(super) fn take(&mut self, now: Instant) -> Option<Notice> {
        let is_due = |known: &Known| known.count > 0 && known.free_at <= now;
        let position = self.known.iter().position(is_due)?;
        if !self.limit.take(now) {
            return None;
        }
        let Known { destination, count, .. } = self.known.remove(position);
        let free_at = now + INTERVAL_OF_DESTINATION;
        self.known.push(Known { destination: destination.clone(), count: 0, free_at });
        Some(Notice { destination, count })
    }
}

#[cfg(test)]
mod tests;
