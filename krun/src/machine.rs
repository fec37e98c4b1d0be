//! The description of a VM, and the limits that libkrun does not check.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use crate::KrunError;
use crate::access::Access;
use crate::content::Content;
use crate::disk::{self, Disk};

/// Largest number of virtual CPUs. libkrunfw 5 builds its kernel with `NR_CPUS=16`. libkrun accepts
/// more, but a guest with 20 resets during its boot and prints no error.
pub const MAX_VCPUS: u8 = 16;

/// Smallest memory size in MiB. libkrun panics if the memory ends below the end of the guest kernel
/// (37 MiB). The guest program and a workload need memory as well, so the limit is higher.
pub const MIN_MEMORY_MIB: u32 = 128;

/// Largest number of virtio devices. Each has an interrupt of its own, and on x86-64 libkrun has 11
/// of them (krun-arch, `src/x86_64/layout.rs`: `IRQ_BASE` 5 to `IRQ_MAX` 15). With one device more,
/// `krun_start_enter` returns EINVAL (krun-vmm, `src/device_manager/kvm/mmio.rs`, `IrqsExhausted`).
///
/// libkrun adds the devices in this order (krun-vmm, `src/builder.rs`, `build_microvm`), which is
/// also the order in which the guest finds them:
///
/// ```text
///   balloon  rng  console │ root  shares…  disks… │ vsock │ net
///   always                │ as the calls add them │ always │ if there is one
/// ```
pub const MAX_DEVICES: usize = 11;

/// Devices of every machine: balloon, rng, console, root and vsock. libkrun adds the first two on
/// its own.
const FIXED_DEVICES: usize = 5;

/// Largest number of [`Machine::shares`] of a machine with a [`Root::Directory`]; with a network
/// device it is one less. Disks take devices as well: see [`max_shares`].
pub const MAX_SHARES: usize = max_shares(0, 0);

/// Returns the largest number of shares beside this number of disks and of network devices. It is 0
/// also if these alone are too many.
///
/// ```
/// use a3s_box_krun::{MAX_SHARES, max_shares};
///
/// assert_eq!(max_shares(0, 0), MAX_SHARES);
/// // A block root of two disks, and a network device.
/// assert_eq!(max_shares(2, 1), 3);
/// ```
#[must_use]
pub const fn max_shares(disks: usize, net_devices: usize) -> usize {
    MAX_DEVICES.saturating_sub(FIXED_DEVICES).saturating_sub(disks).saturating_sub(net_devices)
}

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
    /// The file system that the guest kernel mounts as its root, with read and write access.
    pub root: Root,
    /// Virtual files in the guest's root directory that do not exist in [`root`](Self::root)
    /// itself.
    pub overlay_files: Vec<OverlayFile>,
    /// Other directories of the host, at most [`max_shares`](Self::max_shares).
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

/// The root of a [`Machine`]: a virtio-fs device with the tag `/dev/root`.
#[derive(Debug)]
pub enum Root {
    /// A directory of the host. The path must be UTF-8, and its last component must not be a
    /// symlink: libkrun opens it with `O_NOFOLLOW`. It does so only when the guest mounts its root,
    /// so an error is visible in the guest alone (krun-devices,
    /// `src/virtio/fs/linux/passthrough.rs`, `init`).
    Directory(PathBuf),
    /// No directory of the host. PID 1 finds its own root on disks.
    Block(BlockRoot),
}

/// A root without a directory of the host, and the disks of the machine.
///
/// The guest kernel mounts a virtual file system that has the [`Machine::overlay_files`] and the
/// [`mount_points`](Self::mount_points), and nothing else. `readdir(3)` on it fails with ENOSYS.
/// The guest cannot create anything in it: libkrun implements only the lookup of names and the
/// attributes of the directory (krun-devices, `src/virtio/fs/null_fs.rs`). The kernel's command
/// line names no disk, so PID 1 mounts the disks and moves to the result.
#[derive(Clone, Debug, Default)]
pub struct BlockRoot {
    /// Names of empty directories in the root, without a slash, on which PID 1 can mount. They have
    /// the permissions 0755 and belong to root.
    pub mount_points: Vec<String>,
    /// Disks in the order in which Linux numbers them: `vda`, `vdb` and so on. The id of a disk is
    /// independent of this order (see [`Disk::id`]).
    pub disks: Vec<Disk>,
}

/// A virtual, read-only file in the guest's root directory, owned by root
/// (`krun_fs_add_overlay_file`, libkrun `src/lib.rs`).
#[derive(Debug)]
pub struct OverlayFile {
    /// Name in the root directory, without a slash. libkrun resolves a slash as a virtual
    /// directory, and fails with ENOENT if there is none.
    pub name: String,
    /// Content.
    pub content: Content,
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
    /// What the guest keeps of the files.
    pub cache: ShareCache,
}

