//! The network that a guest gets: its addresses, routes and name servers, on hosts with and without
//! IPv6.
//!
//! Each host is a network namespace with a `/etc/resolv.conf` of its own.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{Run, start_with, wrapped_shim};
use crate::network::RUNS_A_SECOND;

/// Returns the console, in which the step `print-network` wrote the network that the guest got.
fn console(run: &Run) -> String {
    let console = fs::read_to_string(run.directory.path().join("s/golden/console.log"));
    console.unwrap_or_default()
}

/// Commands that give a host in a new network namespace IPv6.
const GIVE_IPV6: &str = "ip link add host0 type veth peer name peer0
ip link set host0 addrgenmode none
ip link set host0 up
ip link set peer0 up
ip address add 2001:db8::10/64 dev host0 nodad
ip address add fe80::10/64 dev host0 nodad
";

/// Runs a box on a host with this `/etc/resolv.conf` and without IPv6, and returns the network that
/// the guest got.
fn network_with_resolv_conf(text: &str, network: &Value) -> String {
    console(&run_on_host("", text, network))
}

/// Runs a box on a host that is a network namespace, after some commands.
fn run_on_host(commands: &str, resolv_conf: &str, network: &Value) -> Run {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("resolv.conf");
    fs::write(&file, resolv_conf).unwrap();
    let mut unshare = Command::new("unshare");
    let script =
        format!("ip link set lo up\n{commands}\nmount --bind \"$1\" /etc/resolv.conf; exec \"$2\"");
    unshare.args(["--mount", "--net", "sh", "-ec", &script, "sh"]).arg(&file);
    let run = start_with(wrapped_shim(unshare), &RUNS_A_SECOND, |config| {
        config["network"] = network.clone();
    })
    .wait();
    assert_eq!(
        run.ending(),
        (Some(0), "exited", None),
        "the events and the log are: {}{}",
        run.stdout,
        run.stderr
    );
    run
}

/// Returns whether the event about the start of the VM reports IPv6 of the guest.
fn reports_ipv6(run: &Run) -> Value {
    run.events.iter().find(|event| event["type"] == "vm.starting").unwrap()["ipv6"].clone()
}

#[test]
fn guest_has_ipv6_if_the_host_has_it_and_the_box_has_egress() {
    let resolv_conf = "nameserver 2001:db8::53\nnameserver 192.0.2.53\nnameserver ::1\n";
    let ipv6 = " fdfb:61f7:afae::15/128 fe80::a3:53ff:fe00:f via fe80::a3:53ff:fe00:2";
    let with_ipv6 = format!("interface eth0 10.0.2.15/24 via 10.0.2.2{ipv6} mtu 65520");
    let without = "interface eth0 10.0.2.15/24 via 10.0.2.2 mtu 65520".to_owned();
    let denied = "interface eth0 10.0.2.15/24 via 0.0.0.0 mtu 65520".to_owned();
    let only_link_local = "ip link add host0 type veth peer name peer0
        ip link set host0 addrgenmode none
        ip link set host0 up
        ip address add fe80::10/64 dev host0 nodad\n";
    let both = "dns 2001:db8::53 192.0.2.53";
    for (commands, egress, expected, dns) in [
        (GIVE_IPV6, json!("allow"), &with_ipv6, both),
        (GIVE_IPV6, json!([{"to": "2001:db8::/32"}]), &with_ipv6, "dns 2001:db8::53"),
        (GIVE_IPV6, json!("deny"), &denied, "dns none"),
        (only_link_local, json!("allow"), &without, "dns 192.0.2.53"),
        ("", json!("allow"), &without, "dns 192.0.2.53"),
    ] {
        let run = run_on_host(commands, resolv_conf, &json!({"mode": "passt", "egress": egress}));
        assert_eq!(console(&run), format!("{expected} {dns}\n"), "{egress} {commands}");
        assert_eq!(reports_ipv6(&run), json!(expected.contains("fdfb:")), "{egress} {commands}");
    }
    let without_device = run_on_host(GIVE_IPV6, resolv_conf, &json!({"mode": "none"}));
    assert_eq!(reports_ipv6(&without_device), Value::Null);
}

