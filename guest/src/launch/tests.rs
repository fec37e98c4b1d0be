//! Tests that start real programs of the host.

use std::ffi::CString;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

use tokio::sync::{Mutex, MutexGuard};

use super::*;
use crate::children::Children;
use crate::syscall::{Limit, Status, StringArray};

/// Limit for each wait, far above the usual time.
const PATIENCE: Duration = Duration::from_secs(20);

/// Keeps tests from running at the same time. `cargo test` runs them as threads of one process, and
/// one test would reap the children of another.
static SERIAL: Mutex<()> = Mutex::const_new(());

/// Waits until no other test with children runs.
pub(crate) async fn serial() -> MutexGuard<'static, ()> {
    SERIAL.lock().await
}

fn strings(texts: &[&str]) -> StringArray {
    StringArray::new(texts.iter().map(|text| CString::new(*text).unwrap()).collect())
}

pub(crate) fn command(program: &str, args: &[&str], env: &[&str]) -> Command {
    Command {
        program: CString::new(program).unwrap(),
        args: strings(args),
        env: strings(env),
        cwd: c"/".into(),
        credentials: None,
        limits: Vec::new(),
    }
}

fn shell(script: &str) -> Command {
    command("/bin/sh", &["sh", "-c", script], &["PATH=/usr/bin:/bin"])
}

/// Runs a command to its end. Returns standard output, standard error and the status.
async fn output(command: &Command) -> (Vec<u8>, Vec<u8>, Status) {
    timeout(PATIENCE, output_without_timeout(command)).await.expect("the program does not end")
}

async fn output_without_timeout(command: &Command) -> (Vec<u8>, Vec<u8>, Status) {
    let mut children = Children::watch().unwrap();
    let mut launched = launch(command).await.unwrap();
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let (a, b) = tokio::join!(
        launched.stdout.read_to_end(&mut stdout),
        launched.stderr.read_to_end(&mut stderr)
    );
    a.unwrap();
    b.unwrap();
    (stdout, stderr, children.wait_for(launched.pid).await)
}

/// Launches a command that must fail, and reaps its child.
async fn failure(command: &Command) -> LaunchError {
    let error = launch(command).await.unwrap_err();
    let mut children = Children::watch().unwrap();
    timeout(PATIENCE, children.wait_for_all()).await.expect("the child does not end");
    error
}

/// Writes an executable file and returns its path. The file exists as long as the directory.
fn script(content: &[u8], mode: u32) -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("program");
    std::fs::write(&path, content).unwrap();
    std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    let name = path.display().to_string();
    (directory, name)
}

#[tokio::test]
async fn returns_the_output_and_status_of_the_program() {
    let _serial = serial().await;
    let (stdout, stderr, status) = output(&shell("echo out; echo err >&2; exit 42")).await;
    assert_eq!((stdout.as_slice(), stderr.as_slice()), (&b"out\n"[..], &b"err\n"[..]));
    assert_eq!(status, Status::Exited(42));
}

#[tokio::test]
async fn reports_the_number_of_a_signal_also_of_a_real_time_signal() {
    let _serial = serial().await;
    for signal in [9, 15, 34, 64] {
        let (.., status) = output(&shell(&format!("kill -{signal} $$; sleep 5"))).await;
        assert_eq!(status, Status::Signaled(signal), "{signal}");
    }
}

#[tokio::test]
async fn the_program_starts_with_default_signal_actions_and_an_empty_mask() {
    let _serial = serial().await;
    let (stdout, ..) = output(&command("/bin/cat", &["cat", "/proc/self/status"], &[])).await;
    let text = String::from_utf8(stdout).unwrap();
    // This process ignores SIGPIPE (the Rust runtime) and catches SIGCHLD (tokio).
    for name in ["SigBlk", "SigIgn", "SigCgt"] {
        assert!(text.contains(&format!("{name}:\t0000000000000000\n")), "{text}");
    }
}

