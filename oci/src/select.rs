//! The choice of one image among those of a layout.
//!
//! `index.json` lists manifests and, often, further indexes: one entry a platform, and attestations
//! between them that are no images at all. An entry is flattened to the manifests below it, of
//! which the platform picks the best; then exactly one entry must be left.

use std::collections::HashSet;

use oci_spec::image::{Descriptor, ImageIndex};

use crate::image::platform_of;
use crate::layout::{DescriptorKind, Layout, LayoutError, is_image_configuration};
use crate::platform::Platform;
use crate::text::Shown;

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

/// A manifest somewhere below an entry of `index.json`.
struct Candidate {
    /// Position in `index.json` of the entry that leads here.
    entry: usize,
    descriptor: Descriptor,
    platform: Option<Platform>,
    /// Name and digests on the way from `index.json` to here.
    names: Vec<String>,
}

/// Finds the manifest that `reference` means on `platform`.
pub(crate) fn select(
    layout: &Layout,
    reference: Option<&str>,
    platform: &Platform,
) -> Result<Descriptor, LayoutError> {
    let mut candidates = Vec::new();
    Walk { layout, entries: 0, candidates: &mut candidates }.flatten(&layout.top_index()?)?;
    let found = |candidates: &[Candidate]| candidates.iter().map(Candidate::describe).collect();
    if let Some(reference) = reference {
        let all: Vec<String> = found(&candidates);
        candidates.retain(|candidate| candidate.names.iter().any(|name| name == reference));
        if candidates.is_empty() {
            return Err(LayoutError::NoSuchReference {
                reference: reference.to_owned(),
                found: all,
            });
        }
    }
    for candidate in &mut candidates {
        candidate.find_platform(layout)?;
    }
    let mut best: Vec<(u32, &Candidate)> = Vec::new();
    for candidate in &candidates {
        let Some(rank) =
            candidate.platform.as_ref().and_then(|offered| platform.suitability(offered))
        else {
            continue;
        };
        // Within one entry the first of equals wins, as the specification asks.
        match best.iter_mut().find(|(_, other)| other.entry == candidate.entry) {
            Some(other) if rank > other.0 => *other = (rank, candidate),
            Some(_) => {}
            None => best.push((rank, candidate)),
        }
    }
    let Some(top) = best.iter().map(|(rank, _)| *rank).max() else {
        return Err(LayoutError::NoSuchPlatform {
            platform: platform.clone(),
            found: found(&candidates),
        });
    };
    let mut seen = HashSet::new();
    best.retain(|(rank, candidate)| *rank == top && seen.insert(candidate.descriptor.digest()));
    match best[..] {
        [(_, only)] => Ok(only.descriptor.clone()),
        _ => Err(LayoutError::Ambiguous {
            found: best.iter().map(|(_, candidate)| candidate.describe()).collect(),
        }),
    }
}

/// The descent through nested indexes, and what it has cost so far.
struct Walk<'a> {
    layout: &'a Layout,
    entries: usize,
    candidates: &'a mut Vec<Candidate>,
}

impl Walk<'_> {
    fn flatten(&mut self, top: &ImageIndex) -> Result<(), LayoutError> {
        for (entry, descriptor) in top.manifests().iter().enumerate() {
            let annotation =
                |key| descriptor.annotations().as_ref().and_then(|all| all.get(key)).cloned();
            let names = [REF_NAME, CONTAINERD_NAME].into_iter().filter_map(annotation).collect();
            self.descend(entry, descriptor, names, INDEX_DEPTH)?;
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
        match DescriptorKind::of(descriptor) {
            DescriptorKind::Index => {
                for nested in self.layout.nested_index(descriptor)?.manifests() {
                    self.descend(entry, nested, names.clone(), depth_left - 1)?;
                }
            }
            DescriptorKind::Manifest if is_image(descriptor) => {
                let platform = descriptor.platform().as_ref().map(platform_of_descriptor);
                self.candidates.push(Candidate {
                    entry,
                    descriptor: descriptor.clone(),
                    platform,
                    names,
                });
            }
            DescriptorKind::Manifest | DescriptorKind::Other => {}
        }
        Ok(())
    }
}

/// Tells images from what travels beside them: attestations, signatures, bills of materials.
fn is_image(descriptor: &Descriptor) -> bool {
    let unknown = |platform: &oci_spec::image::Platform| platform.os().to_string() == "unknown";
    !descriptor.platform().as_ref().is_some_and(unknown)
        && descriptor.artifact_type().is_none()
        && !descriptor
            .annotations()
            .as_ref()
            .is_some_and(|all| all.contains_key(DOCKER_REFERENCE_TYPE))
}

fn platform_of_descriptor(platform: &oci_spec::image::Platform) -> Platform {
    Platform {
        os: platform.os().to_string(),
        architecture: platform.architecture().to_string(),
        variant: platform.variant().clone().filter(|variant| !variant.is_empty()),
    }
}

impl Candidate {
    /// Looks the platform up in the image's configuration when no index says it; what is no image
    /// has none.
    fn find_platform(&mut self, layout: &Layout) -> Result<(), LayoutError> {
        if self.platform.is_some() {
            return Ok(());
        }
        let manifest = layout.manifest(&self.descriptor)?;
        if is_image_configuration(manifest.config()) {
            self.platform = Some(platform_of(&layout.configuration(&manifest)?));
        }
        Ok(())
    }

    /// Names the candidate for an error: name if it has one, digest, platform if it is known.
    fn describe(&self) -> String {
        let name = self.names.first().filter(|name| !name.starts_with("sha256:"));
        let name = name.map(|name| format!("`{}` ", Shown(name))).unwrap_or_default();
        let platform = self.platform.as_ref().map(ToString::to_string);
        let platform =
            platform.map(|platform| format!(", {}", Shown(&platform))).unwrap_or_default();
        format!("{name}({}{platform})", self.descriptor.digest())
    }
}
