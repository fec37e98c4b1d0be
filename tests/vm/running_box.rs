//! A box that waits for its stop, with clients of its processes and files.

use a3s_box_core::BoxDir;
use a3s_box_runtime::exec::{BoxProcesses, Command, Output};
use a3s_box_runtime::files::BoxFiles;
use a3s_box_vm_tests::{PATIENCE, Shim};
use nix::sys::signal::Signal;
use serde_json::json;
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

/// A box whose workload waits for its end and has the variable `A`.
pub(crate) struct RunningBox {
    pub(crate) shim: Shim,
    pub(crate) files: BoxFiles,
    pub(crate) processes: BoxProcesses,
    runtime: Runtime,
}

impl RunningBox {
    pub(crate) fn start() -> Self {
        let script = "trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done";
        let process = json!({"args": ["sh", "-c", script], "env": {"A": "1"}});
        let mut shim = Shim::start_with(&process, |_| {});
        shim.wait_for("agent.ready");
        let state_dir = shim.state().parent().unwrap().to_owned();
        let directory = BoxDir::new(&state_dir, &"test".parse().unwrap());
        let (files, processes) = (BoxFiles::of(&directory), BoxProcesses::of(&directory));
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        Self { shim, files, processes, runtime }
    }

    /// Returns the result of a call, which must come in time.
    pub(crate) fn wait_for<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(async { timeout(PATIENCE, future).await.unwrap() })
    }

    /// Returns what a script in the guest has printed, and how it ended.
    pub(crate) fn run(&self, script: &str) -> Output {
        self.wait_for(async {
            let process = self.processes.run(&shell(script)).await.unwrap();
            process.wait_with_output().await.unwrap()
        })
    }

    pub(crate) fn stop(mut self) {
        self.shim.send(Signal::SIGTERM);
        self.shim.ends_with(0, "stopped", None);
    }
}

/// Returns the command that runs a script.
pub(crate) fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    command
}
