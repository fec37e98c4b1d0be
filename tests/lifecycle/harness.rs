//! A box whose guest plays a script, its events, and when they came.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use a3s_box_core::event::EventKind;
use a3s_box_core::{BoxConfig, EventEmitter};
use a3s_box_runtime::{BoxRecord, VmManager, inspect};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

/// No test waits longer for anything: longer than the longest bound of the shim (20 s).
const PATIENCE: Duration = Duration::from_secs(40);

/// A guest that is ready and waits.
pub(crate) const READY: [&str; 5] = ["connect", "hello", "serve", "started=7", "hang"];

/// A directory with a shim and the state of its boxes.
pub(crate) struct Host {
    dir: TempDir,
}

/// A box on a host.
pub(crate) struct FakeBox {
    pub(crate) vm: VmManager,
    heard: Arc<Mutex<Vec<(SystemTime, EventKind)>>>,
    directory: PathBuf,
}

impl Host {
    pub(crate) fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("l").tempdir().unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lifecycle/shim");
        for (program, name) in [
            (script.as_path(), "shim"),
            (Path::new(env!("CARGO_BIN_EXE_a3s-box-shim")), "a3s-box-shim"),
            (Path::new(env!("CARGO_BIN_EXE_fake-guest")), "fake-guest"),
        ] {
            symlink(program, dir.path().join(name)).unwrap();
        }
        Self { dir }
    }

    pub(crate) fn state_dir(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    pub(crate) fn shim(&self) -> PathBuf {
        self.dir.path().join("shim")
    }

    /// A config whose guest plays `script`.
    pub(crate) fn config(&self, script: &[&str]) -> Value {
        json!({
            "id": "demo",
            "agent": {"boot_timeout_ms": 20_000},
            "process": {"args": script},
            "paths": {
                "state_dir": self.state_dir(),
                "cache_dir": self.dir.path().join("c"),
                // The fake VM only passes it on.
                "guest": "/bin/true",
            },
        })
    }

    /// A box whose guest plays `script`; nothing is started.
    pub(crate) fn new_box(&self, script: &[&str]) -> FakeBox {
        self.box_of(&self.config(script))
    }

    pub(crate) fn box_of(&self, config: &Value) -> FakeBox {
        let config = BoxConfig::from_json(config.to_string().as_bytes()).unwrap();
        let emitter = EventEmitter::new();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let hearing = Arc::clone(&heard);
        emitter.observe(move |event| {
            hearing.lock().unwrap().push((SystemTime::now(), event.kind.clone()));
        });
        let directory = self.state_dir().join(config.id.as_deref().unwrap());
        let vm = VmManager::new(config, emitter).with_shim(self.shim());
        FakeBox { vm, heard, directory }
    }

    /// What the state directory says about the box.
    pub(crate) fn record(&self) -> BoxRecord {
        inspect(&self.state_dir(), "demo").unwrap()
    }
}

impl FakeBox {
    pub(crate) fn events(&self) -> Vec<EventKind> {
        self.heard.lock().unwrap().iter().map(|(_, kind)| kind.clone()).collect()
    }

    /// When the first such event came.
    pub(crate) fn heard_at(&self, is_it: impl Fn(&EventKind) -> bool) -> Option<SystemTime> {
        let heard = self.heard.lock().unwrap();
        heard.iter().find(|(_, kind)| is_it(kind)).map(|(at, _)| *at)
    }

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

    /// Path in the state directory.
    pub(crate) fn state(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// When the guest played `stamp`.
    pub(crate) fn stamp(&self) -> SystemTime {
        let nanoseconds = fs::read_to_string(self.state("stamp")).unwrap().parse().unwrap();
        UNIX_EPOCH + Duration::from_nanos(nanoseconds)
    }
}

/// The future's output, within a bound.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap()
}

/// Waits until `is_so`.
pub(crate) async fn until(is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "not so within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
