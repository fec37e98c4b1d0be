//! The addresses that the gate has answered for names, and until when they may be reached.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use super::names::Grant;

/// Bound on the pairs of an address and a grant. With a name of 253 bytes for each address, they
/// take less than 4 MiB. Most boxes reach fewer than a hundred addresses.
const MAX_PAIRS: usize = 8192;

/// Bound on the grants of one address, which are looked at for each packet. An address has several
/// if its names are in rules with different ports.
const MAX_GRANTS: usize = 16;

/// What was answered to one guest.
///
/// Expired addresses stay until others need their place, so that a refused packet can be reported
/// with the name. The collections are trees for the reason that is given in `udp_flows.rs`.
#[derive(Debug, Default)]
pub(super) struct Answered {
    by_address: BTreeMap<IpAddr, Known>,
    /// All pairs of an address and a grant, by the times at which they expire.
    soonest_first: BTreeSet<(Instant, IpAddr, Grant)>,
}

#[derive(Debug)]
struct Known {
    /// The name for which the address was answered last.
    name: Arc<str>,
    /// The times at which the grants expire.
    grants: BTreeMap<Grant, Instant>,
}

impl Answered {
    /// Notes an answer. The pair that expires first makes room for a new one.
    pub(super) fn note(
        &mut self,
        name: &Arc<str>,
        address: IpAddr,
        grants: &BTreeSet<Grant>,
        expires: Instant,
    ) {
        for &grant in grants {
            let known = self
                .by_address
                .entry(address)
                .or_insert_with(|| Known { name: Arc::clone(name), grants: BTreeMap::new() });
            known.name = Arc::clone(name);
            let before = known.grants.get(&grant).copied();
            // An answer with a shorter time to live does not take back what an earlier one gave.
            if before.is_some_and(|before| before >= expires) {
                continue;
            }
            known.grants.insert(grant, expires);
            let soonest = known.grants.iter().map(|(grant, expires)| (*expires, address, *grant));
            let crowded = soonest.min().filter(|_| known.grants.len() > MAX_GRANTS);
            if let Some(before) = before {
                self.soonest_first.remove(&(before, address, grant));
            }
            self.soonest_first.insert((expires, address, grant));
            if let Some(pair) = crowded {
                self.forget(pair);
            }
            if self.soonest_first.len() > MAX_PAIRS
                && let Some(pair) = self.soonest_first.first().copied()
            {
                self.forget(pair);
            }
        }
    }

    fn forget(&mut self, pair: (Instant, IpAddr, Grant)) {
        self.soonest_first.remove(&pair);
        let (_, address, grant) = pair;
        if let Some(known) = self.by_address.get_mut(&address) {
            known.grants.remove(&grant);
            if known.grants.is_empty() {
                self.by_address.remove(&address);
            }
        }
    }

    /// Returns the grants of an address that have not expired.
    pub(super) fn grants(&self, address: IpAddr, now: Instant) -> impl Iterator<Item = Grant> {
        let grants = self.by_address.get(&address).into_iter().flat_map(|known| &known.grants);
        grants.filter(move |(_, expires)| now < **expires).map(|(grant, _)| *grant)
    }

    /// Returns the name for which an address was answered last, also if the answer has expired.
    pub(super) fn name_of(&self, address: IpAddr) -> Option<Arc<str>> {
        self.by_address.get(&address).map(|known| Arc::clone(&known.name))
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use super::*;

    const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

    fn name() -> Arc<str> {
        "a.example".into()
    }

    fn grants(answered: &Answered, address: IpAddr, now: Instant) -> Vec<Grant> {
        answered.grants(address, now).collect()
    }

    #[test]
    fn grant_ends_with_the_longest_of_its_answers_and_the_name_stays() {
        let (mut answered, start) = (Answered::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        answered.note(&name(), ADDRESS, &BTreeSet::from([3]), at(10));
        answered.note(&"b.example".into(), ADDRESS, &BTreeSet::from([3, 5]), at(5));
        assert_eq!(grants(&answered, ADDRESS, at(4)), [3, 5]);
        assert_eq!(grants(&answered, ADDRESS, at(5)), [3]);
        assert_eq!(grants(&answered, ADDRESS, at(10)), [0; 0]);
        assert_eq!(answered.name_of(ADDRESS).as_deref(), Some("b.example"));
        answered.note(&name(), ADDRESS, &BTreeSet::from([5]), at(20));
        assert_eq!(grants(&answered, ADDRESS, at(19)), [5]);
        assert_eq!(answered.soonest_first.len(), 2);
        let other = IpAddr::from([192, 0, 2, 2]);
        assert_eq!((grants(&answered, other, start), answered.name_of(other)), (vec![], None));
    }

    #[test]
    fn table_is_bounded_and_loses_the_pair_that_expires_first() {
        let (mut answered, start) = (Answered::default(), Instant::now());
        let address = |i: u32| IpAddr::from((0x0a00_0000 + i).to_be_bytes());
        let last = u32::try_from(MAX_PAIRS).unwrap();
        // The second one expires first.
        let expires = |i: u32| start + Duration::from_secs(if i == 1 { 1 } else { 100 });
        for i in 0..=last {
            answered.note(&name(), address(i), &BTreeSet::from([0]), expires(i));
        }
        let known = [0, 1, 2, last].map(|i| !grants(&answered, address(i), start).is_empty());
        assert_eq!(known, [true, false, true, true]);
        assert_eq!(answered.soonest_first.len(), MAX_PAIRS);
        assert_eq!(answered.by_address.len(), MAX_PAIRS);
    }

    #[test]
    fn grants_of_one_address_are_bounded() {
        let (mut answered, start) = (Answered::default(), Instant::now());
        for grant in 0..100 {
            let expires = start + Duration::from_secs(200 - u64::from(grant));
            answered.note(&name(), ADDRESS, &BTreeSet::from([grant]), expires);
        }
        // Each new grant expires before the others, and so gives up its place at once.
        assert_eq!(grants(&answered, ADDRESS, start), Vec::from_iter(0..16));
        assert_eq!(answered.soonest_first.len(), MAX_GRANTS);
    }
}
