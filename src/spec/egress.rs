//! The destinations that the guest may reach: `network.egress` of the config, validated.

use std::fmt;
use std::net::IpAddr;

use a3s_box_core::config::{ConfigError, Egress, EgressRule, PortRange, Protocol};

use super::reach::behind_translator;

/// Bound on the rules of a box. With the ports of each, they take less than 1 MiB of the gate.
const MAX_RULES: usize = 1000;

/// Bound on the ports and ranges of a rule.
const MAX_PORTS: usize = 64;

/// Longest name of a host (RFC 1035).
const MAX_NAME_BYTES: usize = 253;

/// Which destinations the guest may reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum EgressSpec {
    /// None.
    Deny,
    /// All that a guest may ever reach.
    Allow,
    /// Those of them that a rule names.
    Rules(Vec<RuleSpec>),
}

/// A rule: destinations that the guest may reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RuleSpec {
    pub(crate) to: Subnet,
    /// Ports of the destination. If empty, all ports.
    pub(crate) ports: Vec<PortRange>,
    /// If absent, TCP and UDP, and without ports also ICMP.
    pub(crate) protocol: Option<Protocol>,
}

/// A network. A single address is a network whose prefix has all bits of the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Subnet {
    pub(crate) address: IpAddr,
    pub(crate) prefix_length: u8,
}

impl EgressSpec {
    /// Returns whether passt is without the network of the host, and the gate relays published
    /// ports.
    pub(crate) fn is_deny(&self) -> bool {
        *self == Self::Deny
    }
}

impl TryFrom<Egress> for EgressSpec {
    type Error = ConfigError;

    fn try_from(egress: Egress) -> Result<Self, ConfigError> {
        match egress {
            Egress::Deny => Ok(Self::Deny),
            Egress::Allow => Ok(Self::Allow),
            Egress::Rules(rules) if rules.len() > MAX_RULES => {
                let found = format!("{} rules", rules.len());
                Err(ConfigError::invalid("network.egress", found, format!("at most {MAX_RULES}")))
            }
            Egress::Rules(rules) => {
                let rules = rules.into_iter().enumerate();
                rules.map(|(i, rule)| checked(i, rule)).collect::<Result<_, _>>().map(Self::Rules)
            }
        }
    }
}

/// The config of a spec, which the shim passes to its gate.
impl From<&EgressSpec> for Egress {
    fn from(egress: &EgressSpec) -> Self {
        let rule = |RuleSpec { to, ports, protocol }: &RuleSpec| EgressRule {
            to: to.to_string(),
            ports: (!ports.is_empty()).then(|| ports.clone()),
            protocol: *protocol,
        };
        match egress {
            EgressSpec::Deny => Self::Deny,
            EgressSpec::Allow => Self::Allow,
            EgressSpec::Rules(rules) => Self::Rules(rules.iter().map(rule).collect()),
        }
    }
}

fn checked(i: usize, rule: EgressRule) -> Result<RuleSpec, ConfigError> {
    let field = |name: &str| format!("network.egress[{i}].{name}");
    let to = Subnet::read(&field("to"), &rule.to)?;
    let Some(ports) = rule.ports else {
        return Ok(RuleSpec { to, ports: Vec::new(), protocol: rule.protocol });
    };
    if !(1..=MAX_PORTS).contains(&ports.len()) {
        let found = format!("{} ports", ports.len());
        let expected = format!("1 to {MAX_PORTS}, or no `ports` for all of them");
        return Err(ConfigError::invalid(field("ports"), found, expected));
    }
    for (j, range) in ports.iter().enumerate() {
        let found = match range {
            PortRange { first: 0, last: 0 } => "0".to_owned(),
            PortRange { first, last } if *first == 0 || first > last => format!("`{first}-{last}`"),
            _ => continue,
        };
        let expected = "1 to 65535, or a range with the lower port first";
        return Err(ConfigError::invalid(format!("{}[{j}]", field("ports")), found, expected));
    }
    Ok(RuleSpec { to, ports, protocol: rule.protocol })
}

