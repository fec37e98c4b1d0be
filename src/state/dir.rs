//! The box directory of this shim: takes it over, locks it, and removes what a dead shim left in
//! it.
//!
//! [`BoxDir`] has the names of the files in it.
//!
//! # Invariants
//!
//! - A box is live as long as its lock is held. The kernel releases the lock when the process ends,
//!   even after SIGKILL.
//! - A start removes the old `exit.json` before it writes `run.json`, so that no reader finds a new
//!   run with an old ending.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use a3s_box_core::BoxDir;
use a3s_box_core::box_dir::{
    self, AGENT_SOCKET, CONTROL_SOCKET, DISK, DISK_IMAGE, EXEC_SOCKET, EXIT_DRAFT, EXIT_FILE,
    KEPT_DISK_DRAFT, LockError, ROOT, UPPER, WORK,
};
use a3s_box_core::config::IdsConfig;
use a3s_box_oci::{
    StoreError, check_parents, private_directory, private_directory_with_group, remove_path,
};
use a3s_box_sys::HostError;
use nix::fcntl::{AtFlags, OFlag};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, fchmod, fstatat};
use nix::unistd::{Gid, Uid, fchown, fchownat};

use crate::spec::VmSpec;
use crate::state::record::{self, ExitFile, Process};

/// Files and directories that only a live box needs. They are removed at its end, and at the next
/// start if a killed shim left them.
const TRANSIENT: [&str; 9] = [
    AGENT_SOCKET,
    EXEC_SOCKET,
    CONTROL_SOCKET,
    ROOT,
    UPPER,
    WORK,
    DISK,
    DISK_IMAGE,
    KEPT_DISK_DRAFT,
];

/// Why the box directory cannot be used.
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

/// The locked directory of this box.
#[derive(Debug)]
pub(crate) struct StateDir {
    directory: BoxDir,
    /// `run.json`, whose lock is held until the process ends. It is open for reading only.
    lock: File,
    exit_file: ExitFile,
}

impl StateDir {
    /// Creates or takes over the directory, locks it, makes it a mount, writes `run.json`, and
    /// removes the files that a killed shim left.
    ///
    /// Callers must be in a private mount namespace, because the mount must not be visible on the
    /// host.
    pub(crate) fn acquire(spec: &VmSpec) -> Result<Self, StateDirError> {
        let parent = &spec.paths.state_dir;
        let made = DirBuilder::new().recursive(true).mode(0o700).create(parent);
        made.map_err(HostError::at("make", parent))?;
        // Another user who can rename a parent directory could put a directory of their own in its
        // place.
        check_parents(parent)?;
        private_directory(parent)?;
        let directory = BoxDir::new(parent, &spec.id);
        let path = directory.path();
        let lock = lock(&directory, &spec.id, groups_of(spec.ids))?;
        take_back(path).map_err(HostError::at("take back", path))?;
        let remove_stale = |name| {
            let stale = path.join(name);
            remove_path(&stale).map_err(HostError::at("remove the stale", &stale))
        };
        own_mount(path).map_err(HostError::at("mount", path))?;
        remove_stale(EXIT_FILE)?;
        let process =
            Process::this().map_err(HostError::at("read", Path::new("/proc/self/stat")))?;
        record::write_run(&directory.open_run_file()?, &process.run_record(&spec.id))
            .map_err(HostError::at("write", &directory.run_file()))?;
        [EXIT_DRAFT].into_iter().chain(TRANSIENT).try_for_each(remove_stale)?;
        // The draft is created last, because a stale one would be in its place.
        let exit_file = ExitFile::prepare(path, &spec.id, process)
            .map_err(HostError::at("make", &directory.exit_draft()))?;
        Ok(Self { directory, lock, exit_file })
    }

    /// Gives the files in the box directory to the VMM, which has the id `vmm` as a user and as a
    /// group, and lets it make files there. The directory and `run.json` stay root's, and with the
    /// sticky bit the VMM cannot remove or rename `run.json`.
    pub(crate) fn hand_over(&self, vmm: u32) -> Result<(), HostError> {
        let path = self.directory.path();
        self.hand_over_files(vmm).map_err(HostError::at("hand over", path))
    }

