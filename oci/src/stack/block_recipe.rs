//! The two ways to make a part of a block root in the cache: a layer file, and a metadata image.

use std::fs::File;
use std::io::{self, Write};
use std::ops::ControlFlow;

use a3s_box_erofs::WriteError;

use super::batch::{LayerForm, OnLayerProgress};
use super::recipe::Source;
use crate::block::error::BlockError;
use crate::block::image::{self, Devices, MetadataImage};
use crate::block::layer_file::{self, LayerFile, Target};
use crate::block::merge::Merge;
use crate::block::root_tree::TreeLimits;
use crate::cache::error::CacheError;
use crate::cache::layer_cache::LayerCache;
use crate::cache::lookup::Cached;
use crate::cache::name::{self, LAYER_FILE, METADATA_IMAGE};
use crate::cache::publish::Recipe;
use crate::cache::staged::Staged;
use crate::image::Layer;
use crate::image::digest::Digest;
use crate::layout::Layout;
use crate::unpack::error::LayerError;
use crate::unpack::progress::{Meter, OnProgress, Progress};

/// The layers of an image as layer files.
pub(super) struct LayerFiles<'a> {
    pub(super) cache: &'a LayerCache,
    pub(super) layout: &'a Layout,
}

impl LayerForm for LayerFiles<'_> {
    type Cached = Cached<LayerFile>;

    fn get(&self, layer: &Layer) -> Result<Option<Self::Cached>, CacheError> {
        self.cache.get(&name::layer_file(layer.diff_id))
    }

    fn get_or_make(
        &self,
        layer: &Layer,
        progress: &mut OnProgress<'_>,
    ) -> Result<Self::Cached, CacheError> {
        let Self { cache, layout } = *self;
        cache.get_or_make(&mut ReadLayer { source: Source { cache, layout, layer }, progress })
    }
}

/// Reads a layer into a layer file.
pub(super) struct ReadLayer<'a> {
    pub(super) source: Source<'a>,
    pub(super) progress: &'a mut OnProgress<'a>,
}

impl Recipe for ReadLayer<'_> {
    type Content = LayerFile;

    fn name(&self) -> String {
        name::layer_file(self.source.layer.diff_id)
    }

    fn make(&mut self, staged: &Staged<'_>) -> Result<(), CacheError> {
        let source = self.source;
        let blob = source.open_blob()?;
        let file = staged.make_file(LAYER_FILE)?;
        let target = Target { file, make_file: &mut || staged.make_unnamed_file() };
        layer_file::write(blob, source.layer, &source.cache.limits, target, self.progress)
            .map_err(|error| source.error(error))?;
        source.report(self.progress, Progress::Publishing)
    }

    fn wait(&mut self) -> Result<(), CacheError> {
        self.source.report(self.progress, Progress::Waiting)
    }
}

/// Returns the devices of an image with these layers and their files.
pub(super) fn devices(
    layers: &[Layer],
    files: &[Cached<LayerFile>],
) -> Result<Devices, CacheError> {
    let numbered = layers.iter().zip(files).map(|(layer, file)| (layer.diff_id, &file.content));
    Devices::of(numbered).map_err(CacheError::Block)
}

/// Merges layer files into a metadata image.
pub(super) struct MergeLayers<'a, 'p> {
    pub(super) layers: &'a [Layer],
    /// The file of each layer.
    pub(super) files: &'a [Cached<LayerFile>],
    pub(super) devices: &'a Devices,
    pub(super) limits: &'a TreeLimits,
    /// The `ChainID` of the topmost layer.
    pub(super) chain: Digest,
    pub(super) progress: &'a mut OnLayerProgress<'p>,
}

impl MergeLayers<'_, '_> {
    /// Writes the metadata image of the merged layers.
    fn write(&mut self, merge: Merge, staged: &Staged<'_>) -> Result<(), CacheError> {
        // The image belongs to all layers. The topmost one stands for it.
        let topmost = self.layers.len().saturating_sub(1);
        let file = staged.make_file(METADATA_IMAGE)?;
        let on_progress: &mut OnProgress<'_> = &mut |_| (self.progress)(topmost, Progress::OnTop);
        let mut output = MeteredFile { file, meter: Meter::new(0, on_progress) };
        let written = image::write(merge, self.devices, Some(self.chain), &mut output);
        written.map_err(|error| match error {
            BlockError::Write(WriteError::Output(source)) if is_cancelled(&source) => {
                CacheError::Cancelled { layer: self.layers[topmost].digest }
            }
            // The disk is full or fails. The error of the cache names the place.
            BlockError::Write(WriteError::Output(source)) => {
                staged.error("write the metadata image in")(source)
            }
            error => CacheError::Block(error),
        })
    }

    fn report(&mut self, layer: usize, step: Progress) -> Result<(), CacheError> {
        match (self.progress)(layer, step) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => {
                Err(CacheError::Cancelled { layer: self.layers[layer].digest })
            }
        }
    }
}

impl Recipe for MergeLayers<'_, '_> {
    type Content = MetadataImage;

    fn name(&self) -> String {
        name::root(self.chain)
    }

    fn make(&mut self, staged: &Staged<'_>) -> Result<(), CacheError> {
        let mut merge = Merge::new(self.limits.clone()).map_err(CacheError::Block)?;
        for (i, (layer, file)) in self.layers.iter().zip(self.files).enumerate() {
            let on_progress: &mut OnProgress<'_> = &mut |_| (self.progress)(i, Progress::OnTop);
            let mut meter = Meter::new(layer.size_bytes, on_progress);
            let device = self.devices.number(i);
            merge.apply(&file.content, device, layer.digest, &mut meter).map_err(merge_error)?;
        }
        self.write(merge, staged)
    }

    fn accepts(&self, image: &MetadataImage) -> bool {
        image.is_of(self.chain, self.devices)
    }

    fn wait(&mut self) -> Result<(), CacheError> {
        // The image belongs to all layers. The topmost one stands for it.
        self.report(self.layers.len().saturating_sub(1), Progress::Waiting)
    }
}

/// A file that reports progress with each write.
struct MeteredFile<'a> {
    file: File,
    meter: Meter<'a>,
}

impl Write for MeteredFile<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.meter.beat().map_err(io::Error::other)?;
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Returns whether [`MeteredFile`] made the error because the work was cancelled.
fn is_cancelled(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    matches!(inner, Some(LayerError::Cancelled))
}

fn merge_error(error: BlockError) -> CacheError {
    match error {
        BlockError::Layer { layer, source: LayerError::Cancelled } => {
            CacheError::Cancelled { layer }
        }
        BlockError::Layer { layer, source } => CacheError::Layer { layer, source },
        error => CacheError::Block(error),
    }
}
