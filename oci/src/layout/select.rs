//! The choice of one image among those of a layout.
//!
//! `index.json` lists manifests and, often, further indexes: one entry a platform, and attestations
//! between them that are no images at all. An entry is flattened to the manifests below it, of
//! which the platform picks the best; then exactly one entry must be left.

use std::collections::HashSet;

use oci_spec::image::{Descriptor, ImageIndex};

use crate::host::text::Shown;
use crate::image::digest::Digest;
use crate::image::platform::Platform;
use crate::image::platform_of;
use crate::layout::{DescriptorKind, Layout, LayoutError, is_image_configuration};

/// Bound on nested indexes: builders nest once or twice.
const INDEX_DEPTH: usize = 8;

/// Bound on entries of all indexes together: the widest official images have about thirty, a
/// mirror's layout hundreds.
const INDEX_ENTRIES: usize = 4096;

/// Annotation by which an entry of `index.json` is named.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// The same by containerd, which puts the full name here and only the tag there.
const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// Annotation on manifests that talk about an image instead of being one.
const DOCKER_REFERENCE_TYPE: &str = "vnd.docker.reference.type";

/// A manifest, or something else, somewhere below an entry of `index.json`.
struct Candidate {
    /// Position in `index.json` of the entry that leads here.
    entry: usize,
    descriptor: Descriptor,
    platform: Option<Platform>,
    /// Name and digests on the way from `index.json` to here.
    names: Vec<String>,
    /// What it is, if it is no image.
    artifact: Option<String>,
}

/// Finds the manifest that `reference` means on `platform`.
pub(crate) fn select(
    layout: &Layout,
    reference: Option<&str>,
    platform: &Platform,
) -> Result<Descriptor, LayoutError> {
    let mut candidates = named(layout, reference)?;
    for candidate in &mut candidates {
        candidate.examine(layout, platform)?;
    }
    let describe = |candidates: &[Candidate]| candidates.iter().map(Candidate::describe).collect();
    let (images, artifacts): (Vec<_>, Vec<_>) =
        candidates.into_iter().partition(|candidate| candidate.artifact.is_none());
    if images.is_empty() && !artifacts.is_empty() {
        return Err(LayoutError::NotAnImage { found: describe(&artifacts) });
    }
    let best = best_of(&images, platform);
    let found = || best.iter().map(|candidate| candidate.describe()).collect();
    match (&best[..], reference) {
        ([only], _) => Ok(only.descriptor.clone()),
        ([], _) => Err(LayoutError::NoSuchPlatform {
            platform: platform.clone(),
            found: describe(&images),
        }),
        (_, None) => Err(LayoutError::Ambiguous { found: found() }),
        (_, Some(reference)) => {
            Err(LayoutError::DuplicateReference { reference: reference.to_owned(), found: found() })
        }
    }
}

/// Lists what `reference` may mean, or everything.
fn named(layout: &Layout, reference: Option<&str>) -> Result<Vec<Candidate>, LayoutError> {
    let mut walk = Walk { layout, entries: 0, candidates: Vec::new(), missing: None };
    walk.flatten(&layout.top_index()?, reference)?;
    let Walk { mut candidates, missing, .. } = walk;
    let Some(reference) = reference else { return missing.map_or(Ok(candidates), Err) };
    let to_ask_for = candidates.iter().filter(|candidate| candidate.is_named());
    let all: Vec<String> = to_ask_for.map(Candidate::describe).collect();
    candidates.retain(|candidate| candidate.names.iter().any(|name| name == reference));
    match (candidates.is_empty(), missing) {
        (false, _) => Ok(candidates),
        // What was asked for may be in the index that is not there.
        (true, Some(missing)) => Err(missing),
        (true, None) => {
            Err(LayoutError::NoSuchReference { reference: reference.to_owned(), found: all })
        }
    }
}

