//! What a VM is made of, and the limits that libkrun has without saying so.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use crate::KrunError;

/// The stock guest kernel is built with `NR_CPUS=16`; with 20 the guest resets silently.
pub const MAX_VCPUS: u8 = 16;

/// Below the end of the kernel (37 MiB) libkrun panics; a guest that does anything needs more.
pub const MIN_MEMORY_MIB: u32 = 128;

/// x86-64 has interrupts for 11 virtio devices (IRQ 5 to 15). Balloon, rng, console, vsock and
/// root take five. With a network device it is one less.
pub const MAX_SHARES: usize = 6;

/// Size of the tag in the configuration space of a virtio-fs device (virtio 1.2, 5.11.4).
pub const MAX_TAG_BYTES: usize = 36;

/// `sun_path` has 108 bytes, with a NUL at the end.
pub const MAX_SOCKET_PATH_BYTES: usize = 107;

/// Everything that libkrun is told.
#[derive(Debug)]
pub struct Machine {
    /// Virtual CPUs.
    pub vcpus: u8,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Directory of the host that is the guest's root. Must not be a symlink: libkrun opens it with
    /// `O_NOFOLLOW`, late and in the guest's time.
    pub root: PathBuf,
    /// Files that only exist in the guest's root directory.
    pub overlay_files: Vec<OverlayFile>,
    /// Other directories of the host.
    pub shares: Vec<Share>,
    /// Sockets of the host that are bridged to the guest.
    pub vsock_ports: Vec<VsockPort>,
    /// The guest's Ethernet, if it has one.
    pub net: Option<NetDevice>,
    /// Whether sockets of the guest are this process's (TSI): in its network, with its rights.
    pub tsi: bool,
    /// Becomes the guest's port `krun-stdout`. Not a terminal, and not standard output: libkrun
    /// sets `O_NONBLOCK` on it.
    pub stdout: OwnedFd,
    /// Becomes the guest's port `krun-stderr`. The same holds.
    pub stderr: OwnedFd,
}

/// A virtual, read-only file in the guest's root directory, owned by root.
#[derive(Debug)]
pub struct OverlayFile {
    /// Name in the root directory, without a slash.
    pub name: String,
    /// Content. Stays in memory as long as the process lives.
    pub content: Vec<u8>,
    /// Permission bits.
    pub permissions: u32,
    /// Whether it vanishes once it was opened. Not for a program: libkrun forgets the file while the
    /// guest still pages from it.
    pub one_shot: bool,
}

/// A directory of the host, as a virtio-fs device.
#[derive(Debug)]
pub struct Share {
    /// Name by which the guest mounts it.
    pub tag: String,
    /// The directory.
    pub path: PathBuf,
    /// Whether the device accepts writes.
    pub access: Access,
}

/// An Ethernet device.
#[derive(Debug)]
pub struct NetDevice {
    /// Connected to whoever carries its frames, each with its length before it (four bytes, big endian).
    /// The other end must stay open for as long as the VM runs, and send no frame over 65550 bytes.
    pub socket: OwnedFd,
    /// The guest's hardware address.
    pub mac: [u8; 6],
}

/// Whether a device accepts writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Writes are refused on the host's side.
    ReadOnly,
    /// Writes reach the host's directory.
    ReadWrite,
}

/// A vsock port that is bridged to a unix socket of the host.
#[derive(Debug)]
pub struct VsockPort {
    /// Port number.
    pub port: u32,
    /// The unix socket.
    pub socket: PathBuf,
    /// Who connects.
    pub connect: Connect,
}

/// Who connects to a bridged port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connect {
    /// libkrun listens on the socket; connections go to a listener in the guest. The socket appears
    /// during the guest's boot.
    FromHost,
    /// The guest connects; libkrun connects to the socket, on which somebody must listen already.
    FromGuest,
}

impl Machine {
    /// Checks what libkrun would turn into a panic, a hang or a silent exit.
    pub(crate) fn check(&self) -> Result<(), KrunError> {
        if !(1..=MAX_VCPUS).contains(&self.vcpus) {
            return Err(KrunError::Vcpus { found: self.vcpus });
        }
        if self.memory_mib < MIN_MEMORY_MIB {
            return Err(KrunError::Memory { found: self.memory_mib });
        }
        let (found, max) = (self.shares.len(), MAX_SHARES - usize::from(self.net.is_some()));
        if found > max {
            return Err(KrunError::TooManyShares { found, max });
        }
        for Share { tag, .. } in &self.shares {
            if !(1..=MAX_TAG_BYTES).contains(&tag.len()) {
                return Err(KrunError::Tag { tag: tag.clone() });
            }
        }
        for VsockPort { socket, .. } in &self.vsock_ports {
            if socket.as_os_str().len() > MAX_SOCKET_PATH_BYTES {
                return Err(KrunError::SocketPath { path: socket.clone() });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine {
        let null = || std::fs::File::open("/dev/null").unwrap().into();
        Machine {
            vcpus: 1,
            memory_mib: 128,
            root: "/".into(),
            overlay_files: Vec::new(),
            shares: Vec::new(),
            vsock_ports: Vec::new(),
            net: None,
            tsi: false,
            stdout: null(),
            stderr: null(),
        }
    }

    fn share(tag: &str) -> Share {
        Share { tag: tag.into(), path: "/".into(), access: Access::ReadOnly }
    }

    #[test]
    fn limits_are_checked_on_both_sides() {
        type Change = fn(&mut Machine);
        let refused: [(Change, &str); 8] = [
            (|m| m.vcpus = 0, "0 virtual CPUs, expected 1 to 16"),
            (|m| m.vcpus = 17, "17 virtual CPUs, expected 1 to 16"),
            (|m| m.memory_mib = 127, "127 MiB of memory, expected at least 128"),
            (
                |m| m.shares = (0..7).map(|_| share("a")).collect(),
                "7 shared directories, expected at most 6",
            ),
            (
                |m| {
                    let socket = std::fs::File::open("/dev/null").unwrap().into();
                    m.net = Some(NetDevice { socket, mac: [2; 6] });
                    m.shares = (0..6).map(|_| share("a")).collect();
                },
                "6 shared directories, expected at most 5",
            ),
            (|m| m.shares = vec![share("")], "tag `` has 0 bytes, expected 1 to 36"),
            (|m| m.shares = vec![share(&"t".repeat(37))], "has 37 bytes, expected 1 to 36"),
            (
                |m| {
                    let socket = format!("/{}", "s".repeat(107)).into();
                    m.vsock_ports = vec![VsockPort { port: 1, socket, connect: Connect::FromHost }];
                },
                "has 108 bytes, expected at most 107",
            ),
        ];
        for (change, expected) in refused {
            let mut machine = machine();
            change(&mut machine);
            let found = machine.check().unwrap_err().to_string();
            assert!(found.contains(expected), "{found} / {expected}");
        }
        let mut largest = machine();
        largest.vcpus = 16;
        largest.shares = (0..6).map(|_| share(&"t".repeat(36))).collect();
        let socket = format!("/{}", "s".repeat(106)).into();
        largest.vsock_ports = vec![VsockPort { port: 1, socket, connect: Connect::FromGuest }];
        largest.check().unwrap();
    }
}
