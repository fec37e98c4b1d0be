//! The ids of the host that a box has while it runs.
//!
//! The VMM of a shim that root started must be no user of the host. It gets 65,536 ids that no user,
//! group or other box has, as user ids and as group ids:
//!
//! ```text
//!  <state_dir>/.ids/<first id>   empty; locked (flock(2)) by the shim whose box has these ids
//! ```
//!
//! The kernel releases the lock when the shim ends, even after SIGKILL. A guest that has taken over the
//! VMM can close the file, which also releases the lock. A range is therefore free only if no process
//! has one of its ids either.
//!
//! The search for a free range
//! begins at a number that is derived from the state directory and the box's id, so that it rarely
//! finds a range that another box has, and boxes of different state directories rarely meet.

use std::fs::{self, DirBuilder, DirEntry, File, OpenOptions, TryLockError};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use a3s_box_core::config::IdsConfig;
use a3s_box_sys::HostError;
use a3s_box_sys::user_namespace::IdMap;
use nix::errno::Errno;
use nix::fcntl::OFlag;

use super::process::stat_field;
use crate::spec::{IDS_PER_BOX, VmSpec};

/// Directory of the locks, in the state directory. No box has this name, because the id of a box
/// begins with a letter or a digit.
const LOCKS: &str = ".ids";

/// Directory with an entry for each process.
const PROCESSES: &str = "/proc";

/// Why a box gets no ids.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BoxIdsError {
    #[error(
        "all {ranges} ranges of 65536 ids are in use: stop a box, or enlarge `confinement.ids`"
    )]
    AllInUse { ranges: u32 },
    #[error(transparent)]
    Host(#[from] HostError),
}

/// The ids of a box. They are its own as long as this value exists.
#[derive(Debug)]
pub(crate) struct BoxIds {
    first: u32,
    _lock: File,
}

impl BoxIds {
    /// Takes ids that no other box has. The state directory must exist.
    pub(crate) fn take(spec: &VmSpec) -> Result<Self, BoxIdsError> {
        let directory = spec.paths.state_dir.join(LOCKS);
        let mut hasher = DefaultHasher::new();
        (&directory, &*spec.id).hash(&mut hasher);
        Self::take_from(&directory, spec.ids, hasher.finish())
    }

    fn take_from(directory: &Path, ids: IdsConfig, start: u64) -> Result<Self, BoxIdsError> {
        match DirBuilder::new().mode(0o700).create(directory) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made.map_err(HostError::at("make", directory))?,
        }
        let ranges = ids.count / IDS_PER_BOX;
        for step in 0..u64::from(ranges) {
            let number = start.wrapping_add(step) % u64::from(ranges);
            // The number is less than that of the ranges, so the last id of the range fits.
            let first = ids.first + u32::try_from(number).unwrap_or_default() * IDS_PER_BOX;
            let path = directory.join(first.to_string());
            let Some(lock) = try_lock(&path).map_err(HostError::at("lock", &path))? else {
                continue;
            };
            let process = process_in(first..first + IDS_PER_BOX);
            match process.map_err(HostError::at("list", Path::new(PROCESSES)))? {
                None => return Ok(Self { first, _lock: lock }),
                Some(pid) => {
                    tracing::warn!(first, pid, "a process has ids that no shim has locked");
                }
            }
        }
        Err(BoxIdsError::AllInUse { ranges })
    }

    /// Returns the map of the box's user namespace: 0 to 65,535 inside.
    pub(crate) fn map(&self) -> IdMap {
        IdMap { first: self.first, count: IDS_PER_BOX }
    }

    /// Returns the id of the host that the VMM has, as a user and as a group. It is 0 in the box's
    /// user namespace.
    pub(crate) fn vmm(&self) -> u32 {
        self.first
    }

    /// Returns the id of the host that gate and passt have. It is 65,535 in the box's user
    /// namespace, which is no id of a file: in 16 bits it is -1.
    pub(crate) fn carrier(&self) -> u32 {
        self.first + (IDS_PER_BOX - 1)
    }
}

/// Returns a process that runs as a user with one of these ids.
///
/// All ids of a VMM, its threads, its gate and passt are in one range, because its user namespace maps
/// no others. So the effective user of each process suffices.
fn process_in(ids: Range<u32>) -> io::Result<Option<u32>> {
    for entry in fs::read_dir(PROCESSES)? {
        let entry = entry?;
        // The other entries are no processes.
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // The effective user of the process owns this directory, whether it can be traced or not
        // (proc(5)).
        let owner = unless_ended(entry.metadata().map(|found| found.uid()))?;
        if owner.is_some_and(|owner| ids.contains(&owner)) && has_not_ended(&entry)? {
            return Ok(Some(pid));
        }
    }
    Ok(None)
}

fn has_not_ended(process: &DirEntry) -> io::Result<bool> {
    let stat = unless_ended(fs::read_to_string(process.path().join("stat")))?;
    Ok(stat.is_some_and(|stat| runs(&stat)))
}

