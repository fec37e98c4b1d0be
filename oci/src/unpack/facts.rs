//! The facts about a layer that do not depend on other layers.

/// What is known about a layer that has been unpacked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LayerFacts {
    /// Bytes in regular files.
    pub bytes: u64,
    /// Entries of the archive.
    pub entries: u64,
    /// Device nodes, which are not made: a box has its own `/dev`, and the host must not have an
    /// image's.
    pub skipped_devices: u64,
    /// The layer hides all layers below it.
    pub opaque_root: bool,
}
