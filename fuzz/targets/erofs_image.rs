//! Fuzzes the reader of metadata images. What it accepts must be writable, and equal when it is read
//! again.
//!
//! An input is an image without the bytes that are always zero (`erofs::shortened`). The checksum is
//! set to that of the input, because a fuzzer could not find it by itself.

#![no_main]
#![allow(clippy::unwrap_used, reason = "a failed setup must end the fuzzer")]

use a3s_box_erofs::Image;
use crc::{CRC_32_ISCSI, Crc};
use libfuzzer_sys::fuzz_target;
use scratch::{check_error, erofs, memory};

static CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

const BLOCK: usize = 4096;
const SUPERBLOCK: usize = 1024;

/// Memory for a byte of an image, and for the extended attributes that sets may share.
const MEMORY_PER_BYTE: usize = 64;
const SHARED_BYTES: usize = 64 << 20;

fuzz_target!(|input: &[u8]| {
    let image = with_checksum(erofs::lengthened(input));
    let limit_bytes = SHARED_BYTES + MEMORY_PER_BYTE * image.len();
    let accepted = memory::within(limit_bytes, || {
        let opened = Image::open(&image[..]);
        let accepted = opened
            .and_then(|opened| Ok((opened.tree()?, opened.devices().to_vec(), opened.uuid())));
        accepted.inspect_err(|error| check_error(error)).ok()
    });
    if let Some((tree, devices, uuid)) = accepted {
        let written = erofs::rewrite(&tree, &devices, uuid);
        let read = Image::open(&written[..]).unwrap().tree().unwrap();
        assert!(
            erofs::rewrite(&read, &devices, uuid) == written,
            "the image of the same tree differs"
        );
    }
});

/// Sets the checksum of the superblock, and the number of blocks if the input leaves it 0.
fn with_checksum(mut image: Vec<u8>) -> Vec<u8> {
    let blocks = u32::try_from(image.len() / BLOCK).unwrap();
    let block = &mut image[SUPERBLOCK..BLOCK];
    if block[36..40] == [0; 4] {
        block[36..40].copy_from_slice(&blocks.to_le_bytes());
    }
    block[4..8].fill(0);
    // EROFS does not invert the result.
    let checksum = !CRC.checksum(block);
    block[4..8].copy_from_slice(&checksum.to_le_bytes());
    image
}
