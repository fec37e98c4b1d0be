//! An OCI image layout on disk: its documents, read with bounds and verified.
//!
//! ```text
//! <layout>/
//! ├── oci-layout              {"imageLayoutVersion": "1.0.0"}
//! ├── index.json              names images by annotation; not itself content-addressed
//! └── blobs/<algorithm>/<hex> indexes, manifests, configurations, layers
//! ```
//!
//! Which image a reference means is decided in `select`; this module only reads.

pub(crate) mod blob;
mod select;

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::Mode;
use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex, ImageManifest};
use serde_json::Value;

use self::blob::{Blob, BlobError};
use crate::host::text::Shown;
use crate::image::Image;
use crate::image::digest::{Digest, DigestError};
use crate::image::platform::Platform;

/// The only layout version there is.
const LAYOUT_VERSION: &str = "1.0.0";

/// Bound on each JSON document: what registries accept for a manifest (4 MiB, as the distribution
/// specification asks).
const DOCUMENT_LIMIT_BYTES: u64 = 4 << 20;

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// A layout that cannot be read, or that has no such image.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// The directory cannot be opened.
    #[error("cannot open the image layout `{}`", path.display())]
    Open {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// One of the two files at the top of the layout cannot be read.
    #[error("cannot read `{}/{file}`: is this an OCI image layout?", layout.display())]
    File {
        /// The layout.
        layout: PathBuf,
        /// Name of the file.
        file: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The layout is of a version that nobody has defined yet.
    #[error(
        "unknown layout version in `oci-layout`: expected `{LAYOUT_VERSION}`, found `{}`",
        Shown(found)
    )]
    Version {
        /// The version, as it was found.
        found: String,
    },
    /// A blob is not what its descriptor says.
    #[error("the {document} cannot be used")]
    Blob {
        /// What the blob is to the image.
        document: String,
        /// What is wrong with it.
        source: BlobError,
    },
    /// A document is larger than any real one.
    #[error("the {document} is too large: expected at most {limit} bytes, found {found}")]
    TooLarge {
        /// The document.
        document: String,
        /// The bound.
        limit: u64,
        /// The size.
        found: u64,
    },
    /// A document is not JSON, or not of its type.
    #[error("the {document} is malformed")]
    Json {
        /// The document.
        document: String,
        /// What the parser said.
        source: JsonError,
    },
    /// A document says that it is of another type than its descriptor does, or could be read as two
    /// types.
    #[error(
        "the {document} has the wrong type: expected `{}`, found `{}`",
        Shown(expected),
        Shown(found)
    )]
    DocumentType {
        /// The document.
        document: String,
        /// The type in the descriptor.
        expected: String,
        /// The type, or the field of another type, in the document.
        found: String,
    },
    /// A digest in a document is malformed or of another algorithm.
    #[error("a document of the image has an unusable digest")]
    Digest(#[from] DigestError),
    /// Indexes point to indexes too often.
    #[error("image indexes are nested more than {limit} deep, or hold more than {entries} entries")]
    IndexBounds {
        /// Bound on the depth.
        limit: usize,
        /// Bound on the entries of all indexes together.
        entries: usize,
    },
    /// No entry has this name or digest.
    #[error("no image `{reference}` in the layout: found {}", list(found))]
    NoSuchReference {
        /// What was asked for.
        reference: String,
        /// What is there.
        found: Vec<String>,
    },
    /// The image is there, but not for this platform.
    #[error("no image for platform `{platform}`: found {}", list(found))]
    NoSuchPlatform {
        /// What was asked for.
        platform: Platform,
        /// What is there.
        found: Vec<String>,
    },
    /// More than one image fits what was asked for.
    #[error(
        "several images fit, name one of them by its reference or digest: found {}",
        list(found)
    )]
    Ambiguous {
        /// What is there.
        found: Vec<String>,
    },
    /// More than one image has the name that was asked for.
    #[error(
        "several images are named `{reference}`, choose one of them by its digest: found {}",
        list(found)
    )]
    DuplicateReference {
        /// The name.
        reference: String,
        /// What is there.
        found: Vec<String>,
    },
    /// What was asked for, or all that there is, is something else than an image.
    #[error("expected an image, found {}", list(found))]
    NotAnImage {
        /// What is there.
        found: Vec<String>,
    },
    /// A document is of a version that nobody has defined yet, or of Docker's first one.
    #[error("the {document} has schema version {}: expected 2", Shown(found))]
    SchemaVersion {
        /// The document.
        document: String,
        /// The version, as it was found.
        found: String,
    },
    /// The root file system of the image is not made of layers.
    #[error(
        "unknown root file system type in the image configuration: expected `layers`, found `{}`",
        Shown(found)
    )]
    RootfsType {
        /// The type, as it was found.
        found: String,
    },
    /// Manifest and configuration disagree.
    #[error("the manifest has {layers} layers, but the image configuration has {diff_ids} DiffIDs")]
    LayerCount {
        /// Layers in the manifest.
        layers: usize,
        /// `DiffID`s in the configuration.
        diff_ids: usize,
    },
    /// The layer may only be had from elsewhere, and nobody has put it into the layout.
    #[error(
        "layer `{digest}` is not in the layout: fetch it from where its vendor keeps it, {}",
        list(urls)
    )]
    ForeignLayer {
        /// Digest of the layer's blob.
        digest: Digest,
        /// Where it is kept, as the image says.
        urls: Vec<String>,
    },
    /// The layer is of a kind that has no place in a root file system.
    #[error(
        "layers of media type `{}` are not supported: expected tar, tar+gzip or tar+zstd",
        Shown(found)
    )]
    LayerNotSupported {
        /// The media type.
        found: String,
    },
    /// A variable of the image's environment is not `NAME=value`.
    #[error("`config.env[{position}]` of the image is malformed: expected `NAME=value`")]
    EnvSyntax {
        /// Position in the list.
        position: usize,
    },
    /// The image's health check is not what Docker writes.
    #[error("`{field}` of the image's health check is malformed: expected {expected}")]
    Healthcheck {
        /// The field.
        field: &'static str,
        /// What it should be.
        expected: &'static str,
    },
    /// A list or text of the configuration is larger than any process could use.
    #[error(
        "`config.{field}` of the image is too large: expected at most {} texts of {} bytes",
        crate::image::FIELD_TEXTS,
        crate::image::TEXT_BYTES
    )]
    ConfigTooLarge {
        /// The field.
        field: &'static str,
    },
    /// A text of the configuration cannot be handed to a process.
    #[error("`config.{field}` of the image holds a NUL byte")]
    NulInConfig {
        /// The field.
        field: &'static str,
    },
}

