use std::ffi::CString;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

use tokio::sync::{Mutex, MutexGuard};

use super::*;
use crate::children::Children;
use crate::syscall::{Limit, Status, StringArray};

const PATIENCE: Duration = Duration::from_secs(20);

/// Children belong to the process: without nextest, tests are threads of one.
static SERIAL: Mutex<()> = Mutex::const_new(());

pub(crate) async fn serial() -> MutexGuard<'static, ()> {
    SERIAL.lock().await
}

fn strings(texts: &[&str]) -> StringArray {
    StringArray::new(texts.iter().map(|text| CString::new(*text).unwrap()).collect())
}

pub(crate) fn image(program: &str, args: &[&str], env: &[&str]) -> Image {
    Image {
        program: CString::new(program).unwrap(),
        args: strings(args),
        env: strings(env),
        cwd: c"/".into(),
        credentials: None,
        limits: Vec::new(),
    }
}

fn shell(script: &str) -> Image {
    image("/bin/sh", &["sh", "-c", script], &["PATH=/usr/bin:/bin"])
}

/// Runs to the end: what was written, and how it ended.
async fn output(image: &Image) -> (Vec<u8>, Vec<u8>, Status) {
    timeout(PATIENCE, output_unbounded(image)).await.expect("the program does not end")
}

async fn output_unbounded(image: &Image) -> (Vec<u8>, Vec<u8>, Status) {
    let mut children = Children::watch().unwrap();
    let mut launched = launch(image).await.unwrap();
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let (a, b) = tokio::join!(
        launched.stdout.read_to_end(&mut stdout),
        launched.stderr.read_to_end(&mut stderr)
    );
    a.unwrap();
    b.unwrap();
    (stdout, stderr, children.wait_for(launched.pid).await)
}

async fn failure(image: &Image) -> LaunchError {
    let error = launch(image).await.unwrap_err();
    let mut children = Children::watch().unwrap();
    timeout(PATIENCE, children.wait_for_all()).await.expect("the child does not end");
    error
}

fn script(content: &[u8], mode: u32) -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("program");
    std::fs::write(&path, content).unwrap();
    std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    let name = path.display().to_string();
    (directory, name)
}

#[tokio::test]
async fn streams_and_status_are_the_programs_own() {
    let _serial = serial().await;
    let (stdout, stderr, status) = output(&shell("echo out; echo err >&2; exit 42")).await;
    assert_eq!((stdout.as_slice(), stderr.as_slice()), (&b"out\n"[..], &b"err\n"[..]));
    assert_eq!(status, Status::Exited(42));
}

#[tokio::test]
async fn a_signal_is_reported_as_its_number_even_a_real_time_one() {
    let _serial = serial().await;
    for signal in [9, 15, 34, 64] {
        let (.., status) = output(&shell(&format!("kill -{signal} $$; sleep 5"))).await;
        assert_eq!(status, Status::Signaled(signal), "{signal}");
    }
}

#[tokio::test]
async fn the_program_starts_with_default_signals() {
    let _serial = serial().await;
    let (stdout, ..) = output(&image("/bin/cat", &["cat", "/proc/self/status"], &[])).await;
    let text = String::from_utf8(stdout).unwrap();
    // Rust ignores SIGPIPE, tokio catches SIGCHLD: neither may reach the program.
    for name in ["SigBlk", "SigIgn", "SigCgt"] {
        assert!(text.contains(&format!("{name}:\t0000000000000000\n")), "{text}");
    }
}

#[tokio::test]
async fn the_program_gets_its_three_descriptors_and_no_other() {
    let _serial = serial().await;
    // What a test runner leaves open for everyone is not ours.
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
    let program = image("/bin/ls", &["ls", "/proc/self/fd"], &[]);
    let (stdout, ..) = output(&program).await;
    let found = String::from_utf8(stdout).unwrap();
    let ours: Vec<&str> =
        found.lines().filter(|name| !inherited.iter().any(|known| known == name)).collect();
    // The directory that `ls` reads.
    assert_eq!(ours.len(), 1, "{found} without {inherited:?}");
    let (stdout, ..) = output(&shell("readlink /proc/self/fd/0; umask")).await;
    assert_eq!(stdout, b"/dev/null\n0022\n");
}

#[tokio::test]
async fn the_program_leads_a_session_of_its_own() {
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
    let image = image("/bin/cat", &["renamed", "/proc/self/cmdline", "/proc/self/environ"], &env);
    let (stdout, ..) = output(&image).await;
    let mut expected = b"renamed\0/proc/self/cmdline\0/proc/self/environ\0".to_vec();
    for variable in env {
        expected.extend_from_slice(variable.as_bytes());
        expected.push(0);
    }
    assert!(stdout == expected, "{} of {} bytes", stdout.len(), expected.len());

    // The second command keeps the shell from becoming `cat`.
    let mut shell = vec!["sh", "-c", "cat /proc/$$/cmdline; :"];
    shell.extend(args.iter().map(String::as_str));
    let (stdout, ..) = output(&self::image("/bin/sh", &shell, &["PATH=/usr/bin:/bin"])).await;
    let expected = format!("{}\0", shell.join("\0"));
    assert!(stdout == expected.as_bytes(), "{} of {} bytes", stdout.len(), expected.len());
}

