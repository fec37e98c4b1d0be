//! The helper program passt: its path and its arguments.

use std::env;
use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use a3s_box_core::config::{Protocol, PublishConfig};

use super::addresses::{GATEWAY_ADDRESS, GATEWAY_MAC, GUEST_ADDRESS, MTU, PREFIX_LENGTH};
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

/// Returns the arguments of passt, whose standard input is the wire.
///
/// By default passt copies interface, addresses and name servers from the host, so each of them is
/// given. DHCP and its IPv6 counterparts are off, because PID 1 configures the guest's interface.
pub(super) fn arguments(spec: &PasstSpec, user: Option<u32>) -> Vec<OsString> {
    let mut arguments: Vec<String> = [
        "--foreground",
        "--quiet",
        "--fd",
        "0",
        "--ipv4-only",
        // passt requires an interface to exist, but takes nothing from it with the options below.
        "--interface",
        "lo",
        // Without this, the gateway's address would lead to the loopback address of the host. With
        // it, the address is one like any other: passt connects to a host of this address.
        // Connections from the host itself still reach the guest from the gateway's address.
        "--no-map-gw",
        "--no-dhcp",
        "--no-dhcpv6",
        "--no-ndp",
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
    if let Some(user) = user {
        arguments.extend(["--runas".to_owned(), format!("{user}:{user}")]);
    }
    arguments.extend(forwarded(spec));
    arguments.into_iter().map(OsString::from).collect()
}

fn forwarded(spec: &PasstSpec) -> Vec<String> {
    let forward = |(i, port): (usize, &PublishConfig)| {
        let (address, number) = if spec.egress.is_deny() {
            (Ipv4Addr::LOCALHOST.into(), inner_port(i))
        } else {
            (port.host_address, port.host_port)
        };
        let option = match port.protocol {
            Protocol::Tcp => "--tcp-ports",
            Protocol::Udp => "--udp-ports",
        };
        [option.to_owned(), format!("{address}/{number}:{}", port.guest_port)]
    };
    let mut forwarded: Vec<String> = spec.publish.iter().enumerate().flat_map(forward).collect();
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
        let none = PasstSpec { publish: Vec::new(), ..spec(EgressSpec::Deny, Protocol::Tcp) };
        assert_eq!(forwarded(&none).join(" "), "--tcp-ports none --udp-ports none");
    }

    #[test]
    fn user_is_changed_only_if_passt_starts_as_root() {
        let has = |user| {
            arguments(&spec(EgressSpec::Deny, Protocol::Tcp), user).contains(&"--runas".into())
        };
        assert!(has(Some(NOBODY)) && !has(None));
    }
}
