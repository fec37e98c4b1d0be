//! The rules of `network.egress` that have an address, prepared for a look-up for each packet, and
//! what a rule allows.
//!
//! All networks with the same prefix length are in one sorted map, so that a look-up takes one
//! search in each of them: at most 33, however many rules there are. A box usually has two or three
//! different lengths.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use a3s_box_core::config::{PortRange, Protocol};

use super::packet::{PROTOCOL_TCP, PROTOCOL_UDP};
use crate::spec::{RuleSpec, Target};

/// The destinations that the rules of a box name.
#[derive(Debug, Default)]
pub(super) struct Rules {
    /// For the mask of each prefix length, the networks of this length by their addresses.
    by_mask: BTreeMap<u32, BTreeMap<u32, Allowed>>,
}

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
        let mut by_mask: BTreeMap<u32, BTreeMap<u32, Allowed>> = BTreeMap::new();
        for RuleSpec { to, ports, protocol } in rules {
            let Target::Network(network) = to else { continue };
            let networks = by_mask.entry(network.mask()).or_default();
            networks.entry(network.address.into()).or_default().add(ports, *protocol);
        }
        by_mask.values_mut().flat_map(BTreeMap::values_mut).for_each(Allowed::merge);
        Self { by_mask }
    }

    /// Returns whether a rule names a destination. `protocol` is the number of the protocol. There is
    /// no port in a fragment, and in a packet of a protocol without ports.
    pub(super) fn allow(&self, address: Ipv4Addr, protocol: u8, port: Option<u16>) -> bool {
        let address = u32::from(address);
        self.by_mask
            .iter()
            .filter_map(|(mask, networks)| networks.get(&(address & mask)))
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
