//! The addresses at which clouds serve metadata and credentials of their machines.
//!
//! A guest must not get the credentials of the host. IPv6 addresses such as `fd00:ec2::254` (AWS)
//! need no entry, because the gate passes no IPv6 frame.

use std::net::Ipv4Addr;

/// Services outside of the link-local network, each with the page that documents it.
const SERVICES: [Ipv4Addr; 5] = [
    // Alibaba Cloud: https://www.alibabacloud.com/help/en/ecs/user-guide/view-instance-metadata
    Ipv4Addr::new(100, 100, 100, 200),
    // Azure, the "wire server" with the certificates and settings of a machine:
    // https://learn.microsoft.com/azure/virtual-network/what-is-ip-address-168-63-129-16
    Ipv4Addr::new(168, 63, 129, 16),
    // Oracle Cloud Infrastructure Classic:
    // https://docs.oracle.com/en/cloud/iaas-classic/compute-iaas-cloud/stcsg/retrieving-instance-metadata.html
    Ipv4Addr::new(192, 0, 0, 192),
    // UCloud: https://ucloud-global.com/docs/uhost/guide/metadata/metadata-server
    Ipv4Addr::new(100, 80, 80, 80),
    // Volcengine, whose own network plugin takes its credentials from there:
    // https://github.com/volcengine/cello (`credentialServerAddress`)
    Ipv4Addr::new(100, 96, 0, 96),
];

/// Returns whether a cloud may serve metadata at an address.
///
/// Most clouds use `169.254.169.254`, and some use other link-local addresses, such as
/// `169.254.170.2` (containers of AWS) or `169.254.0.23` (Tencent Cloud).
pub(super) fn is_metadata(address: Ipv4Addr) -> bool {
    address.is_link_local() || SERVICES.contains(&address)
}
