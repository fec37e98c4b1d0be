//! [`NetworkError`]: why a box gets no network.

use std::net::IpAddr;
use std::time::Duration;

use a3s_box_sys::HostError;

/// Longest wait for the first answer of gate and passt, and for an answer of the connector. The
/// first needs 20 ms; a wait of seconds happens only on an overloaded host.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// Why the guest's network could not be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetworkError {
    /// passt is not in the search path.
    #[error("`passt`, which `network.mode` `passt` needs, was not found in {searched}")]
    PasstMissing { searched: String },
    /// The process may not make sockets of the Internet.
    #[error("this process may not make the sockets that `network.mode` `passt` and `tsi` need")]
    NoSockets,
    /// The host has no IPv6, or passt cannot use it.
    #[error("cannot publish a port on `{address}`: the host has no IPv6 that passt can use")]
    NoIpv6 { address: IpAddr },
    /// The gate or passt exited before it carried a frame.
    #[error("the network was refused: {complaint}")]
    Refused { complaint: String },
    /// A rule has a name, and there is no name server that could resolve it.
    #[error("`network.egress` has names, and neither the config nor the host has a name server")]
    NoNameServer,
    /// passt did not answer in time.
    #[error("passt did not answer within {} s", ANSWER_TIMEOUT.as_secs())]
    NoAnswer,
    /// The host refused a call.
    #[error(transparent)]
    Host(#[from] HostError),
}

impl NetworkError {
    /// Returns what a user can do about the error, where that is known.
    pub(crate) fn hint(&self) -> Option<&'static str> {
        match self {
            Self::PasstMissing { .. } => Some("install the package `passt`"),
            Self::NoSockets => Some(
                "add the settings of `network.conf` to the service of this box (docs/operations.md)",
            ),
            Self::Refused { .. } => Some(
                "check that each address of `network.publish` is this host's and that its port is \
                 free; ports below 1024 require root",
            ),
            Self::NoIpv6 { .. } => Some(
                "give an interface of the host a link-local and another IPv6 address, publish the \
                 port on an IPv4 address, or use `network.egress` `deny`",
            ),
            Self::NoNameServer => {
                Some("name a server in `network.dns`, or in `/etc/resolv.conf` of the host")
            }
            Self::NoAnswer | Self::Host(_) => None,
        }
    }
}
