//! Fuzzes the file of a layer in the cache: data, index and trailer (`oci/src/block/trailer.rs`).
//!
//! The checksums and the size of the index are set to those of the input, because a fuzzer could
//! not find them by itself. The layer is applied to that of `base_layer.rs`, and the metadata image
//! is read back. A damaged file must be replaced by the one that is made of the layer's blob.

#![no_main]
#![allow(clippy::unwrap_used, reason = "a failed setup must end the fuzzer")]

use std::sync::LazyLock;

use a3s_box_oci::Layer;
use crc::{CRC_32_ISCSI, Crc};
use libfuzzer_sys::fuzz_target;
use scratch::base_layer::base;
use scratch::{Scratch, block_root, memory};

static SCRATCH: LazyLock<Scratch> = LazyLock::new(Scratch::build);

/// The file that is made of the blob of the upper layer.
static MADE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let layers = layers();
    drop(block_root::compose(&SCRATCH, &layers).unwrap());
    let file = block_root::layer_file(&SCRATCH, &layers[1]);
    block_root::clear(&SCRATCH, &[]);
    file
});

static CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

/// Size of the trailer, and of the blocks of data in front of the index.
const TRAILER_BYTES: usize = 72;
const BLOCK: usize = 4096;

/// Memory for an input: buffers, and the tree, which has a limit of 1 MiB. The tree of a layer
/// alone and the tree that is read back have the same limit.
const MEMORY_BYTES: usize = 12 << 20;

/// Largest metadata image that is read back.
const CHECKED_BYTES: u64 = 1 << 20;

fuzz_target!(|input: &[u8]| {
    let layers = layers();
    let made = LazyLock::force(&MADE);
    let planted = with_checksums(input);
    block_root::plant(&SCRATCH, &layers[1], &planted);
    let root = memory::within(MEMORY_BYTES, || block_root::compose(&SCRATCH, &layers));
    if let Some(root) = root {
        let file = block_root::layer_file(&SCRATCH, &layers[1]);
        assert!(file == planted || file == *made, "neither the input nor the layer of the blob");
        // The chunks of huge sparse files can take up to 1 GiB of an image. Reading it would take
        // long.
        if root.metadata_bytes() <= CHECKED_BYTES {
            memory::within(MEMORY_BYTES, || drop(root.check()));
        }
    }
    block_root::clear(&SCRATCH, &layers[..1]);
    SCRATCH.clear();
});

/// Returns the layers of an image: that of `base_layer.rs`, and another archive of the same entries,
/// which has one more block of zeros.
fn layers() -> [Layer; 2] {
    let lower = base();
    let upper = [&lower[..], &[0; 512]].concat();
    [lower, upper].map(|archive| block_root::layer(&SCRATCH, &archive))
}

/// Sets the size of the index, and both checksums.
fn with_checksums(input: &[u8]) -> Vec<u8> {
    let mut file = input.to_vec();
    let Some(trailer_start) = file.len().checked_sub(TRAILER_BYTES) else { return file };
    let (body, trailer) = file.split_at_mut(trailer_start);
    let data_blocks = u32::from_le_bytes(trailer[12..16].try_into().unwrap()) as usize;
    let Some(index) = data_blocks.checked_mul(BLOCK).and_then(|start| body.get(start..)) else {
        return file;
    };
    trailer[16..24].copy_from_slice(&(index.len() as u64).to_le_bytes());
    trailer[64..68].copy_from_slice(&CRC.checksum(index).to_le_bytes());
    let checksum = CRC.checksum(&trailer[..68]);
    trailer[68..].copy_from_slice(&checksum.to_le_bytes());
    file
}
