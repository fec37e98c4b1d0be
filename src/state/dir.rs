//! The directory of a box: everything that it leaves on this host while it lives.
//!
//! ```text
//! <paths.state_dir>/           0700, in directories where nobody else can replace it
//! └── <id>/                    0700
//!     ├── run.json             which process this is; locked (flock) for as long as the shim lives
//!     ├── exit.json            how it ended, once it has; until then exit.json.new
//!     ├── agent.sock           libkrun listens; leads to the agent in the guest
//!     ├── control.sock         the shim listens until PID 1 of the guest has connected
//!     ├── root/                mount point; the mount is seen by the shim only
//!     ├── upper/, work/        writable layer of the root, unless it is in
//!     ├── disk/                mount point of a tmpfs or of
//!     ├── disk.img             a file system in a file
//!     └── console.log          output of the workload, unless `console.path` says otherwise;
//!                              what was before it is in console.log.1
//! ```
//!
//! Liveness is the lock: it ends with the process, however that ends. The next start of the same
//! id takes the directory over and removes what is stale. `exit.json` goes first: nobody may find a new
//! run with an old end.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use a3s_box_core::BoxDir;
use a3s_box_core::box_dir::{
    self, AGENT_SOCKET, CONTROL_SOCKET, DISK, DISK_IMAGE, EXIT_DRAFT, EXIT_FILE, LockError, ROOT,
    UPPER, WORK,
};
use a3s_box_oci::{StoreError, check_parents, private_directory, remove_path};
use a3s_box_sys::HostError;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::spec::VmSpec;
use crate::state::record::{self, ExitFile, Process};

/// What is removed at the start, if a killed shim left it, and at the end.
const TRANSIENT: [&str; 7] = [AGENT_SOCKET, CONTROL_SOCKET, ROOT, UPPER, WORK, DISK, DISK_IMAGE];

/// The state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateDirError {
    #[error("box `{id}` is in use: another shim holds `{}`", lock.display())]
    InUse { id: String, lock: PathBuf },
    #[error("other users could reach the box")]
    NotPrivate(#[source] StoreError),
    #[error("`{}` is not a regular file", path.display())]
    NotAFile { path: PathBuf },
    #[error(transparent)]
    Host(#[from] HostError),
}

impl From<StoreError> for StateDirError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Host(error) => Self::Host(error),
            exposed @ StoreError::Exposed { .. } => Self::NotPrivate(exposed),
        }
    }
}

impl From<LockError> for StateDirError {
    fn from(error: LockError) -> Self {
        match error {
            LockError::NotAFile { path } => Self::NotAFile { path },
            LockError::Host(error) => Self::Host(error),
        }
    }
}

/// The directory of this box, locked.
#[derive(Debug)]
pub(crate) struct StateDir {
    directory: BoxDir,
    /// `run.json`, held until the process ends.
    _lock: File,
    exit_file: ExitFile,
}

impl StateDir {
    /// Makes the directory or takes it over, locks it, makes it a mount of its own, says in it which
    /// process this is, and removes what a killed shim left. To be called in private mounts.
    pub(crate) fn acquire(spec: &VmSpec) -> Result<Self, StateDirError> {
        let parent = &spec.paths.state_dir;
        let made = DirBuilder::new().recursive(true).mode(0o700).create(parent);
        made.map_err(HostError::at("make", parent))?;
        check_parents(parent)?;
        private_directory(parent)?;
        let directory = BoxDir::new(parent, &spec.id);
        let path = directory.path();
        let lock = lock(&directory, &spec.id)?;
        let remove_stale = |name| {
            let stale = path.join(name);
            remove_path(&stale).map_err(HostError::at("remove the stale", &stale))
        };
        own_mount(path).map_err(HostError::at("mount", path))?;
        remove_stale(EXIT_FILE)?;
        let process =
            Process::this().map_err(HostError::at("read", Path::new("/proc/self/stat")))?;
        record::write_run(&lock, &process.run_record(&spec.id))
            .map_err(HostError::at("write", &directory.run_file()))?;
        [EXIT_DRAFT].into_iter().chain(TRANSIENT).try_for_each(remove_stale)?;
        let exit_file = ExitFile::prepare(path, &spec.id, process)
            .map_err(HostError::at("make", &directory.exit_draft()))?;
        let state = Self { directory, _lock: lock, exit_file };
        DirBuilder::new()
            .mode(0o700)
            .create(state.root())
            .map_err(HostError::at("make", &state.root()))?;
        Ok(state)
    }