/// What the guest keeps of the files of a virtio-fs device, besides names (5 seconds) and content
/// (until the file is opened again).
///
/// libkrun has no parameter for it. The parameter of `krun_add_virtiofs4` for the semantics of
/// permissions decides it: with `LinuxSimplified`, attributes are valid for 0 seconds (krun-devices,
/// `src/virtio/fs/device.rs`, `Fs::new`), and the guest cannot mount the device with an idmap. On
/// Linux it has no other effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShareCache {
    /// No attributes: each use of a size, a mode or a time is a request.
    None,
    /// Attributes for 5 seconds.
    Auto,
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
        self.check_devices()?;
        disk::check(self.disks())?;
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

    /// Refuses more devices than there are interrupts.
    fn check_devices(&self) -> Result<(), KrunError> {
        let (found, max) = (self.shares.len(), self.max_shares());
        if self.devices() <= MAX_DEVICES {
            return Ok(());
        }
        // Fewer shares help only if the other devices fit.
        if self.devices() - found <= MAX_DEVICES {
            return Err(KrunError::TooManyShares { found, max });
        }
        Err(KrunError::TooManyDevices { found: self.devices(), max: MAX_DEVICES })
    }

    /// Returns the number of virtio devices, with those that every machine has.
    fn devices(&self) -> usize {
        FIXED_DEVICES + self.shares.len() + self.disks().len() + usize::from(self.net.is_some())
    }

    /// Returns the largest number of shares that this machine can have, beside its other devices.
    #[must_use]
    pub fn max_shares(&self) -> usize {
        max_shares(self.disks().len(), usize::from(self.net.is_some()))
    }

    /// Returns the disks in their order.
    pub(crate) fn disks(&self) -> &[Disk] {
        match &self.root {
            Root::Directory(_) => &[],
            Root::Block(root) => &root.disks,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{DiskFormat, SyncMode};

    fn machine() -> Machine {
        let null = || std::fs::File::open("/dev/null").unwrap().into();
        Machine {
            vcpus: 1,
            memory_mib: 128,
            root: Root::Directory("/".into()),
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
        Share {
            tag: tag.into(),
            path: "/".into(),
            access: Access::ReadOnly,
            cache: ShareCache::Auto,
        }
    }

    fn net() -> Option<NetDevice> {
        let socket = std::fs::File::open("/dev/null").unwrap().into();
        Some(NetDevice { socket, mac: [2; 6] })
    }

    fn machine_with_disks(count: usize) -> Machine {
        let disk = |number: usize| Disk {
            id: number.to_string(),
            file: "/disk".into(),
            format: DiskFormat::Raw,
            access: Access::ReadOnly,
            sync: SyncMode::None,
            direct_io: false,
        };
        let disks = (0..count).map(disk).collect();
        Machine { root: Root::Block(BlockRoot { disks, ..BlockRoot::default() }), ..machine() }
    }

    #[test]
    fn each_disk_and_the_network_device_leave_one_share_less() {
        for (disks, has_net, expected) in
            [(0, false, 6), (0, true, 5), (2, false, 4), (2, true, 3), (6, false, 0), (5, true, 0)]
        {
            let mut machine = machine_with_disks(disks);
            machine.net = has_net.then(net).flatten();
            machine.shares = (0..expected).map(|_| share("a")).collect();
            machine.check().unwrap();
            assert_eq!(machine.max_shares(), expected);
            machine.shares.push(share("a"));
            let found = machine.check().unwrap_err();
            assert!(
                matches!(found, KrunError::TooManyShares { found, max }
                    if found == expected + 1 && max == expected),
                "{found:?}"
            );
        }
    }

    #[test]
    fn more_disks_than_devices_are_refused_with_the_number_of_all_devices() {
        let mut machine = machine_with_disks(6);
        machine.net = net();
        machine.shares = vec![share("a")];
        let found = machine.check().unwrap_err();
        assert_eq!(found.to_string(), "13 virtio devices, expected at most 11");
        assert_eq!(machine.max_shares(), 0);
        assert_eq!(max_shares(usize::MAX, usize::MAX), 0);
    }

    #[test]
    fn disks_of_a_block_root_are_checked() {
        let mut machine = machine_with_disks(2);
        if let Root::Block(root) = &mut machine.root {
            root.disks[1].id = "0".into();
        }
        let found = machine.check().unwrap_err();
        assert!(matches!(found, KrunError::DuplicateDiskId { .. }), "{found:?}");
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
                    m.net = net();
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
