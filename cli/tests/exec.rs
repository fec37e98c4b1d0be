//! Runs `a3s-box exec` with the service of the guest program, without a VM.

#![expect(clippy::unwrap_used, reason = "a panic fails the test, as intended")]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use tempfile::TempDir;

/// The variable with the path of the socket, which makes a test process the service.
const SOCKET: &str = "A3S_BOX_TEST_EXEC_SOCKET";

/// Maximum time of a wait.
const MAX_WAIT: Duration = Duration::from_secs(20);

/// A state directory with the box `demo`, whose processes are those of a service without a VM.
struct Boxes {
    service: Child,
    directory: TempDir,
}

impl Boxes {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("demo")).unwrap();
        let socket = directory.path().join("demo/exec.sock");
        let service = Command::new(std::env::current_exe().unwrap())
            .args(["process_of_the_service", "--exact", "--ignored"])
            .env(SOCKET, &socket)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let boxes = Self { service, directory };
        wait_until("the service starts", || socket.exists());
        boxes
    }

    /// Returns the command `a3s-box exec` with these options and the rest of its command line.
    fn exec(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_a3s-box"));
        command.arg("exec").arg("--state-dir").arg(self.directory.path()).args(arguments);
        command
    }

    fn output(&self, arguments: &[&str]) -> Output {
        self.exec(arguments).stdin(Stdio::null()).output().unwrap()
    }
}

impl Drop for Boxes {
    fn drop(&mut self) {
        let _ignored = self.service.kill();
        let _ignored = self.service.wait();
    }
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < MAX_WAIT, "does not hold: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
#[ignore = "the process that the other tests start"]
fn process_of_the_service() {
    let Some(socket) = std::env::var_os(SOCKET) else { return };
    a3s_box_guest::serve_processes(UnixListener::bind(socket).unwrap(), None).unwrap();
}

#[test]
fn exit_status_is_that_of_docker() {
    let boxes = Boxes::start();
    for (arguments, expected) in [
        (&["demo", "sh", "-c", "exit 42"][..], 42),
        (&["demo", "sh", "-c", "kill -9 $$"], 137),
        (&["demo", "no-such-program"], 127),
        (&["demo", "/etc/passwd"], 126),
        (&["-u", "nobody-knows", "demo", "true"], 125),
        (&["other", "true"], 125),
        (&["no/id", "true"], 125),
        (&["-it", "demo", "true"], 125),
        (&["demo"], 2),
    ] {
        let output = boxes.output(arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(expected), "{arguments:?}: {error}");
        if [125, 126, 127].contains(&expected) {
            assert!(error.starts_with("a3s-box: ") && error.lines().count() == 1, "{error}");
        }
    }
}

#[test]
fn options_reach_the_command_and_streams_come_apart() {
    let boxes = Boxes::start();
    let script = "echo $A-$B-$C; pwd; id -u; cat; echo error >&2";
    let options = ["-i", "-w", "/usr", "-u", "12", "-e", "A=1", "-e", "B", "-e", "C"];
    let mut command = boxes.exec(&[&options[..], &["demo", "sh", "-c", script]].concat());
    command.env("B", "2").env_remove("C");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let input: Vec<u8> = (0..1_000_000_u32).map(|i| (i % 251) as u8).collect();
    let mut stdin = child.stdin.take().unwrap();
    let bytes = input.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&bytes).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert_eq!(output.stderr, b"error\n");
    assert!(output.stdout == [b"1-2-\n/usr\n12\n", input.as_slice()].concat());
}

#[test]
fn without_interactive_the_command_has_no_input() {
    let boxes = Boxes::start();
    let mut command = boxes.exec(&["demo", "cat"]);
    // Nobody writes to this pipe or closes it before the end of the command.
    let output = command.stdin(Stdio::piped()).output().unwrap();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), &b""[..]));
}

#[test]
fn detached_command_goes_on_and_signals_are_passed() {
    let boxes = Boxes::start();
    let file = boxes.directory.path().join("file");
    let script = format!("sleep 0.2; echo done >{}", file.display());
    let output = boxes.output(&["-d", "demo", "sh", "-c", &script]);
    assert_eq!(output.stdout, b"exec-1\n");
    wait_until("the command writes the file", || file.exists());

    let script = "trap 'echo got; exit 9' TERM; echo ready; while :; do sleep 0.01; done";
    let mut command = boxes.exec(&["demo", "sh", "-c", script]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 6]).unwrap();
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert_eq!((rest.as_str(), child.wait().unwrap().code()), ("got\n", Some(9)));
}

#[test]
fn command_ends_when_nobody_reads_its_output() {
    let boxes = Boxes::start();
    let mut command = boxes.exec(&["demo", "yes"]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdout.take().unwrap().read_exact(&mut [0; 2]).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(141));
}

#[test]
fn terminal_is_raw_meanwhile_and_restored_at_each_end() {
    let boxes = Boxes::start();
    for script in ["read a; exit 3", "read a; kill -9 $$"] {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).unwrap();
        unlockpt(&master).unwrap();
        let size = Winsize { ws_row: 12, ws_col: 34, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&master, size).unwrap();
        let terminal = ioctl_tiocgptpeer(&master, flags).unwrap();
        let modes = || tcgetattr(&terminal).unwrap().local_modes;
        let before = modes();
        let script = format!("stty size; {script}");
        let mut child = boxes
            .exec(&["-it", "demo", "sh", "-c", &script])
            .stdin(terminal.try_clone().unwrap())
            .stdout(terminal.try_clone().unwrap())
            .stderr(terminal.try_clone().unwrap())
            .spawn()
            .unwrap();
        let mut master = File::from(master);
        let mut found = Vec::new();
        while !found.ends_with(b"12 34\r\n") {
            let mut byte = [0];
            master.read_exact(&mut byte).unwrap();
            found.extend(byte);
        }
        assert!(!modes().intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG));
        master.write_all(b"\r").unwrap();
        let code = child.wait().unwrap().code();
        assert!(code == Some(3) || code == Some(137), "{code:?}");
        assert_eq!(modes(), before);
    }
}