#[tokio::test]
async fn the_user_may_open_its_own_streams() {
    let _serial = serial().await;
    assert!(nix::unistd::geteuid().is_root(), "this test needs root");
    let mut other = shell("echo out > /proc/self/fd/1; echo err > /proc/self/fd/2");
    other.credentials = Some(syscall::Credentials { uid: 1234, gid: 2345, groups: vec![] });
    let (stdout, stderr, _) = output(&other).await;
    assert_eq!((stdout.as_slice(), stderr.as_slice()), (&b"out\n"[..], &b"err\n"[..]));
}

#[tokio::test]
async fn what_does_not_exist_is_not_found() {
    let _serial = serial().await;
    let error = failure(&image("/nonexistent/x", &["x"], &[])).await;
    assert_eq!(error.reason(), StartFailure::NotFound);
    assert_eq!(error.to_string(), "program `/nonexistent/x` does not exist");
}

#[tokio::test]
async fn a_missing_interpreter_is_not_found_and_named() {
    let _serial = serial().await;
    let (_directory, path) = script(b"#!/nonexistent/sh -e\n", 0o755);
    let error = failure(&image(&path, &["x"], &[])).await;
    assert_eq!(error.reason(), StartFailure::NotFound);
    let message = error.to_string();
    assert_eq!(
        message,
        format!("interpreter `/nonexistent/sh` of program `{path}` does not exist")
    );
}

#[tokio::test]
async fn what_exists_and_cannot_run_is_not_executable() {
    let _serial = serial().await;
    // No exec bit, no `#!` (a C library's execvp would give it to a shell), a directory.
    let cases = [script(b"#!/bin/sh\nexit 3\n", 0o644), script(b"exit 3\n", 0o755)];
    for (_directory, path) in &cases {
        let error = failure(&image(path, &["x"], &[])).await;
        assert_eq!(error.reason(), StartFailure::NotExecutable, "{error}");
    }
    let error = failure(&image("/etc", &["x"], &[])).await;
    assert_eq!(error.reason(), StartFailure::NotExecutable);
    assert_eq!(error.to_string(), "program `/etc`: found a directory");
}

#[tokio::test]
async fn a_script_with_an_interpreter_runs() {
    let _serial = serial().await;
    let (_directory, path) = script(b"#!/bin/sh\nexit 3\n", 0o755);
    assert_eq!(output(&image(&path, &["x"], &[])).await.2, Status::Exited(3));
}

#[tokio::test]
async fn limits_are_set_and_a_refused_one_is_named() {
    let _serial = serial().await;
    let limit = |resource, soft, hard| Limit { resource, soft, hard };
    let mut limited = shell("ulimit -Sn; ulimit -Hn; ulimit -Sc");
    limited.limits = vec![limit(libc::RLIMIT_NOFILE, 100, 200), limit(libc::RLIMIT_CORE, 0, 0)];
    let (stdout, ..) = output(&limited).await;
    assert_eq!(stdout, b"100\n200\n0\n");
    limited.limits = vec![limit(libc::RLIMIT_CORE, 0, 0), limit(libc::RLIMIT_NOFILE, 2, 1)];
    let error = failure(&limited).await;
    assert_eq!(error.reason(), StartFailure::Setup);
    assert_eq!(error.to_string(), "cannot set rlimit 7 to 2 and 1 of the workload");
}

#[tokio::test]
async fn the_working_directory_is_entered_or_named() {
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
async fn the_user_and_exactly_its_groups_are_assumed() {
    let _serial = serial().await;
    assert!(nix::unistd::geteuid().is_root(), "this test needs root");
    let mut other = shell("id -u; id -g; id -G");
    other.credentials =
        Some(syscall::Credentials { uid: 1234, gid: 2345, groups: vec![3456, 4567] });
    let (stdout, ..) = output(&other).await;
    assert_eq!(stdout, b"1234\n2345\n2345 3456 4567\n");
}

#[tokio::test]
async fn root_enters_a_directory_that_the_user_may_not() {
    let _serial = serial().await;
    assert!(nix::unistd::geteuid().is_root(), "this test needs root");
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), Permissions::from_mode(0o700)).unwrap();
    let mut other = shell("exit 5");
    other.cwd = CString::new(directory.path().as_os_str().as_bytes()).unwrap();
    other.credentials = Some(syscall::Credentials { uid: 1234, gid: 2345, groups: vec![] });
    assert_eq!(output(&other).await.2, Status::Exited(5));
}