#[tokio::test]
async fn the_program_inherits_only_its_three_standard_streams() {
    let _serial = serial().await;
    // The test runner can leave descriptors without FD_CLOEXEC open. They are not counted.
    let inherited: Vec<String> = Path::new("/proc/self/fdinfo")
        .read_dir()
        .unwrap()
        .flatten()
        .filter(|entry| {
            let info = std::fs::read_to_string(entry.path()).unwrap_or_default();
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap_or("");
            i64::from_str_radix(flags.trim(), 8).unwrap_or(0) & i64::from(libc::O_CLOEXEC) == 0
        })
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    let program = command("/bin/ls", &["ls", "/proc/self/fd"], &[]);
    let (stdout, ..) = output(&program).await;
    let found = String::from_utf8(stdout).unwrap();
    let ours: Vec<&str> =
        found.lines().filter(|name| !inherited.iter().any(|known| known == name)).collect();
    // The one descriptor is the directory that `ls` reads.
    assert_eq!(ours.len(), 1, "{found} without {inherited:?}");
    let (stdout, ..) = output(&shell("readlink /proc/self/fd/0; umask")).await;
    assert_eq!(stdout, b"/dev/null\n0022\n");
}

#[tokio::test]
async fn the_program_is_the_leader_of_a_new_session() {
    let _serial = serial().await;
    let (stdout, ..) = output(&shell("echo $$; cut -d' ' -f5,6 /proc/$$/stat")).await;
    let text = String::from_utf8(stdout).unwrap();
    let numbers: Vec<&str> = text.split_whitespace().collect();
    assert!(
        matches!(numbers[..], [pid, group, session] if pid == group && pid == session),
        "{text}"
    );
}

#[tokio::test]
async fn arguments_and_environment_arrive_byte_for_byte() {
    let _serial = serial().await;
    let mut args: Vec<String> =
        (0..1000).map(|index| format!("{index} \"'$`\\\n\t ünï ")).collect();
    args[1] = String::new();
    let big = format!("BIG={}", "x".repeat(64 * 1024));
    let env = ["EMPTY=", "QUOTE=a \"b\" 'c'", "LINES=a\nb", "UNI=ünï☃", &big];
    let renamed =
        command("/bin/cat", &["renamed", "/proc/self/cmdline", "/proc/self/environ"], &env);
    let (stdout, ..) = output(&renamed).await;
    let mut expected = b"renamed\0/proc/self/cmdline\0/proc/self/environ\0".to_vec();
    for variable in env {
        expected.extend_from_slice(variable.as_bytes());
        expected.push(0);
    }
    assert!(stdout == expected, "{} of {} bytes", stdout.len(), expected.len());

    // The second command of the script keeps the shell from replacing itself with `cat`.
    let mut shell = vec!["sh", "-c", "cat /proc/$$/cmdline; :"];
    shell.extend(args.iter().map(String::as_str));
    let (stdout, ..) = output(&command("/bin/sh", &shell, &["PATH=/usr/bin:/bin"])).await;
    let expected = format!("{}\0", shell.join("\0"));
    assert!(stdout == expected.as_bytes(), "{} of {} bytes", stdout.len(), expected.len());
}

#[tokio::test]
async fn a_user_can_open_its_standard_streams_by_path() {
    let _serial = serial().await;
    assert!(nix::unistd::geteuid().is_root(), "this test needs root");
    let mut other = shell("echo out > /proc/self/fd/1; echo err > /proc/self/fd/2");
    other.credentials = Some(syscall::Credentials { uid: 1234, gid: 2345, groups: vec![] });
    let (stdout, stderr, _) = output(&other).await;
    assert_eq!((stdout.as_slice(), stderr.as_slice()), (&b"out\n"[..], &b"err\n"[..]));
}

#[tokio::test]
async fn reports_a_missing_program_as_not_found() {
    let _serial = serial().await;
    let error = failure(&command("/nonexistent/x", &["x"], &[])).await;
    assert_eq!(error.reason(), StartFailure::NotFound);
    assert_eq!(error.to_string(), "program `/nonexistent/x` does not exist");
}

