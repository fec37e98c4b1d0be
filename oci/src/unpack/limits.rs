//! Limits on the resources that one layer can use.

use serde::{Deserialize, Serialize};

use super::steps::StepLimits;

/// Limits on the resources that one layer can use. An archive that exceeds a limit is refused while
/// it is read.
///
/// The defaults are far above the figures of real layers, and far below those that would harm a
/// host. They stop decompression bombs and accept large images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Number of entries in the archive. The largest public images have less than one million
    /// files, and each file takes an inode.
    pub entries: u64,
    /// Bytes of the uncompressed archive and of the holes in its sparse files. The largest public
    /// layers, with about 10 GiB, are in CUDA images.
    pub unpacked_bytes: u64,
    /// Number of components in the path of an entry. Real trees have less than fifty levels, and
    /// recursive tools fail at some thousands.
    pub path_depth: usize,
    /// Names that are looked up on the way to the entries.
    pub steps: StepLimits,
    /// Bytes of memory for names that are kept until the end of the layer: directories, because
    /// their times are restored last, and whiteouts. A large layer has four thousand directories,
    /// which take 300 KiB.
    pub remembered_bytes: usize,
    /// Uncompressed bytes for each compressed byte. Real layers have a ratio of 2 to 20, and the
    /// maximum of deflate is 1029. The blocks of zeros of a file do not count: they are holes, which
    /// take no disk space and no time to write. `unpacked_bytes` limits the time to decompress them.
    pub ratio: u64,
    /// Uncompressed bytes from which on the ratio is checked. A smaller layer does no harm at any
    /// ratio.
    pub ratio_floor_bytes: u64,
    /// Bytes of the window of a zstd layer, which the decoder keeps in memory. The default is that
    /// of the tool `zstd` (`ZSTD_WINDOWLOG_LIMIT_DEFAULT`). Four layers are unpacked at once.
    pub zstd_window_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries: 5_000_000,
            unpacked_bytes: 64 << 30,
            path_depth: 256,
            steps: StepLimits::default(),
            remembered_bytes: 64 << 20,
            ratio: 200,
            ratio_floor_bytes: 1 << 30,
            zstd_window_bytes: 128 << 20,
        }
    }
}