impl Subnet {
    /// Returns the bits of an IPv4 address that belong to a network with this prefix length.
    pub(crate) fn mask_v4(prefix_length: u8) -> u32 {
        u32::MAX.checked_shl(32_u32.saturating_sub(prefix_length.into())).unwrap_or(0)
    }

    /// Returns the bits of an IPv6 address that belong to a network with this prefix length.
    pub(crate) fn mask_v6(prefix_length: u8) -> u128 {
        u128::MAX.checked_shl(128_u32.saturating_sub(prefix_length.into())).unwrap_or(0)
    }

    /// Returns the network that contains the address.
    fn canonical(self) -> Self {
        let Self { address, prefix_length } = self;
        let address = match address {
            IpAddr::V4(v4) => {
                IpAddr::from((u32::from(v4) & Self::mask_v4(prefix_length)).to_be_bytes())
            }
            IpAddr::V6(v6) => {
                IpAddr::from((u128::from(v6) & Self::mask_v6(prefix_length)).to_be_bytes())
            }
        };
        Self { address, prefix_length }
    }

    /// Returns the IPv4 network that an IPv6 network leads to, if that is all that it leads to.
    fn ipv4_behind(self) -> Option<Self> {
        let IpAddr::V6(v6) = self.address else { return None };
        // The prefixes of both have 96 bits.
        let prefix_length = self.prefix_length.checked_sub(96)?;
        let address = match behind_translator(self.address) {
            IpAddr::V4(v4) => v4,
            IpAddr::V6(_) => v6.to_ipv4_mapped()?,
        };
        Some(Self { address: address.into(), prefix_length })
    }

    fn read(field: &str, text: &str) -> Result<Self, ConfigError> {
        let invalid = |expected: String| {
            let found = format!("`{}`", text.escape_debug());
            ConfigError::invalid(field, found, expected)
        };
        let (address, length) =
            text.split_once('/').map_or((text, None), |(address, length)| (address, Some(length)));
        let Ok(address) = address.parse::<IpAddr>() else {
            return Err(unsupported(field, text).unwrap_or_else(|| {
                let expected = "an address or network, such as `192.0.2.7`, `10.0.0.0/8` or \
                                `2001:db8::/32`";
                invalid(expected.to_owned())
            }));
        };
        let longest = if address.is_ipv4() { 32 } else { 128 };
        // The comparison refuses signs and leading zeros.
        let is_length =
            |number: &u8| *number <= longest && length == Some(number.to_string().as_str());
        let prefix_length = match length {
            None => longest,
            Some(digits) => digits.parse().ok().filter(is_length).ok_or_else(|| {
                invalid(format!("an address, or a prefix length from 0 to {longest} after the `/`"))
            })?,
        };
        let network = Self { address, prefix_length }.canonical();
        if network.address != address {
            let expected = format!("the address of the network, `{network}`, or `{address}` alone");
            return Err(invalid(expected));
        }
        if let Some(behind) = network.ipv4_behind() {
            return Err(invalid(format!("its IPv4 network, `{behind}`, whose rules apply to it")));
        }
        Ok(network)
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_length)
    }
}

