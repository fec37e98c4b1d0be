//! The destinations that the guest may reach: `network.egress` of the config, validated.

use std::fmt;
use std::net::IpAddr;

use a3s_box_core::config::{ConfigError, Egress, EgressRule, PortRange, Protocol};

use super::name::NamePattern;
use super::reach::behind_translator;

/// Bound on the rules of a box that have an address. With the ports of each, they take less than
/// 1 MiB of the gate.
const MAX_ADDRESSES: usize = 1000;

/// Bound on the rules of a box that have a name. The limit on the bytes of a config bounds their
/// memory.
const MAX_NAMES: usize = 10_000;

/// Bound on the ports and ranges of a rule.
const MAX_PORTS: usize = 64;

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
    pub(crate) to: Target,
    /// Ports of the destination. If empty, all ports.
    pub(crate) ports: Vec<PortRange>,
    /// If absent, TCP and UDP, and without ports also ICMP.
    pub(crate) protocol: Option<Protocol>,
}

/// The hosts that a rule is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// Those with an address in this network.
    Network(Subnet),
    /// Those to whose address such a name resolves.
    Name(NamePattern),
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

    /// Returns whether a rule has a name, so that the gate is the guest's name server.
    pub(crate) fn has_names(&self) -> bool {
        match self {
            Self::Deny | Self::Allow => false,
            Self::Rules(rules) => rules.iter().any(|rule| matches!(rule.to, Target::Name(_))),
        }
    }
}

impl TryFrom<Egress> for EgressSpec {
    type Error = ConfigError;

    fn try_from(egress: Egress) -> Result<Self, ConfigError> {
        match egress {
            Egress::Deny => Ok(Self::Deny),
            Egress::Allow => Ok(Self::Allow),
            Egress::Rules(rules) => {
                let rules = rules.into_iter().enumerate();
                let rules: Vec<_> =
                    rules.map(|(i, rule)| checked(i, rule)).collect::<Result<_, _>>()?;
                check_numbers(&rules)?;
                Ok(Self::Rules(rules))
            }
        }
    }
}

