//! The facts about a layer that do not depend on other layers.

/// Counts and properties of an unpacked layer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LayerFacts {
    /// Bytes in regular files, with their holes.
    pub bytes: u64,
    /// Bytes of holes in regular files: the holes of sparse files, and blocks of zeros. They take no
    /// disk space.
    pub hole_bytes: u64,
    /// Number of entries in the archive.
    pub entries: u64,
    /// Number of device nodes, and of hard links to them. They are not created: a box has its own
    /// `/dev`, and a device node from an image on the host's file system would give access to the
    /// host's devices.
    pub skipped_devices: u64,
    /// Whether the layer hides all layers below it.
    pub opaque_root: bool,
}
