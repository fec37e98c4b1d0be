//! Reading the JSON documents of a layout: indexes, manifests and image configurations.
//!
//! Each document is bounded in size. All but the two files at the top of the layout are verified
//! against the digest in their descriptor before they are parsed.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use a3s_box_sys::HostError;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::Mode;
use oci_spec::image::MediaType;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::blob::{Blob, BlobError};
use crate::host::text::Shown;
use crate::image::digest::{Digest, DigestError};
use crate::image::documents::{Configuration, Descriptor, Fields, Index, Manifest};

/// Upper bound on the size of a JSON document. The distribution specification requires registries
/// to accept manifests of 4 MiB, so a larger document cannot be moved between registries.
const DOCUMENT_LIMIT_BYTES: u64 = 4 << 20;

/// A document that cannot be read, or that does not match its descriptor.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// One of the two files at the top of the layout cannot be read.
    #[error("cannot read `{}/{file}`: is this an OCI image layout?", layout.display())]
    File {
        /// The directory of the layout.
        layout: PathBuf,
        /// Name of the file.
        file: &'static str,
        /// The host's reason.
        source: io::Error,
    },
    /// One of the two files at the top of the layout is a symbolic link.
    #[error(
        "`{}/{file}` is a symbolic link, and links in a layout are not followed: copy the layout \
         with `cp -rL`",
        layout.display()
    )]
    SymbolicLink {
        /// The directory of the layout.
        layout: PathBuf,
        /// Name of the file.
        file: &'static str,
    },
    /// The blob of a document does not match its descriptor.
    #[error("the {document} cannot be used")]
    Blob {
        /// The document.
        document: String,
        /// The reason.
        source: BlobError,
    },
    /// A document is larger than any real one.
    #[error("the {document} is too large: expected at most {limit} bytes, found {found}")]
    TooLarge {
        /// The document.
        document: String,
        /// Upper bound on the size.
        limit: u64,
        /// Size of the document.
        found: u64,
    },
    /// A document is not JSON, or lacks a field of its type.
    #[error("the {document} is malformed")]
    Json {
        /// The document.
        document: String,
        /// The message of the parser.
        source: JsonError,
    },
    /// A document declares another type than its descriptor, or could be read as two types.
    #[error(
        "the {document} has the wrong type: expected `{}`, found `{}`",
        Shown(expected),
        Shown(found)
    )]
    DocumentType {
        /// The document.
        document: String,
        /// The media type in the descriptor.
        expected: String,
        /// The media type in the document, or its field that belongs to another type.
        found: String,
    },
    /// A document has an unknown schema version, or version 1 of Docker.
    #[error("the {document} has schema version {}: expected 2", Shown(found))]
    SchemaVersion {
        /// The document.
        document: String,
        /// The version in the document.
        found: String,
    },
    /// A digest in a document is malformed, or its algorithm is not supported.
    #[error("a document of the image has an unusable digest")]
    Digest(#[from] DigestError),
}

/// The message of a JSON parser, without control characters. It may quote the document.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct JsonError(String);

/// The type of the document that a descriptor points to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DescriptorKind {
    Index,
    Manifest,
    Other,
}

impl DescriptorKind {
    /// Classifies a descriptor by its media type. An unknown type is no error, because the image
    /// specification requires implementations to ignore unknown types in an index.
    pub(super) fn of(descriptor: &Descriptor) -> Self {
        match media_type(&descriptor.media_type) {
            MediaType::ImageIndex => Self::Index,
            MediaType::ImageManifest => Self::Manifest,
            _ => Self::Other,
        }
    }
}

/// A reader of the files and blobs of one layout.
#[derive(Debug)]
pub(super) struct DocumentReader {
    /// The directory of the layout, for errors.
    path: PathBuf,
    dir: OwnedFd,
}

