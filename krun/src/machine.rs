//! The description of a VM, and the limits that libkrun does not check.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use crate::KrunError;

/// Largest number of virtual CPUs. libkrunfw 5 builds its kernel with `NR_CPUS=16`. libkrun accepts
/// more, but a guest with 20 resets during its boot and prints no error.
pub const MAX_VCPUS: u8 = 16;

/// Smallest memory size in MiB. libkrun panics if the memory ends below the end of the guest kernel
/// (37 MiB). The guest program and a workload need memory as well, so the limit is higher.
pub const MIN_MEMORY_MIB: u32 = 128;

/// Largest number of [`Machine::shares`]; with a network device it is one less. On x86-64 libkrun
/// has interrupts for 11 virtio devices (krun-arch, `src/x86_64/layout.rs`: `IRQ_BASE` 5 to
/// `IRQ_MAX` 15). Balloon, rng, console, vsock and the root device use five of them.
pub const MAX_SHARES: usize = 6;

/// Longest virtio-fs tag in bytes: the size of the field `tag` in the device's configuration space
/// (virtio 1.2, section 5.11.4). libkrun panics on a longer one (krun-devices,
/// `src/virtio/fs/device.rs`).
pub const MAX_TAG_BYTES: usize = 36;

/// Longest path of a unix socket in bytes: `sun_path` has 108 bytes including the final NUL
/// (unix(7)).
pub const MAX_SOCKET_PATH_BYTES: usize = 107;

/// The complete description of a VM. The example of the [crate] fills one in.
#[derive(Debug)]
pub struct Machine {
    /// Number of virtual CPUs, 1 to [`MAX_VCPUS`].
    pub vcpus: u8,
    /// Memory in MiB, at least [`MIN_MEMORY_MIB`].
    pub memory_mib: u32,
    /// Directory of the host that is the guest's root, read and write. The path must be UTF-8, and
    /// its last component must not be a symlink: libkrun opens it with `O_NOFOLLOW`. It does so
    /// only when the guest mounts its root, so an error is visible in the guest alone
    /// (krun-devices, `src/virtio/fs/linux/passthrough.rs`, `init`).
    pub root: PathBuf,
    /// Virtual files in the guest's root directory that do not exist in [`root`](Self::root)
    /// itself.
    pub overlay_files: Vec<OverlayFile>,
    /// Other directories of the host, at most [`MAX_SHARES`].
    pub shares: Vec<Share>,
    /// Bridges between vsock ports of the guest and unix sockets of the host.
    pub vsock_ports: Vec<VsockPort>,
    /// The guest's Ethernet device, if it has one.
    pub net: Option<NetDevice>,
    /// Whether libkrun opens the IPv4 and IPv6 sockets of the guest in this process (transparent
    /// socket impersonation, TSI). The guest then reaches the network of this process with the
    /// rights of this process.
    pub tsi: bool,
    /// Destination of the console port `krun-stdout`. It must not be a terminal, for which libkrun
    /// creates no such port. It must not share its open file description with standard output,
    /// because libkrun sets `O_NONBLOCK` on it (krun-vmm, `src/builder.rs`; krun-devices,
    /// `src/virtio/console/port_io.rs`).
    pub stdout: OwnedFd,
    /// Destination of the console port `krun-stderr`, under the same conditions as
    /// [`stdout`](Self::stdout).
    pub stderr: OwnedFd,
}

/// A virtual, read-only file in the guest's root directory, owned by root
/// (`krun_fs_add_overlay_file`, libkrun `src/lib.rs`).
#[derive(Debug)]
pub struct OverlayFile {
    /// Name in the root directory, without a slash. libkrun resolves a slash as a virtual
    /// directory, and fails with ENOENT if there is none.
    pub name: String,
    /// Content. It stays in memory until the process ends.
    pub content: Vec<u8>,
    /// Permission bits, such as `0o600`, without the bits of the file type.
    pub permissions: u32,
    /// Whether the guest can open the file only once. The name disappears with the first lookup,
    /// and the content when the file is closed (krun-devices, `src/virtio/fs/augment_fs.rs`). An
    /// executable must not be one: the guest kernel reads its pages after the file was closed.
    pub one_shot: bool,
}

/// A directory of the host, as a virtio-fs device.
#[derive(Debug)]
pub struct Share {
    /// Name by which the guest mounts the device, 1 to [`MAX_TAG_BYTES`] bytes.
    pub tag: String,
    /// The directory. The path must be UTF-8.
    pub path: PathBuf,
    /// Whether the device accepts writes.
    pub access: Access,
}

/// An Ethernet device.
#[derive(Debug)]
pub struct NetDevice {
    /// A connected stream socket that carries Ethernet frames. Each frame follows its length as
    /// four bytes, big endian (krun-devices, `src/virtio/net/unixstream.rs`).
    ///
    /// The peer must keep its end open for as long as the VM runs. It must not send a frame of more
    /// than 65550 bytes: the device's buffer has 65562 bytes (`MAX_BUFFER_SIZE`), of which the
    /// virtio-net header takes 12.
    pub socket: OwnedFd,
    /// MAC address of the guest's device.
    pub mac: [u8; 6],
}

/// Whether a device accepts writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// libkrun refuses writes with EROFS, whatever the guest does.
    ReadOnly,
    /// Writes reach the host's directory.
    ReadWrite,
}

/// A vsock port that is bridged to a unix socket of the host.
#[derive(Debug)]
pub struct VsockPort {
    /// Port number.
    pub port: u32,
    /// Path of the unix socket, at most [`MAX_SOCKET_PATH_BYTES`] bytes of UTF-8.
    pub socket: PathBuf,
    /// Direction in which connections are opened.
    pub connect: Connect,
}

/// Direction in which connections to a bridged port are opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connect {
    /// libkrun listens on the unix socket and forwards each connection to a listener in the guest.
    /// The path must not exist when the VM is configured (EEXIST). libkrun creates the socket while
    /// the guest boots, when the guest's driver activates the vsock device.
    FromHost,
    /// libkrun listens on the vsock port of the host and forwards each connection of the guest to
    /// the unix socket. A process of the host must listen there before the guest connects.
    FromGuest,
}

impl Machine {
    /// Refuses the values for which libkrun panics, or for which the guest hangs or resets without
    /// an error.
    pub(crate) fn check(&self) -> Result<(), KrunError> {
        if !(1..=MAX_VCPUS).contains(&self.vcpus) {
            return Err(KrunError::Vcpus { found: self.vcpus });
        }
        if self.memory_mib < MIN_MEMORY_MIB {
            return Err(KrunError::Memory { found: self.memory_mib });
        }
        // Each device takes one interrupt, so a network device leaves one less for shares.
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
            // libkrun binds or connects the socket when the guest already runs, and only logs a
            // failure.
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
    fn values_outside_of_the_limits_are_refused_and_the_largest_are_accepted() {
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
