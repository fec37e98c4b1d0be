//! Destinations of the guest's connections: `network.egress` of a config.

use std::fmt;

use serde::de::value::SeqAccessDeserializer;
use serde::de::{self, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Protocol;

/// Destinations of connections that the guest opens.
///
/// In JSON it is `"deny"`, `"allow"` or an array of rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Egress {
    /// None: neither the host nor its network. Connections to published ports work.
    #[default]
    Deny,
    /// Every address that the host reaches, except for its loopback addresses, for those at which
    /// clouds serve credentials, such as link-local ones, and for IPv6 addresses that contain an IPv4
    /// address (except for `64:ff9b::/96`). Name servers among the former are reachable on port 53.
    Allow,
    /// What one of these rules names, of the destinations that `allow` has: at most 1000 rules with
    /// an address and 10000 with a name. Without a name in a rule, the name servers of
    /// `network.dns` are reachable on port 53 without a rule.
    Rules(Vec<EgressRule>),
}

/// A destination that the guest may reach.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct EgressRule {
    /// IPv4 or IPv6 address, or network with its prefix length, for example `192.0.2.7`,
    /// `10.0.0.0/8` or `2001:db8::/32`; or the name of a host, or `*.` and a name for all names
    /// below it, for example `api.example.org` or `*.pypi.org`.
    pub to: String,
    /// Ports of the destination: 1 to 64 ports or ranges. Absent: all ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<Vec<PortRange>>,
    /// Transport protocol. Absent: TCP and UDP, and without `ports` also ICMP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
}

/// One port, or a range of ports. In JSON a port is a number, and a range is text such as
/// `8000-8100`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortRange {
    /// The lowest port.
    pub first: u16,
    /// The highest port.
    pub last: u16,
}

impl Serialize for Egress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Deny => serializer.serialize_str("deny"),
            Self::Allow => serializer.serialize_str("allow"),
            Self::Rules(rules) => rules.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Egress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // With an untagged enum, an error inside of a rule would not have the path of the field.
        deserializer.deserialize_any(EgressVisitor)
    }
}

struct EgressVisitor;

impl<'de> Visitor<'de> for EgressVisitor {
    type Value = Egress;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`deny`, `allow` or an array of rules")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Egress, E> {
        match text {
            "deny" => Ok(Egress::Deny),
            "allow" => Ok(Egress::Allow),
            other => Err(E::invalid_value(Unexpected::Str(other), &self)),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, rules: A) -> Result<Egress, A::Error> {
        Vec::deserialize(SeqAccessDeserializer::new(rules)).map(Egress::Rules)
    }
}

impl Serialize for PortRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { first, last } = self;
        if first == last {
            return serializer.serialize_u16(*first);
        }
        serializer.collect_str(&format_args!("{first}-{last}"))
    }
}

impl<'de> Deserialize<'de> for PortRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PortRangeVisitor)
    }
}

struct PortRangeVisitor;

impl Visitor<'_> for PortRangeVisitor {
    type Value = PortRange;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a port from 1 to 65535, or a range such as \"8000-8100\"")
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<PortRange, E> {
        match u16::try_from(number) {
            Ok(port) => Ok(PortRange { first: port, last: port }),
            Err(_) => Err(E::invalid_value(Unexpected::Unsigned(number), &self)),
        }
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<PortRange, E> {
        // `parse` would also accept a sign.
        let port = |digits: &str| digits.parse().ok().filter(|_| !digits.starts_with('+'));
        text.split_once('-')
            .and_then(|(first, last)| Some(PortRange { first: port(first)?, last: port(last)? }))
            .ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
    }
}

/// The schemas of the types that serde cannot derive.
#[cfg(feature = "schema")]
mod schema {
    use std::borrow::Cow;

    use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

    use super::{Egress, EgressRule, PortRange};

    impl JsonSchema for Egress {
        fn schema_name() -> Cow<'static, str> {
            "Egress".into()
        }

        fn json_schema(generator: &mut SchemaGenerator) -> Schema {
            json_schema!({
                "description": "Destinations of connections that the guest opens.",
                "oneOf": [
                    {
                        "description": "None: neither the host nor its network. Connections to published ports work.",
                        "type": "string",
                        "const": "deny"
                    },
                    {
                        "description": "Every address that the host reaches, except for its loopback addresses and for link-local\naddresses, where clouds serve credentials. Name servers at link-local addresses are\nreachable on port 53.",
                        "type": "string",
                        "const": "allow"
                    },
                    {
                        "description": "What one of these rules names, of the destinations that `allow` has: at most 1000 rules with\nan address and 10000 with a name. Without a name in a rule, the name servers of `network.dns`\nare reachable on port 53 without a rule.",
                        "type": "array",
                        "items": generator.subschema_for::<EgressRule>(),
                        "maxItems": 11000
                    }
                ]
            })
        }
    }

    impl JsonSchema for PortRange {
        fn schema_name() -> Cow<'static, str> {
            "PortRange".into()
        }

        fn json_schema(_: &mut SchemaGenerator) -> Schema {
            json_schema!({
                "description": "One port, or a range of ports.",
                "oneOf": [
                    {"description": "One port.", "type": "integer", "minimum": 1, "maximum": 65535},
                    {
                        "description": "A range, for example `8000-8100`.",
                        "type": "string",
                        "pattern": "^[0-9]{1,5}-[0-9]{1,5}$"
                    }
                ]
            })
        }
    }
}
