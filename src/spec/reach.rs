//! The addresses that a guest can reach at all. Nothing in a config adds to them.
//!
//! Some IPv6 addresses contain the IPv4 address of another host. A translator (NAT64) passes packets
//! for them on to this host, so each of them follows the rules of its IPv4 address. Where the IPv4
//! address is in such an address depends on its prefix, and is known for one prefix only. The others
//! are out of reach.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The prefix of 96 bits that is the same for all translators (`64:ff9b::/96`, RFC 6052). The IPv4
/// address follows it.
const NAT64: [u16; 6] = [0x0064, 0xff9b, 0, 0, 0, 0];

/// Returns whether a guest may send to an address: it must name a single host, and not the host
/// itself.
pub(crate) fn is_reachable(address: IpAddr) -> bool {
    match behind_translator(address) {
        IpAddr::V4(address) => is_reachable_v4(address),
        IpAddr::V6(address) => is_reachable_v6(address),
    }
}

/// Returns the address of the host that an address leads to: the IPv4 address behind a translator,
/// or the address itself.
pub(crate) fn behind_translator(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    let [prefix @ .., high, low] = v6.segments();
    if prefix == NAT64 {
        let [[a, b], [c, d]] = [high, low].map(u16::to_be_bytes);
        Ipv4Addr::new(a, b, c, d).into()
    } else {
        address
    }
}

fn is_reachable_v4(address: Ipv4Addr) -> bool {
    // 0.0.0.0/8 means "this host", 224.0.0.0/4 is multicast, and 240.0.0.0/4 is reserved except for
    // the broadcast address.
    let [first, ..] = address.octets();
    first != 0 && first < 224 && !address.is_loopback()
}

/// Only the two blocks with ordinary hosts are in reach: global (`2000::/3`) and local addresses
/// (`fc00::/7`, RFC 4193). The rest is loopback, link-local, multicast, reserved, or has an IPv4
/// address in it (`::ffff:127.0.0.1`, `::127.0.0.1`, `64:ff9b:1::/48`).
fn is_reachable_v6(address: Ipv6Addr) -> bool {
    let [first, second, ..] = address.segments();
    // Both lead to IPv4 addresses through tunnels of the host (RFC 3056, RFC 4380).
    let is_6to4 = first == 0x2002;
    let is_teredo = (first, second) == (0x2001, 0);
    let is_global = first & 0xe000 == 0x2000 && !is_6to4 && !is_teredo;
    is_global || address.is_unique_local()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_other_than_the_host_itself_are_reachable() {
        for text in [
            "1.1.1.1",
            "10.0.2.2",
            "223.255.255.255",
            "2000::",
            "2001:1::1",
            "2001:db8::1",
            "2003::1",
            "3fff:ffff::1",
            "fc00::1",
            "fdff:ffff::1",
            "64:ff9b::1.1.1.1",
        ] {
            assert!(is_reachable(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn addresses_of_no_single_other_host_are_not_reachable() {
        for text in [
            "127.0.0.1",
            "0.1.2.3",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::127.0.0.1",
            "::8.8.8.8",
            "::ffff:127.0.0.1",
            "::ffff:8.8.8.8",
            // Translated addresses of RFC 2765.
            "::ffff:0:8.8.8.8",
            "64:ff9b::127.0.0.1",
            "64:ff9b::",
            "64:ff9b::224.0.0.1",
            // The same bits at another place, and the prefix for local translators (RFC 8215).
            "64:ff9b:0:1::8.8.8.8",
            "64:ff9b:1::8.8.8.8",
            "64:ff9b:1:fffe::8.8.8.8",
            "65:ff9b::8.8.8.8",
            "100::1",
            "1fff:ffff::1",
            "2001::1",
            "2001:0:4136:e378:8000:63bf:3fff:fdd2",
            "2002::1",
            "2002:7f00:1::1",
            "4000::1",
            "fbff::1",
            "fe80::1",
            "febf::1",
            "fec0::1",
            "ff02::1",
            "ff0e::1",
        ] {
            assert!(!is_reachable(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn address_behind_a_translator_is_its_ipv4_address() {
        let behind = |text: &str| behind_translator(text.parse().unwrap()).to_string();
        assert_eq!(behind("64:ff9b::192.0.2.7"), "192.0.2.7");
        for text in ["192.0.2.7", "2001:db8::7", "::ffff:192.0.2.7", "64:ff9b:1::1"] {
            assert_eq!(behind(text), text);
        }
    }
}