#[test]
fn port_on_an_ipv6_address_needs_a_host_with_ipv6_unless_the_gate_relays_it() {
    let publish = json!([{"host_address": "::1", "host_port": 8080, "guest_port": 80}]);
    let network = |egress| json!({"mode": "passt", "egress": egress, "publish": publish});
    run_on_host("", "", &network("deny"));
    run_on_host(GIVE_IPV6, "", &network("allow"));
    let mut unshare = Command::new("unshare");
    unshare.args(["--net", "sh", "-ec", "ip link set lo up; exec \"$0\""]);
    let run = start_with(wrapped_shim(unshare), &RUNS_A_SECOND, |config| {
        config["network"] = network("allow");
    })
    .wait();
    assert_eq!(run.ending(), (Some(125), "failed", Some("network_setup")), "{}", run.stdout);
    let error = run.events.iter().find(|event| event["type"] == "error").unwrap();
    let cause = "cannot publish a port on `::1`: the host has no IPv6 that passt can use";
    assert_eq!(error["causes"][0], cause);
    assert!(error["hint"].as_str().unwrap().contains("`network.egress` `deny`"), "{error}");
}

#[test]
fn name_servers_come_from_the_config_or_from_the_host_without_loopback_addresses() {
    let resolv_conf = "nameserver 127.0.0.53\nnameserver 192.0.2.53\nnameserver ::1\n";
    let allow = json!({"mode": "passt", "egress": "allow"});
    let eth0 = "interface eth0 10.0.2.15/24 via 10.0.2.2 mtu 65520";
    assert_eq!(network_with_resolv_conf(resolv_conf, &allow), format!("{eth0} dns 192.0.2.53\n"));
    let with_servers = json!({"mode": "passt", "egress": "allow", "dns": ["1.1.1.1", "9.9.9.9"]});
    assert_eq!(
        network_with_resolv_conf(resolv_conf, &with_servers),
        format!("{eth0} dns 1.1.1.1 9.9.9.9\n")
    );
    // With rules, a server that no rule names is left out, unless the config itself names it.
    for (ports, dns, expected) in [
        (json!([53]), json!([]), "192.0.2.53"),
        (json!([443]), json!([]), "none"),
        (json!([443]), json!(["1.1.1.1"]), "1.1.1.1"),
    ] {
        let rules = json!([{"to": "192.0.2.0/24", "ports": ports}]);
        let network = json!({"mode": "passt", "egress": rules, "dns": dns});
        let found = network_with_resolv_conf(resolv_conf, &network);
        assert_eq!(found, format!("{eth0} dns {expected}\n"));
    }
    assert!(!network_with_resolv_conf("nameserver 127.0.0.1\n", &allow).contains("127."));
    // With a name in a rule, the gate is the name server, and can ask one on the loopback address.
    let names = json!({"mode": "passt", "egress": [{"to": "a.example"}]});
    let found = network_with_resolv_conf("nameserver 127.0.0.53\n", &names);
    assert_eq!(found, format!("{eth0} dns 10.0.2.3\n"));
    let deny = json!({"mode": "passt"});
    let eth0 = "interface eth0 10.0.2.15/24 via 0.0.0.0 mtu 65520";
    assert_eq!(network_with_resolv_conf(resolv_conf, &deny), format!("{eth0} dns none\n"));
    let dummy0 = "interface dummy0 203.0.113.1/32 via 0.0.0.0 mtu 0";
    assert_eq!(
        network_with_resolv_conf(resolv_conf, &json!({"mode": "tsi"})),
        format!("{dummy0} dns 192.0.2.53\n")
    );
    assert_eq!(
        network_with_resolv_conf(resolv_conf, &json!({})),
        "no interface; resolver of the image\n"
    );
}
