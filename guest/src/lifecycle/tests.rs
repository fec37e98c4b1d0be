//! Tests of the whole sequence without a VM. A socket pair takes the place of vsock, and pipes take
//! the place of console ports. Processes are real. Descendants of this process take the place of
//! all processes of a guest.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Mutex;

use a3s_box_proto::control::shim_message::Message as ToGuest;
use a3s_box_proto::control::{Acknowledged, GuestMessage, Kill, ShimMessage, Stop};
use a3s_box_proto::frame::{FrameBuffer, encode};
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;

use super::*;
use crate::launch::tests::{command, serial};
use crate::notify;

mod notices;

/// Limit for each wait, far above the usual time.
const PATIENCE: Duration = Duration::from_secs(20);

/// A machine whose processes are the descendants of this process.
struct FakeMachine {
    /// The result of `prepare`, which takes it.
    job: Mutex<Option<Result<Option<Job<pipe::Sender>>, StartError>>>,
}

impl Machine for FakeMachine {
    type Port = pipe::Sender;

    async fn prepare(&mut self, _exits: Exits) -> Result<Option<Job<Self::Port>>, StartError> {
        self.job.lock().unwrap().take().unwrap()
    }

    fn kill_everything(&self) {
        // `kill(-1)` would kill the processes of the host. Orphans are found, too, because this
        // process is a subreaper and becomes their parent. A whole process group is killed at once.
        // Otherwise a shell could exit by itself when its child is dead.
        while let Some(group) = living_group() {
            // An error means that the group has ended in the meantime.
            let _ = killpg(group, Signal::SIGKILL);
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Returns the process group of a descendant that is alive and not in the group of this process.
fn living_group() -> Option<Pid> {
    let mut processes = HashMap::new();
    for entry in PathBuf::from("/proc").read_dir().unwrap().flatten() {
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        let Some((start, rest)) = stat.rsplit_once(") ") else { continue };
        let pid = start.split(' ').next().unwrap().to_owned();
        let fields: Vec<String> = rest.split(' ').take(3).map(str::to_owned).collect();
        let [state, parent, group] = fields.try_into().unwrap();
        processes.insert(pid, (state, parent, group));
    }
    let own = std::process::id().to_string();
    let own_group = &processes.get(&own)?.2;
    processes.values().find_map(|(state, parent, group)| {
        let mut ancestor = parent;
        while *ancestor != own {
            ancestor = &processes.get(ancestor)?.1;
        }
        (state != "Z" && group != own_group).then(|| Pid::from_raw(group.parse().unwrap()))
    })
}

/// The guest's ends of the ports and of the notify socket.
struct Ports {
    stdout: pipe::Sender,
    stderr: pipe::Sender,
    notices: Notices,
}

impl Ports {
    fn job(self, command: Command) -> Job<pipe::Sender> {
        let Self { stdout, stderr, notices } = self;
        Job { command, stdout, stderr, notices }
    }
}

/// The shim's end of the control connection and of the ports, and the task of the guest.
struct Shim {
    /// Address of the notify socket.
    notify: String,
    stream: UnixStream,
    frames: FrameBuffer,
    stdout: Option<pipe::Receiver>,
    stderr: Option<pipe::Receiver>,
    guest: tokio::task::JoinHandle<Result<u8, LifecycleError>>,
}

impl Shim {
    /// Starts a guest whose machine prepares the result of `job`.
    fn with_job(job: impl FnOnce(Ports) -> Result<Option<Job<pipe::Sender>>, StartError>) -> Self {
        set_child_subreaper(true).unwrap();
        let (stream, guest_stream) = UnixStream::pair().unwrap();
        let (out, stdout) = pipe::pipe().unwrap();
        let (err, stderr) = pipe::pipe().unwrap();
        let notify = notify::tests::address();
        let ports = Ports { stdout: out, stderr: err, notices: Notices::bind(&notify).unwrap() };
        let mut machine = FakeMachine { job: Mutex::new(Some(job(ports))) };
        let guest =
            tokio::spawn(async move { run(&mut Control::new(guest_stream), &mut machine).await });
        let frames = FrameBuffer::default();
        Self { notify, stream, frames, stdout: Some(stdout), stderr: Some(stderr), guest }
    }

    /// Starts a guest whose workload is a shell script.
    fn with_script(script: &str) -> Self {
        let command = command("/bin/sh", &["sh", "-c", script], &["PATH=/usr/bin:/bin"]);
        Self::with_job(|ports| Ok(Some(ports.job(command))))
    }

    /// Returns the next message of the guest.
    async fn receive(&mut self) -> Message {
        timeout(PATIENCE, async {
            loop {
                if let Some(message) = self.frames.next_message::<GuestMessage>().unwrap() {
                    return message.message.unwrap();
                }
                let mut chunk = [0; 4096];
                let length = self.stream.read(&mut chunk).await.unwrap();
                assert!(length > 0, "the guest closed the connection");
                self.frames.push(&chunk[..length]);
            }
        })
        .await
        .expect("the guest sends no message")
    }

    async fn send(&mut self, message: ToGuest) {
        self.stream.write_all(&encode(&ShimMessage { message: Some(message) })).await.unwrap();
    }

    /// Receives `Hello` and `Started`, and returns the PID of the workload.
    async fn start(&mut self) -> u32 {
        let Message::Hello(hello) = self.receive().await else { panic!("expected Hello") };
        assert_eq!(hello.protocol_version, PROTOCOL_VERSION);
        let Message::Started(started) = self.receive().await else { panic!("expected Started") };
        started.pid
    }

    /// Receives `Exited` and returns its status.
    async fn ended(&mut self) -> exited::Status {
        let Message::Exited(exited) = self.receive().await else { panic!("expected Exited") };
        exited.status.unwrap()
    }

    /// Receives `Drained` and returns its numbers of bytes.
    async fn drained(&mut self) -> (u64, u64) {
        let Message::Drained(drained) = self.receive().await else { panic!("expected Drained") };
        (drained.stdout_bytes, drained.stderr_bytes)
    }

    /// Sends `Acknowledged` and returns the result of the guest.
    async fn acknowledge(mut self) -> Result<u8, LifecycleError> {
        self.send(ToGuest::Acknowledged(Acknowledged {})).await;
        timeout(PATIENCE, self.guest).await.expect("the guest does not end").unwrap()
    }

    /// Reads both output streams to their ends in the background.
    fn output(&mut self) -> tokio::task::JoinHandle<(Vec<u8>, Vec<u8>)> {
        let (mut stdout, mut stderr) = (self.stdout.take().unwrap(), self.stderr.take().unwrap());
        tokio::spawn(async move {
            let (mut out, mut err) = (Vec::new(), Vec::new());
            let (a, b) = tokio::join!(stdout.read_to_end(&mut out), stderr.read_to_end(&mut err));
            a.unwrap();
            b.unwrap();
            (out, err)
        })
    }
}

#[tokio::test]
async fn runs_a_workload_from_hello_to_acknowledged() {
    let _serial = serial().await;
    let mut shim = Shim::with_script("echo out; echo error >&2; exit 7");
    let output = shim.output();
    assert!(shim.start().await > 1);
    assert_eq!(shim.ended().await, exited::Status::ExitCode(7));
    assert_eq!(shim.drained().await, (4, 6));
    assert_eq!(shim.acknowledge().await.unwrap(), 7);
    assert_eq!(output.await.unwrap(), (b"out\n".to_vec(), b"error\n".to_vec()));
}

#[tokio::test]
async fn copies_large_output_completely_and_counts_it() {
    let _serial = serial().await;
    let mut shim = Shim::with_script("yes a3s-box | head -c 5000000; yes 2 | head -c 70001 >&2");
    let output = shim.output();
    shim.start().await;
    assert_eq!(shim.ended().await, exited::Status::ExitCode(0));
    assert_eq!(shim.drained().await, (5_000_000, 70_001));
    assert_eq!(shim.acknowledge().await.unwrap(), 0);
    let (out, err) = output.await.unwrap();
    assert_eq!((out.len(), err.len()), (5_000_000, 70_001));
    assert!(out.chunks_exact(8).all(|line| line == b"a3s-box\n"));
}

#[tokio::test]
async fn reaps_orphans_while_the_workload_runs() {
    let _serial = serial().await;
    // Each subshell exits and leaves its child to this process. A zombie would keep its directory
    // in /proc.
    let script = "for i in 1 2 3; do (sh -c 'echo $$' & ); done; sleep 0.5; echo done; read x < /proc/self/fd/9 || sleep 30";
    let mut shim = Shim::with_script(script);
    let mut stdout = shim.stdout.take().unwrap();
    shim.start().await;
    let mut text = String::new();
    while !text.contains("done") {
        let mut chunk = [0; 256];
        let length = timeout(PATIENCE, stdout.read(&mut chunk)).await.unwrap().unwrap();
        text.push_str(std::str::from_utf8(&chunk[..length]).unwrap());
    }
    let orphans: Vec<&str> = text.lines().filter(|line| *line != "done").collect();
    assert_eq!(orphans.len(), 3, "{text}");
    for orphan in orphans {
        assert!(!PathBuf::from("/proc").join(orphan).exists(), "{orphan} was not reaped");
    }
    shim.send(ToGuest::Kill(Kill {})).await;
    assert_eq!(shim.ended().await, exited::Status::Signal(9));
    shim.drained().await;
    assert_eq!(shim.acknowledge().await.unwrap(), 137);
}

#[tokio::test]
async fn kills_the_processes_that_the_workload_leaves_so_that_its_output_ends() {
    let _serial = serial().await;
    let mut shim = Shim::with_script("sleep 300 & sleep 300 & echo x; exit 1");
    let output = shim.output();
    shim.start().await;
    let before = std::time::Instant::now();
    assert_eq!(shim.ended().await, exited::Status::ExitCode(1));
    assert_eq!(shim.drained().await, (2, 0));
    assert!(before.elapsed() < DRAIN_TIMEOUT, "the drain reached its timeout");
    assert_eq!(shim.acknowledge().await.unwrap(), 1);
    assert_eq!(output.await.unwrap().0, b"x\n");
    assert_eq!(living_group(), None);
}

#[tokio::test]
async fn stop_sends_the_signal_of_the_order_to_the_workload() {
    let _serial = serial().await;
    let mut shim =
        Shim::with_script("trap 'exit 3' USR1; echo ready; while :; do sleep 0.05; done");
    let mut stdout = shim.stdout.take().unwrap();
    shim.start().await;
    let mut ready = [0; 6];
    timeout(PATIENCE, stdout.read_exact(&mut ready)).await.unwrap().unwrap();
    // These are no signal numbers, and nothing may happen. `u32::MAX` must not wrap around.
    for signal in [0, 65, u32::MAX] {
        shim.send(ToGuest::Stop(Stop { signal })).await;
    }
    shim.send(ToGuest::Stop(Stop { signal: 10 })).await;
    assert_eq!(shim.ended().await, exited::Status::ExitCode(3));
    shim.drained().await;
    shim.acknowledge().await.unwrap();
}

#[tokio::test]
async fn a_box_without_a_workload_runs_until_the_first_order() {
    let _serial = serial().await;
    for order in [ToGuest::Stop(Stop { signal: 15 }), ToGuest::Kill(Kill {})] {
        let mut shim = Shim::with_job(|_| Ok(None));
        assert_eq!(shim.start().await, 0);
        shim.send(order).await;
        assert_eq!(shim.ended().await, exited::Status::ExitCode(0));
        assert_eq!(shim.drained().await, (0, 0));
        assert_eq!(shim.acknowledge().await.unwrap(), 0);
    }
}

#[tokio::test]
async fn reports_why_a_program_cannot_start() {
    let _serial = serial().await;
    let cases = [
        ("/nonexistent/x", StartFailure::NotFound, 127),
        ("/etc/passwd", StartFailure::NotExecutable, 126),
    ];
    for (program, reason, code) in cases {
        let command = command(program, &["x"], &[]);
        let mut shim = Shim::with_job(|ports| Ok(Some(ports.job(command))));
        assert!(matches!(shim.receive().await, Message::Hello(_)));
        let Message::StartFailed(failed) = shim.receive().await else {
            panic!("expected StartFailed")
        };
        assert_eq!(failed.reason(), reason);
        assert!(failed.message.contains(program), "{}", failed.message);
        assert_eq!(shim.acknowledge().await.unwrap(), code);
    }
}

#[tokio::test]
async fn reports_a_failed_setup_with_a_text_of_limited_length() {
    let _serial = serial().await;
    let found = "ü".repeat(MESSAGE_BYTES);
    let mut shim = Shim::with_job(|_| Err(MountError::BadTarget { found }.into()));
    assert!(matches!(shim.receive().await, Message::Hello(_)));
    let Message::StartFailed(failed) = shim.receive().await else { panic!("expected StartFailed") };
    assert_eq!(failed.reason(), StartFailure::Setup);
    assert!(failed.message.starts_with("mount target `ü"));
    assert!(failed.message.len() <= MESSAGE_BYTES);
    assert_eq!(shim.acknowledge().await.unwrap(), 125);
}

#[tokio::test]
async fn the_loss_of_the_shim_ends_the_box() {
    let _serial = serial().await;
    let mut shim = Shim::with_script("exec sleep 300");
    shim.start().await;
    drop(shim.stream);
    let error = timeout(PATIENCE, shim.guest).await.unwrap().unwrap().unwrap_err();
    assert!(matches!(error, LifecycleError::Control(ControlError::Closed)), "{error}");
    // The workload is still running: in a real guest, the reboot kills it.
    FakeMachine { job: Mutex::default() }.kill_everything();
}

#[tokio::test]
async fn a_malformed_message_of_the_shim_ends_the_box() {
    let _serial = serial().await;
    for malformed in [&[0xff; 8][..], &[0, 0, 0, 0][..], &[2, 0, 0, 0, 0xff, 0xff][..]] {
        let mut shim = Shim::with_job(|_| Ok(None));
        shim.start().await;
        shim.stream.write_all(malformed).await.unwrap();
        let error = timeout(PATIENCE, shim.guest).await.unwrap().unwrap().unwrap_err();
        assert!(
            matches!(
                error,
                LifecycleError::Control(ControlError::Frame(_) | ControlError::Unknown)
            ),
            "{error}"
        );
    }
}

#[tokio::test]
async fn executes_orders_while_the_host_does_not_read_a_port() {
    let _serial = serial().await;
    let mut shim = Shim::with_script("yes");
    shim.start().await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    shim.send(ToGuest::Kill(Kill {})).await;
    let before = std::time::Instant::now();
    assert_eq!(shim.ended().await, exited::Status::Signal(9));
    assert!(before.elapsed() < Duration::from_secs(2), "{:?}", before.elapsed());
    let (out, err) = shim.drained().await;
    assert!(before.elapsed() >= DRAIN_TIMEOUT);
    assert!((1..=200_000).contains(&out), "{out}");
    assert_eq!(err, 0);
    assert_eq!(shim.acknowledge().await.unwrap(), 137);
}

#[tokio::test]
async fn ends_without_an_acknowledgement_after_the_timeout() {
    let _serial = serial().await;
    let mut shim = Shim::with_script("exit 0");
    shim.start().await;
    shim.ended().await;
    shim.drained().await;
    let before = std::time::Instant::now();
    let code = timeout(PATIENCE, &mut shim.guest).await.unwrap().unwrap().unwrap();
    assert_eq!(code, 0);
    assert!(before.elapsed() >= ACKNOWLEDGE_TIMEOUT);
}
