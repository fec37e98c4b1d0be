//! Which names match, and what they allow.

use std::net::Ipv4Addr;

use a3s_box_core::config::{Egress, EgressRule};

use super::*;
use crate::network::packet::{PROTOCOL_ICMP, PROTOCOL_TCP, PROTOCOL_UDP};
use crate::spec::EgressSpec;

const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
const HOST_V6: &str = "2001:db8::10";

fn rules(rules: Vec<EgressRule>) -> Option<NameRules> {
    match EgressSpec::try_from(Egress::Rules(rules)).unwrap() {
        EgressSpec::Rules(rules) => {
            NameRules::new(&rules, &[HOST.into(), HOST_V6.parse().unwrap()])
        }
        other => panic!("{other:?}"),
    }
}

fn parsed(json: &str) -> NameRules {
    rules(serde_json::from_str(json).unwrap()).unwrap()
}

#[test]
fn name_matches_itself_and_a_star_matches_one_or_more_labels() {
    let rules = parsed(r#"[{"to": "api.example.org"}, {"to": "*.pypi.org"}, {"to": "*.b.test"}]"#);
    for (name, expected) in [
        ("api.example.org", true),
        ("example.org", false),
        ("www.api.example.org", false),
        ("xapi.example.org", false),
        ("pypi.org", false),
        ("a.pypi.org", true),
        ("a.b.c.pypi.org", true),
        ("apypi.org", false),
        ("pypi.org.evil.test", false),
        ("b.test", false),
        ("a.b.test", true),
        ("test", false),
        ("", false),
        (".", false),
        (".pypi.org", true),
    ] {
        assert_eq!(rules.have(name), expected, "{name}");
        assert_eq!(rules.grants_of(name).is_empty(), !expected, "{name}");
    }
}

#[test]
fn all_rules_that_match_a_name_add_up_and_equal_rules_share_a_grant() {
    let rules = parsed(
        r#"[{"to": "a.test", "ports": [443], "protocol": "tcp"}, {"to": "a.test", "ports": [53]},
            {"to": "*.test", "ports": ["8000-8100"]}, {"to": "b.test", "ports": ["8000-8100"]},
            {"to": "c.test"}]"#,
    );
    let allows = |name: &str, protocol, port| {
        let grants = rules.grants_of(name);
        grants.into_iter().any(|grant| rules.grant_allows(grant, protocol, port))
    };
    for (name, protocol, port, expected) in [
        ("a.test", PROTOCOL_TCP, Some(443), true),
        ("a.test", PROTOCOL_UDP, Some(443), false),
        ("a.test", PROTOCOL_UDP, Some(53), true),
        ("a.test", PROTOCOL_TCP, Some(8050), true),
        ("a.test", PROTOCOL_ICMP, None, false),
        ("x.test", PROTOCOL_TCP, Some(443), false),
        ("x.test", PROTOCOL_UDP, Some(8100), true),
        ("c.test", PROTOCOL_ICMP, None, true),
        ("c.test", PROTOCOL_TCP, Some(1), true),
    ] {
        assert_eq!(allows(name, protocol, port), expected, "{name} {protocol} {port:?}");
    }
    assert_eq!(rules.grants_of("b.test"), rules.grants_of("x.test"));
    assert_eq!(rules.allowed.len(), 3);
    assert!(!rules.grant_allows(3, PROTOCOL_TCP, Some(443)));
}

#[test]
fn no_name_leads_to_the_host_the_guest_or_metadata() {
    let rules = parsed(r#"[{"to": "a.test"}]"#);
    for address in [
        [127, 0, 0, 1],
        [0, 0, 0, 0],
        [169, 254, 169, 254],
        [169, 254, 0, 1],
        [100, 100, 100, 200],
        [168, 63, 129, 16],
        [224, 0, 0, 1],
        [255, 255, 255, 255],
        [10, 0, 2, 2],
        [10, 0, 2, 3],
        [10, 0, 2, 15],
        HOST.octets(),
    ] {
        let address = Ipv4Addr::from(address);
        assert!(!rules.may_lead_to(address.into()), "{address}");
        // The same through a translator, and in an IPv6 address that no guest reaches.
        for text in [format!("64:ff9b::{address}"), format!("::ffff:{address}")] {
            assert!(!rules.may_lead_to(text.parse().unwrap()), "{text}");
        }
    }
    for text in [
        "::",
        "::1",
        "fe80::1",
        "fe80::a3:53ff:fe00:2",
        "ff02::1",
        "fd00:ec2::254",
        "fd20:ce::254",
        "fdfb:61f7:afae::15",
        "::ffff:1.1.1.1",
        "64:ff9b:1::1.1.1.1",
        "2002:7f00:1::1",
        HOST_V6,
    ] {
        assert!(!rules.may_lead_to(text.parse().unwrap()), "{text}");
    }
    for text in [
        "192.0.2.11",
        "10.0.2.4",
        "192.168.0.1",
        "1.1.1.1",
        "2001:db8::11",
        "fd00::1",
        "64:ff9b::1.1.1.1",
    ] {
        assert!(rules.may_lead_to(text.parse().unwrap()), "{text}");
    }
}

#[test]
fn rules_without_a_name_make_no_table() {
    assert!(rules(serde_json::from_str(r#"[{"to": "192.0.2.0/24"}]"#).unwrap()).is_none());
    assert!(rules(Vec::new()).is_none());
}
