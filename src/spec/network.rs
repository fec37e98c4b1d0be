//! The network of the guest: `network` of the config, validated.

use std::net::{IpAddr, Ipv6Addr};

use a3s_box_core::config::{ConfigError, NetworkConfig, NetworkMode, Protocol, PublishConfig};

pub(crate) use super::egress::{EgressSpec, RuleSpec, Subnet, Target};
pub(crate) use super::name::{MAX_NAME_BYTES, Scope, is_name};
pub(crate) use super::reach::{behind_translator, is_reachable};

/// Bound on the published ports of a box. Each is a listening socket.
const MAX_PUBLISHED: usize = 64;

/// Number of name servers that a resolver uses (`MAXNS`, resolv.conf(5)).
pub(crate) const MAX_NAME_SERVERS: usize = 3;

/// How the guest reaches a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NetworkSpec {
    /// The guest has no network.
    None,
    /// Gate and passt carry the frames of an Ethernet device.
    Passt(PasstSpec),
    /// libkrun opens a socket of the host for each socket of the guest.
    Tsi,
}

/// The settings of mode `passt`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PasstSpec {
    pub(crate) egress: EgressSpec,
    /// Whether the addresses of the host are out of reach, whatever `egress` is.
    pub(crate) not_host: bool,
    pub(crate) publish: Vec<PublishConfig>,
    /// Name servers of the guest, or of the gate if it is the guest's name server. If empty, these
    /// are those of the host.
    pub(crate) dns: Vec<IpAddr>,
}

impl TryFrom<NetworkConfig> for NetworkSpec {
    type Error = ConfigError;

    fn try_from(network: NetworkConfig) -> Result<Self, ConfigError> {
        let spec = match network.mode {
            NetworkMode::Passt => return PasstSpec::try_from(network).map(Self::Passt),
            NetworkMode::None => Self::None,
            NetworkMode::Tsi => Self::Tsi,
        };
        // Without passt, these settings would have no effect.
        let given = [
            ("network.egress", network.egress.is_some()),
            ("network.not_host", network.not_host),
            ("network.publish", !network.publish.is_empty()),
            ("network.dns", !network.dns.is_empty()),
        ];
        match given.into_iter().find(|(_, is_given)| *is_given) {
            None => Ok(spec),
            Some((field, _)) => {
                let mode = if spec == Self::Tsi { "tsi" } else { "none" };
                let found = format!("a value with `network.mode` `{mode}`");
                Err(ConfigError::invalid(field, found, "it with `passt` only"))
            }
        }
    }
}

impl TryFrom<NetworkConfig> for PasstSpec {
    type Error = ConfigError;

    fn try_from(network: NetworkConfig) -> Result<Self, ConfigError> {
        let NetworkConfig { egress, not_host, publish, dns, .. } = network;
        let egress = EgressSpec::try_from(egress.unwrap_or_default())?;
        if not_host && egress.is_deny() {
            let expected = "it with `network.egress` `allow` or rules";
            return Err(ConfigError::invalid(
                "network.not_host",
                "a value with egress `deny`",
                expected,
            ));
        }
        if publish.len() > MAX_PUBLISHED {
            let expected = format!("at most {MAX_PUBLISHED}");
            let found = format!("{} ports", publish.len());
            return Err(ConfigError::invalid("network.publish", found, expected));
        }
        for (i, port) in publish.iter().enumerate() {
            check_port(i, port, &egress)?;
            for (earlier, other) in publish.iter().take(i).enumerate() {
                check_pair(i, port, &egress, (earlier, other))?;
            }
        }
        check_dns(&dns, &egress)?;
        Ok(Self { egress, not_host, publish, dns })
    }
}

/// The config of a spec, which the shim passes to its gate.
impl From<&PasstSpec> for NetworkConfig {
    fn from(spec: &PasstSpec) -> Self {
        Self {
            mode: NetworkMode::Passt,
            egress: Some((&spec.egress).into()),
            not_host: spec.not_host,
            publish: spec.publish.clone(),
            dns: spec.dns.clone(),
        }
    }
}

