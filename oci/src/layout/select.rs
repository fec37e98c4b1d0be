//! The choice of one image in a layout.
//!
//! `index.json` lists manifests, and often further indexes with one entry for each platform.
//! Between the images there can be attestations, signatures and other artifacts. Each entry of
//! `index.json` is flattened to the manifests below it, and the best manifest for the platform is
//! chosen. Exactly one entry must remain.

use std::collections::HashSet;

use oci_spec::image::{Descriptor, ImageIndex};

use super::document::{DescriptorKind, DocumentError, DocumentReader, is_image_configuration};
use crate::host::text::{Shown, shown_list};
use crate::image::digest::Digest;
use crate::image::platform::Platform;

/// Largest depth of nested indexes. Builders nest indexes once or twice.
const INDEX_DEPTH: usize = 8;

/// Largest number of entries in all indexes together. An official image for many platforms has
/// about thirty entries, and the layout of a mirror has hundreds.
const INDEX_ENTRIES: usize = 4096;

/// Annotation that contains the name of an entry of `index.json`.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// The same by containerd, which puts the full name here and only the tag there.
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
    /// The names and the digest of that entry, and the digests of the indexes and the manifest
    /// below it.
    names: Vec<String>,
    /// The type of the artifact, if it is not an image.
    artifact: Option<String>,
}

/// Finds the manifest that `reference` means on `platform`.
pub(super) fn select(
    documents: &DocumentReader,
    reference: Option<&str>,
    platform: &Platform,
) -> Result<Descriptor, SelectError> {
    let mut candidates = named(documents, reference)?;
    for candidate in &mut candidates {
        candidate.examine(documents, platform)?;
    }
    // Artifacts are dropped only if there are images too. Otherwise the error names them.
    let describe = |candidates: &[Candidate]| candidates.iter().map(Candidate::describe).collect();
    let (images, artifacts): (Vec<_>, Vec<_>) =
        candidates.into_iter().partition(|candidate| candidate.artifact.is_none());
    if images.is_empty() && !artifacts.is_empty() {
        return Err(SelectError::NotAnImage { found: describe(&artifacts) });
    }
    let best = best_of(&images, platform);
    let found = || best.iter().map(|candidate| candidate.describe()).collect();
    match (&best[..], reference) {
        ([only], _) => Ok(only.descriptor.clone()),
        ([], _) => Err(SelectError::NoSuchPlatform {
            platform: platform.clone(),
            found: describe(&images),
        }),
        (_, None) => Err(SelectError::Ambiguous { found: found() }),
        (_, Some(reference)) => {
            Err(SelectError::DuplicateReference { reference: reference.to_owned(), found: found() })
        }
    }
}

/// Returns the candidates that `reference` means, or all candidates if there is no reference.
fn named(
    documents: &DocumentReader,
    reference: Option<&str>,
) -> Result<Vec<Candidate>, SelectError> {
    let mut walk = Walk { documents, entries: 0, candidates: Vec::new(), missing: None };
    walk.flatten(&documents.top_index()?, reference)?;
    let Walk { mut candidates, missing, .. } = walk;
    let Some(reference) = reference else {
        return missing.map_or(Ok(candidates), |error| Err(error.into()));
    };
    let selectable = candidates.iter().filter(|candidate| candidate.is_named());
    let all: Vec<String> = selectable.map(Candidate::describe).collect();
    candidates.retain(|candidate| candidate.names.iter().any(|name| name == reference));
    match (candidates.is_empty(), missing) {
        (false, _) => Ok(candidates),
        // The missing index may contain the image that was asked for.
        (true, Some(missing)) => Err(missing.into()),
        (true, None) => {
            Err(SelectError::NoSuchReference { reference: reference.to_owned(), found: all })
        }
    }
}

/// Returns the images that suit the platform best: at most one from each entry of `index.json`, and
/// each manifest once.
fn best_of<'a>(images: &'a [Candidate], platform: &Platform) -> Vec<&'a Candidate> {
    let mut best: Vec<(u32, &Candidate)> = Vec::new();
    for image in images {
        let Some(rank) = image.platform.as_ref().and_then(|offered| platform.suitability(offered))
        else {
            continue;
        };
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
        .filter(|image| seen.insert(image.descriptor.digest()))
        .collect()
}

/// The descent through nested indexes.
struct Walk<'a> {
    documents: &'a DocumentReader,
    /// Number of entries so far.
    entries: usize,
    candidates: Vec<Candidate>,
    /// The error of the first index that is missing. It is reported only if the index is needed,
    /// because the image specification allows a layout without some of its blobs (image-layout.md).
    missing: Option<DocumentError>,
}

