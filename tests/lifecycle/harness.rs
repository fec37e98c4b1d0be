//! A box with a scripted fake guest, driven by `VmManager`, and the times of its events.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use a3s_box_core::config::RootKind;
use a3s_box_core::event::EventKind;
use a3s_box_core::{BoxConfig, EventEmitter};
use a3s_box_runtime::{BoxRecord, VmManager, inspect};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Longest time that a test waits for anything. It exceeds the longest timeout of the shim (20 s).
const PATIENCE: Duration = Duration::from_secs(40);

/// Script of a guest that becomes ready and then hangs.
pub(crate) const READY: [&str; 5] = ["connect", "hello", "serve", "started=7", "hang"];

/// A temporary directory with a shim, its state directory and its cache directory.
pub(crate) struct Host {
    /// Kind of root of the boxes.
    kind: RootKind,
    dir: TempDir,
}

/// A box of a [`Host`].
pub(crate) struct FakeBox {
    pub(crate) vm: VmManager,
    observed: Arc<Mutex<Vec<(SystemTime, EventKind)>>>,
    directory: PathBuf,
}

impl Host {
    /// Makes the directory, for boxes with roots of this kind. The wrapper script `shim` finds the two programs beside its own link.
    pub(crate) fn new(kind: RootKind) -> Self {
        // The prefix is short, because the path of a Unix socket in it is limited to 107 bytes.
        let dir = tempfile::Builder::new().prefix("l").tempdir().unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lifecycle/shim");
        for (program, name) in [
            (script.as_path(), "shim"),
            (Path::new(env!("CARGO_BIN_EXE_a3s-box-shim")), "a3s-box-shim"),
            (Path::new(env!("CARGO_BIN_EXE_fake-guest")), "fake-guest"),
        ] {
            symlink(program, dir.path().join(name)).unwrap();
        }
        Self { kind, dir }
    }

    pub(crate) fn state_dir(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    pub(crate) fn shim(&self) -> PathBuf {
        self.dir.path().join("shim")
    }

    /// Returns a config whose guest plays `script`.
    pub(crate) fn config(&self, script: &[&str]) -> Value {
        json!({
            "id": "demo",
            "agent": {"boot_timeout_ms": 20_000},
            "root": {"kind": self.kind},
            "process": {"args": script},
            "paths": {
                "state_dir": self.state_dir(),
                "cache_dir": self.dir.path().join("c"),
                // The shim requires a file, which the fake VM never runs.
                "guest": "/bin/true",
            },
        })
    }

    /// Returns a box, not started, whose guest plays `script`.
    pub(crate) fn new_box(&self, script: &[&str]) -> FakeBox {
        self.box_of(&self.config(script))
    }

    /// Returns a box, not started, with this config.
    pub(crate) fn box_of(&self, config: &Value) -> FakeBox {
        let config = BoxConfig::from_json(config.to_string().as_bytes()).unwrap();
        let emitter = EventEmitter::new();
        let observed = Arc::new(Mutex::new(Vec::new()));
        let observer = Arc::clone(&observed);
        emitter.observe(move |event| {
            observer.lock().unwrap().push((SystemTime::now(), event.kind.clone()));
        });
        let directory = self.state_dir().join(config.id.as_deref().unwrap());
        let vm = VmManager::new(config, emitter).with_shim(self.shim());
        FakeBox { vm, observed, directory }
    }

    /// Returns the state of the box as its directory records it.
    pub(crate) fn record(&self) -> BoxRecord {
        inspect(&self.state_dir(), "demo").unwrap()
    }
}

impl FakeBox {
    pub(crate) fn events(&self) -> Vec<EventKind> {
        self.observed.lock().unwrap().iter().map(|(_, kind)| kind.clone()).collect()
    }

    /// Returns the time at which the observer got the first event that `matches`.
    pub(crate) fn observed_at(&self, matches: impl Fn(&EventKind) -> bool) -> Option<SystemTime> {
        let observed = self.observed.lock().unwrap();
        observed.iter().find(|(_, kind)| matches(kind)).map(|(at, _)| *at)
    }

    /// Returns the process id from the event `shim.started`. Panics before that event.
    pub(crate) fn shim_pid(&self) -> u32 {
        let pid = self.events().into_iter().find_map(|kind| match kind {
            EventKind::ShimStarted { pid, .. } => Some(pid),
            _ => None,
        });
        pid.unwrap()
    }

    pub(crate) fn send(&self, signal: Signal) {
        kill(Pid::from_raw(self.shim_pid().cast_signed()), signal).unwrap();
    }

    /// Returns the path of `name` in the box directory.
    pub(crate) fn state(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Returns the time at which the guest played the step `stamp`.
    pub(crate) fn stamp(&self) -> SystemTime {
        let nanoseconds = fs::read_to_string(self.state("stamp")).unwrap().parse().unwrap();
        UNIX_EPOCH + Duration::from_nanos(nanoseconds)
    }
}

/// Awaits a future. Panics after [`PATIENCE`].
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap()
}

/// Waits until `condition` holds. Panics after [`PATIENCE`].
pub(crate) async fn until(condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "the condition does not hold within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
