//! The IPv4 addresses of the host, for `network.not_host` and for rules with names.

use std::net::Ipv4Addr;

use a3s_box_sys::HostError;
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;

use crate::spec::PasstSpec;

/// Returns the addresses of the host that the guest must not reach. Without `network.not_host` there
/// are none, and the interfaces are not looked at.
pub(super) fn out_of_reach(spec: &PasstSpec) -> Result<Vec<Ipv4Addr>, HostError> {
    if spec.not_host { all() } else { Ok(Vec::new()) }
}

/// Returns all addresses of the host, to which no name may lead, whatever `network.not_host` is.
pub(super) fn all() -> Result<Vec<Ipv4Addr>, HostError> {
    find().map_err(HostError::of("list the addresses of the host"))
}

/// Returns the addresses of all interfaces in the network namespace of this process.
fn find() -> Result<Vec<Ipv4Addr>, Errno> {
    let address = |address: &nix::sys::socket::SockaddrStorage| {
        address.as_sockaddr_in().map(|address| address.ip())
    };
    let interfaces = getifaddrs()?;
    Ok(interfaces.filter_map(|interface| interface.address.as_ref().and_then(address)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_address_is_one_of_the_addresses() {
        assert!(find().unwrap().contains(&Ipv4Addr::LOCALHOST));
    }
}
