//! The IPv4 addresses of the host, for `network.not_host`.

use std::net::Ipv4Addr;

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;

/// Returns the addresses of all interfaces in the network namespace of this process.
pub(super) fn find() -> Result<Vec<Ipv4Addr>, Errno> {
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
