//! The addresses of the host, for `network.not_host` and for rules with names.

use std::net::IpAddr;

use a3s_box_sys::HostError;
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;

use crate::spec::PasstSpec;

/// Returns the addresses of the host that the guest must not reach. Without `network.not_host` there
/// are none, and the interfaces are not looked at.
pub(super) fn out_of_reach(spec: &PasstSpec) -> Result<Vec<IpAddr>, HostError> {
    if spec.not_host { all() } else { Ok(Vec::new()) }
}

/// Returns all addresses of the host, to which no name may lead, whatever `network.not_host` is.
pub(super) fn all() -> Result<Vec<IpAddr>, HostError> {
    find().map_err(HostError::of("list the addresses of the host"))
}

/// Returns the addresses of all interfaces in the network namespace of this process.
fn find() -> Result<Vec<IpAddr>, Errno> {
    let address = |address: &nix::sys::socket::SockaddrStorage| {
        let v4 = address.as_sockaddr_in().map(|address| address.ip().into());
        v4.or_else(|| address.as_sockaddr_in6().map(|address| address.ip().into()))
    };
    let interfaces = getifaddrs()?;
    Ok(interfaces.filter_map(|interface| interface.address.as_ref().and_then(address)).collect())
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    #[test]
    fn loopback_addresses_are_among_the_addresses() {
        let found = find().unwrap();
        for address in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
            assert!(found.contains(&address), "{found:?}");
        }
    }
}