impl DocumentReader {
    /// Opens the directory of a layout.
    pub(super) fn open(path: &Path) -> Result<Self, HostError> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let dir = open(path, flags, Mode::empty())
            .map_err(HostError::at("open the image layout", path))?;
        Ok(Self { path: path.to_owned(), dir })
    }

    /// Opens a blob. It is verified when all of it has been read.
    pub(super) fn open_blob(&self, digest: Digest, size: u64) -> Result<Blob, BlobError> {
        Blob::open(self.dir.as_fd(), digest, size)
    }

    /// Reads `oci-layout`.
    pub(super) fn marker(&self) -> Result<Value, DocumentError> {
        parse("file `oci-layout`", &self.read_file("oci-layout")?)
    }

    /// Reads `index.json`. Also returns its name for errors.
    pub(super) fn top_index(&self) -> Result<(String, Index), DocumentError> {
        let document = "index `index.json`".to_owned();
        let bytes = self.read_file("index.json")?;
        check_type(&document, &bytes, MediaType::ImageIndex.as_ref())?;
        let Fields(index) = parse(&document, &bytes)?;
        Ok((document, index))
    }

    /// Reads an index that an entry of another index points to. Also returns its name for errors.
    pub(super) fn nested_index(
        &self,
        descriptor: &Descriptor,
    ) -> Result<(String, Index), DocumentError> {
        self.document("image index", descriptor)
    }

    /// Reads a manifest.
    pub(super) fn manifest(&self, descriptor: &Descriptor) -> Result<Manifest, DocumentError> {
        self.document("image manifest", descriptor).map(|(_, manifest)| manifest)
    }

    /// Reads the image configuration that a manifest points to.
    pub(super) fn configuration(
        &self,
        manifest: &Manifest,
    ) -> Result<Configuration, DocumentError> {
        let Fields(descriptor) = &manifest.config;
        if !is_image_configuration(&descriptor.media_type) {
            let document = format!("image configuration `{}`", Shown(&descriptor.digest));
            let found = descriptor.media_type.clone();
            let expected = MediaType::ImageConfig.to_string();
            return Err(DocumentError::DocumentType { document, expected, found });
        }
        let (document, bytes) = self.read_document("image configuration", descriptor)?;
        // `serde_json` bounds the depth of values that are kept, but not of fields that are ignored.
        parse::<Value>(&document, &bytes)?;
        let Fields(configuration) = parse(&document, &bytes)?;
        Ok(configuration)
    }

    /// Reads, verifies and parses an index or a manifest. Also returns its name for errors.
    fn document<T: DeserializeOwned>(
        &self,
        kind: &str,
        descriptor: &Descriptor,
    ) -> Result<(String, T), DocumentError> {
        let (document, bytes) = self.read_document(kind, descriptor)?;
        check_type(&document, &bytes, &descriptor.media_type)?;
        let Fields(parsed) = parse(&document, &bytes)?;
        Ok((document, parsed))
    }

    /// Reads and verifies a blob that is a document. Also returns the name of the document for
    /// errors.
    fn read_document(
        &self,
        kind: &str,
        descriptor: &Descriptor,
    ) -> Result<(String, Vec<u8>), DocumentError> {
        let document = format!("{kind} `{}`", Shown(&descriptor.digest));
        let found = descriptor.size;
        // The size is checked before the blob is read into memory.
        if found > DOCUMENT_LIMIT_BYTES {
            return Err(DocumentError::TooLarge { document, limit: DOCUMENT_LIMIT_BYTES, found });
        }
        let digest = digest_of(descriptor)?;
        match self.open_blob(digest, found).and_then(Blob::read_verified) {
            Ok(bytes) => Ok((document, bytes)),
            Err(source) => Err(DocumentError::Blob { document, source }),
        }
    }

    /// Reads one of the two files at the top of the layout, which have no digest.
    fn read_file(&self, name: &'static str) -> Result<Vec<u8>, DocumentError> {
        let error = |source| DocumentError::File { layout: self.path.clone(), file: name, source };
        // A hostile layout may contain a FIFO, on which an open without `O_NONBLOCK` would block,
        // or a symbolic link to a file of the host.
        let how = OpenHow::new()
            .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
        let file = match openat2(&self.dir, name, how) {
            Ok(fd) => File::from(fd),
            Err(Errno::ELOOP) => {
                return Err(DocumentError::SymbolicLink { layout: self.path.clone(), file: name });
            }
            Err(errno) => return Err(error(errno.into())),
        };
        if !file.metadata().map_err(error)?.is_file() {
            return Err(error(io::Error::other("not a regular file")));
        }
        let mut bytes = Vec::new();
        // One byte more than the limit is read, so that a larger file is detected even while it
        // grows.
        file.take(DOCUMENT_LIMIT_BYTES + 1).read_to_end(&mut bytes).map_err(error)?;
        let found = bytes.len() as u64;
        if found > DOCUMENT_LIMIT_BYTES {
            let document = format!("file `{name}`");
            return Err(DocumentError::TooLarge { document, limit: DOCUMENT_LIMIT_BYTES, found });
        }
        Ok(bytes)
    }
}

