//! The addresses at which clouds serve metadata and credentials of their machines.
//!
//! A guest must not get the credentials of the host.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

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

/// The IPv6 services, each with the page or program that names it. Further clouds use
/// `fe80::a9fe:a9fe`, which is link-local, so that no guest reaches it.
const SERVICES_V6: [Ipv6Addr; 5] = [
    // Google Cloud: https://docs.cloud.google.com/compute/docs/metadata/querying-metadata
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
    // Oracle Cloud Infrastructure, whose own library takes its credentials from there:
    // https://github.com/oracle/oci-python-sdk (`instance_principals_security_token_signer.py`)
    Ipv6Addr::new(0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe),
    // Scaleway: https://docs.cloud-init.io/en/latest/reference/datasources/scaleway.html
    Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42),
    // Akamai (Linode): https://docs.cloud-init.io/en/latest/reference/datasources/akamai.html
    Ipv6Addr::new(0xfd00, 0xa9fe, 0xa9fe, 0, 0, 0, 0, 1),
    // Alibaba Cloud: https://www.alibabacloud.com/help/en/ecs/user-guide/view-instance-metadata
    Ipv6Addr::new(0xfd00, 0x100, 0, 0, 0, 0, 0x100, 0x200),
];

/// First 32 bits of the addresses at which AWS serves metadata (`fd00:ec2::254`), credentials of
/// containers (`fd00:ec2::23`), name resolution (`fd00:ec2::253`) and time (`fd00:ec2::123`):
/// <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html>,
/// <https://docs.aws.amazon.com/eks/latest/userguide/pod-id-agent-setup.html>
const AWS: [u16; 2] = [0xfd00, 0x0ec2];

/// Returns whether a cloud may serve metadata at an address.
///
/// Most clouds use `169.254.169.254`, and some use other link-local addresses, such as
/// `169.254.170.2` (containers of AWS) or `169.254.0.23` (Tencent Cloud).
pub(super) fn is_metadata(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local() || SERVICES.contains(&address),
        IpAddr::V6(address) => {
            address.segments().starts_with(&AWS) || SERVICES_V6.contains(&address)
        }
    }
}
