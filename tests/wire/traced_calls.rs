//! The comparison of a seccomp filter with the system calls in a trace.

use std::collections::BTreeSet;

/// Checks that each call of a filter is made in a trace, or has a reason in `unseen`, and that no
/// reason is left of a call that is not allowed. `lists` is the source text with the filter's lists.
pub(crate) fn assert_calls_are_made(lists: &str, unseen: &[(&str, &str)], made: &BTreeSet<String>) {
    let is_other = |letter: char| !letter.is_ascii_alphanumeric() && letter != '_';
    let names = lists.split("SYS_").skip(1).map(|rest| rest.split(is_other).next().unwrap());
    let allowed: BTreeSet<&str> = names.collect();
    let known: BTreeSet<&str> = unseen.iter().map(|(name, _)| *name).collect();
    let unexplained: Vec<&&str> =
        allowed.difference(&known).filter(|name| !made.contains(**name)).collect();
    assert!(
        unexplained.is_empty(),
        "these allowed calls are not made: {unexplained:?}; these are made: {made:?}"
    );
    let stale: Vec<&&str> = known.difference(&allowed).collect();
    assert!(stale.is_empty(), "these calls have a reason but are not allowed: {stale:?}");
}
