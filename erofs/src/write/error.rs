//! The error of the writer.

use std::io;

use thiserror::Error;

/// Why a tree could not be written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum WriteError {
    /// A range of a file is not on a device of the list.
    #[error("a file has {blocks} blocks at block {block} of device {device}, which ends before")]
    OutsideDevice {
        /// The device, counted from 1.
        device: u16,
        /// The first block of the range on it.
        block: u32,
        /// The number of blocks.
        blocks: u32,
    },
    /// There are more than 65,535 devices.
    #[error("there are too many devices: {count}")]
    TooManyDevices {
        /// The number of devices.
        count: usize,
    },
    /// Sparse files have more than 2²⁷ chunks in all, which would take 1 GiB.
    #[error("the sparse files have too many chunks")]
    TooManyChunks,
    /// Metadata or disk have more blocks than EROFS can address, which are 2³² − 1.
    #[error("the disk is too large for EROFS")]
    TooLarge,
    /// The output failed.
    #[error("writing the metadata image failed")]
    Output(#[source] io::Error),
}
