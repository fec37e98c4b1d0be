//! Errors of configuring and entering a VM.

use std::io;
use std::path::PathBuf;

/// Reason why a VM cannot be configured or entered.
#[derive(Debug, thiserror::Error)]
pub enum KrunError {
    /// The host kernel has no KVM device: no module is loaded, or the CPU has no virtualization.
    #[error("`/dev/kvm` does not exist")]
    KvmMissing,
    /// `/dev/kvm` exists but cannot be opened for reading and writing.
    #[error("cannot open `/dev/kvm` for reading and writing")]
    KvmDenied(#[source] io::Error),
    /// `/dev/kvm` could be opened but does not report virtual CPUs. The value is the result of the
    /// call.
    #[error("`/dev/kvm` does not offer virtual CPUs: krun_get_max_vcpus returned {0}")]
    KvmUnusable(i32),
    /// No guest kernel was found at any of the places.
    #[error("guest kernel `libkrunfw.so.5` not found, looked at: {searched}")]
    KernelMissing {
        /// The places, in the order of the search.
        searched: String,
    },
    /// The library exists but cannot be loaded, or is not libkrunfw.
    #[error("cannot load the guest kernel `{}`", path.display())]
    KernelUnloadable {
        /// The library.
        path: PathBuf,
        /// The message of the dynamic loader, from `dlerror(3)`.
        #[source]
        source: libloading::Error,
    },
    /// libkrun cannot use this version of libkrunfw.
    #[error("`{}` has libkrunfw version {found}, expected {expected}", path.display())]
    KernelVersion {
        /// The library.
        path: PathBuf,
        /// Version of the library.
        found: u32,
        /// Version that libkrun requires.
        expected: u32,
    },
    /// A number of virtual CPUs that the guest kernel does not support.
    #[error("{found} virtual CPUs, expected 1 to {max}", max = crate::machine::MAX_VCPUS)]
    Vcpus {
        /// Number that was requested.
        found: u8,
    },
    /// Too little memory for the guest kernel and the guest program.
    #[error("{found} MiB of memory, expected at least {min}", min = crate::machine::MIN_MEMORY_MIB)]
    Memory {
        /// Memory in MiB that was requested.
        found: u32,
    },
    /// More shares than the VM has interrupts left beside its other devices.
    #[error("{found} shared directories, expected at most {max}")]
    TooManyShares {
        /// Number that was requested.
        found: usize,
        /// Number that the interrupts allow, besides the other devices.
        max: usize,
    },
    /// More devices than the VM has interrupts, even without its shares.
    #[error("{found} virtio devices, expected at most {max}")]
    TooManyDevices {
        /// Number of all devices, with the shares and with those that every VM has.
        found: usize,
        /// Number of interrupts.
        max: usize,
    },
    /// A disk's id that does not fit into a virtio-blk id.
    #[error("disk id `{id}` has {} bytes, expected 1 to {max}", id.len())]
    DiskId {
        /// The id.
        id: String,
        /// Longest id in bytes.
        max: usize,
    },
    /// Two disks that the guest cannot tell apart.
    #[error("two disks have the id `{id}`")]
    DuplicateDiskId {
        /// The id.
        id: String,
    },
    /// A VMDK that the guest is to write to, or with direct I/O.
    #[error("disk `{id}` is a VMDK, which libkrun can neither write to nor read with direct I/O")]
    Vmdk {
        /// Id of the disk.
        id: String,
    },
    /// A disk's file that cannot be opened with the requested access, or whose size is unknown.
    #[error("cannot open disk `{id}` at `{}`", path.display())]
    DiskFile {
        /// Id of the disk.
        id: String,
        /// The file.
        path: PathBuf,
        /// The error of `open(2)` or `lseek(2)`.
        #[source]
        source: io::Error,
    },
    /// A file whose last bytes the guest would not see, or an empty one.
    #[error(
        "disk `{id}` has {size_bytes} bytes, expected a multiple of {sector}",
        sector = crate::disk::SECTOR_BYTES
    )]
    DiskSize {
        /// Id of the disk.
        id: String,
        /// Size of the file in bytes.
        size_bytes: u64,
    },
    /// A libkrun without virtio-blk, which is an option of its build (feature `system`).
    #[error("the installed libkrun has no `krun_add_disk3`: it was built without virtio-blk")]
    DisksUnsupported,
    /// A virtio-fs tag that does not fit into the device's configuration space.
    #[error(
        "tag `{tag}` has {} bytes, expected 1 to {max}",
        tag.len(),
        max = crate::machine::MAX_TAG_BYTES
    )]
    Tag {
        /// The tag.
        tag: String,
    },
    /// A socket path that does not fit into a `sockaddr_un`.
    #[error(
        "socket path `{}` has {} bytes, expected at most {max}",
        path.display(),
        path.as_os_str().len(),
        max = crate::machine::MAX_SOCKET_PATH_BYTES
    )]
    SocketPath {
        /// The path.
        path: PathBuf,
    },
    /// A path or name that libkrun cannot take: it is not UTF-8, or contains a NUL byte.
    #[error("{argument} of {call} is not UTF-8, or contains a NUL byte")]
    Text {
        /// The call of libkrun.
        call: &'static str,
        /// The argument of this call.
        argument: &'static str,
    },
    /// A call of libkrun failed.
    #[error("{call} failed")]
    Call {
        /// The call of libkrun.
        call: &'static str,
        /// The errno that it returned.
        #[source]
        source: io::Error,
    },
    /// The process that plays the guest cannot be started (feature `fake`).
    #[error("cannot start the fake guest `{program}`")]
    FakeGuest {
        /// The program.
        program: String,
        /// The error of `execve(2)` or `fork(2)`.
        #[source]
        source: io::Error,
    },
}

impl KrunError {
    /// Returns advice for the user, if there is any that the message does not contain.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::KvmMissing => Some(
                "load kvm_intel or kvm_amd, and turn virtualization on in the firmware; in a VM, nested virtualization",
            ),
            Self::KvmDenied(_) => Some("add the user to the group that owns /dev/kvm"),
            Self::KernelMissing { .. } => Some(
                "install libkrunfw (Fedora, Arch and Homebrew have a package; Debian has libkrunfw5; prebuilt: its releases), or set `paths.libkrunfw`",
            ),
            Self::DisksUnsupported => Some("install a libkrun that was built with `make BLK=1`"),
            Self::SocketPath { .. } => Some("choose a shorter `paths.state_dir`"),
            _ => None,
        }
    }

    /// Whether the host causes the error, and not the requested [`Machine`](crate::Machine).
    #[must_use]
    pub fn is_host_fault(&self) -> bool {
        matches!(
            self,
            Self::KvmMissing
                | Self::KvmDenied(_)
                | Self::KvmUnusable(_)
                | Self::KernelMissing { .. }
                | Self::KernelUnloadable { .. }
                | Self::KernelVersion { .. }
                | Self::DisksUnsupported
        )
    }
}
