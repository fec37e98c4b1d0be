//! The choice of one image in a layout.
//!
//! `index.json` lists manifests, and often further indexes with one entry for each platform.
//! Between the images there can be attestations, signatures and other artifacts. Each entry of
//! `index.json` is flattened to the manifests below it, and the best manifest for the platform is
//! chosen. Exactly one entry must remain.
//!
//! An entry that is malformed, or whose manifest cannot be read, is an error only if no other entry
//! has the image that was asked for (decision 0014).

use std::collections::HashSet;

use oci_spec::image::ANNOTATION_REF_NAME;
use serde_json::Value;
use serde_json::value::RawValue;

use super::document::{
    DescriptorKind, DocumentError, DocumentReader, is_image_configuration, parse_entry,
};
use crate::host::text::{Shown, shown_list};
use crate::image::digest::Digest;
use crate::image::documents::{Descriptor, Fields, Index};
use crate::image::platform::Platform;

/// Largest depth of nested indexes. Builders nest indexes once or twice.
const INDEX_DEPTH: usize = 8;

/// Largest number of entries in all indexes together. An official image for many platforms has
/// about thirty entries, and the layout of a mirror has hundreds.
const INDEX_ENTRIES: usize = 4096;

/// Annotation by containerd with the full name of an entry of `index.json`. containerd puts only the
/// tag into the image specification's annotation, [`ANNOTATION_REF_NAME`].
const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// Annotation on the manifests of attestations, which describe an image.
const DOCKER_REFERENCE_TYPE: &str = "vnd.docker.reference.type";

/// A choice that does not lead to exactly one image.
#[derive(Debug, thiserror::Error)]
pub enum SelectError {
    /// A document cannot be read.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// Indexes are nested too deep, or have too many entries.
    #[error("image indexes are nested more than {limit} deep, or hold more than {entries} entries")]
    IndexBounds {
        /// Largest depth.
        limit: usize,
        /// Largest number of entries in all indexes together.
        entries: usize,
    },
    /// No entry has this name or digest.
    #[error("no image `{reference}` in the layout: found {}", shown_list(found))]
    NoSuchReference {
        /// The name or digest that was asked for.
        reference: String,
        /// The images of the layout.
        found: Vec<String>,
    },
    /// The image is in the layout, but not for this platform.
    #[error("no image for platform `{platform}`: found {}", shown_list(found))]
    NoSuchPlatform {
        /// The platform that was asked for.
        platform: Platform,
        /// The images for other platforms.
        found: Vec<String>,
    },
    /// No reference was given, and several images are suitable.
    #[error(
        "several images fit, name one of them by its reference or digest: found {}",
        shown_list(found)
    )]
    Ambiguous {
        /// The suitable images.
        found: Vec<String>,
    },
    /// Several images have the name that was asked for.
    #[error(
        "several images are named `{reference}`, choose one of them by its digest: found {}",
        shown_list(found)
    )]
    DuplicateReference {
        /// The name.
        reference: String,
        /// The images with this name.
        found: Vec<String>,
    },
    /// The reference means an artifact that is not an image, or the layout contains only such
    /// artifacts.
    #[error("expected an image, found {}", shown_list(found))]
    NotAnImage {
        /// The artifacts.
        found: Vec<String>,
    },
}

/// A manifest of an image or of another artifact, below an entry of `index.json`.
struct Candidate {
    /// Position of that entry in `index.json`.
    entry: usize,
    descriptor: Descriptor,
    platform: Option<Platform>,
    /// Whether a part of the platform is missing where it should be, and was assumed.
    is_vague: bool,
    /// The names and the digest of that entry, and the digests of the indexes and the manifest
    /// below it.
    names: Vec<String>,
    /// The type of the artifact, if it is not an image.
    artifact: Option<String>,
    /// Why nothing is known about the candidate.
    failure: Option<DocumentError>,
}

