//! The phases of a box, of which each record of the log names one.

/// What a shim is doing, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Reads and checks its config, and sets the process up.
    Config,
    /// Unpacks and mounts the root file system.
    Rootfs,
    /// Configures libkrun.
    Vm,
    /// The guest's kernel boots.
    Kernel,
    /// The guest prepares itself, until the box is ready.
    Agent,
    /// The box is ready.
    Running,
    /// The box ends.
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
