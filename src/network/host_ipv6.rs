//! Whether the host has IPv6, which a guest then has as well.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;

use a3s_box_sys::HostError;
use nix::ifaddrs::getifaddrs;

use crate::spec::is_reachable;

/// What an interface has.
#[derive(Clone, Copy, Debug, Default)]
struct Found {
    link_local: bool,
    /// An address with which a host outside of the link can answer.
    wide: bool,
}

/// Returns the name of an interface with a link-local address, which passt needs for IPv6. Returns
/// `None` if the host has no IPv6: no such interface, or no other IPv6 address than link-local ones
/// and the one of its loopback interface.
pub(super) fn interface() -> Result<Option<String>, HostError> {
    let interfaces = getifaddrs().map_err(HostError::of("list the addresses of the host"))?;
    let address = |address: &nix::sys::socket::SockaddrStorage| {
        address.as_sockaddr_in6().map(|address| address.ip())
    };
    Ok(choose(interfaces.filter_map(|interface| {
        let address = interface.address.as_ref().and_then(address)?;
        Some((interface.interface_name, address))
    })))
}

/// Chooses an interface, by its addresses. One that also has an address for hosts outside of the
/// link comes first: others may be those of guests and containers, which come and go.
fn choose(addresses: impl Iterator<Item = (String, Ipv6Addr)>) -> Option<String> {
    let mut interfaces = BTreeMap::<String, Found>::new();
    for (name, address) in addresses {
        let found = interfaces.entry(name).or_default();
        found.link_local |= address.is_unicast_link_local();
        found.wide |= is_reachable(address.into());
    }
    let has_wide = interfaces.values().any(|found| found.wide);
    let mut usable: Vec<_> =
        interfaces.into_iter().filter(|(_, found)| found.link_local && has_wide).collect();
    usable.sort_by_key(|(_, found)| !found.wide);
    usable.into_iter().next().map(|(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_has_a_link_local_address_on_a_host_with_another_one() {
        for (addresses, expected) in [
            (&[][..], None),
            (&[("lo", "::1")], None),
            (&[("lo", "::1"), ("eth0", "fe80::1")], None),
            (&[("lo", "::1"), ("lo", "2001:db8::1")], None),
            (&[("eth0", "fe80::1"), ("eth0", "2001:db8::1")], Some("eth0")),
            (&[("eth0", "fd00::1"), ("eth0", "fe80::1")], Some("eth0")),
            (&[("veth0", "fe80::1"), ("lo", "2001:db8::1")], Some("veth0")),
            (&[("a0", "fe80::1"), ("eth0", "fe80::2"), ("eth0", "2001:db8::1")], Some("eth0")),
            // Addresses that lead nowhere outside of the host.
            (&[("eth0", "fe80::1"), ("eth0", "fec0::1"), ("eth0", "::1")], None),
        ] {
            let listed = addresses
                .iter()
                .map(|(name, address)| ((*name).to_owned(), address.parse::<Ipv6Addr>().unwrap()));
            assert_eq!(choose(listed).as_deref(), expected, "{addresses:?}");
        }
    }
}
