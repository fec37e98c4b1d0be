//! Fuzzes the layers of a block root, from archives to the metadata image, which is read back.
//!
//! An input is a stream of blocks of 512 bytes, divided into layers (`pieces.rs`). They are applied
//! to the layer of `base_layer.rs`. With `A3S_BOX_FUZZ_FSCK`, fsck.erofs checks each disk.

#![no_main]
#![allow(clippy::unwrap_used, reason = "a failed setup must end the fuzzer")]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use scratch::base_layer::base;
use scratch::pieces::Pieces;
use scratch::{Scratch, block_root, erofs, memory};
use tar::Header;

static SCRATCH: LazyLock<Scratch> = LazyLock::new(Scratch::build);

/// Size of a block of an archive.
const BLOCK: usize = 512;

/// Largest number of layers.
const LAYERS: usize = 5;

/// Memory for an input: buffers, and the tree, which has a limit of 1 MiB. The tree of a layer
/// alone and the tree that is read back have the same limit.
const MEMORY_BYTES: usize = 12 << 20;

fuzz_target!(|input: &[u8]| {
    let pieces = Pieces::in_units(BLOCK, input).take(LAYERS);
    let archives = [base()].into_iter().chain(pieces.map(with_checksums));
    let layers: Vec<_> = archives.map(|archive| block_root::layer(&SCRATCH, &archive)).collect();
    memory::within(MEMORY_BYTES, || {
        let made = block_root::compose(&SCRATCH, &layers);
        if let Some(root) = made {
            let metadata = root.check();
            // All of it is found by its list, and is the same.
            let warm = block_root::compose(&SCRATCH, &layers).unwrap();
            assert_eq!(warm.hits, layers.len());
            assert!(warm.check() == metadata, "the recalled image differs");
            drop((root, warm));
            // The layer files exist now, so that only the merge is repeated.
            block_root::forget_merges(&SCRATCH);
            let again = block_root::compose(&SCRATCH, &layers).unwrap();
            assert_eq!(again.hits, layers.len());
            assert!(again.check() == metadata, "two merges differ");
            again.fsck();
            erofs::add_seed("erofs_image", &erofs::shortened(&metadata));
            for layer in &layers[1..] {
                erofs::add_seed("layer_file", &block_root::layer_file(&SCRATCH, layer));
            }
        }
    });
    block_root::clear(&SCRATCH, &layers[..1]);
    SCRATCH.clear();
});

/// Sets the checksums of all headers. A fuzzer could hardly find them by itself.
fn with_checksums(archive: &[u8]) -> Vec<u8> {
    let mut archive = archive.to_vec();
    let mut at = 0;
    while let Some(block) = archive.get_mut(at..).and_then(<[u8]>::first_chunk_mut::<BLOCK>) {
        at += BLOCK;
        // A block of zeros ends an archive, and has no checksum.
        if block.iter().any(|byte| *byte != 0) {
            let mut header = Header::new_old();
            header.as_mut_bytes().copy_from_slice(block);
            header.set_cksum();
            block.copy_from_slice(header.as_bytes());
            let body = header.entry_size().unwrap_or(0).checked_next_multiple_of(BLOCK as u64);
            let body = body.and_then(|body| usize::try_from(body).ok()).unwrap_or(usize::MAX);
            at = at.saturating_add(body);
        }
    }
    archive
}