/// Returns the digest in a descriptor.
pub(super) fn digest_of(descriptor: &Descriptor) -> Result<Digest, DocumentError> {
    Ok(descriptor.digest.parse()?)
}

/// Returns whether a media type is the one of an image configuration. Other artifacts have a
/// descriptor of another type in the same field of their manifest.
pub(super) fn is_image_configuration(text: &str) -> bool {
    media_type(text) == MediaType::ImageConfig
}

/// Returns the media type of a document. Docker's name of a type counts as OCI's name of it (Docker
/// image manifest version 2, schema 2).
fn media_type(text: &str) -> MediaType {
    match text {
        "application/vnd.docker.distribution.manifest.list.v2+json" => MediaType::ImageIndex,
        "application/vnd.docker.distribution.manifest.v2+json" => MediaType::ImageManifest,
        "application/vnd.docker.container.image.v1+json" => MediaType::ImageConfig,
        _ => MediaType::from(text),
    }
}

/// Parses an entry of the index `document`, whose position is `position`. Null is an empty
/// descriptor.
pub(super) fn parse_entry(
    document: &str,
    position: usize,
    entry: &str,
) -> Result<Descriptor, DocumentError> {
    let document = format!("entry `manifests[{position}]` of the {document}");
    let descriptor: Option<Fields<Descriptor>> = parse(&document, entry.as_bytes())?;
    Ok(descriptor.unwrap_or_default().0)
}

fn parse<T: DeserializeOwned>(document: &str, bytes: &[u8]) -> Result<T, DocumentError> {
    serde_json::from_slice(bytes)
        .map_err(|error| JsonError(Shown(&error.to_string()).to_string()))
        .map_err(|source| DocumentError::Json { document: document.to_owned(), source })
}

/// Refuses a document that could be read as another type than `expected`, the type of its
/// descriptor. Otherwise the same digest could mean different images to different tools
/// (CVE-2021-41190).
fn check_type(document: &str, bytes: &[u8], expected: &str) -> Result<(), DocumentError> {
    // The types of documents drop unknown fields, so that a field of another type is visible only
    // in the JSON value.
    let value: Value = parse(document, bytes)?;
    // Readers take the names of fields in any case, and Go writes null for a field without a value.
    let values = |wanted: &'static str| {
        let fields = value.as_object().into_iter().flatten();
        let of_name = fields.filter(move |(name, _)| name.eq_ignore_ascii_case(wanted));
        of_name.map(|(_, value)| value).filter(|value| !value.is_null())
    };
    // Version 1 of Docker's manifest has other fields. Zero is Go's value of a missing field.
    if let Some(version) = values("schemaVersion").find(|found| **found != 0 && **found != 2) {
        let (document, found) = (document.to_owned(), version.to_string());
        return Err(DocumentError::SchemaVersion { document, found });
    }
    let is_index = media_type(expected) == MediaType::ImageIndex;
    // Both kinds of index have the same fields, and `index.json` has no descriptor with its type.
    let is_expected = |declared: &&str| {
        *declared == expected || (is_index && media_type(declared) == MediaType::ImageIndex)
    };
    // The field is optional. Some tools write an empty text instead of leaving it out.
    let mut declared =
        values("mediaType").filter_map(Value::as_str).filter(|text| !text.is_empty());
    let foreign: &[&str] = if is_index { &["config", "layers"] } else { &["manifests"] };
    let found = declared
        .find(|declared| !is_expected(declared))
        .or_else(|| foreign.iter().find(|name| values(name).next().is_some()).copied());
    found.map_or(Ok(()), |found| {
        let (document, expected) = (document.to_owned(), expected.to_owned());
        Err(DocumentError::DocumentType { document, expected, found: found.to_owned() })
    })
}