impl Walk<'_> {
    /// Descends through the entries that have the name `reference`. If no entry has it, the
    /// reference is a digest or is missing, and this descends through all entries.
    fn flatten(&mut self, top: &ImageIndex, reference: Option<&str>) -> Result<(), SelectError> {
        let entries: Vec<(usize, &Descriptor, Vec<String>)> = top
            .manifests()
            .iter()
            .enumerate()
            .map(|(entry, descriptor)| (entry, descriptor, annotated_names(descriptor)))
            .collect();
        let is_meant = |names: &[String]| names.iter().any(|name| Some(name.as_str()) == reference);
        let by_name = entries.iter().any(|(.., names)| is_meant(names));
        for (entry, descriptor, names) in entries {
            if !by_name || is_meant(&names) {
                self.descend(entry, descriptor, names, INDEX_DEPTH)?;
            }
        }
        Ok(())
    }

    fn descend(
        &mut self,
        entry: usize,
        descriptor: &Descriptor,
        mut names: Vec<String>,
        depth_left: usize,
    ) -> Result<(), SelectError> {
        self.entries += 1;
        if self.entries > INDEX_ENTRIES || depth_left == 0 {
            return Err(SelectError::IndexBounds { limit: INDEX_DEPTH, entries: INDEX_ENTRIES });
        }
        // A digest is a reference as well, also the digest of an index on the way.
        names.push(descriptor.digest().to_string());
        if DescriptorKind::of(descriptor) == DescriptorKind::Index {
            // The descent ends without a check for cycles: an index in a cycle would contain a
            // digest that depends on its own digest.
            match self.documents.nested_index(descriptor) {
                Ok(index) => {
                    for nested in index.manifests() {
                        self.descend(entry, nested, names.clone(), depth_left - 1)?;
                    }
                }
                Err(error) if error.is_missing_blob() => _ = self.missing.get_or_insert(error),
                Err(error) => return Err(error.into()),
            }
            return Ok(());
        }
        self.candidates.push(Candidate {
            entry,
            descriptor: descriptor.clone(),
            platform: descriptor.platform().as_ref().map(platform_of_descriptor),
            names,
            artifact: artifact(descriptor),
        });
        Ok(())
    }
}

/// Returns the names of an entry of `index.json`.
fn annotated_names(descriptor: &Descriptor) -> Vec<String> {
    let annotation = |key| descriptor.annotations().as_ref().and_then(|all| all.get(key)).cloned();
    [REF_NAME, CONTAINERD_NAME].into_iter().filter_map(annotation).collect()
}

/// Returns the type of an artifact that is not an image, such as an attestation, a signature or a
/// bill of materials. Returns `None` for an image, and for an artifact whose descriptor does not
/// show it.
fn artifact(descriptor: &Descriptor) -> Option<String> {
    if DescriptorKind::of(descriptor) != DescriptorKind::Manifest {
        return Some(descriptor.media_type().to_string());
    }
    let annotations = descriptor.annotations().as_ref();
    let is_unknown = |platform: &&oci_spec::image::Platform| platform.os().to_string() == "unknown";
    // BuildKit marks attestations by the annotation and by the platform `unknown/unknown`. Other
    // tools use the artifact type of the image specification.
    annotations
        .and_then(|all| all.get(DOCKER_REFERENCE_TYPE))
        .cloned()
        .or_else(|| descriptor.artifact_type().as_ref().map(ToString::to_string))
        .or_else(|| {
            descriptor.platform().as_ref().filter(is_unknown).map(|_| "attestation".to_owned())
        })
}

fn platform_of_descriptor(platform: &oci_spec::image::Platform) -> Platform {
    Platform {
        os: platform.os().to_string(),
        architecture: platform.architecture().to_string(),
        variant: platform.variant().clone().filter(|variant| !variant.is_empty()),
    }
}

impl Candidate {
    /// Reads the manifest to learn what the descriptor leaves out: the platform, and whether the
    /// artifact is an image.
    fn examine(
        &mut self,
        documents: &DocumentReader,
        wanted: &Platform,
    ) -> Result<(), DocumentError> {
        let offered = self.platform.as_ref();
        // Reading the manifests of other platforms would be wasted work, and they may be missing.
        let is_out = offered.is_some_and(|offered| wanted.suitability(offered).is_none());
        if self.artifact.is_some() || is_out {
            return Ok(());
        }
        let manifest = match documents.manifest(&self.descriptor) {
            // Only the manifest that is chosen must exist. `Layout::resolve` reads that one again.
            Err(error) if offered.is_some() && error.is_missing_blob() => return Ok(()),
            manifest => manifest?,
        };
        let config = manifest.config();
        self.artifact = match manifest.artifact_type() {
            Some(found) => Some(found.to_string()),
            None if is_image_configuration(config) => None,
            None => Some(config.media_type().to_string()),
        };
        if self.artifact.is_none() && offered.is_none() {
            self.platform = Some(documents.configuration(&manifest)?.platform());
        }
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
        let platform = self.platform.as_ref().map(ToString::to_string);
        let platform =
            platform.map(|platform| format!(", {}", Shown(&platform))).unwrap_or_default();
        let artifact = self.artifact.as_ref();
        let artifact =
            artifact.map(|found| format!(", of type `{}`", Shown(found))).unwrap_or_default();
        format!("{name}({}{platform}{artifact})", self.descriptor.digest())
    }
}
