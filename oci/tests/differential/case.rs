//! An image, its expected outcomes, and the run of all tools on it.

use std::path::PathBuf;

use crate::bench::Bench;
use crate::containerd::{Containerd, Import};
use crate::layout::{self, Layer, TAG};
use crate::tree::{ROOT, Tree};
use crate::verdict::{Expected, Paths, Scope, ToolRun, Verdict, check_runs, stale};
use crate::{ours, umoci};

/// The root of each tree of this crate. An entry for the root changes nothing.
const NEW_ROOT: &str = "dir 755 0:0 0";

/// The origin of an image.
enum Source {
    /// An image of these generated layers, the bottom first.
    Layers(Vec<Layer>),
    /// An image of an existing layout, with its reference.
    Layout(PathBuf, &'static str),
}

/// An image and its expected outcomes. Each tool is expected to make the tree of this crate, unless
/// a method sets another verdict.
pub(crate) struct Case {
    name: String,
    source: Source,
    expected: Expected,
    reason: &'static str,
    umoci: Verdict,
    overlayfs: Verdict,
    native: Verdict,
    blocks: Verdict,
}

impl Case {
    /// Creates the case of an image of generated layers, the bottom first.
    pub(crate) fn of(name: &str, layers: Vec<Layer>) -> Self {
        Self::new(name.to_owned(), Source::Layers(layers))
    }

    /// Creates the case of an image of an existing layout.
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
            blocks: same,
        }
    }

    /// Sets the expected outcome of umoci.
    pub(crate) fn umoci(self, umoci: Verdict) -> Self {
        Self { umoci, ..self }
    }

    /// Sets the expected outcome of the overlayfs snapshotter.
    pub(crate) fn overlayfs(self, overlayfs: Verdict) -> Self {
        Self { overlayfs, ..self }
    }

    /// Sets the expected outcome of the native snapshotter.
    pub(crate) fn native(self, native: Verdict) -> Self {
        Self { native, ..self }
    }

    /// Sets the expected outcome of the block root.
    pub(crate) fn blocks(self, blocks: Verdict) -> Self {
        Self { blocks, ..self }
    }

    /// Sets the expected outcome of both snapshotters of containerd.
    pub(crate) fn containerd(self, verdict: Verdict) -> Self {
        self.overlayfs(verdict).native(verdict)
    }

    /// Sets the expected descriptions of paths in the tree of this crate.
    pub(crate) fn with(self, facts: Paths) -> Self {
        Self { expected: Expected::Tree(facts), ..self }
    }

    /// Expects that this crate refuses the image with an error that contains this text.
    pub(crate) fn refused(self, text: &'static str) -> Self {
        Self { expected: Expected::Refusal(text), ..self }
    }

    /// Sets the reason why tools disagree.
    pub(crate) fn because(self, reason: &'static str) -> Self {
        Self { reason, ..self }
    }

    /// Runs all tools on the image, and returns the outcomes that are not as expected.
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
        let tool_run = |tool, scope, verdict, outcome| ToolRun { tool, scope, verdict, outcome };
        let target = bench.path(&format!("{name}.umoci"));
        let by_umoci = umoci::unpack(&layout, reference, &target).map(|()| Tree::read(&target));
        let image = Import { layout: &layout, reference, name, diff_ids };
        let by_overlayfs = containerd.mount(&image).map(|root| Tree::read(&root));
        let by_native = containerd.apply(&image).map(|root| Tree::read(&root));
        let target = bench.path(&format!("{name}.blocks"));
        let blocks = ours::mount_blocks(&layout, reference, &target).map(|root| Tree::read(&root));
        // The block root is no independent tool, so that it confirms nothing.
        let of_blocks = match (&ours, &blocks) {
            (Err(error), Err(of_blocks)) if cause(error) == cause(of_blocks) => None,
            _ => tool_run("block root", Scope::All, self.blocks, blocks).failure(&ours),
        };
        let mut failures = check_runs(
            &format!("{group}/{name}"),
            (self.expected, self.reason),
            &ours,
            &[
                tool_run("umoci", Scope::All, self.umoci, by_umoci),
                tool_run("overlayfs", Scope::All, self.overlayfs, by_overlayfs),
                tool_run("native", Scope::NoDirTimes, self.native, by_native),
            ],
        );
        if let Some(found) = ours.ok().map(|tree| tree.describe(ROOT)).filter(|it| it != NEW_ROOT) {
            failures
                .push(format!("{group}/{name}: ours: expected the root {NEW_ROOT}, found {found}"));
        }
        failures.extend(of_blocks.map(|failure| format!("{group}/{name}: {failure}")));
        failures
    }
}

/// Returns an error without the work that failed, which the two kinds of root name differently.
fn cause(error: &str) -> &str {
    error.split_once("`: ").map_or(error, |(_, cause)| cause)
}

/// Runs all tools on all images of a group, which has the images of one test.
///
/// # Panics
///
/// If an outcome is not as expected. The message lists all such outcomes.
pub(crate) fn check(group: &str, cases: &[Case]) {
    let bench = Bench::new();
    let containerd = Containerd::start(&bench.path("containerd"));
    let names: Vec<&str> = cases.iter().map(|case| case.name.as_str()).collect();
    let failures = cases.iter().flat_map(|case| case.run(group, &bench, &containerd));
    let failures: Vec<String> = failures.chain(stale(group, &names)).collect();
    // containerd must end before the directory with its mounts is removed.
    drop(containerd);
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}
