//! What each tool is expected to make of an image, and whether it did.
//!
//! The reference is the tree of this crate. A tool that makes the same tree vouches for it; of one
//! that does not, each path is listed with what the tool has there. A path for which no tool
//! vouches needs a description of its own: nothing is right just because it is ours.

use std::collections::{BTreeMap, BTreeSet};

use crate::tree::{ROOT, Tree};

/// Cases that this crate does not get right yet, and what it does. One that is right has to be taken
/// out; until then the other tools are not judged by it.
const PENDING: &[(&str, &str)] = &[];

/// Paths, with what is there.
pub(crate) type Paths = &'static [(&'static str, &'static str)];

/// What a tool makes of an image.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Verdict {
    /// The tree that this crate makes.
    Same,
    /// Nothing; its complaint holds this text.
    Refuses(&'static str),
    /// A tree with something else at these paths.
    Differs(Paths),
    /// A tree, where this crate makes none.
    Accepts,
}

impl Verdict {
    /// Whether the tool does something else than this crate, and not only gives what no entry
    /// describes the time of unpacking: ours is the same in each run.
    fn is_disagreement(self, ours: Expected) -> bool {
        match (self, ours) {
            (Self::Same, _) | (Self::Refuses(_), Expected::Refusal(_)) => false,
            (Self::Differs(paths), _) => paths.iter().any(|(_, what)| *what != "mtime now"),
            (Self::Refuses(_) | Self::Accepts, _) => true,
        }
    }
}

/// What this crate is expected to make of an image.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Expected {
    /// A tree, in which these paths are as described.
    Tree(Paths),
    /// Nothing; the error holds this text.
    Refusal(&'static str),
}

/// What came out of an unpacker: a tree, or its complaint.
pub(crate) type Outcome = Result<Tree, String>;

/// What of a tree can be compared with a tool's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Skill {
    /// All.
    All,
    /// Not the metadata of the root, whatever entries it has.
    NoRoot,
    /// Nor the times of directories, which are lost when the tree below is copied.
    NoRootNoDirTimes,
}

/// A tool, what it was expected to do, and what it did.
pub(crate) struct Witness {
    pub(crate) tool: &'static str,
    pub(crate) verdict: Verdict,
    pub(crate) outcome: Outcome,
    pub(crate) skill: Skill,
}

/// Lists pending cases of a group that it does not have.
pub(crate) fn stale(group: &str, names: &[&str]) -> Vec<String> {
    let of_group = PENDING.iter().filter_map(|(pending, _)| pending.strip_prefix(group));
    let names_of_group = of_group.filter_map(|pending| pending.strip_prefix('/'));
    let stale = names_of_group.filter(|pending| !names.contains(pending));
    stale.map(|pending| format!("{group}/{pending}: pending, and not there")).collect()
}

/// Compares what was done with what was expected; returns complaints.
pub(crate) fn judge(
    name: &str,
    (expected, reason): (Expected, &str),
    ours: &Outcome,
    witnesses: &[Witness],
) -> Vec<String> {
    let disagree = witnesses.iter().any(|witness| witness.verdict.is_disagreement(expected));
    let mut complaints = complaints_of_ours(expected, ours, witnesses);
    complaints.extend(witnesses.iter().filter_map(|witness| witness.complaint(ours)));
    if PENDING.iter().any(|(pending, _)| *pending == name) {
        complaints = match complaints.is_empty() {
            true => vec!["ours: as expected, so it is to be taken out of `PENDING`".to_owned()],
            false => Vec::new(),
        };
    }
    let reason = (disagree == reason.is_empty())
        .then(|| "a reason is needed if, and only if, a tool disagrees".to_owned());
    complaints.into_iter().chain(reason).map(|complaint| format!("{name}: {complaint}")).collect()
}

fn complaints_of_ours(expected: Expected, ours: &Outcome, witnesses: &[Witness]) -> Vec<String> {
    match (expected, ours) {
        (Expected::Refusal(why), Err(error)) if error.contains(why) => Vec::new(),
        (Expected::Tree(facts), Ok(tree)) => {
            let wrong = facts.iter().filter(|(path, fact)| tree.describe(path) != *fact);
            let wrong = wrong.map(|(path, fact)| {
                format!("ours: `{path}`: expected {fact}, found {}", tree.describe(path))
            });
            let unvouched = unvouched(tree, witnesses).into_iter();
            let unknown = unvouched.filter(|path| facts.iter().all(|(fact, _)| fact != path));
            let unknown = unknown.map(|path| {
                format!("ours: no tool vouches for ({path:?}, {:?})", tree.describe(&path))
            });
            wrong.chain(unknown).collect()
        }
        (_, Ok(tree)) => vec![format!("ours: expected {expected:?}, found {} names", tree.len())],
        (_, Err(error)) => vec![format!("ours: expected {expected:?}, found {error}")],
    }
}

