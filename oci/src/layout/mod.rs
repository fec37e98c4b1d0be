//! An OCI image layout on disk.
//!
//! ```text
//! <layout>/
//! ├── oci-layout              {"imageLayoutVersion": "1.0.0"}
//! ├── index.json              names images by annotations; it has no digest
//! └── blobs/<algorithm>/<hex> indexes, manifests, configurations and layers, by their digests
//! ```
//!
//! ```text
//! document   reads and verifies JSON documents
//! select     finds the manifest that a reference means
//! blob       reads and verifies any blob
//! ```

pub(crate) mod blob;
pub(crate) mod document;
pub(crate) mod select;

use std::path::Path;

use a3s_box_sys::HostError;
use serde_json::Value;

use self::blob::{Blob, BlobError};
use self::document::{DocumentError, DocumentReader, digest_of};
use self::select::SelectError;
use crate::host::text::{Shown, shown_list};
use crate::image::digest::Digest;
use crate::image::documents::Descriptor;
use crate::image::platform::Platform;
use crate::image::{Image, ImageError};

/// The only layout version that the image specification defines.
const LAYOUT_VERSION: &str = "1.0.0";

/// A layout that cannot be read, or that does not contain the image.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// The directory cannot be opened.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The layout has an unknown version.
    #[error(
        "unknown layout version in `oci-layout`: expected `{LAYOUT_VERSION}`, found `{}`",
        Shown(found)
    )]
    Version {
        /// The version in the file.
        found: String,
    },
    /// A document cannot be read.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// The layout does not contain exactly one image that was asked for.
    #[error(transparent)]
    Select(SelectError),
    /// The documents of the image contradict each other, or contain unusable values.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Registries must not distribute the layer, and it is not in the layout.
    #[error(
        "layer `{digest}` is not in the layout: fetch it from where its vendor keeps it, {}",
        shown_list(urls)
    )]
    ForeignLayer {
        /// Digest of the layer's blob.
        digest: Digest,
        /// The addresses in the layer's descriptor.
        urls: Vec<String>,
    },
}

impl From<SelectError> for LayoutError {
    fn from(error: SelectError) -> Self {
        match error {
            // An unreadable document is the same error, whether it was read for the choice or
            // afterwards.
            SelectError::Document(error) => Self::Document(error),
            error => Self::Select(error),
        }
    }
}

/// An open image layout.
///
/// ```no_run
/// use a3s_box_oci::{Layout, LayoutError, Platform};
///
/// let layout = Layout::open("/var/lib/images/alpine".as_ref())?;
/// let image = layout.resolve(Some("3.22"), &Platform::host())?;
/// println!("{} has {} layers", image.manifest_digest, image.layers.len());
/// # Ok::<(), LayoutError>(())
/// ```
#[derive(Debug)]
pub struct Layout {
    documents: DocumentReader,
}

impl Layout {
    /// Opens the layout in the directory `path` and checks its version.
    ///
    /// # Errors
    ///
    /// Fails if the directory contains no layout, or a layout of an unknown version.
    pub fn open(path: &Path) -> Result<Self, LayoutError> {
        let documents = DocumentReader::open(path)?;
        let marker = documents.marker()?;
        match marker.get("imageLayoutVersion").and_then(Value::as_str) {
            Some(LAYOUT_VERSION) => Ok(Self { documents }),
            found => Err(LayoutError::Version { found: found.unwrap_or_default().to_owned() }),
        }
    }

    /// Finds the image that `reference` means on `platform`, and reads its manifest and
    /// configuration.
    ///
    /// A reference is the `org.opencontainers.image.ref.name` annotation of an entry, or the digest
    /// (`sha256:…` or `sha512:…`) of a manifest or index. Without a reference, exactly one image
    /// must be suitable for the platform.
    ///
    /// # Errors
    ///
    /// Fails if no image or more than one image matches, and lists the images of the layout. Fails
    /// too if a document is missing, is too large, or does not match its digest.
    pub fn resolve(
        &self,
        reference: Option<&str>,
        platform: &Platform,
    ) -> Result<Image, LayoutError> {
        let descriptor = select::select(&self.documents, reference, platform)?;
        let manifest = self.documents.manifest(&descriptor)?;
        let configuration = self.documents.configuration(&manifest)?;
        let digest = digest_of(&descriptor)?;
        let image = Image::from_documents(digest, &manifest, configuration, platform)?;
        manifest.layers.iter().try_for_each(|layer| self.check_foreign(layer))?;
        Ok(image)
    }

    /// Checks that a layer which registries must not distribute is in the layout. Without this
    /// check, the user would not learn where to get it.
    fn check_foreign(&self, layer: &Descriptor) -> Result<(), LayoutError> {
        let urls = &layer.urls;
        if urls.is_empty() {
            return Ok(());
        }
        match self.open_blob(digest_of(layer)?, layer.size) {
            Err(BlobError::Missing { digest }) => {
                // The addresses come from the image, so their control characters are escaped.
                let urls = urls.iter().map(|url| format!("`{}`", url.escape_debug())).collect();
                Err(LayoutError::ForeignLayer { digest, urls })
            }
            // Unpacking the layer reports any other error.
            _ => Ok(()),
        }
    }

    /// Opens a blob. It is verified when all of it has been read.
    pub(crate) fn open_blob(&self, digest: Digest, size: u64) -> Result<Blob, BlobError> {
        self.documents.open_blob(digest, size)
    }
}
