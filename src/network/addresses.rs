//! Addresses and sizes of the network between the guest and passt.
//!
//! Only the guest and passt see this network. Every box has one of its own, so all boxes use the
//! same addresses.

use std::net::{Ipv4Addr, Ipv6Addr};

/// Address of the guest. It and [`GATEWAY_ADDRESS`] are the addresses of QEMU's user-mode network,
/// which users recognise.
pub(super) const GUEST_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);

/// Address of the gateway, for which passt answers.
pub(super) const GATEWAY_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);

/// Address at which the gate answers questions for names, if a rule has one. passt does not have
/// it, but answers ARP requests for it, as for each address but the guest's (`ignore_arp`).
pub(super) const NAME_SERVER_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);

/// Prefix length of the guest's address.
pub(super) const PREFIX_LENGTH: u32 = 24;

/// IPv6 address of the guest. Its first 48 bits are a random prefix for local use (RFC 4193), which
/// no network of the host has by chance. Programs that find both an IPv4 and an IPv6 address of a
/// server on the internet try IPv4 first, because the guest's address is a local one (RFC 6724).
pub(super) const GUEST_ADDRESS_V6: Ipv6Addr =
    Ipv6Addr::new(0xfdfb, 0x61f7, 0xafae, 0, 0, 0, 0, 0x15);

/// Prefix length of [`GUEST_ADDRESS_V6`]. The guest has no neighbour but the gateway. With a shorter
/// prefix, it would wait three seconds for the hardware address of any other one.
pub(super) const PREFIX_LENGTH_V6: u32 = 128;

/// Link-local addresses of guest and gateway, from their hardware addresses (RFC 4291, appendix A).
///
/// The address of the gateway must be link-local: passt gives it to clients on the loopback address
/// of the host. With another gateway, passt of Debian 12 would give them the link-local address of
/// an interface of the host.
pub(super) const GUEST_LINK_LOCAL: Ipv6Addr =
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0xa3, 0x53ff, 0xfe00, 0xf);
pub(super) const GATEWAY_LINK_LOCAL: Ipv6Addr =
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0xa3, 0x53ff, 0xfe00, 2);

/// Hardware address of the guest's Ethernet device. The second bit of the first byte marks it as
/// locally administered.
pub(super) const GUEST_MAC: [u8; 6] = [0x02, 0xa3, 0x53, 0, 0, 0x0f];

/// Hardware address of the gateway, locally administered as well.
pub(super) const GATEWAY_MAC: [u8; 6] = [0x02, 0xa3, 0x53, 0, 0, 0x02];

/// passt's own default: 65535 bytes without the Ethernet header, rounded down to a multiple of 4.
pub(super) const MTU: u32 = 65_520;
