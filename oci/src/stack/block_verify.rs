//! Verification of layer files and metadata images. Both are the same whenever they are made, so that
//! their bytes are compared.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::batch::{OnLayerProgress, get_or_make_all};
use super::block_recipe::{LayerFiles, MergeLayers, ReadLayer, devices};
use super::compose::{chain_ids, specified_chain_id};
use super::recipe::Source;
use super::verify::Verified;
use crate::block::layer_file::LayerFile;
use crate::cache::content::open_file;
use crate::cache::error::CacheError;
use crate::cache::layer_cache::LayerCache;
use crate::cache::name::Form;
use crate::image::Layer;
use crate::layout::Layout;

/// Size of the buffers of the comparison, as in that of trees.
const COMPARE_BYTES: usize = 128 * 1024;

impl LayerCache {
    /// Compares the layer files and the metadata image of an image with its blobs, and replaces what
    /// differs.
    pub(super) fn verify_block(
        &self,
        layout: &Layout,
        layers: &[Layer],
        progress: &mut OnLayerProgress<'_>,
        verified: &mut Verified,
    ) -> Result<(), CacheError> {
        let in_use = verified.in_use.len();
        for (i, layer) in layers.iter().enumerate() {
            let source = Source { cache: self, layout, layer };
            let mut recipe = ReadLayer { source, progress: &mut |step| progress(i, step) };
            // `compose_block` below reads a layer that is missing, which verifies its blob.
            self.verify_content(&mut recipe, layer.diff_id, verified, &file_difference)?;
        }
        // A damaged layer file that is in use stays, and no correct image can be made of it.
        if verified.in_use.len() > in_use {
            return Ok(());
        }
        if let Some(&chain) = chain_ids(layers).last() {
            let files = &get_or_make_all(&LayerFiles { cache: self, layout }, layers, progress)?;
            let devices = &devices(layers, files)?;
            let limits = &self.tree_limits;
            let mut recipe = MergeLayers { layers, files, devices, limits, chain, progress };
            let shown = specified_chain_id(layers).unwrap_or(chain);
            self.verify_content(&mut recipe, shown, verified, &image_difference)?;
        }
        if verified.in_use.len() > in_use {
            return Ok(());
        }
        self.compose_block(layout, layers, progress).map(drop)
    }
}

fn file_difference(ours: &OwnedFd, fresh: &OwnedFd) -> io::Result<Option<(PathBuf, &'static str)>> {
    let Some(offset) = first_difference(ours, fresh, Form::LayerFile)? else { return Ok(None) };
    let fresh = LayerFile::open(open_file(fresh, Form::LayerFile)?).map_err(io::Error::other)?;
    let (path, what) = fresh.part_at(offset).map_err(io::Error::other)?;
    Ok(Some((PathBuf::from(OsStr::from_bytes(&path)), what)))
}

fn image_difference(
    ours: &OwnedFd,
    fresh: &OwnedFd,
) -> io::Result<Option<(PathBuf, &'static str)>> {
    let offset = first_difference(ours, fresh, Form::MetadataImage)?;
    Ok(offset.map(|_| (PathBuf::new(), "metadata image")))
}

/// Returns the offset of the first byte that differs, or that only one of the two files has.
fn first_difference(ours: &OwnedFd, fresh: &OwnedFd, form: Form) -> io::Result<Option<u64>> {
    let (mut ours, mut fresh) = (open_file(ours, form)?, open_file(fresh, form)?);
    let (mut left, mut right) = (vec![0; COMPARE_BYTES], vec![0; COMPARE_BYTES]);
    let mut offset = 0;
    loop {
        let (a, b) = (read_part(&mut ours, &mut left)?, read_part(&mut fresh, &mut right)?);
        let equal = a.iter().zip(b).take_while(|(a, b)| a == b).count();
        offset += equal as u64;
        if equal < a.len().max(b.len()) {
            return Ok(Some(offset));
        }
        if a.is_empty() {
            return Ok(None);
        }
    }
}

/// Fills a buffer from a file, except at its end.
fn read_part<'b>(file: &mut File, buffer: &'b mut [u8]) -> io::Result<&'b [u8]> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..])? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(&buffer[..filled])
}
