//! The user namespace of a shim that runs without root. It allows an ordinary user to mount, and to
//! create files of several owners.
//!
//! Id 0 in the namespace is the user's own id. The ids from 1 on are the user's sub-ids. They exist
//! if `/etc/subuid` and `/etc/subgid` list some for the user, and if the setuid programs
//! `newuidmap` and `newgidmap` are installed, because the kernel allows only a privileged process
//! to write a map of several ids. Without sub-ids only id 0 is mapped, and an image with files of
//! other owners cannot be unpacked.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Stdio};

use a3s_box_sys::HostError;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{User, getegid, geteuid};

use super::command;

/// Most ranges of sub-ids that are used. The kernel accepts 340 lines in a map
/// (`user_namespaces(7)`), of which one maps root.
const MAX_RANGES: usize = 339;

/// Shell script of a [`Mapper`]: waits for a line, which arrives once the namespace exists, and
/// executes the helper program that writes a map.
const WAIT_AND_MAP: &str = r#"read -r _ && exec "$0" "$@""#;

/// A range of ids of the host: the first id and the number of ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    first: u32,
    count: u32,
}

/// The sub-ids of the user that runs the shim.
#[derive(Debug)]
pub(crate) struct SubIds {
    uids: Vec<Range>,
    gids: Vec<Range>,
}

impl SubIds {
    /// Reads the sub-ids of the user that this process runs as.
    pub(crate) fn of_this_user() -> Self {
        let uid = geteuid();
        let user = User::from_uid(uid).ok().flatten().map(|user| user.name);
        let ranges = |path| {
            // A file that is missing or cannot be read means that there are no sub-ids.
            sub_ids(&fs::read_to_string(path).unwrap_or_default(), user.as_deref(), uid.as_raw())
        };
        Self { uids: ranges("/etc/subuid"), gids: ranges("/etc/subgid") }
    }

    /// Returns the numbers of user ids and of group ids.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let count = |ranges: &[Range]| ranges.iter().map(|range| u64::from(range.count)).sum();
        (count(&self.uids), count(&self.gids))
    }
}

/// Moves this process into a new user namespace with a mount namespace of its own. Callers must not
/// have started a thread, because `unshare(2)` then fails with EINVAL.
pub(super) fn enter() -> Result<(), HostError> {
    let (uid, gid) = (geteuid(), getegid());
    let SubIds { uids, gids } = SubIds::of_this_user();
    let delegated = !uids.is_empty() && !gids.is_empty() && has_programs();
    // The maps must be written by a process outside of the namespace, because `newuidmap` has no
    // privilege inside. The helpers are therefore forked before, and wait.
    let helpers = delegated
        .then(|| {
            Ok([
                Mapper::start("newuidmap", uid.as_raw(), &uids)?,
                Mapper::start("newgidmap", gid.as_raw(), &gids)?,
            ])
        })
        .transpose()?;
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)
        .map_err(HostError::of("make a user namespace"))?;
    match helpers {
        Some(helpers) => helpers.into_iter().try_for_each(Mapper::finish),
        None => map_own_ids(uid.as_raw(), gid.as_raw()),
    }
}

/// Maps the user's own ids to 0. The kernel allows this without privilege only after setgroups(2)
/// was denied, because dropping a group could otherwise gain access to a file
/// (`user_namespaces(7)`).
fn map_own_ids(uid: u32, gid: u32) -> Result<(), HostError> {
    fs::write("/proc/self/setgroups", "deny").map_err(HostError::of("give up setgroups"))?;
    fs::write("/proc/self/uid_map", format!("0 {uid} 1"))
        .map_err(HostError::of("map the user id"))?;
    fs::write("/proc/self/gid_map", format!("0 {gid} 1")).map_err(HostError::of("map the group id"))
}

/// A child process that waits, and then writes one of the maps of this process.
struct Mapper(Child);