    fn hand_over_files(&self, vmm: u32) -> io::Result<()> {
        let directory = open_directory(self.directory.path())?;
        let (user, group) = (Uid::from_raw(vmm), Gid::from_raw(vmm));
        let lock = self.lock.metadata()?.ino();
        for entry in fs::read_dir(self.directory.path())? {
            let (name, flags) = (entry?.file_name(), AtFlags::AT_SYMLINK_NOFOLLOW);
            // An earlier VMM may have made a second link to `run.json`. The inode number in the
            // list of a directory can differ from that of stat(2), for example on overlayfs.
            if fstatat(&directory, &*name, flags)?.st_ino != lock {
                fchownat(&directory, &*name, Some(user), Some(group), flags)?;
            }
        }
        fchown(&directory, None, Some(group))?;
        // The group of the directory is the VMM's alone.
        Ok(fchmod(&directory, Mode::S_IRWXU | Mode::S_IRWXG | Mode::S_ISVTX)?)
    }

    /// Makes the mount point of a shared root.
    pub(crate) fn make_root(&self) -> Result<PathBuf, HostError> {
        let root = self.directory.root();
        DirBuilder::new().mode(0o700).create(&root).map_err(HostError::at("make", &root))?;
        Ok(root)
    }

    /// Returns the part of the box's end that concerns its directory.
    pub(crate) fn cleanup(&self) -> BoxCleanup {
        let transient = TRANSIENT.iter().map(|name| self.directory.path().join(name)).collect();
        BoxCleanup { exit_file: self.exit_file.clone(), transient }
    }

    pub(crate) fn agent_socket(&self) -> PathBuf {
        self.directory.agent_socket()
    }

    pub(crate) fn exec_socket(&self) -> PathBuf {
        self.directory.exec_socket()
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

    pub(crate) fn box_dir(&self) -> &BoxDir {
        &self.directory
    }

    pub(crate) fn console(&self) -> PathBuf {
        self.directory.console()
    }

    /// Removes the directory, unless an earlier box of this id has kept its disk. It is for
    /// `--prepare` only: a box that has run leaves its exit record and its console output.
    pub(crate) fn remove(&self) {
        // The next start of this id removes the files that cannot be removed now.
        let _best_effort = self.remove_all();
    }

    /// Removes the files, and the lock last. A start of the same id that waits for the lock then
    /// creates a new directory.
    fn remove_all(&self) -> io::Result<()> {
        let directory = self.directory.path();
        umount2(directory, MntFlags::MNT_DETACH)?;
        let (lock, kept) = (self.directory.run_file(), self.directory.kept_disk());
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            if path != lock && path != kept {
                remove_path(&path)?;
            }
        }
        let has_kept_disk = kept.try_exists()?;
        fs::remove_file(lock)?;
        if has_kept_disk { Ok(()) } else { fs::remove_dir(directory) }
    }
}

