//! Configures IPv6 of a network interface: addresses and default route, by `rtnetlink(7)`.
//!
//! The kernel must not configure the interface itself. It would add a link-local address of its own,
//! wait a second before it uses it (duplicate address detection, RFC 4862), and ask for routers, of
//! which there are none.

use std::io;
use std::net::Ipv6Addr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use a3s_box_proto::control::Ipv6;
use nix::libc;
use nix::net::if_::if_nametoindex;

use crate::network::{CREATE, attribute, open, request};

/// Settings of each interface (ip-sysctl.rst of Linux).
const SETTINGS: &str = "/proc/sys/net/ipv6/conf";

/// Settings that keep the kernel from configuring an interface itself. The value 1 of
/// `addr_gen_mode` means that the kernel makes no link-local address.
const MANUAL: [(&str, &str); 3] = [("accept_ra", "0"), ("autoconf", "0"), ("addr_gen_mode", "1")];

/// `AF_INET6` as the byte that `rtnetlink(7)` has in its structs.
const FAMILY_IPV6: u8 = 10;

/// Prefix length of a link-local address (RFC 4291).
const LINK_LOCAL_PREFIX_LENGTH: u8 = 64;

/// An interface cannot be configured for IPv6.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Ipv6Error {
    /// The kernel was built or started without IPv6.
    #[error("the kernel has no IPv6, so `{name}` has none")]
    NoKernelSupport { name: String },
    /// A setting cannot be changed.
    #[error("cannot write `{}`", path.display())]
    Setting { path: PathBuf, source: io::Error },
    /// An address of the shim does not have 16 bytes.
    #[error(
        "the config has an IPv6 {what} of {bytes} bytes, expected 16; use a shim and a guest program of one version"
    )]
    Length { what: &'static str, bytes: usize },
    /// A request to the kernel failed.
    #[error("cannot {action} of `{name}`")]
    Request { action: &'static str, name: String, source: io::Error },
}

/// Keeps the kernel from configuring an interface itself. The interface must be down, because the
/// kernel does this when it comes up.
pub(crate) fn make_manual(name: &str) -> Result<(), Ipv6Error> {
    let directory = Path::new(SETTINGS).join(name);
    if !directory.exists() {
        return Err(Ipv6Error::NoKernelSupport { name: name.to_owned() });
    }
    for (setting, value) in MANUAL {
        let path = directory.join(setting);
        std::fs::write(&path, value).map_err(|source| Ipv6Error::Setting { path, source })?;
    }
    Ok(())
}

/// Adds the addresses and the default route to an interface that is up, and returns the address.
/// Stops at the first error.
pub(crate) fn set_up(name: &str, config: &Ipv6) -> Result<Ipv6Addr, Ipv6Error> {
    let failed = |action| {
        let name = name.to_owned();
        move |source| Ipv6Error::Request { action, name, source }
    };
    let own = read("address", &config.address)?;
    let link_local = read("link-local address", &config.link_local)?;
    let gateway = read("gateway", &config.gateway)?;
    let index = if_nametoindex(name).map_err(io::Error::from).map_err(failed("find the number"))?;
    let kernel = open().map_err(failed("ask for the IPv6 settings"))?;
    let prefix_length = u8::try_from(config.prefix_length).unwrap_or(128);
    for (address, prefix_length) in [(link_local, LINK_LOCAL_PREFIX_LENGTH), (own, prefix_length)] {
        add_address(&kernel, index, address, prefix_length)
            .map_err(failed("set an IPv6 address"))?;
    }
    let route = default_route(index, gateway);
    request(&kernel, libc::RTM_NEWROUTE, CREATE, &route).map_err(failed("set the IPv6 route"))?;
    Ok(own)
}

fn read(what: &'static str, octets: &[u8]) -> Result<Ipv6Addr, Ipv6Error> {
    match <[u8; 16]>::try_from(octets) {
        Ok(octets) => Ok(octets.into()),
        Err(_) => Err(Ipv6Error::Length { what, bytes: octets.len() }),
    }
}

/// Adds an address that the kernel uses at once. No other host of the link can have it, because the
/// gateway is the only one.
fn add_address(
    kernel: &OwnedFd,
    index: u32,
    address: Ipv6Addr,
    prefix_length: u8,
) -> io::Result<()> {
    // The flag is a small number (0x02).
    let flags = u8::try_from(libc::IFA_F_NODAD).unwrap_or_default();
    // `struct ifaddrmsg`. The last byte is the scope, which the kernel takes from the address.
    let head = [FAMILY_IPV6, prefix_length, flags, 0];
    let parts: [&[u8]; 3] =
        [&head, &index.to_ne_bytes(), &attribute(libc::IFA_LOCAL, &address.octets())];
    request(kernel, libc::RTM_NEWADDR, CREATE, &parts.concat())
}

/// Returns `struct rtmsg` and its attributes for a default route by `gateway`.
fn default_route(index: u32, gateway: Ipv6Addr) -> Vec<u8> {
    let head = [
        FAMILY_IPV6,
        // A destination prefix of length zero covers all addresses. Source prefix and traffic class
        // are unused.
        0,
        0,
        0,
        libc::RT_TABLE_MAIN,
        libc::RTPROT_BOOT,
        libc::RT_SCOPE_UNIVERSE,
        libc::RTN_UNICAST,
    ];
    let parts: [&[u8]; 4] = [
        &head,
        &[0; 4],
        &attribute(libc::RTA_GATEWAY, &gateway.octets()),
        &attribute(libc::RTA_OIF, &index.to_ne_bytes()),
    ];
    parts.concat()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use a3s_box_proto::control::Interface;
    use nix::sched::{CloneFlags, unshare};

    use super::*;

    /// Runs `test` on a thread in a new network namespace with the network device `eth0`. The kernel
    /// refuses a default route by the loopback interface.
    fn in_network_namespace(test: impl FnOnce() + Send + 'static) {
        let thread = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("this test needs root");
            for command in ["link add eth0 type veth peer name peer", "link set peer up"] {
                let status = Command::new("ip").args(command.split(' ')).status().unwrap();
                assert!(status.success(), "ip {command}");
            }
            test();
        });
        thread.join().unwrap();
    }

    fn config() -> Ipv6 {
        let address = |text: &str| text.parse::<Ipv6Addr>().unwrap().octets().to_vec();
        Ipv6 {
            address: address("fdfb:61f7:afae::15"),
            prefix_length: 128,
            link_local: address("fe80::a3:53ff:fe00:f"),
            gateway: address("fe80::a3:53ff:fe00:2"),
        }
    }

    /// Brings `eth0` up, with an IPv4 address.
    fn bring_up() {
        let name = "eth0".to_owned();
        let address = u32::from_be_bytes([10, 0, 2, 15]);
        let interface = Interface { name, address, prefix_length: 24, ..Interface::default() };
        crate::network::set_up(&interface).unwrap();
    }

    /// Reads a file about the network namespace of this thread. `/proc/net` is the main thread's.
    fn read_proc_net(file: &str) -> String {
        fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap()
    }

    #[test]
    fn adds_addresses_that_are_usable_at_once_and_a_default_route() {
        in_network_namespace(|| {
            make_manual("eth0").unwrap();
            bring_up();
            let own = set_up("eth0", &config()).unwrap();
            assert_eq!(own.to_string(), "fdfb:61f7:afae::15");
            let addresses = read_proc_net("if_inet6");
            let line = |start: &str| {
                let line = addresses.lines().find(|line| line.starts_with(start));
                line.unwrap_or_else(|| panic!("{addresses}")).split_whitespace().collect::<Vec<_>>()
            };
            // The columns are index, prefix length, scope and flags. The flags are "no duplicate
            // address detection" and "permanent", and there is no "tentative" (0x40).
            let own = line("fdfb61f7afae00000000000000000015");
            assert_eq!(own[2..5], ["80", "00", "82"], "{addresses}");
            let link_local = line("fe8000000000000000a353fffe00000f");
            assert_eq!(link_local[2..5], ["40", "20", "82"], "{addresses}");
            let routes = read_proc_net("ipv6_route");
            let is_default = |line: &&str| {
                line.starts_with(&"0".repeat(32))
                    && line.contains("fe8000000000000000a353fffe000002")
            };
            assert_eq!(routes.lines().filter(is_default).count(), 1, "{routes}");
        });
    }

    #[test]
    fn kernel_configures_nothing_itself() {
        in_network_namespace(|| {
            make_manual("eth0").unwrap();
            bring_up();
            let read = |name: &str| fs::read_to_string(Path::new(SETTINGS).join("eth0").join(name));
            let values = ["accept_ra", "autoconf", "addr_gen_mode"]
                .map(|name| read(name).unwrap().trim().to_owned());
            assert_eq!(values, ["0", "0", "1"]);
            let addresses = read_proc_net("if_inet6");
            let is_of_device = |line: &&str| line.ends_with(" eth0");
            assert_eq!(addresses.lines().filter(is_of_device).count(), 0, "{addresses}");
        });
    }

    #[test]
    fn error_names_the_step_and_the_interface() {
        let missing = make_manual("eth99").unwrap_err();
        assert_eq!(missing.to_string(), "the kernel has no IPv6, so `eth99` has none");
        let error = set_up("eth99", &config()).unwrap_err();
        assert_eq!(error.to_string(), "cannot find the number of `eth99`");
        let short = Ipv6 { gateway: vec![1; 4], ..config() };
        let error = set_up("lo", &short).unwrap_err().to_string();
        assert!(
            error.starts_with("the config has an IPv6 gateway of 4 bytes, expected 16"),
            "{error}"
        );
        in_network_namespace(|| {
            make_manual("eth0").unwrap();
            bring_up();
            let twice = [set_up("eth0", &config()), set_up("eth0", &config())];
            let [Ok(_), Err(error)] = twice else { panic!("{twice:?}") };
            assert_eq!(error.to_string(), "cannot set an IPv6 address of `eth0`");
        });
    }
}