/// Finds the manifest that `reference` means on `platform`.
pub(super) fn select(
    documents: &DocumentReader,
    reference: Option<&str>,
    platform: &Platform,
) -> Result<Descriptor, SelectError> {
    let (mut candidates, missing) = named(documents, reference)?;
    for candidate in &mut candidates {
        candidate.examine(documents, platform);
    }
    let (candidates, failed): (Vec<_>, Vec<_>) =
        candidates.into_iter().partition(|candidate| candidate.failure.is_none());
    let failure = failed.into_iter().find_map(|candidate| candidate.failure);
    // Artifacts are dropped only if there are images too. Otherwise the error names them.
    let describe = |candidates: &[Candidate]| candidates.iter().map(Candidate::describe).collect();
    let (images, artifacts): (Vec<_>, Vec<_>) =
        candidates.into_iter().partition(|candidate| candidate.artifact.is_none());
    let best = best_of(&images, platform);
    let found = || best.iter().map(|candidate| candidate.describe()).collect();
    match (&best[..], reference, failure.or(missing)) {
        ([only], ..) => Ok(only.descriptor.clone()),
        // What cannot be read may be the image.
        ([], _, Some(failure)) => Err(failure.into()),
        ([], _, None) if images.is_empty() && !artifacts.is_empty() => {
            Err(SelectError::NotAnImage { found: describe(&artifacts) })
        }
        ([], _, None) => Err(SelectError::NoSuchPlatform {
            platform: platform.clone(),
            found: describe(&images),
        }),
        (_, None, _) => Err(SelectError::Ambiguous { found: found() }),
        (_, Some(reference), _) => {
            Err(SelectError::DuplicateReference { reference: reference.to_owned(), found: found() })
        }
    }
}

/// Returns the candidates that `reference` means, or all candidates if there is no reference. Also
/// returns the error of the first index that cannot be read.
fn named(
    documents: &DocumentReader,
    reference: Option<&str>,
) -> Result<(Vec<Candidate>, Option<DocumentError>), SelectError> {
    let mut walk = Walk { documents, entries: 0, candidates: Vec::new(), unreadable: None };
    walk.flatten(reference)?;
    let Walk { mut candidates, unreadable, .. } = walk;
    let Some(reference) = reference else {
        // An index can contain any number of images, so that without it none is the only one.
        return unreadable.map_or(Ok((candidates, None)), |error| Err(error.into()));
    };
    let selectable = candidates.iter().filter(|candidate| candidate.is_named());
    let all: Vec<String> = selectable.map(Candidate::describe).collect();
    candidates.retain(|candidate| candidate.names.iter().any(|name| name == reference));
    match (candidates.is_empty(), unreadable) {
        (false, unreadable) => Ok((candidates, unreadable)),
        // The unreadable index may contain the image that was asked for.
        (true, Some(unreadable)) => Err(unreadable.into()),
        (true, None) => {
            Err(SelectError::NoSuchReference { reference: reference.to_owned(), found: all })
        }
    }
}

/// Returns the images that suit the platform best: at most one from each entry of `index.json`, and
/// each manifest once.
fn best_of<'a>(images: &'a [Candidate], platform: &Platform) -> Vec<&'a Candidate> {
    let mut best: Vec<((bool, u32), &Candidate)> = Vec::new();
    for image in images {
        let Some(rank) = image.platform.as_ref().and_then(|offered| platform.suitability(offered))
        else {
            continue;
        };
        // An assumed platform counts only if there is no image with a platform of its own.
        let rank = (!image.is_vague, rank);
        // The image specification asks for the first of several matching entries (image-index.md).
        match best.iter_mut().find(|(_, other)| other.entry == image.entry) {
            Some(other) if rank > other.0 => *other = (rank, image),
            Some(_) => {}
            None => best.push((rank, image)),
        }
    }
    let top = best.iter().map(|(rank, _)| *rank).max();
    // Several entries may lead to one manifest, for example two tags of the same image. That is no
    // ambiguity.
    let mut seen = HashSet::new();
    best.into_iter()
        .filter(|(rank, _)| Some(*rank) == top)
        .map(|(_, image)| image)
        .filter(|image| seen.insert(&image.descriptor.digest))
        .collect()
}

/// The descent through nested indexes.
struct Walk<'a> {
    documents: &'a DocumentReader,
    /// Number of entries so far.
    entries: usize,
    candidates: Vec<Candidate>,
    /// The error of the first index that cannot be read. It is reported only if the index is
    /// needed, because the image specification allows a layout without some of its blobs
    /// (image-layout.md).
    unreadable: Option<DocumentError>,
}

