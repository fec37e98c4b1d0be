//! What the shim passes to its gate, over the wire and before the first frame.
//!
//! The arguments of a process have a limit of 128 KiB each (`MAX_ARG_STRLEN`, execve(2)), which a
//! list of rules can exceed, and any user of the host can read them.

use std::io::{self, Read, Write};
use std::net::IpAddr;

use a3s_box_core::config::{MAX_CONFIG_BYTES, NetworkConfig, SeccompMode};
use serde::{Deserialize, Serialize};

/// Bound on the text. The shim writes some values longer than they were in the config of the box,
/// such as `192.0.2.7/32` for `192.0.2.7`, but not twice as long.
const MAX_BYTES: usize = 2 * MAX_CONFIG_BYTES;

/// The config of a gate.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::network) struct GateConfig {
    pub(in crate::network) network: NetworkConfig,
    /// Name servers that the gate asks, if a rule has a name.
    #[serde(default)]
    pub(in crate::network) name_servers: Vec<IpAddr>,
    pub(in crate::network) seccomp: SeccompMode,
    /// The user and group of gate and passt if root starts them. By default it is `nobody`.
    pub(in crate::network) user: Option<u32>,
    /// Interface of the host that passt needs for IPv6. If absent, the guest has IPv4 only.
    pub(in crate::network) ipv6: Option<String>,
}

impl GateConfig {
    /// Writes the config: its length in four bytes, big endian, and its JSON text.
    pub(in crate::network) fn send(&self, mut wire: impl Write) -> io::Result<()> {
        let text = serde_json::to_vec(self)?;
        let length = u32::try_from(text.len()).map_err(io::Error::other)?;
        wire.write_all(&length.to_be_bytes())?;
        wire.write_all(&text)
    }

    /// Reads the config, and nothing behind it.
    pub(super) fn receive(mut wire: impl Read) -> io::Result<Self> {
        let mut length = [0; 4];
        wire.read_exact(&mut length)?;
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if length > MAX_BYTES {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the gate's config is too long",
            ));
        }
        let mut text = vec![0; length];
        wire.read_exact(&mut text)?;
        Ok(serde_json::from_slice(&text)?)
    }
}
