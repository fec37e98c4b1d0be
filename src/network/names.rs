//! The rules of `network.egress` that have a name, prepared for a look-up for each question.
//!
//! A look-up takes one search in a hash table for each label of a name, however many rules there
//! are. The tables are complete before the gate gives up the system call that seeds one.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use a3s_box_core::config::{PortRange, Protocol};

use super::addresses::{GATEWAY_ADDRESS, GUEST_ADDRESS, GUEST_ADDRESS_V6, NAME_SERVER_ADDRESS};
use super::metadata::is_metadata;
use super::rules::Allowed;
use crate::spec::{RuleSpec, Scope, Target, behind_translator, is_reachable};

/// Number of a set of ports and protocols. Rules with equal sets share it.
pub(super) type Grant = u32;

/// The ports and the protocol of one rule.
type Content = (Vec<PortRange>, Option<Protocol>);

/// The names that the rules of a box have.
#[derive(Debug)]
pub(super) struct NameRules {
    exact: HashMap<String, Grant>,
    /// Names whose subdomains a rule is for.
    below: HashMap<String, Grant>,
    /// What each grant allows.
    allowed: Vec<Allowed>,
    /// Addresses of the host and of the guest's network, to which no name may lead.
    own: BTreeSet<IpAddr>,
}

impl NameRules {
    /// Returns the names of the rules, or `None` if they have none.
    pub(super) fn new(rules: &[RuleSpec], addresses_of_host: &[IpAddr]) -> Option<Self> {
        let mut contents: BTreeMap<(&str, Scope), Vec<Content>> = BTreeMap::new();
        for RuleSpec { to, ports, protocol } in rules {
            if let Target::Name(pattern) = to {
                let content = contents.entry((&pattern.name, pattern.scope)).or_default();
                content.push((ports.clone(), *protocol));
            }
        }
        if contents.is_empty() {
            return None;
        }
        let (mut exact, mut below, mut allowed) = (HashMap::new(), HashMap::new(), Vec::new());
        let mut grants: BTreeMap<Vec<Content>, Grant> = BTreeMap::new();
        for ((name, scope), mut content) in contents {
            content.sort_unstable();
            content.dedup();
            // There are at most as many grants as rules, so the conversion cannot fail.
            let next = Grant::try_from(allowed.len()).unwrap_or(Grant::MAX);
            let grant = *grants.entry(content).or_insert_with_key(|content| {
                allowed.push(allowed_by(content));
                next
            });
            let names = if scope == Scope::Exact { &mut exact } else { &mut below };
            names.insert(name.to_owned(), grant);
        }
        let of_guests_network = [
            GATEWAY_ADDRESS.into(),
            GUEST_ADDRESS.into(),
            NAME_SERVER_ADDRESS.into(),
            GUEST_ADDRESS_V6.into(),
        ];
        let own = addresses_of_host.iter().copied().chain(of_guests_network).collect();
        Some(Self { exact, below, allowed, own })
    }

    /// Returns whether a rule has this name, which is in lower case and has no dot at its end.
    pub(super) fn have(&self, name: &str) -> bool {
        self.matches(name).next().is_some()
    }

    /// Returns the grants of all rules that have this name.
    pub(super) fn grants_of(&self, name: &str) -> BTreeSet<Grant> {
        self.matches(name).collect()
    }

    fn matches(&self, name: &str) -> impl Iterator<Item = Grant> {
        let parents = name.match_indices('.').filter_map(|(dot, _)| name.get(dot + 1..));
        let below = parents.filter_map(|parent| self.below.get(parent));
        self.exact.get(name).into_iter().chain(below).copied()
    }

    /// Returns whether a grant allows packets of a protocol to a port.
    pub(super) fn grant_allows(&self, grant: Grant, protocol: u8, port: Option<u16>) -> bool {
        let index = usize::try_from(grant).unwrap_or(usize::MAX);
        self.allowed.get(index).is_some_and(|allowed| allowed.has(protocol, port))
    }

    /// Returns whether a name may lead to an address.
    ///
    /// The owner of a name decides to which addresses it resolves. None of them may be one that the
    /// host or a cloud trusts its clients by (DNS rebinding).
    pub(super) fn may_lead_to(&self, address: IpAddr) -> bool {
        let host = behind_translator(address);
        is_reachable(host) && !is_metadata(host) && !self.own.contains(&host)
    }
}

fn allowed_by(content: &[Content]) -> Allowed {
    let mut allowed = Allowed::default();
    for (ports, protocol) in content {
        allowed.add(ports, *protocol);
    }
    allowed.merge();
    allowed
}

#[cfg(test)]
mod tests;
