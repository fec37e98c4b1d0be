//! Whether the guest can write to a device.

/// Whether a device accepts writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// libkrun refuses writes, whatever the guest does: a share with EROFS, a disk with an I/O
    /// error (`VIRTIO_BLK_S_IOERR`).
    ReadOnly,
    /// Writes reach the host's directory or file.
    ReadWrite,
}
