//! The guest's network.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

/// Network of the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct NetworkConfig {
    /// How the guest reaches a network.
    pub mode: NetworkMode,
    /// What the guest may reach by itself, with mode `passt`. Absent: `deny`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress: Option<Egress>,
    /// Ports of the host that lead into the guest, with mode `passt`; at most 64.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub publish: Vec<PublishConfig>,
    /// Name servers of the guest, with egress `allow`; at most 3. Empty: those of the host that are not
    /// on the host itself.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<Ipv4Addr>,
}

/// How the guest reaches a network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum NetworkMode {
    /// Not at all: loopback only.
    #[default]
    None,
    /// An Ethernet device of its own, behind the program `passt`, which opens ordinary sockets of the
    /// host. IPv4.
    Passt,
    /// libkrun's transparent socket impersonation: sockets of the guest are the shim's, in the host's
    /// network. The guest reaches what listens on the host's loopback address, and where it listens
    /// itself, the host does. A `warning` event says so.
    Tsi,
}

/// What the guest may reach by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Egress {
    /// Nothing: neither the host nor its network. Published ports answer.
    #[default]
    Deny,
    /// What the host reaches, but for the host's own loopback addresses, and for link-local ones, where
    /// clouds tell credentials; name servers that are there answer on port 53.
    Allow,
}

/// A port of the host that leads into the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct PublishConfig {
    /// Address of the host to listen on; `0.0.0.0` is all of them. Never implied.
    pub host_address: Ipv4Addr,
    /// Port of the host, from 1. Below 1024 it takes root.
    pub host_port: u16,
    /// Port of the guest, from 1.
    pub guest_port: u16,
    /// What is carried. `udp` needs egress `allow`.
    #[serde(default)]
    pub protocol: Protocol,
}

/// What a published port carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Connections.
    #[default]
    Tcp,
    /// Datagrams.
    Udp,
}
