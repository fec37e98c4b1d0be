//! Addresses and sizes of the network between the guest and passt.
//!
//! Only the guest and passt see this network. Every box has one of its own, so all boxes use the
//! same addresses.

use std::net::Ipv4Addr;

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

/// Hardware address of the guest's Ethernet device. The second bit of the first byte marks it as
/// locally administered.
pub(super) const GUEST_MAC: [u8; 6] = [0x02, 0xa3, 0x53, 0, 0, 0x0f];

/// Hardware address of the gateway, locally administered as well.
pub(super) const GATEWAY_MAC: [u8; 6] = [0x02, 0xa3, 0x53, 0, 0, 0x02];

/// passt's own default: 65535 bytes without the Ethernet header, rounded down to a multiple of 4.
pub(super) const MTU: u32 = 65_520;
