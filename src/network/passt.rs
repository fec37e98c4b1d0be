//! The helper program passt: its path and its arguments.

use std::env;
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use a3s_box_core::config::{Protocol, PublishConfig};

use super::addresses::{
    GATEWAY_ADDRESS, GATEWAY_LINK_LOCAL, GATEWAY_MAC, GUEST_ADDRESS, GUEST_ADDRESS_V6, MTU,
    PREFIX_LENGTH,
};
use crate::spec::PasstSpec;

const NAME: &str = "passt";

/// Search path if `$PATH` is not set.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// First port on the loopback address of an empty network that passt forwards into the guest.
///
/// Each published port gets one such port, counted from here. They are above 1024, because passt
/// has no privileges, and independent of the guest's port numbers, which may be below.
const FIRST_INNER_PORT: u16 = 10_000;

/// User and group id of `nobody`. The number is used, because every host has it
/// (`DEFAULT_OVERFLOWUID`, Linux) and the name of the group differs between distributions.
pub(super) const NOBODY: u32 = 65_534;

/// Returns the path of passt in the search path.
pub(crate) fn find() -> Option<PathBuf> {
    let is_executable = |path: &PathBuf| {
        // A relative entry of `$PATH` depends on the working directory, in which another user may
        // have put a file of this name.
        path.is_absolute()
            && path
                .metadata()
                .is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    };
    directories().into_iter().map(|directory| directory.join(NAME)).find(is_executable)
}

/// Returns the directories in which passt is looked for, as text for a user.
pub(crate) fn searched() -> String {
    let named = |directory: PathBuf| format!("`{}`", directory.display());
    directories().into_iter().map(named).collect::<Vec<_>>().join(", ")
}

fn directories() -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into());
    env::split_paths(&path).collect()
}

/// Returns the port on the empty network's loopback address for the published port at `position`.
pub(super) fn inner_port(position: usize) -> u16 {
    // The config has at most 64 published ports, so neither the conversion nor the sum overflows.
    FIRST_INNER_PORT + u16::try_from(position).unwrap_or_default()
}

/// Returns the TCP ports that passt listens on: those of the host, or those of the empty network.
pub(super) fn tcp_ports(spec: &PasstSpec) -> impl Iterator<Item = u16> {
    let ports = spec.publish.iter().enumerate().filter(|(_, port)| port.protocol == Protocol::Tcp);
    ports.map(|(i, port)| if spec.egress.is_deny() { inner_port(i) } else { port.host_port })
}

/// Returns the arguments of passt, whose standard input is the wire.
///
/// By default passt copies interface, addresses and name servers from the host, so each of them is
/// given. DHCP and its IPv6 counterparts are off, because PID 1 configures the guest's interface.
///
/// With the name of an `ipv6` interface, the guest has IPv6.
pub(super) fn arguments(spec: &PasstSpec, user: Option<u32>, ipv6: Option<&str>) -> Vec<OsString> {
    let mut arguments: Vec<String> = [
        "--foreground",
        "--quiet",
        "--fd",
        "0",
        // passt requires an interface to exist, but takes nothing from it with the options below.
        // For IPv6, passt of Debian 12 requires one with a link-local address.
        "--interface",
        ipv6.unwrap_or("lo"),
        // Without this, the gateway's address would lead to the loopback address of the host. With
        // it, the address is one like any other: passt connects to a host of this address.
        // Connections from the host itself still reach the guest from the gateway's address.
        "--no-map-gw",
        "--no-dhcp",
        "--no-dhcpv6",
        "--no-ra",
        "--dns",
        "none",
        "--search",
        "none",
    ]
    .map(str::to_owned)
    .into();
    let mac = GATEWAY_MAC.map(|byte| format!("{byte:02x}")).join(":");
    for (name, value) in [
        ("--address", GUEST_ADDRESS.to_string()),
        ("--netmask", PREFIX_LENGTH.to_string()),
        ("--gateway", GATEWAY_ADDRESS.to_string()),
        ("--mac-addr", mac),
        ("--mtu", MTU.to_string()),
    ] {
        arguments.extend([name.to_owned(), value]);
    }
    if ipv6.is_some() {
        let (address, gateway) = (GUEST_ADDRESS_V6.to_string(), GATEWAY_LINK_LOCAL.to_string());
        arguments.extend(["--address".to_owned(), address, "--gateway".to_owned(), gateway]);
    } else {
        arguments.push("--ipv4-only".to_owned());
    }
    if let Some(user) = user {
        arguments.extend(["--runas".to_owned(), format!("{user}:{user}")]);
    }
    arguments.extend(forwarded(spec));
    arguments.into_iter().map(OsString::from).collect()
}