fn check_port(i: usize, port: &PublishConfig, egress: &EgressSpec) -> Result<(), ConfigError> {
    let field = |name: &str| format!("network.publish[{i}].{name}");
    for (name, number) in [("host_port", port.host_port), ("guest_port", port.guest_port)] {
        if number == 0 {
            return Err(ConfigError::invalid(field(name), "0", "1 to 65535"));
        }
    }
    let address = port.host_address;
    let is_broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    if address.is_multicast() || is_broadcast {
        let expected = "an address of this host, or `0.0.0.0` or `::`";
        return Err(ConfigError::invalid(field("host_address"), format!("`{address}`"), expected));
    }
    // The former needs the name of an interface, and the latter is no address of an IPv6 socket that
    // takes no IPv4 connections.
    let is_unusable =
        |address: Ipv6Addr| address.is_unicast_link_local() || address.to_ipv4_mapped().is_some();
    if matches!(address, IpAddr::V6(address) if is_unusable(address)) {
        let expected = "an address that is not link-local and has no IPv4 address in it";
        return Err(ConfigError::invalid(field("host_address"), format!("`{address}`"), expected));
    }
    // The gate, which relays the ports without egress, relays TCP only.
    if port.protocol == Protocol::Udp && egress.is_deny() {
        let expected = "`tcp`, or `network.egress` `allow` or rules";
        return Err(ConfigError::invalid(field("protocol"), "`udp` with egress `deny`", expected));
    }
    Ok(())
}

/// Refuses two published ports that conflict.
///
/// Two sockets cannot listen on the same port and address. Unless the egress is `deny`, passt maps each
/// port of the host to one port of the guest, whatever the address of the host is.
fn check_pair(
    i: usize,
    port: &PublishConfig,
    egress: &EgressSpec,
    (earlier, other): (usize, &PublishConfig),
) -> Result<(), ConfigError> {
    if (port.protocol, port.host_port) != (other.protocol, other.host_port) {
        return Ok(());
    }
    let (a, b) = (port.host_address, other.host_address);
    // A socket of one IP version never takes the port from the other one: `::` means IPv6 only.
    let is_same_version = a.is_ipv4() == b.is_ipv4();
    if a == b || is_same_version && (a.is_unspecified() || b.is_unspecified()) {
        let field = format!("network.publish[{i}].host_port");
        let expected = format!("one that `network.publish[{earlier}]` does not listen on");
        return Err(ConfigError::invalid(field, port.host_port.to_string(), expected));
    }
    if !egress.is_deny() && port.guest_port != other.guest_port {
        let field = format!("network.publish[{i}].guest_port");
        let expected = format!(
            "{}, as in `network.publish[{earlier}]`, which has the same `host_port`",
            other.guest_port
        );
        return Err(ConfigError::invalid(field, port.guest_port.to_string(), expected));
    }
    Ok(())
}

fn check_dns(dns: &[IpAddr], egress: &EgressSpec) -> Result<(), ConfigError> {
    if egress.is_deny() && !dns.is_empty() {
        let expected =
            "none, because the guest reaches nothing; or `network.egress` `allow` or rules";
        return Err(ConfigError::invalid("network.dns", "a value with egress `deny`", expected));
    }
    if dns.len() > MAX_NAME_SERVERS {
        let expected = format!("at most {MAX_NAME_SERVERS}");
        return Err(ConfigError::invalid("network.dns", format!("{}", dns.len()), expected));
    }
    match dns.iter().position(|address| !is_reachable(*address)) {
        None => Ok(()),
        Some(i) => {
            let found = dns.get(i).map(|address| format!("`{address}`")).unwrap_or_default();
            let expected = "an address that is not the host's own, such as `1.1.1.1`";
            Err(ConfigError::invalid(format!("network.dns[{i}]"), found, expected))
        }
    }
}
