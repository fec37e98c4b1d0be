//! Addresses in the network between guest and passt.

use std::net::Ipv4Addr;

/// Address of the guest, and of its gateway, in a network that exists between guest and passt only: those
/// of QEMU's own user network, which people know.
pub(super) const GUEST_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
pub(super) const GATEWAY_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
pub(super) const PREFIX_LENGTH: u32 = 24;

/// Of a network that is for documentation, and nowhere else (RFC 5737).
pub(super) const PLACEHOLDER_ADDRESS: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);

/// Locally administered. Every box has an Ethernet of its own.
pub(super) const GUEST_MAC: [u8; 6] = [0x02, 0xa3, 0x53, 0, 0, 0x0f];
pub(super) const GATEWAY_MAC: [u8; 6] = [0x02, 0xa3, 0x53, 0, 0, 0x02];

/// passt's own default: the largest IPv4 packet in a frame, in words of 32 bits.
pub(super) const MTU: u32 = 65_520;
