//! [`ScriptedBox`]: a box whose shim is a script, and the events of the box.

#![expect(clippy::unwrap_used, reason = "a failed setup fails the test")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use a3s_box_core::event::EventKind;
use a3s_box_core::{BoxConfig, Event, EventEmitter};
use a3s_box_runtime::VmManager;
use tempfile::TempDir;

/// Maximum time of each wait in a test.
const MAX_WAIT: Duration = Duration::from_secs(20);

/// A box, the directory with its shim and its state directory, and its events so far.
pub(crate) struct ScriptedBox {
    pub(crate) vm: VmManager,
    events: Arc<Mutex<Vec<Event>>>,
    dir: TempDir,
}

impl ScriptedBox {
    /// Makes a box whose shim runs `script`, with the functions of the file `shim` beside this one.
    pub(crate) fn new(script: &str) -> Self {
        Self::with_config(script, |_config| {})
    }

    /// Makes a box as [`new`](Self::new) does, and changes its config by `change`.
    pub(crate) fn with_config(script: &str, change: impl FnOnce(&mut BoxConfig)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("script"), script).unwrap();
        // A symlink suffices, because the script finds its files beside the link.
        let shim = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/shim");
        symlink(shim, dir.path().join("shim")).unwrap();
        let mut config = BoxConfig { id: Some("demo".to_owned()), ..BoxConfig::default() };
        config.paths.state_dir = dir.path().join("state");
        // Without a grace period, the manager kills a shim that ignores SIGTERM after its margin.
        config.stop.grace_ms = 0;
        change(&mut config);
        let emitter = EventEmitter::new();
        let events = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&events);
        emitter.observe(move |event| seen.lock().unwrap().push(event.clone()));
        let vm = VmManager::new(config, emitter).with_shim(dir.path().join("shim"));
        Self { vm, events, dir }
    }

    /// Makes the box directory, as a shim does, and returns its path.
    pub(crate) fn make_box_directory(&self) -> PathBuf {
        let directory = self.dir.path().join("state/demo");
        fs::create_dir_all(&directory).unwrap();
        directory
    }

    /// Returns the bytes that the shim has read from its standard input.
    pub(crate) fn stdin(&self) -> Vec<u8> {
        fs::read(self.dir.path().join("stdin")).unwrap()
    }

    /// Returns the kinds of the events so far.
    pub(crate) fn events(&self) -> Vec<EventKind> {
        self.events.lock().unwrap().iter().map(|event| event.kind.clone()).collect()
    }

    /// Returns the `seq` of the events so far.
    pub(crate) fn sequence_numbers(&self) -> Vec<u64> {
        self.events.lock().unwrap().iter().map(|event| event.seq).collect()
    }

    /// Returns the pid in the event `shim.started`.
    pub(crate) fn shim_pid(&self) -> i32 {
        let started = self.events().into_iter().find_map(|kind| match kind {
            EventKind::ShimStarted { pid, .. } => Some(pid),
            _ => None,
        });
        i32::try_from(started.unwrap()).unwrap()
    }

    /// Drops the manager, and returns the directory in which its shim runs, which must outlive the
    /// shim.
    pub(crate) fn drop_manager(self) -> TempDir {
        self.dir
    }
}

/// Waits for `future`, and fails after [`MAX_WAIT`].
pub(crate) async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(MAX_WAIT, future).await.unwrap()
}

/// Waits until `condition` returns true, and fails after `bound`.
pub(crate) async fn until(bound: Duration, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < bound, "the condition is not met within {bound:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
