//! Processes in a running box: the socket, and the service of the guest program behind it.

use std::io::Read;
use std::time::{Duration, Instant};

use a3s_box_core::BoxDir;
use a3s_box_runtime::exec::{BoxProcesses, Command, ExecError, ProcessEnd};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::harness::{RunningShim, start};

/// A guest that becomes ready, serves processes, and ends when it is told to.
const SERVING: [&str; 8] =
    ["connect", "hello", "serve", "serve-exec", "started=7", "obey-stop", "drained", "wait-ack"];

/// Changes a config so that the fake guest keeps the root of the host, in which it starts programs.
fn with_root_of_host(config: &mut Value) {
    config["confinement"] = json!({"level": "none"});
}

fn client(running: &RunningShim) -> BoxProcesses {
    let state_dir = running.box_path("").parent().unwrap().parent().unwrap().to_owned();
    BoxProcesses::of(&BoxDir::new(&state_dir, &"golden".parse().unwrap()))
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let timed = async { tokio::time::timeout(Duration::from_secs(20), future).await.unwrap() };
    runtime.block_on(timed)
}

/// Runs a command, and returns its end and its output.
async fn run(client: &BoxProcesses, script: &str) -> (ProcessEnd, Vec<u8>) {
    let process = client.run(Command::new("sh").args(["-c", script])).await.unwrap();
    let output = process.wait_with_output().await.unwrap();
    (output.exit.end, output.stdout)
}

fn wait_for_socket(running: &RunningShim) {
    let start = Instant::now();
    while !running.box_path("exec.sock").exists() {
        assert!(start.elapsed() < Duration::from_secs(10), "the guest made no socket");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn stop(running: &RunningShim) {
    kill(Pid::from_raw(running.child.id().cast_signed()), Signal::SIGTERM).unwrap();
}

#[test]
fn socket_of_a_box_leads_to_the_processes_of_its_guest_until_its_end() {
    let mut running = start(&SERVING, with_root_of_host);
    running.wait_for("agent.ready");
    wait_for_socket(&running);
    let client = client(&running);
    block_on(async {
        assert_eq!(run(&client, "echo out; exit 7").await, (ProcessEnd::Code(7), b"out\n".into()));
        assert_eq!(run(&client, "kill -9 $$").await.0, ProcessEnd::Signal(9));
    });
    stop(&running);
    let socket = running.box_path("exec.sock");
    let run = running.wait();
    assert_eq!(run.status.code(), Some(143), "{}", run.stderr);
    assert!(!socket.exists());
    let error = block_on(client.run(&Command::new("true"))).unwrap_err();
    assert!(matches!(error, ExecError::Unreachable { .. }), "{error}");
}

#[test]
fn box_without_exec_has_neither_port_nor_socket() {
    // The step fails, because the shim has added no such port.
    let running = start(&SERVING, |config| {
        with_root_of_host(config);
        config["agent"]["exec"] = json!(false);
    });
    let client = client(&running);
    let socket = running.box_path("exec.sock");
    let run = running.wait();
    assert_eq!(run.ending().1, "failed", "{}", run.stderr);
    assert!(!socket.exists());
    let error = block_on(client.list()).unwrap_err();
    assert!(matches!(error, ExecError::Unreachable { .. }), "{error}");
}

#[test]
fn exec_is_on_with_each_provider() {
    for provider in ["builtin", "image", "none"] {
        let script = ["connect", "hello", "serve-standard", "serve-exec", "started=7", "hang"];
        let mut running = start(&script, |config| {
            with_root_of_host(config);
            config["agent"] = json!({"provider": provider, "readiness": "started"});
        });
        running.wait_for("guest.started");
        wait_for_socket(&running);
        let client = client(&running);
        assert_eq!(block_on(run(&client, "exit 3")).0, ProcessEnd::Code(3), "{provider}");
        running.child.kill().unwrap();
        let mut log = String::new();
        running.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        running.child.wait().unwrap();
        assert!(!log.contains("panicked"), "{log}");
    }
}
