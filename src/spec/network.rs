//! The network that a config asks for, and the host name.

use std::net::Ipv4Addr;

use a3s_box_core::config::{
    ConfigError, Egress, NetworkConfig, NetworkMode, Protocol, PublishConfig,
};

/// Most published ports of a box: each is a listening socket.
const MAX_PUBLISHED: usize = 64;

/// Most name servers that a resolver looks at (resolv.conf(5)).
pub(crate) const MAX_NAME_SERVERS: usize = 3;

/// Longest host name (`HOST_NAME_MAX`, hostname(7)).
const MAX_HOSTNAME_BYTES: usize = 64;

/// Longest part of a host name between dots (RFC 1123).
const MAX_LABEL_BYTES: usize = 63;

/// How the guest reaches a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NetworkSpec {
    /// Not at all.
    None,
    /// Through passt.
    Passt(PasstSpec),
    /// With sockets of the shim.
    Tsi,
}

/// A network through passt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PasstSpec {
    pub(crate) egress: Egress,
    pub(crate) publish: Vec<PublishConfig>,
    /// Empty: the host's.
    pub(crate) dns: Vec<Ipv4Addr>,
}

impl TryFrom<NetworkConfig> for NetworkSpec {
    type Error = ConfigError;

    fn try_from(network: NetworkConfig) -> Result<Self, ConfigError> {
        let other = match network.mode {
            NetworkMode::Passt => return PasstSpec::try_from(network).map(Self::Passt),
            NetworkMode::None => Self::None,
            NetworkMode::Tsi => Self::Tsi,
        };
        let given = [
            ("network.egress", network.egress.is_some()),
            ("network.publish", !network.publish.is_empty()),
            ("network.dns", !network.dns.is_empty()),
        ];
        match given.into_iter().find(|(_, is_given)| *is_given) {
            None => Ok(other),
            Some((path, _)) => {
                let mode = if other == Self::Tsi { "tsi" } else { "none" };
                let found = format!("a value with `network.mode` `{mode}`");
                Err(ConfigError::invalid(path, found, "it with `passt` only"))
            }
        }
    }
}

impl TryFrom<NetworkConfig> for PasstSpec {
    type Error = ConfigError;

    fn try_from(network: NetworkConfig) -> Result<Self, ConfigError> {
        let NetworkConfig { egress, publish, dns, .. } = network;
        let egress = egress.unwrap_or_default();
        if publish.len() > MAX_PUBLISHED {
            let expected = format!("at most {MAX_PUBLISHED}");
            let found = format!("{} ports", publish.len());
            return Err(ConfigError::invalid("network.publish", found, expected));
        }
        for (i, port) in publish.iter().enumerate() {
            check_port(i, port, egress)?;
            for (earlier, other) in publish.iter().take(i).enumerate() {
                check_pair(i, port, egress, (earlier, other))?;
            }
        }
        check_dns(&dns, egress)?;
        Ok(Self { egress, publish, dns })
    }
}

fn check_port(i: usize, port: &PublishConfig, egress: Egress) -> Result<(), ConfigError> {
    let path = |field: &str| format!("network.publish[{i}].{field}");
    for (field, number) in [("host_port", port.host_port), ("guest_port", port.guest_port)] {
        if number == 0 {
            return Err(ConfigError::invalid(path(field), "0", "1 to 65535"));
        }
    }
    let address = port.host_address;
    if address.is_multicast() || address.is_broadcast() {
        let expected = "an address of this host, or `0.0.0.0`";
        return Err(ConfigError::invalid(path("host_address"), format!("`{address}`"), expected));
    }
    if port.protocol == Protocol::Udp && egress == Egress::Deny {
        let expected = "`tcp`, or `network.egress` `allow`";
        return Err(ConfigError::invalid(path("protocol"), "`udp` with egress `deny`", expected));
    }
    Ok(())
}

/// Two ports of the host cannot be one; and passt knows one port of the guest for each of the host,
/// whatever its address.
fn check_pair(
    i: usize,
    port: &PublishConfig,
    egress: Egress,
    (earlier, other): (usize, &PublishConfig),
) -> Result<(), ConfigError> {
    if (port.protocol, port.host_port) != (other.protocol, other.host_port) {
        return Ok(());
    }
    let (a, b) = (port.host_address, other.host_address);
    if a == b || a.is_unspecified() || b.is_unspecified() {
        let path = format!("network.publish[{i}].host_port");
        let expected = format!("one that `network.publish[{earlier}]` does not listen on");
        return Err(ConfigError::invalid(path, port.host_port.to_string(), expected));
    }
    if egress == Egress::Allow && port.guest_port != other.guest_port {
        let path = format!("network.publish[{i}].guest_port");
        let expected = format!(
            "{}, as in `network.publish[{earlier}]`, which has the same `host_port`",
            other.guest_port
        );
        return Err(ConfigError::invalid(path, port.guest_port.to_string(), expected));
    }
    Ok(())
}

fn check_dns(dns: &[Ipv4Addr], egress: Egress) -> Result<(), ConfigError> {
    if egress == Egress::Deny && !dns.is_empty() {
        let expected = "none, as the guest reaches nothing; or `network.egress` `allow`";
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

/// Whether a guest may speak to an address at all: none of the host's own, and one host's.
pub(crate) fn is_reachable(address: Ipv4Addr) -> bool {
    // 0.0.0.0/8 is "this host", and 240.0.0.0/4 nobody's, but for the broadcast address.
    let [first, ..] = address.octets();
    first != 0 && first < 224 && !address.is_loopback()
}

/// The host name of the guest: the config's, else the id, made legal.
pub(super) fn hostname(configured: Option<String>, id: &str) -> Result<String, ConfigError> {
    let Some(name) = configured else { return Ok(legal_hostname(id)) };
    let label = |label: &str| {
        (1..=MAX_LABEL_BYTES).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if name.len() <= MAX_HOSTNAME_BYTES && name.split('.').all(label) {
        return Ok(name);
    }
    let expected = "1 to 64 bytes: parts of letters, digits and inner `-`, up to 63 bytes each, with `.` \
                    between them";
    Err(ConfigError::invalid("hostname", format!("`{}`", name.escape_debug()), expected))
}

/// An id begins with a letter or digit, and is ASCII.
fn legal_hostname(id: &str) -> String {
    let legal = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    let name: String = id.chars().take(MAX_LABEL_BYTES).map(legal).collect();
    name.trim_end_matches('-').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_becomes_a_legal_host_name() {
        let long = format!("a{}.{}", "b".repeat(61), "c".repeat(20));
        let cut = format!("a{}", "b".repeat(61));
        for (id, expected) in
            [("demo", "demo"), ("a_b.c-", "a-b-c"), ("9", "9"), (long.as_str(), cut.as_str())]
        {
            assert_eq!(hostname(None, id).unwrap(), expected);
            assert_eq!(hostname(Some(expected.to_owned()), "x").unwrap(), expected);
        }
    }

    #[test]
    fn illegal_host_names_are_refused() {
        let long = format!("{}.{}", "a".repeat(60), "b".repeat(10));
        let label = "a".repeat(64);
        for name in ["", "-a", "a-", "a..b", ".", "a_b", "a b", "ä", "a\n", &long, &label] {
            let error = hostname(Some(name.to_owned()), "x").unwrap_err().to_string();
            assert!(error.starts_with("hostname: found `"), "{error}");
        }
        hostname(Some("web-1.example.org".to_owned()), "x").unwrap();
    }
}