/// Returns whether a process with this `/proc/<pid>/stat` still runs. A process that its parent has not
/// waited for is a zombie. Its first thread is also one if it alone has ended.
fn runs(stat: &str) -> bool {
    let state = stat.rsplit_once(") ").and_then(|(_, from_state)| from_state.chars().next());
    !matches!(state, Some('Z' | 'X')) || stat_field(stat, 20).is_none_or(|threads| threads > 1)
}

/// Maps the errors of a process that has ended to `None`.
fn unless_ended<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Err(error)
            if [Errno::ENOENT, Errno::ESRCH]
                .map(|errno| Some(errno as i32))
                .contains(&error.raw_os_error()) =>
        {
            Ok(None)
        }
        found => found.map(Some),
    }
}

/// Locks a file, and makes it first if it is missing. Returns `None` if another shim has the lock.
fn try_lock(path: &Path) -> io::Result<Option<File>> {
    // flock(2) needs no permission to write, and the VMM keeps this fd.
    let open = || OpenOptions::new().read(true).custom_flags(OFlag::O_NOFOLLOW.bits()).open(path);
    let file = match open() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut options = OpenOptions::new();
            options.write(true).create(true).mode(0o400).custom_flags(OFlag::O_NOFOLLOW.bits());
            drop(options.open(path)?);
            open()?
        }
        opened => opened?,
    };
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command};

    use nix::sys::wait::{Id, WaitPidFlag, waitid};
    use nix::unistd::Pid;

    use super::*;

    /// The first of the ids of these tests. They are behind the default range, so that no box of another
    /// test has them.
    const FIRST: u32 = 0x7400_0000;

    fn take(directory: &Path, start: u64) -> Result<BoxIds, BoxIdsError> {
        let ids = IdsConfig { first: FIRST, count: 3 * IDS_PER_BOX + 7 };
        BoxIds::take_from(&directory.join(LOCKS), ids, start)
    }

    /// A process, which ends with this value.
    struct Sleep(Child);

    impl Sleep {
        fn of_user(user: u32) -> Self {
            Self(Command::new("sleep").arg("60").uid(user).spawn().unwrap())
        }
    }

    impl Drop for Sleep {
        fn drop(&mut self) {
            // The process may have ended before.
            let _killed = self.0.kill();
            self.0.wait().unwrap();
        }
    }

    #[test]
    fn ids_of_a_process_that_runs_are_taken_by_no_box() {
        let directory = tempfile::tempdir().unwrap();
        // Another test looks for processes with the ids from `FIRST` on.
        let ids = IdsConfig { first: FIRST + (1 << 20), count: 2 * IDS_PER_BOX };
        let take = || BoxIds::take_from(&directory.path().join(LOCKS), ids, 0).unwrap().vmm();
        for id in [0, 1, IDS_PER_BOX - 1] {
            let mut process = Sleep::of_user(ids.first + id);
            assert_eq!(take(), ids.first + IDS_PER_BOX, "a process has id {id} of the range");
            process.0.kill().unwrap();
            let pid = Id::Pid(Pid::from_raw(process.0.id().cast_signed()));
            waitid(pid, WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT).unwrap();
            assert_eq!(take(), ids.first, "the process with id {id} is a zombie");
        }
        let _next = Sleep::of_user(ids.first + IDS_PER_BOX);
        assert_eq!(take(), ids.first, "the process has the id behind the range");
    }

    #[test]
    fn zombie_runs_if_it_has_further_threads() {
        let stat = |state, threads| {
            format!("7 (a) Z) {state} 1 7 7 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 {threads} 0 9 10 11")
        };
        for (state, threads, expected) in
            [('S', 1, true), ('R', 4, true), ('Z', 1, false), ('Z', 2, true), ('X', 0, false)]
        {
            assert_eq!(runs(&stat(state, threads)), expected, "{state}, {threads} threads");
        }
    }

    #[test]
    fn boxes_that_run_have_different_ids_and_return_them() {
        let directory = tempfile::tempdir().unwrap();
        let boxes = [4, 4, u64::MAX].map(|start| take(directory.path(), start).unwrap());
        let mut firsts: Vec<u32> = boxes.iter().map(BoxIds::vmm).collect();
        assert_eq!(firsts[0], FIRST + IDS_PER_BOX);
        firsts.sort_unstable();
        let expected = [0, 1, 2].map(|number| FIRST + number * IDS_PER_BOX);
        assert_eq!(firsts, expected);
        let error = take(directory.path(), 0).unwrap_err();
        assert!(matches!(error, BoxIdsError::AllInUse { ranges: 3 }), "{error}");
        // Only the ids of the box that ends are free again.
        let [ended, _second, _third] = boxes;
        let freed = ended.vmm();
        drop(ended);
        let again = take(directory.path(), 0).unwrap();
        assert_eq!(again.vmm(), freed);
        assert_eq!(again.carrier() - again.vmm(), 65_535);
        assert_eq!(fs::read_dir(directory.path().join(LOCKS)).unwrap().count(), 3);
    }

    #[test]
    fn planted_link_is_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let locks = directory.path().join(LOCKS);
        fs::create_dir(&locks).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", locks.join(FIRST.to_string())).unwrap();
        let error = take(directory.path(), 0).unwrap_err();
        assert!(matches!(error, BoxIdsError::Host(_)), "{error}");
    }
}
