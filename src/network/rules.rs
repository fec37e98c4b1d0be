//! The rules of `network.egress` that have an address, prepared for a look-up for each packet, and
//! what a rule allows.
//!
//! All networks with the same prefix length are in one sorted map, so that a look-up takes one
//! search in each of them: at most 33 for an IPv4 address and 129 for an IPv6 address, however many
//! rules there are. A box usually has two or three different lengths.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::BitAnd;

use a3s_box_core::config::{PortRange, Protocol};

use super::packet::{PROTOCOL_TCP, PROTOCOL_UDP};
use crate::spec::{RuleSpec, Subnet, Target};

/// The destinations that the rules of a box name.
#[derive(Debug, Default)]
pub(super) struct Rules {
    v4: Networks<u32>,
    v6: Networks<u128>,
}

/// For the mask of each prefix length, the networks of this length by their addresses.
#[derive(Debug)]
struct Networks<A>(BTreeMap<A, BTreeMap<A, Allowed>>);

/// What the rules about one network or name allow.
#[derive(Debug, Default)]
pub(super) struct Allowed {
    tcp: Ports,
    udp: Ports,
    /// A rule has neither ports nor a protocol, so that all protocols pass.
    everything: bool,
}

/// Ports of one protocol.
#[derive(Debug, Default)]
struct Ports {
    /// A rule has no ports, so that also a fragment passes, in which there is no port.
    all: bool,
    /// Ranges in ascending order that do not overlap.
    ranges: Vec<PortRange>,
}

impl Rules {
    pub(super) fn new(rules: &[RuleSpec]) -> Self {
        let mut all = Self::default();
        for RuleSpec { to, ports, protocol } in rules {
            let Target::Network(network) = to else { continue };
            all.entry(*network).add(ports, *protocol);
        }
        all.v4.merge();
        all.v6.merge();
        all
    }

    fn entry(&mut self, to: Subnet) -> &mut Allowed {
        match to.address {
            IpAddr::V4(v4) => self.v4.entry(Subnet::mask_v4(to.prefix_length), v4.into()),
            IpAddr::V6(v6) => self.v6.entry(Subnet::mask_v6(to.prefix_length), v6.into()),
        }
    }

    /// Returns whether a rule names a destination. `protocol` is the number of the protocol. There is
    /// no port in a fragment, and in a packet of a protocol without ports.
    pub(super) fn allow(&self, address: IpAddr, protocol: u8, port: Option<u16>) -> bool {
        match address {
            IpAddr::V4(v4) => self.v4.allow(v4.into(), protocol, port),
            IpAddr::V6(v6) => self.v6.allow(v6.into(), protocol, port),
        }
    }
}

impl<A> Default for Networks<A> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<A: Copy + Ord + BitAnd<Output = A>> Networks<A> {
    fn entry(&mut self, mask: A, address: A) -> &mut Allowed {
        self.0.entry(mask).or_default().entry(address).or_default()
    }

    fn merge(&mut self) {
        self.0.values_mut().flat_map(BTreeMap::values_mut).for_each(Allowed::merge);
    }

    fn allow(&self, address: A, protocol: u8, port: Option<u16>) -> bool {
        self.0
            .iter()
            .filter_map(|(mask, networks)| networks.get(&(address & *mask)))
            .any(|allowed| allowed.has(protocol, port))
    }
}

impl Allowed {
    /// Adds what a rule allows. Callers must [merge](Self::merge) before the first look-up.
    pub(super) fn add(&mut self, ports: &[PortRange], protocol: Option<Protocol>) {
        self.everything |= ports.is_empty() && protocol.is_none();
        if protocol != Some(Protocol::Udp) {
            self.tcp.add(ports);
        }
        if protocol != Some(Protocol::Tcp) {
            self.udp.add(ports);
        }
    }

    /// Puts the ports in order.
    pub(super) fn merge(&mut self) {
        self.tcp.merge();
        self.udp.merge();
    }

    /// Returns whether a rule allows packets of this protocol to this port.
    pub(super) fn has(&self, protocol: u8, port: Option<u16>) -> bool {
        self.everything
            || match protocol {
                PROTOCOL_TCP => self.tcp.has(port),
                PROTOCOL_UDP => self.udp.has(port),
                _ => false,
            }
    }
}

impl Ports {
    /// Adds the ports of a rule, which has all ports if it lists none.
    fn add(&mut self, ports: &[PortRange]) {
        self.all |= ports.is_empty();
        self.ranges.extend(ports);
    }

    /// Sorts the ranges and joins those that overlap.
    fn merge(&mut self) {
        self.ranges.sort_unstable();
        self.ranges.dedup_by(|next, kept| {
            let overlaps = next.first <= kept.last;
            if overlaps {
                kept.last = kept.last.max(next.last);
            }
            overlaps
        });
    }

    fn has(&self, port: Option<u16>) -> bool {
        let in_range = |port: u16| {
            let below = self.ranges.partition_point(|range| range.last < port);
            self.ranges.get(below).is_some_and(|range| range.first <= port)
        };
        self.all || port.is_some_and(in_range)
    }
}

#[cfg(test)]
mod tests;