/// Makes the directory a mount, by a bind mount on itself. The fds of files that are opened in it
/// later refer to this mount. After the confinement has changed the root, they lead to no directory
/// above.
fn own_mount(path: &Path) -> nix::Result<()> {
    mount(Some(path), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
}

/// Returns the groups that a box directory can have, of boxes with ids of their own.
fn groups_of(ids: IdsConfig) -> Range<u32> {
    ids.first..ids.first.saturating_add(ids.count)
}

/// Makes the directory accessible to this user alone, as it was before an earlier box had ids of its
/// own. The caller has the lock.
fn take_back(path: &Path) -> io::Result<()> {
    let directory = open_directory(path)?;
    fchown(&directory, None, Some(Gid::effective()))?;
    Ok(fchmod(&directory, Mode::S_IRWXU)?)
}

fn open_directory(path: &Path) -> io::Result<File> {
    let flags = (OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW).bits();
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

/// Locks the box directory, and makes it if need be. Another process may remove the directory after
/// it was made or found here, so each attempt makes it again.
fn lock(directory: &BoxDir, id: &str, groups: Range<u32>) -> Result<File, StateDirError> {
    let attempt = || match private_directory_with_group(directory.path(), groups.clone()) {
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

/// The part of a box's end that concerns its directory: the exit record, and the removal of files
/// that only a live box needs. The main thread and the control thread can each end the box; clones
/// share the exit record.
#[derive(Clone, Debug)]
pub(crate) struct BoxCleanup {
    /// The exit record.
    pub(crate) exit_file: ExitFile,
    transient: Vec<PathBuf>,
}

impl BoxCleanup {
    /// Removes the files and directories that only a live box needs. The empty mount points `root`
    /// and `disk` stay, because they are busy until this process has ended.
    pub(crate) fn remove_transient(&self) {
        let is_mount_point = |path: &PathBuf| path.ends_with(ROOT) || path.ends_with(DISK);
        for path in self.transient.iter().filter(|path| !is_mount_point(path)) {
            // The next start of this id removes the files that cannot be removed now.
            let _best_effort = remove_path(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::thread;
    use std::time::Instant;

    use a3s_box_core::box_dir::LOCK_PATIENCE;
    use nix::fcntl::openat;
    use nix::sys::stat::mkdirat;
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
    fn lock_of_a_live_shim_is_refused_after_a_wait() {
        let (_dir, directory) = demo();
        let held = lock(&directory, "demo", 0..0).unwrap();
        let start = Instant::now();
        let error = lock(&directory, "demo", 0..0).unwrap_err();
        assert!(matches!(error, StateDirError::InUse { .. }), "{error}");
        assert!(start.elapsed() >= LOCK_PATIENCE);
        drop(held);
        lock(&directory, "demo", 0..0).unwrap();
    }

    #[test]
    fn start_waits_for_a_reader_that_holds_the_lock() {
        let (_dir, directory) = demo();
        drop(lock(&directory, "demo", 0..0).unwrap());
        let reader = File::open(directory.run_file()).unwrap();
        reader.try_lock_shared().unwrap();
        let reading = thread::spawn(move || {
            // A busy machine may delay this thread, so it aims at a small part of the time.
            thread::sleep(LOCK_PATIENCE / 8);
            drop(reader);
        });
        lock(&directory, "demo", 0..0).unwrap();
        reading.join().unwrap();
    }

    #[test]
    fn lock_that_is_not_a_regular_file_is_refused_and_not_changed() {
        let (dir, directory) = demo();
        let precious = dir.path().join("precious");
        fs::write(&precious, "x").unwrap();
        symlink(&precious, directory.run_file()).unwrap();
        let error = lock(&directory, "demo", 0..0).unwrap_err();
        assert!(matches!(error, StateDirError::Host(HostError { action: "open", .. })), "{error}");
        assert_eq!(fs::read_to_string(precious).unwrap(), "x");
        fs::remove_file(directory.run_file()).unwrap();
        mkfifo(&directory.run_file(), Mode::S_IRWXU).unwrap();
        let error = lock(&directory, "demo", 0..0).unwrap_err();
        assert!(matches!(error, StateDirError::NotAFile { .. }), "{error}");
    }

    /// A guest can nest directories deeper than the limits on open files, path length and stack
    /// allow.
    #[test]
    fn directories_of_a_guest_are_removed_at_any_depth() {
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
    fn start_succeeds_while_others_remove_the_directory() {
        let (_dir, directory) = demo();
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        let held = match lock(&directory, "demo", 0..0) {
                            Ok(held) => held,
                            // On a busy machine the other thread can pause while it holds the lock.
                            Err(StateDirError::InUse { .. }) => continue,
                            Err(error) => panic!("{error:?}"),
                        };
                        fs::remove_file(directory.run_file()).unwrap();
                        // The directory is not empty if the other thread has created its lock in
                        // it.
                        let _not_empty = fs::remove_dir(directory.path());
                        drop(held);
                    }
                });
            }
        });
    }

    #[test]
    fn lock_is_always_on_the_file_that_exists() {
        let (_dir, directory) = demo();
        let run_file = directory.run_file();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mut locked = 0;
                    while locked < 1000 {
                        // An attempt fails if another thread removes the directory meanwhile.
                        let tried =
                            private_directory(directory.path()).map_err(StateDirError::from);
                        let tried = tried.and_then(|_| Ok(directory.try_lock()?));
                        let Ok(Some(held)) = tried else { continue };
                        locked += 1;
                        let found = fs::metadata(&run_file).unwrap();
                        assert_eq!(found.ino(), held.metadata().unwrap().ino());
                        fs::remove_file(&run_file).unwrap();
                        // The directory is not empty if another thread has created its lock in it.
                        let _not_empty = fs::remove_dir(directory.path());
                    }
                });
            }
        });
    }
}