/// An entry of an index: its descriptor, or why it is malformed.
type Entry = Result<Descriptor, DocumentError>;

impl Walk<'_> {
    /// Descends through the entries that have the name `reference`. If no entry has it, the
    /// reference is a digest or is missing, and this descends through all entries.
    fn flatten(&mut self, reference: Option<&str>) -> Result<(), SelectError> {
        let (document, index) = self.documents.top_index()?;
        let entries: Vec<(Entry, Vec<String>)> = entries_of(&document, &index).collect();
        let is_meant = |names: &[String]| names.iter().any(|name| Some(name.as_str()) == reference);
        let by_name = entries.iter().any(|(_, names)| is_meant(names));
        for (position, (entry, names)) in entries.into_iter().enumerate() {
            if !by_name || is_meant(&names) {
                self.descend(position, entry, names, INDEX_DEPTH)?;
            }
        }
        Ok(())
    }

    /// Adds the manifests below `entry`, which is below the entry `position` of `index.json`.
    fn descend(
        &mut self,
        position: usize,
        entry: Entry,
        mut names: Vec<String>,
        depth_left: usize,
    ) -> Result<(), SelectError> {
        self.entries += 1;
        if self.entries > INDEX_ENTRIES || depth_left == 0 {
            return Err(SelectError::IndexBounds { limit: INDEX_DEPTH, entries: INDEX_ENTRIES });
        }
        let descriptor = match entry {
            Ok(descriptor) => descriptor,
            Err(error) => {
                self.candidates.push(Candidate::malformed(position, names, error));
                return Ok(());
            }
        };
        // A digest is a reference as well, also the digest of an index on the way.
        names.extend(Some(descriptor.digest.clone()).filter(|digest| !digest.is_empty()));
        if DescriptorKind::of(&descriptor) != DescriptorKind::Index {
            self.candidates.push(Candidate::new(position, names, descriptor));
            return Ok(());
        }
        // The descent ends without a check for cycles: an index in a cycle would contain a digest
        // that depends on its own digest.
        match self.documents.nested_index(&descriptor) {
            Ok((document, index)) => {
                // Only the names in `index.json` are references.
                for (nested, _) in entries_of(&document, &index) {
                    self.descend(position, nested, names.clone(), depth_left - 1)?;
                }
            }
            Err(error) => _ = self.unreadable.get_or_insert(error),
        }
        Ok(())
    }
}

/// Returns the entries of the index `document`, each with its names.
fn entries_of(document: &str, index: &Index) -> impl Iterator<Item = (Entry, Vec<String>)> {
    index.manifests.iter().enumerate().map(move |(position, text)| {
        let entry = parse_entry(document, position, text.get());
        let names = match &entry {
            Ok(descriptor) => annotated_names(descriptor),
            Err(_) => names_of_malformed(text),
        };
        (entry, names)
    })
}

/// Returns the names of an entry of `index.json`.
fn annotated_names(descriptor: &Descriptor) -> Vec<String> {
    let annotation = |key| descriptor.annotations.get(key).cloned();
    [ANNOTATION_REF_NAME, CONTAINERD_NAME]
        .into_iter()
        .filter_map(annotation)
        .filter(|name| !name.is_empty())
        .collect()
}

