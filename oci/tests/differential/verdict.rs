//! The expected outcome of each tool for an image, and its comparison with the real outcome.
//!
//! The tree of this crate is the reference. A tool with the same file at a path confirms the path.
//! For a tool with another tree, the case lists each path that differs, and how. A path that no
//! tool confirms needs an expected description in the case. Without this rule, an error of this
//! crate could become the reference.

use std::collections::{BTreeMap, BTreeSet};

use crate::tree::{ROOT, Tree};

/// Cases that this crate does not pass yet, each with its wrong outcome. The outcomes of other
/// tools are not checked for such a case. A case that passes must be removed from the list.
const PENDING: &[(&str, &str)] = &[];

/// Paths, each with a description.
pub(crate) type Paths = &'static [(&'static str, &'static str)];

/// The expected outcome of another tool, relative to the outcome of this crate.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Verdict {
    /// The tool makes the tree of this crate.
    Same,
    /// The tool fails with an error that contains this text.
    Refuses(&'static str),
    /// The tool makes a tree that differs at these paths, in these properties.
    Differs(Paths),
    /// The tool makes a tree of an image that this crate refuses.
    Accepts,
}

impl Verdict {
    /// Returns whether the tool disagrees with this crate, so that the case needs a reason.
    ///
    /// A difference in the time of unpacking is no disagreement. Other tools give this time to
    /// directories without an entry. The times of this crate are constant.
    fn is_disagreement(self, ours: Expected) -> bool {
        match (self, ours) {
            (Self::Same, _) | (Self::Refuses(_), Expected::Refusal(_)) => false,
            (Self::Differs(paths), _) => {
                paths.iter().any(|(_, difference)| *difference != "mtime now")
            }
            (Self::Refuses(_) | Self::Accepts, _) => true,
        }
    }
}

/// The expected outcome of this crate.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Expected {
    /// A tree in which these paths have these descriptions.
    Tree(Paths),
    /// An error that contains this text.
    Refusal(&'static str),
}

/// The outcome of a tool: a tree, or the text of an error.
pub(crate) type Outcome = Result<Tree, String>;

/// The properties in which the tree of a tool can be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// All properties.
    All,
    /// All properties except the times of directories. The native snapshotter loses them when it
    /// copies the tree of the lower layers.
    NoDirTimes,
}

/// A run of a tool on an image, with its expected and its real outcome.
pub(crate) struct ToolRun {
    pub(crate) tool: &'static str,
    pub(crate) verdict: Verdict,
    pub(crate) outcome: Outcome,
    pub(crate) scope: Scope,
}

/// Returns messages about the pending cases of a group that are not among its `names`.
pub(crate) fn stale(group: &str, names: &[&str]) -> Vec<String> {
    let of_group = PENDING.iter().filter_map(|(pending, _)| pending.strip_prefix(group));
    let names_of_group = of_group.filter_map(|pending| pending.strip_prefix('/'));
    let stale = names_of_group.filter(|pending| !names.contains(pending));
    stale.map(|pending| format!("{group}/{pending}: the pending case does not exist")).collect()
}

/// Compares the real outcomes with the expected ones, and returns a message for each difference.
pub(crate) fn check_runs(
    name: &str,
    (expected, reason): (Expected, &str),
    ours: &Outcome,
    runs: &[ToolRun],
) -> Vec<String> {
    let disagree = runs.iter().any(|run| run.verdict.is_disagreement(expected));
    let mut failures = failures_of_ours(expected, ours, runs);
    failures.extend(runs.iter().filter_map(|run| run.failure(ours)));
    if PENDING.iter().any(|(pending, _)| *pending == name) {
        failures = match failures.is_empty() {
            true => vec!["ours: the case passes, so remove it from `PENDING`".to_owned()],
            false => Vec::new(),
        };
    }
    let reason = (disagree == reason.is_empty())
        .then(|| "a case needs a reason if, and only if, a tool disagrees".to_owned());
    failures.into_iter().chain(reason).map(|failure| format!("{name}: {failure}")).collect()
}

/// Returns a message for each difference between the expected and the real outcome of this crate.
fn failures_of_ours(expected: Expected, ours: &Outcome, runs: &[ToolRun]) -> Vec<String> {
    match (expected, ours) {
        (Expected::Refusal(text), Err(error)) if error.contains(text) => Vec::new(),
        (Expected::Tree(facts), Ok(tree)) => {
            let wrong = facts.iter().filter(|(path, fact)| tree.describe(path) != *fact);
            let wrong = wrong.map(|(path, fact)| {
                format!("ours: `{path}`: expected {fact}, found {}", tree.describe(path))
            });
            let unconfirmed = unconfirmed(tree, runs).into_iter();
            let unknown = unconfirmed.filter(|path| facts.iter().all(|(fact, _)| fact != path));
            let unknown = unknown.map(|path| {
                format!("ours: no tool confirms ({path:?}, {:?})", tree.describe(&path))
            });
            wrong.chain(unknown).collect()
        }
        (_, Ok(tree)) => vec![format!("ours: expected {expected:?}, found {} names", tree.len())],
        (_, Err(error)) => vec![format!("ours: expected {expected:?}, found {error}")],
    }
}