/// Lists paths that no tool has as `ours`.
fn unvouched(ours: &Tree, witnesses: &[Witness]) -> BTreeSet<String> {
    let compared = |witness: &Witness| {
        let theirs = witness.outcome.as_ref().ok()?;
        Some((witness.skill, witness.compared(ours).differences(&witness.compared(theirs))))
    };
    let compared: Vec<_> = witnesses.iter().filter_map(compared).collect();
    let vouched = |path: &&String| {
        compared.iter().any(|(skill, differences)| {
            !differences.contains_key(*path) && (*path != ROOT || *skill == Skill::All)
        })
    };
    let disputed = compared.iter().flat_map(|(_, differences)| differences.keys());
    ours.paths().chain(disputed).filter(|path| !vouched(path)).cloned().collect()
}

impl Witness {
    /// Takes out what cannot be compared with the tool's tree.
    fn compared(&self, tree: &Tree) -> Tree {
        match self.skill {
            Skill::All => tree.clone(),
            Skill::NoRoot => tree.without_root(),
            Skill::NoRootNoDirTimes => tree.without_root().without_dir_times(),
        }
    }

    /// Says what is not as expected.
    fn complaint(&self, reference: &Outcome) -> Option<String> {
        let differences = match (&self.outcome, reference) {
            (Ok(theirs), Ok(ours)) => self.compared(ours).differences(&self.compared(theirs)),
            _ => BTreeMap::new(),
        };
        let listed = |paths: Paths| {
            let listed = |(path, what): &(&str, &str)| {
                differences.get(*path).is_some_and(|found| found == what)
            };
            paths.len() == differences.len() && paths.iter().all(listed)
        };
        let (as_expected, found) = match (&self.outcome, reference) {
            (Err(error), _) => (
                matches!(self.verdict, Verdict::Refuses(why) if error.contains(why)),
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

    /// Judges a tool that makes the file `theirs`, where this crate makes the file `a`.
    fn judged(name: &str, verdict: Verdict, theirs: &str, reason: &str) -> Vec<String> {
        let tree = |file: &str| {
            let directory = tempfile::tempdir().unwrap();
            fs::write(directory.path().join(file), "").unwrap();
            Tree::read(directory.path()).without_root()
        };
        let (outcome, skill) = (Ok(tree(theirs)), Skill::NoRootNoDirTimes);
        let witness = Witness { tool: "tool", verdict, outcome, skill };
        judge(name, (Expected::Tree(&[]), reason), &Ok(tree("a")), &[witness])
    }

    #[test]
    fn what_is_not_as_written_is_a_complaint() {
        let differs = Verdict::Differs(&[("a", "absent"), ("b", "file")]);
        assert_eq!(judged("group/case", Verdict::Same, "a", ""), [""; 0]);
        for (verdict, theirs, reason, found) in [
            (Verdict::Same, "b", "", "expected Same, found Differs(&[(\"a\", \"absent\")"),
            (differs, "a", "why", "found Differs(&[], …)"),
            (differs, "b", "", "a reason is needed"),
            (differs, "b", "why", "no tool vouches for (\"b\", \"absent\")"),
            (Verdict::Same, "a", "why", "a reason is needed"),
            (Verdict::Refuses("text"), "a", "why", "expected Refuses(\"text\")"),
        ] {
            let complaints = judged("group/case", verdict, theirs, reason).concat();
            assert!(complaints.contains(found), "{complaints}");
        }
    }

    #[test]
    fn a_pending_case_that_is_right_or_gone_is_a_complaint() {
        for (pending, _) in PENDING {
            let complaints = judged(pending, Verdict::Same, "a", "").concat();
            assert!(complaints.contains("taken out of `PENDING`"), "{complaints}");
            let (group, name) = pending.split_once('/').unwrap();
            let complaint = format!("{pending}: pending, and not there");
            assert!(!stale(group, &[name]).contains(&complaint));
            assert!(stale(group, &[]).contains(&complaint));
        }
    }
}