impl Mapper {
    /// Starts the shell that waits.
    fn start(program: &str, own: u32, ranges: &[Range]) -> Result<Self, HostError> {
        let mut shell = command::new("/bin/sh");
        shell.args(["-c", WAIT_AND_MAP, program, &std::process::id().to_string()]);
        for (inside, range) in map(own, ranges) {
            shell.args([inside, range.first, range.count].map(|number| number.to_string()));
        }
        shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        shell.spawn().map(Self).map_err(HostError::of("start the program that maps sub-ids"))
    }

    /// Lets the shell continue, and waits for the end of the helper program.
    fn finish(mut self) -> Result<(), HostError> {
        const STEP: &str = "map the user's sub-ids";
        if let Some(mut stdin) = self.0.stdin.take() {
            stdin.write_all(b"\n").map_err(HostError::of(STEP))?;
        }
        let ended = command::finish(self.0).map_err(HostError::of(STEP))?;
        match ended.status.success() {
            true => Ok(()),
            false => {
                let complaint = ended.complaint.escape_debug().to_string();
                Err(HostError::of(STEP)(std::io::Error::other(complaint)))
            }
        }
    }
}

/// Returns the lines of a map, each with the first id inside and a range outside: 0 is the user,
/// and the ids from 1 on are the sub-ids.
fn map(own: u32, ranges: &[Range]) -> Vec<(u32, Range)> {
    let mut lines = vec![(0, Range { first: own, count: 1 })];
    let mut inside = 1_u32;
    for range in ranges {
        // Ids have 32 bits. Ranges beyond the last id are cut or left out.
        let count = range.count.min(u32::MAX - inside);
        if count > 0 {
            lines.push((inside, Range { count, ..*range }));
            inside += count;
        }
    }
    lines
}

/// Parses the ranges of a user in the text of `/etc/subuid` or `/etc/subgid` (subuid(5)). Both
/// files name the user, the second one as well. Lines with an error are skipped.
fn sub_ids(text: &str, user: Option<&str>, uid: u32) -> Vec<Range> {
    let number = uid.to_string();
    let range = |line: &str| {
        let mut fields = line.split(':');
        let owner = fields.next()?;
        let (first, count) = (fields.next()?.parse().ok()?, fields.next()?.trim().parse().ok()?);
        (owner == number || Some(owner) == user).then_some(Range { first, count })
    };
    text.lines().filter_map(range).filter(|range| range.count > 0).take(MAX_RANGES).collect()
}

/// Returns whether the helper programs that map sub-ids are installed.
pub(crate) fn has_programs() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = |name: &str| {
        std::env::split_paths(&path).any(|directory| Path::new(&directory).join(name).is_file())
    };
    let has = found("newuidmap") && found("newgidmap");
    if !has {
        tracing::info!("`newuidmap` and `newgidmap` (package `uidmap`) are missing: no sub-ids");
    }
    has
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sub_ids_are_those_of_the_user_by_name_or_number() {
        let text = "alice:100000:65536\nbob:165536:65536\n1000:300000:10\nalice:x:1\nalice:1\n\nalice:9:0\n";
        let alice = [(100_000, 65536), (300_000, 10)].map(|(first, count)| Range { first, count });
        assert_eq!(sub_ids(text, Some("alice"), 1000), alice);
        assert_eq!(sub_ids(text, None, 1000), alice[1..]);
        assert_eq!(sub_ids(text, Some("carol"), 1001), []);
    }

    #[test]
    fn map_begins_with_the_user_and_has_no_gaps() {
        let ranges =
            [(100_000, 65536), (300_000, u32::MAX)].map(|(first, count)| Range { first, count });
        let lines: Vec<_> =
            map(1000, &ranges).iter().map(|(i, range)| (*i, range.first, range.count)).collect();
        let rest = u32::MAX - 65537;
        assert_eq!(lines, [(0, 1000, 1), (1, 100_000, 65536), (65537, 300_000, rest)]);
    }
}
