//! UDP flows that one side has opened. A datagram of the other side passes only if it answers one.
//!
//! passt of Debian 12 binds each source port of the guest to `0.0.0.0` of the host, where any host
//! of the network can send to it. The gate therefore remembers to whom the guest has sent. It also
//! remembers who has sent to a published port, whom the guest may then answer.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Time after the last datagram of the side that has opened the flow in which answers pass. passt keeps its socket for the same
/// time (`UDP_CONN_TIMEOUT`).
const LIFETIME: Duration = Duration::from_secs(180);

/// Bound on the flows of a box. They take less than 512 KiB. A guest that resolves a thousand names
/// in a second can still wait four seconds for each answer.
const MAX_FLOWS: usize = 4096;

/// A port of the guest, and the address of its peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct UdpFlow {
    pub(super) guest_port: u16,
    pub(super) remote: SocketAddr,
}

/// The flows of one guest that one side has opened.
///
/// The collections are trees and no hash tables, because the seed of a hash table takes a system
/// call that the gate's filter does not allow.
#[derive(Debug, Default)]
pub(super) struct UdpFlows {
    /// Time of the last datagram in each flow.
    last_sent: BTreeMap<UdpFlow, Instant>,
    /// The same flows in the order of these times.
    oldest_first: BTreeSet<(Instant, UdpFlow)>,
}

impl UdpFlows {
    /// Notes that the side that opens the flows has sent a datagram. The oldest flow makes room for a new one.
    pub(super) fn note(&mut self, flow: UdpFlow, now: Instant) {
        if let Some(before) = self.last_sent.insert(flow, now) {
            self.oldest_first.remove(&(before, flow));
        }
        self.oldest_first.insert((now, flow));
        if self.oldest_first.len() > MAX_FLOWS
            && let Some((_, oldest)) = self.oldest_first.pop_first()
        {
            self.last_sent.remove(&oldest);
        }
    }

    /// Returns whether there was such a datagram in this flow recently.
    pub(super) fn is_open(&self, flow: UdpFlow, now: Instant) -> bool {
        self.last_sent
            .get(&flow)
            .is_some_and(|last| now.saturating_duration_since(*last) < LIFETIME)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn flow(guest_port: u16) -> UdpFlow {
        UdpFlow { guest_port, remote: (Ipv4Addr::new(192, 0, 2, 1), 53).into() }
    }

    #[test]
    fn flow_ends_after_its_lifetime_unless_the_guest_sends_again() {
        let (mut flows, start) = (UdpFlows::default(), Instant::now());
        assert!(!flows.is_open(flow(40_000), start));
        flows.note(flow(40_000), start);
        let almost = start + LIFETIME.checked_sub(Duration::from_millis(1)).unwrap();
        assert!(flows.is_open(flow(40_000), almost));
        assert!(!flows.is_open(flow(40_000), start + LIFETIME));
        flows.note(flow(40_000), almost);
        assert!(flows.is_open(flow(40_000), start + LIFETIME));
    }

    #[test]
    fn table_is_bounded_and_loses_the_flow_that_was_silent_for_the_longest_time() {
        let (mut flows, start) = (UdpFlows::default(), Instant::now());
        let at = |milliseconds: usize| {
            start + Duration::from_millis(u64::try_from(milliseconds).unwrap())
        };
        let port = |number: usize| flow(u16::try_from(number).unwrap());
        for number in 0..MAX_FLOWS {
            flows.note(port(number), at(number));
        }
        // The first flow is now the newest one, so the second one is the oldest.
        flows.note(port(0), at(MAX_FLOWS));
        flows.note(port(MAX_FLOWS), at(MAX_FLOWS + 1));
        let now = at(MAX_FLOWS + 1);
        let open = [0, 1, 2, MAX_FLOWS].map(|number| flows.is_open(port(number), now));
        assert_eq!(open, [true, false, true, true]);
        assert_eq!((flows.last_sent.len(), flows.oldest_first.len()), (MAX_FLOWS, MAX_FLOWS));
    }
}