    /// What the end of this box has to do here.
    pub(crate) fn cleanup(&self) -> BoxCleanup {
        let transient = TRANSIENT.iter().map(|name| self.directory.path().join(name)).collect();
        BoxCleanup { exit_file: self.exit_file.clone(), transient }
    }

    pub(crate) fn agent_socket(&self) -> PathBuf {
        self.directory.agent_socket()
    }

    pub(crate) fn control_socket(&self) -> PathBuf {
        self.directory.control_socket()
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.directory.root()
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn disk(&self) -> PathBuf {
        self.directory.disk()
    }

    pub(crate) fn disk_image(&self) -> PathBuf {
        self.directory.disk_image()
    }

    pub(crate) fn console(&self) -> PathBuf {
        self.directory.console()
    }

    /// Removes the directory. Only for a box that was never started: its console is lost.
    pub(crate) fn remove(&self) {
        // What cannot be removed now is removed by the next start of this id.
        let _best_effort = self.remove_all();
    }

    /// The lock goes last: whoever waits for it then finds a directory of its own, or makes one.
    fn remove_all(&self) -> io::Result<()> {
        let directory = self.directory.path();
        umount2(directory, MntFlags::MNT_DETACH)?;
        let lock = self.directory.run_file();
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            if path != lock {
                remove_path(&path)?;
            }
        }
        fs::remove_file(lock)?;
        fs::remove_dir(directory)
    }
}