/// Returns the names and the digest of a malformed entry, as far as they can be read. With them, a
/// reference to the entry leads to its error.
fn names_of_malformed(entry: &RawValue) -> Vec<String> {
    let entry: Value = serde_json::from_str(entry.get()).unwrap_or_default();
    let annotations = &entry["annotations"];
    [&annotations[ANNOTATION_REF_NAME], &annotations[CONTAINERD_NAME], &entry["digest"]]
        .into_iter()
        .filter_map(Value::as_str)
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Returns the type of an artifact that is not an image, such as an attestation, a signature or a
/// bill of materials. Returns `None` for an image, and for an artifact whose descriptor does not
/// show it.
fn artifact(descriptor: &Descriptor) -> Option<String> {
    if DescriptorKind::of(descriptor) != DescriptorKind::Manifest {
        return Some(descriptor.media_type.clone());
    }
    // BuildKit marks attestations by the annotation and by the platform `unknown/unknown`.
    let annotated = descriptor.annotations.get(DOCKER_REFERENCE_TYPE).cloned();
    annotated.filter(|found| !found.is_empty()).or_else(|| {
        let platform = descriptor.platform.as_ref();
        platform.filter(|Fields(platform)| platform.os == "unknown").map(|_| "attestation".into())
    })
}

impl Candidate {
    fn new(entry: usize, names: Vec<String>, descriptor: Descriptor) -> Self {
        let offered = descriptor.platform.as_ref();
        let platform = offered.and_then(|Fields(offered)| Platform::of_descriptor(offered));
        Self {
            entry,
            is_vague: offered.is_some() && platform.is_none(),
            platform,
            names,
            artifact: artifact(&descriptor),
            failure: None,
            descriptor,
        }
    }

    fn malformed(entry: usize, names: Vec<String>, error: DocumentError) -> Self {
        Self { failure: Some(error), ..Self::new(entry, names, Descriptor::default()) }
    }

    /// Reads the manifest to learn what the descriptor leaves out: the platform, and whether the
    /// artifact is an image.
    fn examine(&mut self, documents: &DocumentReader, wanted: &Platform) {
        let offered = self.platform.as_ref();
        // Reading the manifests of other platforms would be wasted work, and they may be missing.
        let is_out = offered.is_some_and(|offered| wanted.suitability(offered).is_none());
        if self.artifact.is_some() || self.failure.is_some() || is_out {
            return;
        }
        let result = self.read(documents, wanted);
        // An image that is suitable by its descriptor stays a candidate. If it is chosen,
        // `Layout::resolve` reads it again and reports the error.
        if self.platform.is_none() {
            self.failure = result.err();
        }
    }

    fn read(&mut self, documents: &DocumentReader, wanted: &Platform) -> Result<(), DocumentError> {
        let manifest = documents.manifest(&self.descriptor)?;
        let config_type = &manifest.config.0.media_type;
        let types = [manifest.artifact_type.as_str(), &self.descriptor.artifact_type];
        let declared = types.into_iter().find(|declared| !declared.is_empty());
        if !is_image_configuration(config_type) {
            self.artifact = Some(declared.unwrap_or(config_type).to_owned());
            return Ok(());
        }
        if self.platform.is_some() && declared.is_none() {
            return Ok(());
        }
        let configuration = documents.configuration(&manifest)?;
        let has_architecture = !configuration.architecture.is_empty();
        // An image can have an artifact type as well (image specification 1.1, manifest.md). An
        // artifact with a stub in place of the configuration is no image.
        if let Some(declared) = declared.filter(|_| !has_architecture) {
            self.artifact = Some(declared.to_owned());
        }
        self.is_vague |= !has_architecture;
        self.platform.get_or_insert_with(|| Platform::of_configuration(&configuration, wanted));
        Ok(())
    }

    /// Returns whether an error should offer the candidate: it is an image, or has a name of its
    /// own.
    fn is_named(&self) -> bool {
        self.artifact.is_none() || self.name().is_some()
    }

    fn name(&self) -> Option<&String> {
        // If the entry has no name, its digest comes first.
        self.names.first().filter(|name| name.parse::<Digest>().is_err())
    }

    /// Describes the candidate for an error: its name if it has one, its digest, and its platform
    /// if that is known.
    fn describe(&self) -> String {
        let name = self.name().map(|name| format!("`{}` ", Shown(name))).unwrap_or_default();
        let digest = match self.descriptor.digest.as_str() {
            "" => "without a digest".to_owned(),
            digest => Shown(digest).to_string(),
        };
        let platform = self.platform.as_ref().map(ToString::to_string);
        let platform =
            platform.map(|platform| format!(", {}", Shown(&platform))).unwrap_or_default();
        let artifact = self.artifact.as_deref().map(|found| match found {
            "" => ", without a media type".to_owned(),
            found => format!(", of type `{}`", Shown(found)),
        });
        format!("{name}({digest}{platform}{})", artifact.unwrap_or_default())
    }
}