impl LayoutError {
    /// Says whether a document is not there.
    pub(crate) fn is_missing_blob(&self) -> bool {
        matches!(self, Self::Blob { source: BlobError::Missing { .. }, .. })
    }
}

/// What a JSON parser said of a document; it may quote it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct JsonError(String);

/// Joins what was found, and stops where nobody reads on.
fn list(found: &[String]) -> String {
    const SHOWN: usize = 20;
    let shown: Vec<String> = found.iter().take(SHOWN).map(|text| Shown(text).to_string()).collect();
    match found.len() {
        0 => "nothing".to_owned(),
        count if count > SHOWN => format!("{} and {} more", shown.join(", "), count - SHOWN),
        _ => shown.join(", "),
    }
}

/// An open image layout.
#[derive(Debug)]
pub struct Layout {
    path: PathBuf,
    dir: OwnedFd,
}

/// The configuration of an image.
pub(crate) struct Configuration {
    /// What the image specification defines.
    pub(crate) document: ImageConfiguration,
    /// What Docker adds.
    pub(crate) healthcheck: Value,
}

/// What a descriptor points to, so far as this crate cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DescriptorKind {
    Index,
    Manifest,
    Other,
}

impl Layout {
    /// Opens the layout at `path` and checks its version.
    ///
    /// # Errors
    ///
    /// When there is no layout at `path`, or one of an unknown version.
    pub fn open(path: &Path) -> Result<Self, LayoutError> {
        let dir = open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(|errno| LayoutError::Open { path: path.to_owned(), source: errno.into() })?;
        let layout = Self { path: path.to_owned(), dir };
        let marker: Value = parse("file `oci-layout`", &layout.read_file("oci-layout")?)?;
        match marker.get("imageLayoutVersion").and_then(Value::as_str) {
            Some(LAYOUT_VERSION) => Ok(layout),
            found => Err(LayoutError::Version { found: found.unwrap_or_default().to_owned() }),
        }
    }

