//! For tests: an unpacker that a layer has taken over.

use std::env;
use std::process::Command;

use a3s_box_oci::Task;

/// Variable with an act of an unpacker: when (`early`, before the confinement, or `late`), the kind of
/// its task (`tree` or `file`), the name of the act, and its argument.
const ACT: &str = "A3S_BOX_FAKE_UNPACKER";

/// Passes the act on to an unpacker.
pub(super) fn pass_on(command: &mut Command) {
    if let Some(act) = env::var_os(ACT) {
        command.env(ACT, act);
    }
}

/// Acts, if a test asks for it at this `moment` of such a task.
pub(super) fn act(moment: &str, task: &Task) {
    let wanted = env::var(ACT).unwrap_or_default();
    let mut words = wanted.splitn(4, ' ');
    let kind = if task.names_files() { "tree" } else { "file" };
    if [words.next(), words.next()] == [Some(moment), Some(kind)] {
        let (name, argument) = (words.next(), words.next());
        a3s_box_krun::act(name.unwrap_or_default(), argument.unwrap_or_default());
    }
}