fn check_numbers(rules: &[RuleSpec]) -> Result<(), ConfigError> {
    let names = rules.iter().filter(|rule| matches!(rule.to, Target::Name(_))).count();
    for (found, what, limit) in
        [(rules.len() - names, "an address", MAX_ADDRESSES), (names, "a name", MAX_NAMES)]
    {
        if found > limit {
            let found = format!("{found} rules with {what}");
            return Err(ConfigError::invalid("network.egress", found, format!("at most {limit}")));
        }
    }
    Ok(())
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
    let to = Target::read(&field("to"), &rule.to)?;
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

impl Target {
    fn read(field: &str, text: &str) -> Result<Self, ConfigError> {
        let invalid = |expected: String| {
            let found = format!("`{}`", text.escape_debug());
            ConfigError::invalid(field, found, expected)
        };
        let (address, length) =
            text.split_once('/').map_or((text, None), |(address, length)| (address, Some(length)));
        if let Ok(address) = address.parse() {
            return Subnet::read(address, length).map(Self::Network).map_err(invalid);
        }
        NamePattern::read(text).map(Self::Name).ok_or_else(|| {
            let expected = "an address, a network or a name, such as `192.0.2.7`, `10.0.0.0/8`, \
                            `2001:db8::/32`, `api.example.org` or `*.example.org`";
            invalid(expected.to_owned())
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(network) => network.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
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

    /// Reads a network from its address and the digits of its prefix length, if it has one.
    fn read(address: IpAddr, length: Option<&str>) -> Result<Self, String> {
        let longest = if address.is_ipv4() { 32 } else { 128 };
        // The comparison refuses signs and leading zeros.
        let is_length =
            |number: &u8| *number <= longest && length == Some(number.to_string().as_str());
        let prefix_length = match length {
            None => longest,
            Some(digits) => digits.parse().ok().filter(is_length).ok_or_else(|| {
                format!("an address, or a prefix length from 0 to {longest} after the `/`")
            })?,
        };
        let network = Self { address, prefix_length }.canonical();
        if network.address != address {
            return Err(format!("the address of the network, `{network}`, or `{address}` alone"));
        }
        if let Some(behind) = network.ipv4_behind() {
            return Err(format!("its IPv4 network, `{behind}`, whose rules apply to it"));
        }
        Ok(network)
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<String, String> {
        let target = Target::read("to", text);
        target.map(|target| target.to_string()).map_err(|error| error.to_string())
    }

    #[test]
    fn destination_is_an_address_a_canonical_network_or_a_name() {
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
            ("api.Example.org", "api.example.org"),
            ("*.pypi.org", "*.pypi.org"),
            ("localhost", "localhost"),
        ] {
            assert_eq!(read(text).as_deref(), Ok(expected));
        }
    }

    #[test]
    fn other_destination_is_an_error_that_says_what_was_expected() {
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
            ("fe80::1%eth0", "to: found `fe80::1%eth0`, expected an address,"),
            ("2001:db8:::1", "to: found `2001:db8:::1`, expected an address,"),
            ("[2001:db8::1]", "to: found `[2001:db8::1]`, expected an address,"),
            ("10.0.0", "to: found `10.0.0`, expected an address,"),
            ("10.0.0.256", "to: found `10.0.0.256`, expected an address,"),
            ("", "to: found ``, expected an address,"),
            ("https://a.example", "to: found `https://a.example`, expected an address,"),
            ("a.example\n", "to: found `a.example\\n`, expected an address,"),
            ("*", "to: found `*`, expected an address,"),
            ("a.example.", "to: found `a.example.`, expected an address,"),
            ("a.example/24", "to: found `a.example/24`, expected an address,"),
            ("bücher.example", "to: found `bücher.example`, expected an address,"),
        ] {
            let found = read(text).unwrap_err();
            assert!(found.starts_with(expected), "found: {found}\n expected: {expected}");
        }
    }

    #[test]
    fn rules_with_names_and_with_addresses_have_limits_of_their_own() {
        let rules = |names: usize, addresses: usize| {
            let rule = |to: &str| EgressRule { to: to.to_owned(), ports: None, protocol: None };
            let names = (0..names).map(|_| rule("a.example"));
            let all = names.chain((0..addresses).map(|_| rule("192.0.2.7")));
            EgressSpec::try_from(Egress::Rules(all.collect())).map_err(|error| error.to_string())
        };
        assert!(rules(MAX_NAMES, MAX_ADDRESSES).unwrap().has_names());
        assert!(!rules(0, 1).unwrap().has_names());
        let found = rules(MAX_NAMES + 1, 0).unwrap_err();
        let expected = "network.egress: found 10001 rules with a name, expected at most 10000";
        assert!(found.starts_with(expected), "{found}");
        let found = rules(0, MAX_ADDRESSES + 1).unwrap_err();
        let expected = "network.egress: found 1001 rules with an address, expected at most 1000";
        assert!(found.starts_with(expected), "{found}");
    }

    #[test]
    fn rules_are_equal_after_they_went_to_the_gate() {
        let json = r#"[{"to": "10.0.0.0/8", "ports": [443, "8000-8100"], "protocol": "tcp"},
                       {"to": "192.0.2.7/32"}, {"to": "192.0.2.0/24", "protocol": "udp"},
                       {"to": "2001:db8::/32"}, {"to": "2001:db8::7/128", "ports": [80]},
                       {"to": "a.example", "ports": [443]}, {"to": "*.b.example"}]"#;
        let egress: Egress = serde_json::from_str(json).unwrap();
        let spec = EgressSpec::try_from(egress.clone()).unwrap();
        assert_eq!(Egress::from(&spec), egress);
        assert_eq!(EgressSpec::try_from(Egress::from(&spec)), Ok(spec));
        for word in [Egress::Deny, Egress::Allow] {
            assert_eq!(Egress::from(&EgressSpec::try_from(word.clone()).unwrap()), word);
        }
    }
}
