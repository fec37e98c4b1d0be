//! The two ways to make a part of a block root in the cache: a layer file, and a metadata image.

use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};

use super::batch::{LayerForm, OnLayerProgress};
use super::perform::perform;
use super::recipe::Source;
use crate::block::image::{Devices, MetadataImage};
use crate::block::layer_file::LayerFile;
use crate::block::root_tree::TreeLimits;
use crate::cache::error::CacheError;
use crate::cache::layer_cache::LayerCache;
use crate::cache::lookup::Cached;
use crate::cache::name::{self, LAYER_FILE, METADATA_IMAGE};
use crate::cache::publish::Recipe;
use crate::cache::staged::Staged;
use crate::cache::task::{Task, Work};
use crate::image::Layer;
use crate::image::digest::Digest;
use crate::layout::Layout;
use crate::unpack::progress::{OnProgress, Progress};

/// The layers of an image as layer files.
pub(super) struct LayerFiles<'a> {
    pub(super) cache: &'a LayerCache,
    pub(super) layout: &'a Layout,
}

impl LayerForm for LayerFiles<'_> {
    type Cached = Cached<LayerFile>;

    fn get(&self, layer: &Layer) -> Result<Option<Self::Cached>, CacheError> {
        self.cache.get(&name::layer_file(layer.id()))
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
        name::layer_file(self.source.layer.id())
    }

    fn make(&mut self, staged: &Staged<'_>) -> Result<(), CacheError> {
        let source = self.source;
        let blob = source.open_blob()?;
        let file = staged.make_file(LAYER_FILE)?;
        let spool = staged.make_unnamed_file().map_err(staged.error("make a file in"))?;
        let work = Work::LayerFile { limits: source.cache.limits.clone() };
        let task = Task { work, layers: vec![*source.layer], place: staged.place() };
        let files = vec![file.into(), spool.into()];
        perform(staged, &task, Some(blob), files, &mut |_, step| (self.progress)(step))?;
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
    let numbered = layers.iter().zip(files).map(|(layer, file)| (layer.id(), &file.content));
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
        let output = staged.make_file(METADATA_IMAGE)?;
        let mut files = vec![OwnedFd::from(output)];
        for file in self.files {
            let file = file.content.file().as_fd().try_clone_to_owned();
            files.push(file.map_err(staged.error("take the layer files for"))?);
        }
        let work = Work::MetadataImage { chain: self.chain, limits: self.limits.clone() };
        let task = Task { work, layers: self.layers.to_vec(), place: staged.place() };
        perform(staged, &task, None, files, &mut |layer, step| (self.progress)(layer, step))
    }

    fn accepts(&self, image: &MetadataImage) -> bool {
        image.is_of(self.chain, self.devices)
    }

    fn wait(&mut self) -> Result<(), CacheError> {
        // The image belongs to all layers. The topmost one stands for it.
        self.report(self.layers.len().saturating_sub(1), Progress::Waiting)
    }
}
