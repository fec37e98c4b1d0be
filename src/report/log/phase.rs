//! The phases of a box. Each record of the log names the current one.

/// The current work of a shim, in order of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The shim reads and validates its config, and sets up the process.
    Config,
    /// The shim unpacks layers and mounts the root file system.
    Rootfs,
    /// The shim configures libkrun.
    Vm,
    /// The guest kernel boots.
    Kernel,
    /// The guest program prepares the guest, until the box is ready.
    Agent,
    /// The box is ready.
    Running,
    /// The box is being stopped, or has ended.
    Stopping,
}

impl Phase {
    pub(super) const ALL: [Self; 7] = [
        Self::Config,
        Self::Rootfs,
        Self::Vm,
        Self::Kernel,
        Self::Agent,
        Self::Running,
        Self::Stopping,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Rootfs => "rootfs",
            Self::Vm => "vm",
            Self::Kernel => "kernel",
            Self::Agent => "agent",
            Self::Running => "running",
            Self::Stopping => "stopping",
        }
    }
}
