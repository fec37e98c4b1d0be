//! Processes in a running box, in a real guest.

use std::time::Duration;

use a3s_box_runtime::exec::{Command, ExecError, Process, ProcessEnd, Refusal, TerminalSize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Builder;
use tokio::time::sleep;

use crate::running_box::{RunningBox, shell};

/// Reads standard output until it has `text`.
async fn read_until(process: &mut Process, text: &str) -> String {
    let mut found = Vec::new();
    while !String::from_utf8_lossy(&found).contains(text) {
        found.push(process.stdout.as_mut().unwrap().read_u8().await.unwrap());
    }
    String::from_utf8(found).unwrap()
}

#[test]
fn ends_streams_and_failures_of_processes_are_exact() {
    let running = RunningBox::start();
    for code in [0, 1, 126, 127, 255] {
        let exit = running.run(&format!("exit {code}")).exit;
        assert_eq!(exit.end, ProcessEnd::Code(code));
    }
    assert_eq!(running.run("kill -9 $$").exit.end, ProcessEnd::Signal(9));
    let output = running.run("echo $A; echo error >&2");
    assert_eq!((output.stdout, output.stderr), (b"1\n".to_vec(), b"error\n".to_vec()));
    let error = running.wait_for(running.processes.run(&Command::new("nothing"))).unwrap_err();
    assert!(matches!(error, ExecError::Refused { refusal: Refusal::NotFound, .. }), "{error}");
    // The limit of a process is the kernel's, and not the raised one of PID 1.
    assert_eq!(running.run("ulimit -n").stdout, b"1024\n");
    running.stop();
}

#[test]
fn bytes_pass_both_ways_and_a_terminal_works() {
    const BYTES: u32 = 8 << 20;
    let running = RunningBox::start();
    running.wait_for(async {
        let sent: Vec<u8> =
            (0..BYTES).map(|i| i.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
        let mut command = Command::new("cat");
        let mut process = running.processes.run(command.stdin(true)).await.unwrap();
        let mut stdin = process.stdin.take().unwrap();
        let bytes = sent.clone();
        let writer = tokio::spawn(async move { stdin.write_all(&bytes).await.unwrap() });
        let mut received = Vec::new();
        process.stdout.take().unwrap().read_to_end(&mut received).await.unwrap();
        writer.await.unwrap();
        assert!(received == sent, "{} bytes came back", received.len());
        let size = TerminalSize { rows: 33, columns: 111 };
        let script = "stty size; read line; stty size; exec sleep 1000";
        let mut process = running.processes.run(shell(script).terminal(size)).await.unwrap();
        read_until(&mut process, "33 111\r\n").await;
        process.resize(TerminalSize { rows: 5, columns: 6 }).await.unwrap();
        process.stdin.as_mut().unwrap().write_all(b"\n").await.unwrap();
        read_until(&mut process, "5 6\r\n").await;
        process.stdin.as_mut().unwrap().write_all(b"\x03").await.unwrap();
        let exit = process.wait().await.unwrap();
        assert_eq!(exit.end, ProcessEnd::Signal(2));
    });
    running.stop();
}

#[test]
fn dropped_process_takes_its_descendants_with_it() {
    let running = RunningBox::start();
    running.wait_for(async {
        let script = "trap '' TERM HUP
                      for i in 1 2 3 4 5 6 7 8 9 10; do ( setsid sleep 1000 & ) & done; wait
                      echo started; while :; do sleep 1000; done";
        let mut process = running.processes.run(&shell(script)).await.unwrap();
        read_until(&mut process, "started").await;
        drop(process);
        let count = "cat /sys/fs/cgroup/a3s-box-exec/*/cgroup.procs | wc -l";
        loop {
            let process = running.processes.run(&shell(count)).await.unwrap();
            let text = process.wait_with_output().await.unwrap().stdout;
            let count: u32 = String::from_utf8(text).unwrap().trim().parse().unwrap();
            // Only the shell itself and the two commands of the pipe are left.
            if count <= 3 {
                break;
            }
            sleep(Duration::from_millis(50)).await;
        }
    });
    running.stop();
}

#[test]
fn client_that_does_not_read_delays_neither_others_nor_the_stop() {
    let running = RunningBox::start();
    // This runtime is not driven any more after the start, so nobody reads the sockets.
    let stopped = Builder::new_current_thread().enable_all().build().unwrap();
    let processes: Vec<Process> = ["yes", "while :; do echo -n x; done"]
        .map(|script| stopped.block_on(running.processes.run(&shell(script))).unwrap())
        .into();
    // The processes fill all buffers meanwhile.
    for _ in 0..20 {
        assert_eq!(running.run("head -c 100000 /dev/zero").stdout.len(), 100_000);
    }
    assert_eq!(running.wait_for(running.processes.list()).unwrap().len(), 2);
    running.stop();
    drop(processes);
}
