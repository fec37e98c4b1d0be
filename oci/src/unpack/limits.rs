//! Bounds on what one layer may cost.

/// Bounds on what one layer may cost; an archive that exceeds one is refused while it is read.
///
/// The defaults are far above real layers and far below what hurts a host: they stop bombs, not
/// large images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Entries of the archive. The largest public images have below one million files, and each
    /// costs an inode.
    pub entries: u64,
    /// Bytes of the uncompressed archive, and of the holes in its sparse files. The largest public layers, those of CUDA images, have
    /// about 10 GiB.
    pub unpacked_bytes: u64,
    /// Directories above an entry. Real trees stay below fifty, and tools that recurse fail in the
    /// thousands.
    pub path_depth: usize,
    /// Memory for names that are kept until the end: directories, whose times are restored last,
    /// and whiteouts. Four thousand directories, which is a large layer, take 300 KiB.
    pub remembered_bytes: usize,
    /// Uncompressed bytes for each compressed one. Real layers have 2 to 20; zeros reach 1029, the
    /// most that deflate can do, so that a sparse image of a disk or of a database is above this
    /// bound only when it is large as well.
    pub ratio: u64,
    /// Uncompressed bytes from which on the ratio counts; below, it is no harm.
    pub ratio_floor_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries: 5_000_000,
            unpacked_bytes: 64 << 30,
            path_depth: 256,
            remembered_bytes: 64 << 20,
            ratio: 200,
            ratio_floor_bytes: 1 << 30,
        }
    }
}
