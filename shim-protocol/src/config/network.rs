//! The network of the guest: `network` of a config.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{Egress, Protocol};

/// Network of the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct NetworkConfig {
    /// How the guest reaches a network. Default: `none`.
    pub mode: NetworkMode,
    /// Destinations of connections that the guest opens. Only with mode `passt`. Absent: `deny`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress: Option<Egress>,
    /// Whether the guest must not reach the addresses of the host itself: those that its network
    /// interfaces have when the box starts, and the address of the guest's gateway. Only with
    /// egress `allow` or rules. Default: false.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub not_host: bool,
    /// Ports of the host that lead into the guest: at most 64. Only with mode `passt`. Default:
    /// none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub publish: Vec<PublishConfig>,
    /// Addresses of the guest's name servers: at most 3. Only with egress `allow` or rules.
    /// Empty: the name servers of the host, except for the ones that the guest cannot reach, such
    /// as those on the host's own loopback addresses. If a rule has a name, the guest asks the gate
    /// only, and the gate asks these servers, or all of the host.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<IpAddr>,
}

/// How the guest reaches a network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum NetworkMode {
    /// The guest has its loopback device only.
    #[default]
    None,
    /// The guest has an Ethernet device. The gate passes its frames to the helper program `passt`,
    /// which opens ordinary sockets of the host. The guest has IPv4, and with egress also IPv6 if the
    /// host has it.
    Passt,
    /// libkrun opens a socket of the host for each socket of the guest (transparent socket
    /// impersonation). The guest therefore reaches servers on the host's loopback address, and a
    /// port on which it listens is a port of the host. The shim emits the warning `host_network`.
    Tsi,
}

/// A port of the host that leads into the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct PublishConfig {
    /// Address of the host to listen on. `0.0.0.0` means all IPv4 addresses, and `::` all IPv6
    /// addresses. It has no default, so that no port is published on all addresses by mistake.
    pub host_address: IpAddr,
    /// Port of the host: 1 to 65535. A port below 1024 usually requires root.
    pub host_port: u16,
    /// Port of the guest: 1 to 65535.
    pub guest_port: u16,
    /// Transport protocol. Default: `tcp`. `udp` requires egress `allow` or rules.
    #[serde(default)]
    pub protocol: Protocol,
}