/// Chooses those that suit the platform best: one of each entry, and of several entries those that
/// do not lead to the same manifest.
fn best_of<'a>(images: &'a [Candidate], platform: &Platform) -> Vec<&'a Candidate> {
    let mut best: Vec<(u32, &Candidate)> = Vec::new();
    for image in images {
        let Some(rank) = image.platform.as_ref().and_then(|offered| platform.suitability(offered))
        else {
            continue;
        };
        // Within one entry the first of equals wins, as the specification asks.
        match best.iter_mut().find(|(_, other)| other.entry == image.entry) {
            Some(other) if rank > other.0 => *other = (rank, image),
            Some(_) => {}
            None => best.push((rank, image)),
        }
    }
    let top = best.iter().map(|(rank, _)| *rank).max();
    let mut seen = HashSet::new();
    best.into_iter()
        .filter(|(rank, _)| Some(*rank) == top)
        .map(|(_, image)| image)
        .filter(|image| seen.insert(image.descriptor.digest()))
        .collect()
}

/// The descent through nested indexes, and what it has cost so far.
struct Walk<'a> {
    layout: &'a Layout,
    entries: usize,
    candidates: Vec<Candidate>,
    /// The first index that is not there; an error only if it is needed.
    missing: Option<LayoutError>,
}

impl Walk<'_> {
    /// Descends through the entries that have the name `reference`, or through all.
    fn flatten(&mut self, top: &ImageIndex, reference: Option<&str>) -> Result<(), LayoutError> {
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
    ) -> Result<(), LayoutError> {
        self.entries += 1;
        if self.entries > INDEX_ENTRIES || depth_left == 0 {
            return Err(LayoutError::IndexBounds { limit: INDEX_DEPTH, entries: INDEX_ENTRIES });
        }
        names.push(descriptor.digest().to_string());
        if DescriptorKind::of(descriptor) == DescriptorKind::Index {
            // No index can lead back to itself, as it would have to hold its own digest.
            match self.layout.nested_index(descriptor) {
                Ok(index) => {
                    for nested in index.manifests() {
                        self.descend(entry, nested, names.clone(), depth_left - 1)?;
                    }
                }
                Err(error) if error.is_missing_blob() => _ = self.missing.get_or_insert(error),
                Err(error) => return Err(error),
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

/// Returns the names that an entry of `index.json` has.
fn annotated_names(descriptor: &Descriptor) -> Vec<String> {
    let annotation = |key| descriptor.annotations().as_ref().and_then(|all| all.get(key)).cloned();
    [REF_NAME, CONTAINERD_NAME].into_iter().filter_map(annotation).collect()
}

/// Tells what travels beside images, such as attestations, signatures and bills of materials, from
/// images, as far as a descriptor says it.
fn artifact(descriptor: &Descriptor) -> Option<String> {
    if DescriptorKind::of(descriptor) != DescriptorKind::Manifest {
        return Some(descriptor.media_type().to_string());
    }
    let annotations = descriptor.annotations().as_ref();
    let is_unknown = |platform: &&oci_spec::image::Platform| platform.os().to_string() == "unknown";
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
    /// Looks into the manifest for what the descriptor does not say: the platform, and whether this
    /// is an image at all.
    fn examine(&mut self, layout: &Layout, wanted: &Platform) -> Result<(), LayoutError> {
        let offered = self.platform.as_ref();
        let is_out = offered.is_some_and(|offered| wanted.suitability(offered).is_none());
        if self.artifact.is_some() || is_out {
            return Ok(());
        }
        let manifest = match layout.manifest(&self.descriptor) {
            // It is an error for the one that is chosen.
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
            self.platform = Some(platform_of(&layout.configuration(&manifest)?.document));
        }
        Ok(())
    }

    /// Says whether one would ask for it: for an image, or for what has a name of its own.
    fn is_named(&self) -> bool {
        self.artifact.is_none() || self.name().is_some()
    }

    fn name(&self) -> Option<&String> {
        // What has no name has a digest there.
        self.names.first().filter(|name| name.parse::<Digest>().is_err())
    }

    /// Names the candidate for an error: name if it has one, digest, platform if it is known.
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
