//! The host's name servers, as a guest can use them: never one that listens on the host itself.

use std::fs::File;
use std::io::Read;
use std::net::Ipv4Addr;

use crate::spec::{MAX_NAME_SERVERS, is_reachable};

/// Where they are told; the second is systemd-resolved's list of those behind it (systemd-resolved(8)).
const FILES: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];

/// Most that is read of such a file.
const MAX_BYTES: u64 = 64 * 1024;

/// The name servers of the first file that has any for a guest; none without one.
pub(super) fn of_host() -> Vec<Ipv4Addr> {
    let read = |path| {
        let mut text = Vec::new();
        File::open(path).and_then(|file| file.take(MAX_BYTES).read_to_end(&mut text)).ok()?;
        Some(usable(&String::from_utf8_lossy(&text)))
    };
    FILES.into_iter().filter_map(read).find(|servers| !servers.is_empty()).unwrap_or_default()
}

/// Those of a resolv.conf(5) that a guest can reach.
fn usable(text: &str) -> Vec<Ipv4Addr> {
    let server = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let address = words.next().filter(|word| *word == "nameserver").and(words.next())?;
        address.parse().ok().filter(|address| is_reachable(*address))
    };
    text.lines().filter_map(server).take(MAX_NAME_SERVERS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_that_a_guest_can_reach_are_taken_in_their_order() {
        let text = "# nameserver 9.9.9.9\nnameserver 127.0.0.53\n nameserver\t192.0.2.1 \nnameserver ::1\n\
                    nameserver fe80::1%eth0\nnameserver 0.0.0.0\nsearch example.org\nnameserver\n\
                    nameserver 10.0.0.1\noptions edns0\nnameserver 1.1.1.1\nnameserver 8.8.8.8\n";
        let expected: Vec<Ipv4Addr> =
            ["192.0.2.1", "10.0.0.1", "1.1.1.1"].map(|text| text.parse().unwrap()).into();
        assert_eq!(usable(text), expected);
        assert!(usable("nameserver 127.0.0.53\n").is_empty());
    }
}