    /// Finds the image that `reference` means on `platform`, and reads its manifest and
    /// configuration.
    ///
    /// A reference is the name in an entry's `org.opencontainers.image.ref.name` annotation, or a
    /// digest (`sha256:…` or `sha512:…`) of a manifest or index. Without a reference, exactly one
    /// image must suit the platform.
    ///
    /// # Errors
    ///
    /// When nothing or more than one image fits (the error lists what is there), or when a document
    /// is missing, is too large, or does not match its digest.
    pub fn resolve(
        &self,
        reference: Option<&str>,
        platform: &Platform,
    ) -> Result<Image, LayoutError> {
        let descriptor = select::select(self, reference, platform)?;
        let manifest = self.manifest(&descriptor)?;
        let configuration = self.configuration(&manifest)?;
        let digest = descriptor.digest().to_string().parse()?;
        let image = Image::from_documents(digest, &manifest, &configuration)?;
        manifest.layers().iter().try_for_each(|layer| self.check_foreign(layer))?;
        Ok(image)
    }

    /// Checks that a layer which registries may not hand out is there.
    fn check_foreign(&self, layer: &Descriptor) -> Result<(), LayoutError> {
        let urls = layer.urls().as_deref().unwrap_or_default();
        if urls.is_empty() {
            return Ok(());
        }
        let digest = layer.digest().to_string().parse()?;
        match self.open_blob(digest, layer.size()) {
            Err(BlobError::Missing { digest }) => {
                let urls = urls.iter().map(|url| format!("`{}`", url.escape_debug())).collect();
                Err(LayoutError::ForeignLayer { digest, urls })
            }
            // Whatever else is wrong is found when the layer is unpacked.
            _ => Ok(()),
        }
    }

    /// Opens a blob for reading; it is verified when it has been read.
    pub(crate) fn open_blob(&self, digest: Digest, size: u64) -> Result<Blob, BlobError> {
        Blob::open(self.dir(), digest, size)
    }

    /// Reads `index.json`.
    pub(crate) fn top_index(&self) -> Result<ImageIndex, LayoutError> {
        let bytes = self.read_file("index.json")?;
        check_type("index `index.json`", &bytes, OCI_INDEX)?;
        parse("index `index.json`", &bytes)
    }

    /// Reads an index that another index points to.
    pub(crate) fn nested_index(&self, descriptor: &Descriptor) -> Result<ImageIndex, LayoutError> {
        self.document("image index", descriptor)
    }

    /// Reads a manifest.
    pub(crate) fn manifest(&self, descriptor: &Descriptor) -> Result<ImageManifest, LayoutError> {
        self.document("image manifest", descriptor)
    }

    /// Reads the configuration that a manifest points to.
    pub(crate) fn configuration(
        &self,
        manifest: &ImageManifest,
    ) -> Result<Configuration, LayoutError> {
        if !is_image_configuration(manifest.config()) {
            let document = format!("image configuration `{}`", manifest.config().digest());
            let found = manifest.config().media_type().to_string();
            return Err(LayoutError::DocumentType {
                document,
                expected: OCI_CONFIG.to_owned(),
                found,
            });
        }
        let (document, bytes) = self.read_document("image configuration", manifest.config())?;
        let mut value: Value = parse(&document, &bytes)?;
        let healthcheck = value.pointer_mut("/config/Healthcheck").map(Value::take);
        Ok(Configuration {
            document: parse(&document, &bytes)?,
            healthcheck: healthcheck.unwrap_or_default(),
        })
    }

