//! What can go wrong before and while entering a VM.

use std::io;
use std::path::PathBuf;

/// Why a VM cannot be configured or entered.
#[derive(Debug, thiserror::Error)]
pub enum KrunError {
    /// The kernel offers no KVM.
    #[error("`/dev/kvm` does not exist")]
    KvmMissing,
    /// `/dev/kvm` exists and cannot be opened.
    #[error("cannot open `/dev/kvm` for reading and writing")]
    KvmDenied(#[source] io::Error),
    /// `/dev/kvm` was opened and does not answer as KVM does.
    #[error("`/dev/kvm` does not offer virtual CPUs: krun_get_max_vcpus returned {0}")]
    KvmUnusable(i32),
    /// No guest kernel was found.
    #[error("guest kernel `libkrunfw.so.5` not found, looked at: {searched}")]
    KernelMissing {
        /// Where it was looked for.
        searched: String,
    },
    /// The guest kernel's library cannot be loaded.
    #[error("cannot load the guest kernel `{}`", path.display())]
    KernelUnloadable {
        /// The library.
        path: PathBuf,
        /// What the dynamic loader says.
        #[source]
        source: libloading::Error,
    },
    /// The library is not a guest kernel that libkrun accepts.
    #[error("`{}` has libkrunfw version {found}, expected {expected}", path.display())]
    KernelVersion {
        /// The library.
        path: PathBuf,
        /// Version that it says.
        found: u32,
        /// Version that libkrun accepts.
        expected: u32,
    },
    /// More or fewer virtual CPUs than the guest kernel supports.
    #[error("{found} virtual CPUs, expected 1 to {max}", max = crate::machine::MAX_VCPUS)]
    Vcpus {
        /// What was asked for.
        found: u8,
    },
    /// Too little memory for the guest kernel.
    #[error("{found} MiB of memory, expected at least {min}", min = crate::machine::MIN_MEMORY_MIB)]
    Memory {
        /// What was asked for.
        found: u32,
    },
    /// More devices than the machine has interrupts for.
    #[error("{found} shared directories, expected at most {max}")]
    TooManyShares {
        /// What was asked for.
        found: usize,
        /// What the other devices leave.
        max: usize,
    },
    /// A virtio-fs tag that the device cannot hold.
    #[error("tag `{tag}` has {} bytes, expected 1 to {max}", tag.len(), max = crate::machine::MAX_TAG_BYTES)]
    Tag {
        /// The tag.
        tag: String,
    },
    /// A socket path that does not fit into a `sockaddr_un`.
    #[error("socket path `{}` has {} bytes, expected at most {max}", path.display(), path.as_os_str().len(), max = crate::machine::MAX_SOCKET_PATH_BYTES)]
    SocketPath {
        /// The path.
        path: PathBuf,
    },
    /// A path or name that a C string cannot hold.
    #[error("{argument} of {call} is not UTF-8, or contains a NUL byte")]
    Text {
        /// The call of libkrun.
        call: &'static str,
        /// Which argument.
        argument: &'static str,
    },
    /// libkrun refused a call.
    #[error("{call} failed")]
    Call {
        /// The call of libkrun.
        call: &'static str,
        /// The errno that it returned.
        #[source]
        source: io::Error,
    },
    /// The process that plays the guest could not be started (feature `fake`).
    #[error("cannot start the fake guest `{program}`")]
    FakeGuest {
        /// The program.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl KrunError {
    /// What a user can do about it.
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
            Self::SocketPath { .. } => Some("choose a shorter `paths.state_dir`"),
            _ => None,
        }
    }

    /// Whether the fault lies with this host and not with what was asked for.
    #[must_use]
    pub fn is_of_host(&self) -> bool {
        matches!(
            self,
            Self::KvmMissing
                | Self::KvmDenied(_)
                | Self::KvmUnusable(_)
                | Self::KernelMissing { .. }
                | Self::KernelUnloadable { .. }
                | Self::KernelVersion { .. }
        )
    }
}
