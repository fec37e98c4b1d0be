//! The program passt: where it is, and how it is called.

use std::env;
use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use a3s_box_core::config::{Egress, Protocol, PublishConfig};

use super::addresses::{GATEWAY_ADDRESS, GATEWAY_MAC, GUEST_ADDRESS, MTU, PREFIX_LENGTH};
use crate::spec::PasstSpec;

const NAME: &str = "passt";

/// Where programs are looked for without `$PATH`.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// Ports on the loopback address of an empty network, from this one on, lead into the guest: without
/// privileges, and whatever the guest's own numbers are.
const FIRST_INNER_PORT: u16 = 10_000;

/// The user and group that nobody is, as numbers, which every host has (`DEFAULT_OVERFLOWUID`, Linux).
pub(super) const NOBODY: u32 = 65_534;

/// The program in the search path.
pub(crate) fn find() -> Option<PathBuf> {
    let is_program = |path: &PathBuf| {
        // Not one beside whoever is in a directory that others write to.
        path.is_absolute()
            && path
                .metadata()
                .is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    };
    directories().into_iter().map(|directory| directory.join(NAME)).find(is_program)
}

/// Where it is looked for, for people.
pub(crate) fn searched() -> String {
    let named = |directory: PathBuf| format!("`{}`", directory.display());
    directories().into_iter().map(named).collect::<Vec<_>>().join(", ")
}

fn directories() -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into());
    env::split_paths(&path).collect()
}

/// The port of the empty network's loopback address for a published port.
pub(super) fn inner_port(position: usize) -> u16 {
    // There are far fewer published ports than ports.
    FIRST_INNER_PORT + u16::try_from(position).unwrap_or_default()
}

/// Its arguments, with the wire as its standard input. Everything is said, so that nothing is taken from the
/// host: interface, addresses, name servers. It configures no guest by itself.
pub(super) fn arguments(spec: &PasstSpec, drops_root: bool) -> Vec<OsString> {
    let mut arguments: Vec<String> = [
        "--foreground",
        "--quiet",
        "--fd",
        "0",
        "--ipv4-only",
        // Any interface: nothing is read from it.
        "--interface",
        "lo",
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
    if drops_root {
        arguments.extend(["--runas".to_owned(), format!("{NOBODY}:{NOBODY}")]);
    }
    arguments.extend(forwarded(spec));
    arguments.into_iter().map(OsString::from).collect()
}

fn forwarded(spec: &PasstSpec) -> Vec<String> {
    let forward = |(i, port): (usize, &PublishConfig)| {
        let (address, number) = match spec.egress {
            Egress::Allow => (port.host_address, port.host_port),
            Egress::Deny => (Ipv4Addr::LOCALHOST, inner_port(i)),
        };
        let option = match port.protocol {
            Protocol::Tcp => "--tcp-ports",
            Protocol::Udp => "--udp-ports",
        };
        [option.to_owned(), format!("{address}/{number}:{}", port.guest_port)]
    };
    let mut forwarded: Vec<String> = spec.publish.iter().enumerate().flat_map(forward).collect();
    // Else it forwards UDP ports with the numbers of the TCP ports (passt(1)).
    for option in ["--tcp-ports", "--udp-ports"] {
        if !forwarded.iter().any(|word| word == option) {
            forwarded.extend([option.to_owned(), "none".to_owned()]);
        }
    }
    forwarded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(egress: Egress, protocol: Protocol) -> PasstSpec {
        let port = |host_port, protocol| PublishConfig {
            host_address: Ipv4Addr::new(192, 0, 2, 1),
            host_port,
            guest_port: 80,
            protocol,
        };
        let publish = vec![port(8080, Protocol::Tcp), port(8081, protocol)];
        PasstSpec { egress, publish, dns: Vec::new() }
    }

    #[test]
    fn ports_are_forwarded_from_the_host_or_from_the_empty_network() {
        let words = |egress, protocol| forwarded(&spec(egress, protocol)).join(" ");
        assert_eq!(
            words(Egress::Allow, Protocol::Udp),
            "--tcp-ports 192.0.2.1/8080:80 --udp-ports 192.0.2.1/8081:80"
        );
        assert_eq!(
            words(Egress::Deny, Protocol::Tcp),
            "--tcp-ports 127.0.0.1/10000:80 --tcp-ports 127.0.0.1/10001:80 --udp-ports none"
        );
        let none = PasstSpec { publish: Vec::new(), ..spec(Egress::Deny, Protocol::Tcp) };
        assert_eq!(forwarded(&none).join(" "), "--tcp-ports none --udp-ports none");
    }

    #[test]
    fn root_is_dropped_where_there_is_one() {
        let has = |drops| {
            arguments(&spec(Egress::Deny, Protocol::Tcp), drops).contains(&"--runas".into())
        };
        assert!(has(true) && !has(false));
    }
}