/// Returns the error of a destination that a later version may support: a name.
fn unsupported(field: &str, text: &str) -> Option<ConfigError> {
    let is_in_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '*');
    let is_name = (1..=MAX_NAME_BYTES).contains(&text.len())
        && text.chars().all(is_in_name)
        && text.contains(|c: char| c.is_ascii_alphabetic());
    is_name.then(|| {
        let what =
            format!("the name `{text}`; give the addresses of the destination in place of names");
        ConfigError::unsupported(field, what)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<String, String> {
        let subnet = Subnet::read("to", text);
        subnet.map(|subnet| subnet.to_string()).map_err(|error| error.to_string())
    }

    #[test]
    fn destination_is_an_address_or_a_canonical_network() {
        for (text, expected) in [
            ("192.0.2.7", "192.0.2.7/32"),
            ("192.0.2.7/32", "192.0.2.7/32"),
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("128.0.0.0/1", "128.0.0.0/1"),
            ("2001:DB8:0::7", "2001:db8::7/128"),
            ("2001:db8::/32", "2001:db8::/32"),
            ("fd00::/8", "fd00::/8"),
            ("::/0", "::/0"),
            ("8000::/1", "8000::/1"),
            ("64:ff9b::/95", "64:ff9b::/95"),
            ("64:ff9b:1::/48", "64:ff9b:1::/48"),
        ] {
            assert_eq!(read(text).as_deref(), Ok(expected));
        }
        for (text, expected) in [
            (
                "10.0.0.1/8",
                "to: found `10.0.0.1/8`, expected the address of the network, `10.0.0.0/8`",
            ),
            (
                "10.0.0.1/0",
                "to: found `10.0.0.1/0`, expected the address of the network, `0.0.0.0/0`",
            ),
            ("10.0.0.0/33", "to: found `10.0.0.0/33`, expected an address, or a prefix length"),
            ("10.0.0.0/08", "to: found `10.0.0.0/08`, expected an address, or a prefix length"),
            ("10.0.0.0/+8", "to: found `10.0.0.0/+8`, expected an address, or a prefix length"),
            ("10.0.0.0/", "to: found `10.0.0.0/`, expected an address, or a prefix length"),
            (
                "2001:db8::1/64",
                "to: found `2001:db8::1/64`, expected the address of the network, `2001:db8::/64`",
            ),
            ("::1/0", "to: found `::1/0`, expected the address of the network, `::/0`"),
            ("::/129", "to: found `::/129`, expected an address, or a prefix length from 0 to 128"),
            ("::/064", "to: found `::/064`, expected an address, or a prefix length from 0 to 128"),
            (
                "64:ff9b::1.2.3.4",
                "to: found `64:ff9b::1.2.3.4`, expected its IPv4 network, `1.2.3.4/32`",
            ),
            ("64:ff9b::/96", "to: found `64:ff9b::/96`, expected its IPv4 network, `0.0.0.0/0`"),
            (
                "::ffff:10.0.0.0/104",
                "to: found `::ffff:10.0.0.0/104`, expected its IPv4 network, `10.0.0.0/8`",
            ),
            ("fe80::1%eth0", "to: found `fe80::1%eth0`, expected an address or network"),
            ("2001:db8:::1", "to: found `2001:db8:::1`, expected an address or network"),
            ("[2001:db8::1]", "to: found `[2001:db8::1]`, expected an address or network"),
            ("10.0.0", "to: found `10.0.0`, expected an address or network"),
            ("10.0.0.256", "to: found `10.0.0.256`, expected an address or network"),
            ("", "to: found ``, expected an address or network"),
            ("https://a.example", "to: found `https://a.example`, expected an address or network"),
            ("a.example\n", "to: found `a.example\\n`, expected an address or network"),
            ("a.example", "to: not supported yet: the name `a.example`; give the addresses"),
            ("*.a.example", "to: not supported yet: the name `*.a.example`"),
            ("localhost", "to: not supported yet: the name `localhost`"),
        ] {
            let found = read(text).unwrap_err();
            assert!(found.starts_with(expected), "found: {found}\n expected: {expected}");
        }
    }

    #[test]
    fn rules_are_equal_after_they_went_to_the_gate() {
        let json = r#"[{"to": "10.0.0.0/8", "ports": [443, "8000-8100"], "protocol": "tcp"},
                       {"to": "192.0.2.7/32"}, {"to": "192.0.2.0/24", "protocol": "udp"},
                       {"to": "2001:db8::/32"}, {"to": "2001:db8::7/128", "ports": [80]}]"#;
        let egress: Egress = serde_json::from_str(json).unwrap();
        let spec = EgressSpec::try_from(egress.clone()).unwrap();
        assert_eq!(Egress::from(&spec), egress);
        assert_eq!(EgressSpec::try_from(Egress::from(&spec)), Ok(spec));
        for word in [Egress::Deny, Egress::Allow] {
            assert_eq!(Egress::from(&EgressSpec::try_from(word.clone()).unwrap()), word);
        }
    }
}
