//! An image, what is expected of it, and the run of all tools on it.

use std::path::PathBuf;

use crate::bench::Bench;
use crate::containerd::{Containerd, Import};
use crate::layout::{self, Layer, TAG};
use crate::tree::Tree;
use crate::verdict::{Expected, Paths, Skill, Verdict, Witness, judge, stale};
use crate::{ours, umoci};

/// Where an image comes from.
enum Source {
    /// It is made of these layers, bottom first.
    Layers(Vec<Layer>),
    /// It is in a layout, under this name.
    Layout(PathBuf, &'static str),
}

/// An image and what is expected of it: of each tool, unless something else is said, the same.
pub(crate) struct Case {
    name: String,
    source: Source,
    expected: Expected,
    reason: &'static str,
    umoci: Verdict,
    overlayfs: Verdict,
    native: Verdict,
}

impl Case {
    /// Takes an image of generated layers, bottom first.
    pub(crate) fn of(name: &str, layers: Vec<Layer>) -> Self {
        Self::new(name.to_owned(), Source::Layers(layers))
    }

    /// Takes an image of a layout.
    pub(crate) fn in_layout(layout: PathBuf, reference: &'static str) -> Self {
        let name = layout.file_name().unwrap().to_str().unwrap();
        Self::new(format!("{name}-{reference}"), Source::Layout(layout, reference))
    }

    fn new(name: String, source: Source) -> Self {
        let same = Verdict::Same;
        Self {
            name,
            source,
            expected: Expected::Tree(&[]),
            reason: "",
            umoci: same,
            overlayfs: same,
            native: same,
        }
    }

    pub(crate) fn umoci(self, umoci: Verdict) -> Self {
        Self { umoci, ..self }
    }

    pub(crate) fn overlayfs(self, overlayfs: Verdict) -> Self {
        Self { overlayfs, ..self }
    }

    pub(crate) fn native(self, native: Verdict) -> Self {
        Self { native, ..self }
    }

    /// Says what containerd makes of the image with both snapshotters.
    pub(crate) fn containerd(self, verdict: Verdict) -> Self {
        self.overlayfs(verdict).native(verdict)
    }

    /// Says how single paths of ours have to be.
    pub(crate) fn with(self, facts: Paths) -> Self {
        Self { expected: Expected::Tree(facts), ..self }
    }

    /// Says with which words this crate refuses the image.
    pub(crate) fn refused(self, why: &'static str) -> Self {
        Self { expected: Expected::Refusal(why), ..self }
    }

    /// Says why tools disagree, and who is right.
    pub(crate) fn because(self, reason: &'static str) -> Self {
        Self { reason, ..self }
    }

    /// Runs all tools on the image, and returns complaints.
    fn run(&self, group: &str, bench: &Bench, containerd: &Containerd) -> Vec<String> {
        let name = &self.name;
        let (layout, reference, diff_ids) = match &self.source {
            Source::Layers(layers) => {
                let layout = bench.path(&format!("{name}.layout"));
                layout::write(&layout, layers);
                (layout, TAG, layers.iter().map(|layer| layer.diff_id).collect())
            }
            Source::Layout(layout, reference) => {
                (layout.clone(), *reference, ours::diff_ids(layout, reference))
            }
        };
        let mounted = ours::mount(&layout, reference, &bench.path(&format!("{name}.ours")));
        let ours = mounted.as_ref().map(|mounted| Tree::read(&mounted.root)).map_err(Clone::clone);
        let witness = |tool, skill, verdict, outcome| Witness { tool, skill, verdict, outcome };
        let target = bench.path(&format!("{name}.umoci"));
        let by_umoci = umoci::unpack(&layout, reference, &target).map(|()| Tree::read(&target));
        let image = Import { layout: &layout, reference, name, diff_ids };
        let by_overlayfs = containerd.mount(&image).map(|root| Tree::read(&root));
        let by_native = containerd.apply(&image).map(|root| Tree::read(&root));
        judge(
            &format!("{group}/{name}"),
            (self.expected, self.reason),
            &ours,
            &[
                witness("umoci", Skill::All, self.umoci, by_umoci),
                witness("overlayfs", Skill::NoRoot, self.overlayfs, by_overlayfs),
                witness("native", Skill::NoRootNoDirTimes, self.native, by_native),
            ],
        )
    }
}

/// Runs all tools on all images of a group, which is that of one test; fails with all that was not as expected.
pub(crate) fn check(group: &str, cases: &[Case]) {
    let bench = Bench::new();
    let containerd = Containerd::start(&bench.path("containerd"));
    let names: Vec<&str> = cases.iter().map(|case| case.name.as_str()).collect();
    let complaints = cases.iter().flat_map(|case| case.run(group, &bench, &containerd));
    let complaints: Vec<String> = complaints.chain(stale(group, &names)).collect();
    drop(containerd);
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}
