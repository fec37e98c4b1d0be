//! The metadata image of the layers of an image, and the devices behind it.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;

use a3s_box_erofs::{Device, Image, ReadError};

use super::error::BlockError;
use super::layer_file::LayerFile;
use super::merge::Merge;
use crate::image::digest::Digest;

/// Text in front of the `ChainID` from which the UUID of an image is derived. It changes with the
/// form of images, so that two forms of one image have different UUIDs.
const UUID_PREFIX: &str = "a3s-box metadata image 1";

/// The devices of a metadata image: the layer files that have data, in the order of their layers.
#[derive(Debug, Default)]
pub(crate) struct Devices {
    list: Vec<Device>,
    /// For each device, the position of the lowest layer with its data.
    layers: Vec<usize>,
    /// For each layer, the number of its device, or 0 if it has no data.
    numbers: Vec<u16>,
}

impl Devices {
    /// Numbers the layer files of an image, each given with the layer's `DiffID`. An image can have
    /// a layer twice.
    pub(crate) fn of<'a>(
        files: impl Iterator<Item = (Digest, &'a LayerFile)>,
    ) -> Result<Self, BlockError> {
        let mut this = Self::default();
        let mut known = HashMap::new();
        for (position, (diff_id, file)) in files.enumerate() {
            let number = match (file.data_blocks(), known.get(&diff_id)) {
                (0, _) => 0,
                (_, Some(number)) => *number,
                (blocks, None) => {
                    this.list.push(Device { blocks });
                    this.layers.push(position);
                    // EROFS counts devices from 1, by 16 bits.
                    let number = u16::try_from(this.list.len());
                    number.map_err(|_large| BlockError::TooManyLayers { limit: u16::MAX })?
                }
            };
            known.insert(diff_id, number);
            this.numbers.push(number);
        }
        Ok(this)
    }

    /// Returns the device of the layer at a position.
    pub(crate) fn number(&self, layer: usize) -> u16 {
        self.numbers.get(layer).copied().unwrap_or_default()
    }

    /// Returns the position of the layer of each device, in the order of the devices.
    pub(crate) fn layers(&self) -> &[usize] {
        &self.layers
    }
}

/// Writes the metadata image of a merged tree. `chain` is the `ChainID` of the layers, which decide
/// all of the image.
pub(crate) fn write(
    merge: Merge,
    devices: &Devices,
    chain: Option<Digest>,
    output: &mut impl Write,
) -> Result<(), BlockError> {
    a3s_box_erofs::write(&merge.into_tree(), &devices.list, uuid(chain), output)
        .map(drop)
        .map_err(BlockError::Write)
}

/// Returns the UUID of an image. It is a name-based one with a hash of 256 bits, for which RFC 9562
/// has version 8.
fn uuid(chain: Option<Digest>) -> [u8; 16] {
    let chain = chain.map(|chain| chain.to_string()).unwrap_or_default();
    let digest = Digest::of(format!("{UUID_PREFIX} {chain}").as_bytes());
    let mut uuid = digest.bytes().first_chunk().copied().unwrap_or_default();
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}

/// A metadata image, opened for reading.
#[derive(Debug)]
pub(crate) struct MetadataImage {
    image: Image<File>,
    file_bytes: u64,
}

impl MetadataImage {
    /// Opens an image by its superblock and its device table. The rest of it is not read.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, or is not an image of this crate.
    pub(crate) fn open(file: File) -> Result<Self, ReadError> {
        let file_bytes = file.metadata().map_err(ReadError::File)?.len();
        Ok(Self { image: Image::open(file)?, file_bytes })
    }

    /// Returns whether this can be the image of the layers with this `ChainID`, with devices of
    /// these numbers of blocks, and whether its file is complete.
    pub(crate) fn fits(&self, chain: Digest, blocks: impl Iterator<Item = u32>) -> bool {
        let devices = self.image.devices().iter().map(|device| device.blocks);
        self.file_bytes == self.bytes()
            && self.image.uuid() == uuid(Some(chain))
            && devices.eq(blocks)
    }

    /// Returns whether this is the image of `chain` with these devices.
    pub(crate) fn is_of(&self, chain: Digest, devices: &Devices) -> bool {
        self.fits(chain, devices.list.iter().map(|device| device.blocks))
    }

    /// Returns the size of the image.
    pub(crate) fn bytes(&self) -> u64 {
        self.image.metadata_bytes()
    }

    pub(crate) fn file(&self) -> &File {
        self.image.file()
    }

    pub(crate) fn into_file(self) -> File {
        self.image.into_file()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuid_has_the_version_and_differs_between_chains() {
        let chain = Digest::of(b"chain");
        let uuids = [uuid(None), uuid(Some(chain)), uuid(Some(Digest::of(b"other")))];
        for uuid in uuids {
            assert_eq!((uuid[6] >> 4, uuid[8] >> 6), (8, 2), "{uuid:x?}");
        }
        assert!(uuids[0] != uuids[1] && uuids[1] != uuids[2] && uuids[0] != uuids[2]);
        assert_eq!(uuid(Some(chain)), uuids[1]);
    }
}
