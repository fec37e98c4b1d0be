//! A box whose shim is a script, and what its events were.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails here")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use a3s_box_core::event::EventKind;
use a3s_box_core::{BoxConfig, Event, EventEmitter};
use a3s_box_runtime::VmManager;
use tempfile::TempDir;

/// No test waits longer for anything.
const PATIENCE: Duration = Duration::from_secs(20);

/// A box, the directory of its shim and state, and its events so far.
pub(crate) struct ScriptedBox {
    pub(crate) vm: VmManager,
    events: Arc<Mutex<Vec<Event>>>,
    dir: TempDir,
}

impl ScriptedBox {
    /// A box whose shim does what `script` says, with the verbs of the file `shim` beside this one.
    pub(crate) fn new(script: &str) -> Self {
        Self::with_config(script, |_config| {})
    }

    pub(crate) fn with_config(script: &str, change: impl FnOnce(&mut BoxConfig)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("script"), script).unwrap();
        let shim = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/shim");
        symlink(shim, dir.path().join("shim")).unwrap();
        let mut config = BoxConfig { id: Some("demo".to_owned()), ..BoxConfig::default() };
        config.paths.state_dir = dir.path().join("state");
        config.stop.grace_ms = 0;
        change(&mut config);
        let emitter = EventEmitter::new();
        let events = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&events);
        emitter.observe(move |event| seen.lock().unwrap().push(event.clone()));
        let vm = VmManager::new(config, emitter).with_shim(dir.path().join("shim"));
        Self { vm, events, dir }
    }

    /// Makes the state directory, as the shim does.
    pub(crate) fn state_directory(&self) -> PathBuf {
        let directory = self.dir.path().join("state/demo");
        fs::create_dir_all(&directory).unwrap();
        directory
    }

    /// What the shim has read.
    pub(crate) fn stdin(&self) -> Vec<u8> {
        fs::read(self.dir.path().join("stdin")).unwrap()
    }

    pub(crate) fn events(&self) -> Vec<EventKind> {
        self.events.lock().unwrap().iter().map(|event| event.kind.clone()).collect()
    }

    /// Sequence numbers of the events.
    pub(crate) fn numbers(&self) -> Vec<u64> {
        self.events.lock().unwrap().iter().map(|event| event.seq).collect()
    }

    pub(crate) fn shim_pid(&self) -> i32 {
        let started = self.events().into_iter().find_map(|kind| match kind {
            EventKind::ShimStarted { pid, .. } => Some(pid),
            _ => None,
        });
        i32::try_from(started.unwrap()).unwrap()
    }

    /// Drops the box, but not the directory in which its shim runs.
    pub(crate) fn drop_manager(self) -> TempDir {
        self.dir
    }
}

/// The future's output, within a bound.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap()
}

/// Waits until `is_so`, and fails after `bound`.
pub(crate) async fn within(bound: Duration, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < bound, "not so within {bound:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