fn forwarded(spec: &PasstSpec) -> Vec<String> {
    let is_published = |address: IpAddr, port: &PublishConfig| {
        spec.publish.contains(&PublishConfig { host_address: address, ..port.clone() })
    };
    let forward = |(i, port): (usize, &PublishConfig)| {
        let from = if spec.egress.is_deny() {
            format!("{}/{}", Ipv4Addr::LOCALHOST, inner_port(i))
        } else if !port.host_address.is_unspecified() {
            format!("{}/{}", port.host_address, port.host_port)
        } else if !is_published(Ipv4Addr::UNSPECIFIED.into(), port) {
            format!("{}/{}", Ipv6Addr::UNSPECIFIED, port.host_port)
        } else if !is_published(Ipv6Addr::UNSPECIFIED.into(), port) {
            format!("{}/{}", Ipv4Addr::UNSPECIFIED, port.host_port)
        } else if port.host_address.is_ipv4() {
            // Without an address, passt listens on all addresses of both IP versions. Two options
            // with one port are an error for passt of Debian 12.
            port.host_port.to_string()
        } else {
            return None;
        };
        let option = match port.protocol {
            Protocol::Tcp => "--tcp-ports",
            Protocol::Udp => "--udp-ports",
        };
        Some([option.to_owned(), format!("{from}:{}", port.guest_port)])
    };
    let options = spec.publish.iter().enumerate().filter_map(forward);
    let mut forwarded: Vec<String> = options.flatten().collect();
    // Without the option for UDP, passt forwards the UDP ports that have the same numbers as the
    // TCP ports (passt(1)).
    for option in ["--tcp-ports", "--udp-ports"] {
        if !forwarded.iter().any(|argument| argument == option) {
            forwarded.extend([option.to_owned(), "none".to_owned()]);
        }
    }
    forwarded
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::EgressSpec;

    fn spec(egress: EgressSpec, protocol: Protocol) -> PasstSpec {
        let port = |host_port, protocol| PublishConfig {
            host_address: Ipv4Addr::new(192, 0, 2, 1).into(),
            host_port,
            guest_port: 80,
            protocol,
        };
        let publish = vec![port(8080, Protocol::Tcp), port(8081, protocol)];
        PasstSpec { egress, not_host: false, publish, dns: Vec::new() }
    }

    #[test]
    fn ports_are_forwarded_from_the_host_with_egress_and_else_from_the_empty_network() {
        let arguments = |egress, protocol| forwarded(&spec(egress, protocol)).join(" ");
        for egress in [EgressSpec::Allow, EgressSpec::Rules(Vec::new())] {
            assert_eq!(
                arguments(egress, Protocol::Udp),
                "--tcp-ports 192.0.2.1/8080:80 --udp-ports 192.0.2.1/8081:80"
            );
        }
        assert_eq!(
            arguments(EgressSpec::Deny, Protocol::Tcp),
            "--tcp-ports 127.0.0.1/10000:80 --tcp-ports 127.0.0.1/10001:80 --udp-ports none"
        );
        let on = |addresses: [&str; 2]| {
            let [first, second] =
                spec(EgressSpec::Allow, Protocol::Tcp).publish.try_into().unwrap();
            let ports = [first, PublishConfig { host_port: 8080, ..second }];
            let publish = ports.into_iter().zip(addresses).map(|(port, address)| PublishConfig {
                host_address: address.parse().unwrap(),
                ..port
            });
            let publish = publish.collect();
            forwarded(&PasstSpec { publish, ..spec(EgressSpec::Allow, Protocol::Tcp) }).join(" ")
        };
        for (addresses, expected) in [
            (["0.0.0.0", "::"], "--tcp-ports 8080:80 --udp-ports none"),
            (["::", "0.0.0.0"], "--tcp-ports 8080:80 --udp-ports none"),
            (
                ["::1", "0.0.0.0"],
                "--tcp-ports ::1/8080:80 --tcp-ports 0.0.0.0/8080:80 --udp-ports none",
            ),
            (
                ["::", "192.0.2.1"],
                "--tcp-ports ::/8080:80 --tcp-ports 192.0.2.1/8080:80 --udp-ports none",
            ),
        ] {
            assert_eq!(on(addresses), expected);
        }
        let none = PasstSpec { publish: Vec::new(), ..spec(EgressSpec::Deny, Protocol::Tcp) };
        assert_eq!(forwarded(&none).join(" "), "--tcp-ports none --udp-ports none");
    }

    #[test]
    fn user_is_changed_only_if_passt_starts_as_root() {
        let has = |user| {
            let spec = spec(EgressSpec::Deny, Protocol::Tcp);
            arguments(&spec, user, None).contains(&"--runas".into())
        };
        assert!(has(Some(NOBODY)) && !has(None));
    }

    #[test]
    fn guest_has_ipv6_only_with_an_interface_of_the_host_for_it() {
        let arguments = |ipv6| {
            let arguments = arguments(&spec(EgressSpec::Allow, Protocol::Tcp), None, ipv6);
            let texts = arguments.iter().map(|argument| argument.to_str().unwrap());
            texts.collect::<Vec<_>>().join(" ")
        };
        let (without, with) = (arguments(None), arguments(Some("eth0")));
        assert!(without.contains(" --interface lo ") && without.contains(" --ipv4-only"));
        assert!(!without.contains("fdfb:"), "{without}");
        assert!(with.contains(" --interface eth0 ") && !with.contains("--ipv4-only"), "{with}");
        assert!(with.contains(" --address fdfb:61f7:afae::15 "), "{with}");
        assert!(with.contains(" --gateway fe80::a3:53ff:fe00:2 "), "{with}");
    }
}