    /// Reads, verifies and parses an index or a manifest.
    fn document<T: serde::de::DeserializeOwned>(
        &self,
        kind: &str,
        descriptor: &Descriptor,
    ) -> Result<T, LayoutError> {
        let (document, bytes) = self.read_document(kind, descriptor)?;
        check_type(&document, &bytes, descriptor.media_type().as_ref())?;
        parse(&document, &bytes)
    }

    /// Reads and verifies a blob that is a JSON document, and names it for errors.
    fn read_document(
        &self,
        kind: &str,
        descriptor: &Descriptor,
    ) -> Result<(String, Vec<u8>), LayoutError> {
        let document = format!("{kind} `{}`", descriptor.digest());
        let found = descriptor.size();
        if found > DOCUMENT_LIMIT_BYTES {
            return Err(LayoutError::TooLarge { document, limit: DOCUMENT_LIMIT_BYTES, found });
        }
        let digest = descriptor.digest().to_string().parse()?;
        match self.open_blob(digest, found).and_then(Blob::read_verified) {
            Ok(bytes) => Ok((document, bytes)),
            Err(source) => Err(LayoutError::Blob { document, source }),
        }
    }

    /// Reads one of the two files at the top, which no digest protects.
    fn read_file(&self, name: &'static str) -> Result<Vec<u8>, LayoutError> {
        let error = |source| LayoutError::File { layout: self.path.clone(), file: name, source };
        let how = OpenHow::new()
            .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
        let file = File::from(openat2(&self.dir, name, how).map_err(|errno| error(errno.into()))?);
        if !file.metadata().map_err(error)?.is_file() {
            return Err(error(io::Error::other("not a regular file")));
        }
        let mut bytes = Vec::new();
        file.take(DOCUMENT_LIMIT_BYTES + 1).read_to_end(&mut bytes).map_err(error)?;
        let found = bytes.len() as u64;
        if found > DOCUMENT_LIMIT_BYTES {
            return Err(LayoutError::TooLarge {
                document: format!("file `{name}`"),
                limit: DOCUMENT_LIMIT_BYTES,
                found,
            });
        }
        Ok(bytes)
    }

    fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

impl DescriptorKind {
    /// Classifies a descriptor by its media type; unknown types are to be ignored, not refused.
    pub(crate) fn of(descriptor: &Descriptor) -> Self {
        match descriptor.media_type().as_ref() {
            OCI_INDEX | DOCKER_INDEX => Self::Index,
            OCI_MANIFEST | DOCKER_MANIFEST => Self::Manifest,
            _ => Self::Other,
        }
    }
}

/// Tells an image's configuration from what other artifacts put in its place.
pub(crate) fn is_image_configuration(descriptor: &Descriptor) -> bool {
    matches!(descriptor.media_type().as_ref(), OCI_CONFIG | DOCKER_CONFIG)
}

fn parse<T: serde::de::DeserializeOwned>(document: &str, bytes: &[u8]) -> Result<T, LayoutError> {
    serde_json::from_slice(bytes)
        .map_err(|error| JsonError(Shown(&error.to_string()).to_string()))
        .map_err(|source| LayoutError::Json { document: document.to_owned(), source })
}

/// Refuses a document that could be read as another type than the one it is used as
/// (CVE-2021-41190).
fn check_type(document: &str, bytes: &[u8], expected: &str) -> Result<(), LayoutError> {
    let value: Value = parse(document, bytes)?;
    if let Some(version) = value.get("schemaVersion").filter(|version| **version != 2) {
        let (document, found) = (document.to_owned(), version.to_string());
        return Err(LayoutError::SchemaVersion { document, found });
    }
    // Empty and null are what some tools write for nothing.
    let declared = value.get("mediaType").and_then(Value::as_str).filter(|text| !text.is_empty());
    let foreign: &[&str] = match expected {
        OCI_INDEX | DOCKER_INDEX => &["config", "layers"],
        _ => &["manifests"],
    };
    let found = declared
        .filter(|declared| *declared != expected)
        .or_else(|| foreign.iter().find(|field| !value[**field].is_null()).copied());
    found.map_or(Ok(()), |found| {
        let (document, expected) = (document.to_owned(), expected.to_owned());
        Err(LayoutError::DocumentType { document, expected, found: found.to_owned() })
    })
}
