//! [`Service`]: the guest program's service for processes, in a process of its own and without a VM.

#![expect(clippy::unwrap_used, reason = "a failed setup fails the test")]

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use a3s_box_core::BoxDir;
use a3s_box_runtime::exec::BoxProcesses;
use a3s_box_runtime::files::BoxFiles;
use tempfile::TempDir;

/// The variable with the path of the socket, which makes a test process the service.
const SOCKET: &str = "A3S_BOX_TEST_EXEC_SOCKET";

/// The variable with the directory for the cgroups of the service.
const CGROUP: &str = "A3S_BOX_TEST_EXEC_CGROUP";

/// Maximum time of a wait for the service, or for its cgroups.
const MAX_WAIT: Duration = Duration::from_secs(20);

/// A running service. Its processes end with it.
pub(crate) struct Service {
    process: Child,
    cgroup: PathBuf,
    directory: BoxDir,
    _dir: TempDir,
}

impl Service {
    /// Starts the service in a box directory of its own.
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let directory = BoxDir::new(dir.path(), &"demo".parse().unwrap());
        fs::create_dir(directory.path()).unwrap();
        let name = dir.path().file_name().unwrap().to_str().unwrap();
        let cgroup = cgroup2().join(format!("a3s-box-test{name}"));
        fs::create_dir(&cgroup)
            .unwrap_or_else(|error| panic!("this test makes cgroups below {cgroup:?}: {error}"));
        let process = Command::new(std::env::current_exe().unwrap())
            .args(["service::process_of_the_service", "--exact", "--ignored"])
            .env(SOCKET, directory.exec_socket())
            .env(CGROUP, &cgroup)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let service = Self { process, cgroup, directory, _dir: dir };
        let start = Instant::now();
        while !service.directory.exec_socket().exists() {
            assert!(start.elapsed() < MAX_WAIT, "the service does not start");
            std::thread::sleep(Duration::from_millis(2));
        }
        service
    }

    /// Returns a client of the service.
    pub(crate) fn client(&self) -> BoxProcesses {
        BoxProcesses::of(&self.directory)
    }

    /// Returns a client of the files of the service, whose paths start in `root`.
    pub(crate) fn files(&self, root: &Path) -> BoxFiles {
        BoxFiles::of(&self.directory).below(root)
    }

    /// Returns the PID of the service.
    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Returns the PIDs of all processes that the service has started, and of their descendants.
    pub(crate) fn members(&self) -> Vec<u32> {
        let cgroups = fs::read_dir(self.cgroup.join("a3s-box-exec")).unwrap().flatten();
        cgroups
            .filter_map(|cgroup| fs::read_to_string(cgroup.path().join("cgroup.procs")).ok())
            .flat_map(|text| text.lines().map(|line| line.parse().unwrap()).collect::<Vec<u32>>())
            .collect()
    }

    /// Returns the number of cgroups of processes.
    pub(crate) fn cgroups(&self) -> usize {
        let entries = fs::read_dir(self.cgroup.join("a3s-box-exec")).unwrap().flatten();
        entries.filter(|entry| entry.path().is_dir()).count()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // All errors are ignored, because the test may be failing already.
        let _ignored = self.process.kill();
        let _ignored = self.process.wait();
        let parent = self.cgroup.join("a3s-box-exec");
        let _ignored = fs::write(parent.join("cgroup.kill"), "1");
        let start = Instant::now();
        // The members are dead once their parent, init, has been told.
        while self.cgroup.exists() && start.elapsed() < MAX_WAIT {
            for entry in fs::read_dir(&parent).into_iter().flatten().flatten() {
                let _ignored = fs::remove_dir(entry.path());
            }
            let _ignored = fs::remove_dir(&parent);
            let _ignored = fs::remove_dir(&self.cgroup);
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Returns the mount of cgroup2.
fn cgroup2() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mut fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let found = fields.find(|fields| fields[2] == "cgroup2").unwrap();
    PathBuf::from(found[1])
}

#[test]
#[ignore = "the process that the other tests start"]
fn process_of_the_service() {
    let Some(socket) = std::env::var_os(SOCKET) else { return };
    let listener = UnixListener::bind(socket).unwrap();
    let cgroup = std::env::var_os(CGROUP).unwrap();
    a3s_box_guest::serve_processes(listener, Some(Path::new(&cgroup))).unwrap();
}