/// What is opened in the directory from now on leads nowhere else once the mount is all that is left.
fn own_mount(path: &Path) -> nix::Result<()> {
    mount(Some(path), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
}

/// Locks the box directory, and makes it if need be. Another process may remove the directory after
/// it was made or found here, so each attempt makes it again.
fn lock(directory: &BoxDir, id: &str) -> Result<File, StateDirError> {
    let attempt = || match private_directory(directory.path()) {
        Ok(_) => directory.try_lock().map_err(StateDirError::from),
        Err(StoreError::Host(HostError { source, .. }))
            if source.kind() == io::ErrorKind::NotFound =>
        {
            Ok(None)
        }
        Err(error) => Err(error.into()),
    };
    let in_use = || StateDirError::InUse { id: id.to_owned(), lock: directory.run_file() };
    box_dir::lock_patiently(attempt)?.ok_or_else(in_use)
}

/// What is left to do in the directory at the end of a box, for whoever ends it. Clones do the same.
#[derive(Clone, Debug)]
pub(crate) struct BoxCleanup {
    /// Where the end is recorded.
    pub(crate) exit_file: ExitFile,
    transient: Vec<PathBuf>,
}

impl BoxCleanup {
    /// Removes what only a live box has. The mounts keep `root` and `disk` busy until this process has
    /// ended: these empty directories stay.
    pub(crate) fn remove_transient(&self) {
        let is_mount_point = |path: &PathBuf| path.ends_with(ROOT) || path.ends_with(DISK);
        for path in self.transient.iter().filter(|path| !is_mount_point(path)) {
            // What cannot be removed now is removed by the next start of this id.
            let _best_effort = remove_path(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};
    use std::thread;
    use std::time::Instant;

    use a3s_box_core::box_dir::LOCK_PATIENCE;
    use nix::fcntl::{OFlag, openat};
    use nix::sys::stat::{Mode, mkdirat};
    use nix::unistd::mkfifo;

    use super::*;

    /// A state directory with the directory of the box `demo`.
    fn demo() -> (tempfile::TempDir, BoxDir) {
        let dir = tempfile::tempdir().unwrap();
        let directory = BoxDir::new(dir.path(), &"demo".parse().unwrap());
        private_directory(directory.path()).unwrap();
        (dir, directory)
    }

    #[test]
    fn lock_of_a_live_shim_is_waited_for_and_then_in_use() {
        let (_dir, directory) = demo();
        let held = lock(&directory, "demo").unwrap();
        let start = Instant::now();
        let error = lock(&directory, "demo").unwrap_err();
        assert!(matches!(error, StateDirError::InUse { .. }), "{error}");
        assert!(start.elapsed() >= LOCK_PATIENCE);
        drop(held);
        lock(&directory, "demo").unwrap();
    }

    #[test]
    fn reader_that_holds_the_lock_does_not_refuse_a_start() {
        let (_dir, directory) = demo();
        drop(lock(&directory, "demo").unwrap());
        let reader = File::open(directory.run_file()).unwrap();
        reader.try_lock_shared().unwrap();
        let reading = thread::spawn(move || {
            // Early enough that a thread which is late on a busy machine is within it, too.
            thread::sleep(LOCK_PATIENCE / 8);
            drop(reader);
        });
        lock(&directory, "demo").unwrap();
        reading.join().unwrap();
    }

    #[test]
    fn what_is_no_file_is_refused_and_left_alone() {
        let (dir, directory) = demo();
        let precious = dir.path().join("precious");
        fs::write(&precious, "x").unwrap();
        symlink(&precious, directory.run_file()).unwrap();
        let error = lock(&directory, "demo").unwrap_err();
        assert!(matches!(error, StateDirError::Host(HostError { action: "open", .. })), "{error}");
        assert_eq!(fs::read_to_string(precious).unwrap(), "x");
        fs::remove_file(directory.run_file()).unwrap();
        mkfifo(&directory.run_file(), Mode::S_IRWXU).unwrap();
        let error = lock(&directory, "demo").unwrap_err();
        assert!(matches!(error, StateDirError::NotAFile { .. }), "{error}");
    }

    /// A guest makes directories deeper than open files, a path or a stack reach.
    #[test]
    fn what_a_guest_has_made_is_removed_however_deep_it_is() {
        let (_dir, directory) = demo();
        let mut deep = File::open(directory.path()).unwrap();
        for _ in 0..20_000 {
            mkdirat(&deep, UPPER, Mode::S_IRWXU).unwrap();
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            deep = File::from(openat(&deep, UPPER, flags, Mode::empty()).unwrap());
        }
        remove_path(&directory.path().join(UPPER)).unwrap();
        assert!(!directory.path().join(UPPER).exists());
    }

    #[test]
    fn start_goes_on_while_others_remove_the_directory() {
        let (_dir, directory) = demo();
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        let held = match lock(&directory, "demo") {
                            Ok(held) => held,
                            // On a busy machine the other thread may have paused with the lock.
                            Err(StateDirError::InUse { .. }) => continue,
                            Err(error) => panic!("{error:?}"),
                        };
                        fs::remove_file(directory.run_file()).unwrap();
                        // The other thread may have made its lock in it.
                        let _not_empty = fs::remove_dir(directory.path());
                        drop(held);
                    }
                });
            }
        });
    }

    #[test]
    fn lock_is_always_that_of_the_directory_which_is_there() {
        let (_dir, directory) = demo();
        let run_file = directory.run_file();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mut locked = 0;
                    while locked < 1000 {
                        // The one that fails has met another's removal.
                        let tried =
                            private_directory(directory.path()).map_err(StateDirError::from);
                        let tried = tried.and_then(|_| Ok(directory.try_lock()?));
                        let Ok(Some(held)) = tried else { continue };
                        locked += 1;
                        let found = fs::metadata(&run_file).unwrap();
                        assert_eq!(found.ino(), held.metadata().unwrap().ino());
                        fs::remove_file(&run_file).unwrap();
                        // Another thread may have made its lock in it.
                        let _not_empty = fs::remove_dir(directory.path());
                    }
                });
            }
        });
    }
}
