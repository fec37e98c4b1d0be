//! The host's name servers that a guest can use. A name server on the host's loopback address is
//! left out, because a guest cannot reach it. The gate, which asks name servers itself if a rule
//! has a name, can.

use std::fs::File;
use std::io::Read;
use std::net::IpAddr;

use crate::spec::{MAX_NAME_SERVERS, is_reachable};

/// Files that list name servers, in the order in which they are tried.
///
/// With systemd-resolved, the first file names only its stub on the loopback address. The second
/// file lists the servers that it forwards to (systemd-resolved(8)).
const FILES: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];

/// Bound on the bytes that are read of such a file.
const MAX_BYTES: u64 = 64 * 1024;

/// Returns the name servers of the first file that lists one for a guest, or none if no file does.
pub(super) fn servers_of_host() -> Vec<IpAddr> {
    first_of(usable)
}

/// Returns the name servers of the host for a process in its network, or none if no file lists one.
pub(super) fn servers_for_gate() -> Vec<IpAddr> {
    first_of(|text| listed(text).take(MAX_NAME_SERVERS).collect())
}

/// Returns what is taken from the first file that has something of it.
fn first_of<T>(take: impl Fn(&str) -> Vec<T>) -> Vec<T> {
    let read = |path| {
        let mut text = Vec::new();
        File::open(path).and_then(|file| file.take(MAX_BYTES).read_to_end(&mut text)).ok()?;
        Some(take(&String::from_utf8_lossy(&text)))
    };
    FILES.into_iter().filter_map(read).find(|servers| !servers.is_empty()).unwrap_or_default()
}

/// Returns the name servers in the text of a resolv.conf(5) that a guest can reach.
fn usable(text: &str) -> Vec<IpAddr> {
    listed(text).filter(|server| is_reachable(*server)).take(MAX_NAME_SERVERS).collect()
}

/// Returns the name servers in the text of a resolv.conf(5). Those with a scope, such as
/// `fe80::1%eth0`, are left out.
fn listed(text: &str) -> impl Iterator<Item = IpAddr> {
    text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        words.next().filter(|word| *word == "nameserver").and(words.next())?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reachable_servers_are_taken_in_their_order() {
        let text = "# nameserver 9.9.9.9\nnameserver 127.0.0.53\n nameserver\t192.0.2.1 \nnameserver ::1\n\
                    nameserver fe80::1%eth0\nnameserver 0.0.0.0\nsearch example.org\nnameserver\n\
                    nameserver 2001:db8::1\noptions edns0\nnameserver 1.1.1.1\nnameserver 8.8.8.8\n";
        let expected: Vec<IpAddr> =
            ["192.0.2.1", "2001:db8::1", "1.1.1.1"].map(|text| text.parse().unwrap()).into();
        assert_eq!(usable(text), expected);
        assert!(usable("nameserver 127.0.0.53\n").is_empty());
        let all: Vec<String> = listed(text).take(3).map(|server| server.to_string()).collect();
        assert_eq!(all, ["127.0.0.53", "192.0.2.1", "::1"]);
    }
}