/// Returns the paths at which every tool differs from `ours`.
fn unconfirmed(ours: &Tree, runs: &[ToolRun]) -> BTreeSet<String> {
    let compared = |run: &ToolRun| {
        let theirs = run.outcome.as_ref().ok()?;
        Some(run.compared(ours).differences(&run.compared(theirs)))
    };
    let compared: Vec<_> = runs.iter().filter_map(compared).collect();
    let confirmed =
        |path: &&String| compared.iter().any(|differences| !differences.contains_key(*path));
    // A path that is missing in `ours` can be wrong too, so the paths of the tools are included.
    let disputed = compared.iter().flat_map(BTreeMap::keys);
    let compared_paths = ours.paths().filter(|path| *path != ROOT);
    compared_paths.chain(disputed).filter(|path| !confirmed(path)).cloned().collect()
}

impl ToolRun {
    /// Returns the part of a tree that can be compared with the tool's tree. The root is never
    /// compared: umoci applies entries for it, and the others do not.
    fn compared(&self, tree: &Tree) -> Tree {
        match self.scope {
            Scope::All => tree.without_root(),
            Scope::NoDirTimes => tree.without_root().without_dir_times(),
        }
    }

    /// Returns a message if the outcome is not as expected. Its format is that of the source code,
    /// so that a new outcome can be copied into the case.
    pub(crate) fn failure(&self, reference: &Outcome) -> Option<String> {
        let differences = match (&self.outcome, reference) {
            (Ok(theirs), Ok(ours)) => self.compared(ours).differences(&self.compared(theirs)),
            _ => BTreeMap::new(),
        };
        let listed = |paths: Paths| {
            let listed = |(path, difference): &(&str, &str)| {
                differences.get(*path).is_some_and(|found| found == difference)
            };
            paths.len() == differences.len() && paths.iter().all(listed)
        };
        let (as_expected, found) = match (&self.outcome, reference) {
            (Err(error), _) => (
                matches!(self.verdict, Verdict::Refuses(text) if error.contains(text)),
                format!("Refuses({error:?})"),
            ),
            (Ok(_), Err(_)) => (matches!(self.verdict, Verdict::Accepts), "Accepts".to_owned()),
            (Ok(_), Ok(_)) => {
                let as_expected = match self.verdict {
                    Verdict::Same => differences.is_empty(),
                    Verdict::Differs(paths) => listed(paths),
                    Verdict::Refuses(_) | Verdict::Accepts => false,
                };
                (as_expected, format!("Differs(&{:?}, …)", differences.iter().collect::<Vec<_>>()))
            }
        };
        (!as_expected).then(|| format!("{}: expected {:?}, found {found}", self.tool, self.verdict))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Checks a run of a tool that makes the file `theirs`. This crate makes the file `a`.
    fn failures_of_run(name: &str, verdict: Verdict, theirs: &str, reason: &str) -> Vec<String> {
        let tree = |file: &str| {
            let directory = tempfile::tempdir().unwrap();
            fs::write(directory.path().join(file), "").unwrap();
            Tree::read(directory.path()).without_root()
        };
        let (outcome, scope) = (Ok(tree(theirs)), Scope::NoDirTimes);
        let run = ToolRun { tool: "tool", verdict, outcome, scope };
        check_runs(name, (Expected::Tree(&[]), reason), &Ok(tree("a")), &[run])
    }

    #[test]
    fn unexpected_outcome_gives_a_message() {
        let differs = Verdict::Differs(&[("a", "absent"), ("b", "file")]);
        assert_eq!(failures_of_run("group/case", Verdict::Same, "a", ""), [""; 0]);
        for (verdict, theirs, reason, found) in [
            (Verdict::Same, "b", "", "expected Same, found Differs(&[(\"a\", \"absent\")"),
            (differs, "a", "reason", "found Differs(&[], …)"),
            (differs, "b", "", "a case needs a reason"),
            (differs, "b", "reason", "no tool confirms (\"b\", \"absent\")"),
            (Verdict::Same, "a", "reason", "a case needs a reason"),
            (Verdict::Refuses("text"), "a", "reason", "expected Refuses(\"text\")"),
        ] {
            let failures = failures_of_run("group/case", verdict, theirs, reason).concat();
            assert!(failures.contains(found), "{failures}");
        }
    }

    #[test]
    fn pending_case_that_passes_or_does_not_exist_gives_a_message() {
        for (pending, _) in PENDING {
            let failures = failures_of_run(pending, Verdict::Same, "a", "").concat();
            assert!(failures.contains("remove it from `PENDING`"), "{failures}");
            let (group, name) = pending.split_once('/').unwrap();
            let failure = format!("{pending}: the pending case does not exist");
            assert!(!stale(group, &[name]).contains(&failure));
            assert!(stale(group, &[]).contains(&failure));
        }
    }
}