#[tokio::test]
async fn reports_a_missing_interpreter_as_not_found_and_names_it() {
    let _serial = serial().await;
    let (_directory, path) = script(b"#!/nonexistent/sh -e\n", 0o755);
    let error = failure(&command(&path, &["x"], &[])).await;
    assert_eq!(error.reason(), StartFailure::NotFound);
    let message = error.to_string();
    assert_eq!(
        message,
        format!("interpreter `/nonexistent/sh` of program `{path}` does not exist")
    );
}

#[tokio::test]
async fn reports_a_file_that_cannot_run_as_not_executable() {
    let _serial = serial().await;
    // The first file has no execute permission. The second has no `#!`: execvp(3) would pass it to
    // a shell, execve(2) does not.
    let cases = [script(b"#!/bin/sh\nexit 3\n", 0o644), script(b"exit 3\n", 0o755)];
    for (_directory, path) in &cases {
        let error = failure(&command(path, &["x"], &[])).await;
        assert_eq!(error.reason(), StartFailure::NotExecutable, "{error}");
    }
    let error = failure(&command("/etc", &["x"], &[])).await;
    assert_eq!(error.reason(), StartFailure::NotExecutable);
    assert_eq!(error.to_string(), "program `/etc`: found a directory");
}

#[tokio::test]
async fn runs_a_script_with_an_interpreter() {
    let _serial = serial().await;
    let (_directory, path) = script(b"#!/bin/sh\nexit 3\n", 0o755);
    assert_eq!(output(&command(&path, &["x"], &[])).await.2, Status::Exited(3));
}

#[tokio::test]
async fn sets_limits_and_names_one_that_the_kernel_refuses() {
    let _serial = serial().await;
    let limit = |resource, soft, hard| Limit { resource, soft, hard };
    let mut limited = shell("ulimit -Sn; ulimit -Hn; ulimit -Sc");
    limited.limits = vec![limit(libc::RLIMIT_NOFILE, 100, 200), limit(libc::RLIMIT_CORE, 0, 0)];
    let (stdout, ..) = output(&limited).await;
    assert_eq!(stdout, b"100\n200\n0\n");
    limited.limits = vec![limit(libc::RLIMIT_CORE, 0, 0), limit(libc::RLIMIT_NOFILE, 2, 1)];
    let error = failure(&limited).await;
    assert_eq!(error.reason(), StartFailure::Setup);
    assert_eq!(error.to_string(), "cannot set rlimit 7 to 2 and 1 of the process");
}

#[tokio::test]
async fn enters_the_working_directory_or_names_it() {
    let _serial = serial().await;
    let mut here = shell("pwd");
    here.cwd = c"/etc".into();
    assert_eq!(output(&here).await.0, b"/etc\n");
    here.cwd = c"/nonexistent".into();
    let error = failure(&here).await;
    assert_eq!(error.reason(), StartFailure::Setup);
    assert!(error.to_string().contains("`/nonexistent`"), "{error}");
}

#[tokio::test]
async fn sets_the_user_and_exactly_its_groups() {
    let _serial = serial().await;
    assert!(nix::unistd::geteuid().is_root(), "this test needs root");
    let mut other = shell("id -u; id -g; id -G");
    other.credentials =
        Some(syscall::Credentials { uid: 1234, gid: 2345, groups: vec![3456, 4567] });
    let (stdout, ..) = output(&other).await;
    assert_eq!(stdout, b"1234\n2345\n2345 3456 4567\n");
}

#[tokio::test]
async fn enters_a_working_directory_that_only_root_can_enter() {
    let _serial = serial().await;
    assert!(nix::unistd::geteuid().is_root(), "this test needs root");
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), Permissions::from_mode(0o700)).unwrap();
    let mut other = shell("exit 5");
    other.cwd = CString::new(directory.path().as_os_str().as_bytes()).unwrap();
    other.credentials = Some(syscall::Credentials { uid: 1234, gid: 2345, groups: vec![] });
    assert_eq!(output(&other).await.2, Status::Exited(5));
}
