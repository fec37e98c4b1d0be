//! Processes in a box: `exec` with the service of the guest program.

#![expect(clippy::unwrap_used, reason = "a failed setup fails the test")]

use std::time::Duration;

use a3s_box_core::{BoxConfig, EventEmitter};
use a3s_box_runtime::VmManager;
use a3s_box_runtime::exec::{
    BoxProcesses, Command, ExecError, Process, ProcessEnd, ProcessExit, Refusal, TerminalSize,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::sleep;

use crate::harness::in_time;
use crate::service::Service;

fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    command
}

async fn end_of(client: &BoxProcesses, command: &Command) -> ProcessEnd {
    let mut process = client.run(command).await.unwrap();
    process.wait().await.unwrap().end
}

/// Reads standard output until it has `text`.
async fn read_until(process: &mut Process, text: &str) -> String {
    let mut found = Vec::new();
    while !String::from_utf8_lossy(&found).contains(text) {
        let byte = in_time(process.stdout.as_mut().unwrap().read_u8()).await;
        found.push(byte.unwrap_or_else(|error| {
            panic!("{error}: {:?} has no {text:?}", String::from_utf8_lossy(&found))
        }));
    }
    String::from_utf8(found).unwrap()
}

#[tokio::test]
async fn exit_status_and_signal_are_exact() {
    let service = Service::start();
    let client = service.client();
    in_time(async {
        for code in [0, 1, 42, 126, 127, 128, 255] {
            let end = end_of(&client, &shell(&format!("exit {code}"))).await;
            assert_eq!(end, ProcessEnd::Code(code));
        }
        for signal in [1, 2, 9, 15, 34, 64] {
            let end = end_of(&client, &shell(&format!("kill -{signal} $$; sleep 60"))).await;
            assert_eq!(end, ProcessEnd::Signal(signal));
        }
    })
    .await;
}

#[tokio::test]
async fn output_of_both_streams_comes_apart_and_is_counted() {
    let service = Service::start();
    let process = service.client().run(&shell("echo out; echo error >&2; exit 3")).await.unwrap();
    assert!(process.stdin.is_none());
    let output = in_time(process.wait_with_output()).await.unwrap();
    assert_eq!((output.stdout, output.stderr), (b"out\n".to_vec(), b"error\n".to_vec()));
    let exit = ProcessExit {
        end: ProcessEnd::Code(3),
        stdout_bytes: 4,
        stderr_bytes: 6,
        deadline_exceeded: false,
    };
    assert_eq!(output.exit, exit);
}

#[tokio::test]
async fn refusals_are_typed() {
    let service = Service::start();
    let client = service.client();
    let mut cases = vec![
        (Command::new("no-such-program"), Refusal::NotFound),
        (Command::new("/no/such/program"), Refusal::NotFound),
        (Command::new("/etc/passwd"), Refusal::NotExecutable),
        (Command::new("/etc"), Refusal::NotExecutable),
        (shell("nul\0"), Refusal::Invalid),
    ];
    type Change = fn(&mut Command) -> &mut Command;
    let changes: [(Change, Refusal); 6] = [
        (|command| command.user("no-such-user").id("a"), Refusal::NoSuchUser),
        (|command| command.user("root:no-such-group").id("a"), Refusal::NoSuchUser),
        (|command| command.current_dir("relative").id("a"), Refusal::Invalid),
        (|command| command.current_dir("/no/such/directory").id("a"), Refusal::Setup),
        (|command| command.id("not an id"), Refusal::Invalid),
        (|command| command.rlimit(7, 2, 1).id("a"), Refusal::Setup),
    ];
    for (change, refusal) in changes {
        let mut command = Command::new("true");
        change(&mut command);
        cases.push((command, refusal));
    }
    for (command, expected) in cases {
        let error = in_time(client.run(&command)).await.unwrap_err();
        let ExecError::Refused { refusal, message } = error else { panic!("{error}") };
        assert_eq!(refusal, expected, "{command:?}: {message}");
    }
    // A process that was not started leaves nothing, and its id is free.
    assert_eq!(in_time(client.list()).await.unwrap(), []);
    assert_eq!(service.cgroups(), 0);
    for error in [
        in_time(client.attach("a")).await.unwrap_err(),
        in_time(client.wait("a")).await.unwrap_err(),
        in_time(client.signal("a", 15)).await.unwrap_err(),
        in_time(client.resize("a", TerminalSize { rows: 1, columns: 1 })).await.unwrap_err(),
    ] {
        let refused = matches!(error, ExecError::Refused { refusal: Refusal::NoSuchProcess, .. });
        assert!(refused, "{error}");
    }
}

#[tokio::test]
async fn ten_thousand_arguments_arrive_byte_for_byte() {
    let service = Service::start();
    let args: Vec<String> = (0..10_000_u32)
        .map(|i| format!("{i}\u{7f}\t\n'\"\\ü{}", "x".repeat(i as usize % 90)))
        .collect();
    let mut command = shell(r#"printf '%s\0' "$@""#);
    command.arg("sh").args(args.clone());
    let process = in_time(service.client().run(&command)).await.unwrap();
    let output = in_time(process.wait_with_output()).await.unwrap();
    let expected: Vec<u8> = args.iter().flat_map(|arg| [arg.as_bytes(), b"\0"].concat()).collect();
    assert!(output.stdout == expected, "{} of {} bytes", output.stdout.len(), expected.len());
}

#[tokio::test]
async fn environment_directory_and_user_are_those_of_the_command() {
    let service = Service::start();
    let client = service.client();
    let run = async |command: &Command| {
        let process = client.run(command).await.unwrap();
        String::from_utf8(in_time(process.wait_with_output()).await.unwrap().stdout).unwrap()
    };
    let mut command = Command::new("env");
    command.env_clear().env("A", "1").env("A", "b=\nü");
    // Without a PATH, the default one finds `env`.
    assert_eq!(run(&command).await, "A=b=\nü\nHOME=/root\n");
    let mut command = shell("pwd; id -u; id -g; ulimit -n");
    command.current_dir("/usr/bin").user("12:34").rlimit(7, 123, 456);
    assert_eq!(run(&command).await, "/usr/bin\n12\n34\n123\n");
    // Another user may open its own standard output by its path.
    let mut command = shell("echo x >/dev/stdout");
    command.user("12");
    assert_eq!(run(&command).await, "x\n");
}

#[tokio::test]
async fn bytes_pass_both_ways_unchanged() {
    const BYTES: usize = 64 << 20;
    const BLOCK: usize = 100_003;
    // The sequence has no period that a lost or doubled block could hide behind.
    fn block(random: &mut u64) -> Vec<u8> {
        (0..BLOCK)
            .map(|_| {
                *random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (*random >> 56) as u8
            })
            .collect()
    }
    let service = Service::start();
    let mut command = Command::new("cat");
    let mut process = service.client().run(command.stdin(true)).await.unwrap();
    let mut stdin = process.stdin.take().unwrap();
    let mut stdout = process.stdout.take().unwrap();
    let blocks = BYTES.div_ceil(BLOCK);
    let writer = tokio::spawn(async move {
        let mut random = 7;
        for _ in 0..blocks {
            stdin.write_all(&block(&mut random)).await.unwrap();
        }
        stdin.shutdown().await.unwrap();
    });
    let mut random = 7;
    let mut found = vec![0; BLOCK];
    for i in 0..blocks {
        in_time(stdout.read_exact(&mut found)).await.unwrap();
        assert!(found == block(&mut random), "block {i} differs");
    }
    assert_eq!(in_time(stdout.read(&mut found)).await.unwrap(), 0);
    in_time(writer).await.unwrap();
    let exit = in_time(process.wait()).await.unwrap();
    assert_eq!((exit.end, exit.stdout_bytes), (ProcessEnd::Code(0), (blocks * BLOCK) as u64));
}

/// A shell that starts 50 processes, which detach themselves and ignore SIGTERM, and then waits.
const TREE: &str = r#"
    for i in 1 2 3 4 5 6 7 8 9 10; do
        ( trap '' TERM HUP; for j in 1 2 3 4 5; do setsid sleep 1000 & done ) &
    done
    wait
    echo started
    trap '' TERM HUP
    while :; do sleep 1000; done
"#;

#[tokio::test]
async fn dropping_kills_all_descendants_and_nothing_else() {
    let service = Service::start();
    let client = service.client();
    let mut other = client.run(&shell("echo here; exec sleep 1000")).await.unwrap();
    read_until(&mut other, "here").await;
    let others = service.members();
    let mut tree = client.run(&shell(TREE)).await.unwrap();
    read_until(&mut tree, "started").await;
    assert!(service.members().len() >= others.len() + 51, "{:?}", service.members());
    drop(tree);
    in_time(async {
        while service.members() != others {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!(client.list().await.unwrap().len(), 1);
    // The other process still answers.
    other.signal(15).await.unwrap();
    assert_eq!(in_time(other.wait()).await.unwrap().end, ProcessEnd::Signal(15));
    // The list removes the cgroups that became empty after the end of their process.
    in_time(async {
        while service.cgroups() > 0 {
            assert_eq!(client.list().await.unwrap(), []);
        }
    })
    .await;
}

#[tokio::test]
async fn dropping_at_any_moment_of_a_start_leaves_no_process() {
    let service = Service::start();
    let client = service.client();
    for i in 0..60 {
        let tree = shell(TREE);
        let started = client.run(&tree);
        // Some futures are dropped before the process runs, and some processes right after.
        let _elapsed = tokio::time::timeout(Duration::from_micros(250 * i), started).await;
    }
    in_time(async {
        while !service.members().is_empty() || !client.list().await.unwrap().is_empty() {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn end_of_a_process_does_not_wait_for_its_descendants() {
    let service = Service::start();
    let client = service.client();
    let process = client.run(&shell("sleep 1000 & echo $!; exit 5")).await.unwrap();
    let output = in_time(process.wait_with_output()).await.unwrap();
    assert_eq!(output.exit.end, ProcessEnd::Code(5));
    let left: u32 = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
    assert_eq!(service.members(), [left]);
}

#[tokio::test]
async fn kept_process_is_there_for_the_next_client() {
    let service = Service::start();
    let mut command = shell("echo before; read line; echo after $line; exit 7");
    let mut first = service.client().run(command.keep().stdin(true).id("kept")).await.unwrap();
    read_until(&mut first, "before\n").await;
    let pid = first.pid();
    drop(first);
    let client = service.client();
    let mut second = client.attach("kept").await.unwrap();
    assert!(second.is_attached());
    assert_eq!((second.pid(), second.skipped_bytes()), (pid, 0));
    second.stdin.as_mut().unwrap().write_all(b"input\n").await.unwrap();
    let output = in_time(second.wait_with_output()).await.unwrap();
    assert_eq!(output.stdout, b"before\nafter input\n");
    assert_eq!(output.exit.end, ProcessEnd::Code(7));
    // The end stays known, and so does the output.
    assert_eq!(in_time(client.wait("kept")).await.unwrap(), output.exit);
    let third = client.attach("kept").await.unwrap();
    assert_eq!(in_time(third.wait_with_output()).await.unwrap().stdout, output.stdout);
    let listed = client.list().await.unwrap();
    assert_eq!((listed.len(), listed[0].exit, listed[0].is_kept), (1, Some(output.exit), true));
    assert!(service.members().is_empty());
}

#[tokio::test]
async fn detached_process_goes_on() {
    let service = Service::start();
    let client = service.client();
    let mut process = client.run(&shell("echo here; exec sleep 1000")).await.unwrap();
    read_until(&mut process, "here").await;
    let id = in_time(process.detach()).await.unwrap();
    let mut attached = client.attach(&id).await.unwrap();
    read_until(&mut attached, "here").await;
    // The loss of a stream that did not start the process does not matter.
    drop(attached);
    let process = client.attach(&id).await.unwrap();
    assert_eq!(service.members(), [process.pid()]);
    process.kill().await.unwrap();
    assert_eq!(in_time(client.wait(&id)).await.unwrap().end, ProcessEnd::Signal(9));
    process.kill().await.unwrap();
}

#[tokio::test]
async fn second_start_with_an_id_attaches() {
    let service = Service::start();
    let client = service.client();
    let mut command = shell("echo $$; exec sleep 1000");
    command.id("once");
    let mut first = client.run(&command).await.unwrap();
    let printed = read_until(&mut first, "\n").await;
    let mut second = client.run(&command).await.unwrap();
    assert!(second.is_attached() && !first.is_attached());
    assert_eq!((second.id(), second.pid()), ("once", first.pid()));
    assert_eq!(read_until(&mut second, "\n").await, printed);
    assert_eq!(client.list().await.unwrap().len(), 1);
}

#[tokio::test]
async fn replay_is_bounded_and_says_what_is_missing() {
    let service = Service::start();
    let client = service.client();
    let mut command = shell("head -c 3000000 /dev/zero; echo end");
    let process = client.run(command.keep().id("long")).await.unwrap();
    drop(process);
    let exit = in_time(client.wait("long")).await.unwrap();
    assert_eq!(exit.stdout_bytes, 3_000_004);
    let process = client.attach("long").await.unwrap();
    let skipped = process.skipped_bytes();
    let output = in_time(process.wait_with_output()).await.unwrap();
    assert_eq!(skipped + output.stdout.len() as u64, exit.stdout_bytes);
    assert!(output.stdout.ends_with(b"\0end\n"));
    let kept = output.stdout.len();
    assert!((900_000..=1 << 20).contains(&kept), "{kept} bytes are kept");
}

#[tokio::test]
async fn deadline_kills_the_process_and_its_descendants() {
    let service = Service::start();
    let client = service.client();
    let mut command = shell("setsid sleep 1000 & echo x; wait");
    let mut process = client.run(command.deadline(Duration::from_millis(100))).await.unwrap();
    let exit = in_time(process.wait()).await.unwrap();
    assert!(exit.deadline_exceeded);
    assert_eq!(exit.end, ProcessEnd::Signal(9));
    in_time(async {
        while !service.members().is_empty() {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let mut command = Command::new("true");
    let mut process = client.run(command.deadline(Duration::from_secs(60))).await.unwrap();
    assert!(!in_time(process.wait()).await.unwrap().deadline_exceeded);
}

#[tokio::test]
async fn process_beyond_the_limit_is_refused() {
    let service = Service::start();
    let client = service.client();
    let mut processes = Vec::new();
    for _ in 0..256 {
        processes.push(in_time(client.run(Command::new("sleep").arg("1000"))).await.unwrap());
    }
    let error = in_time(client.run(&Command::new("true"))).await.unwrap_err();
    let refused = matches!(error, ExecError::Refused { refusal: Refusal::TooManyProcesses, .. });
    assert!(refused, "{error}");
    let listed = in_time(client.list()).await.unwrap();
    assert_eq!(listed.len(), 256);
    assert!(listed.iter().all(|process| process.args == ["sleep", "1000"] && process.pid > 1));
    assert!(listed.iter().all(|process| process.cpu.is_some() && process.exit.is_none()));
    let mut last = processes.pop().unwrap();
    last.kill().await.unwrap();
    in_time(last.wait()).await.unwrap();
    assert_eq!(in_time(end_of(&client, &Command::new("true"))).await, ProcessEnd::Code(0));
}

#[tokio::test]
async fn reader_that_stops_stops_its_process_only() {
    let service = Service::start();
    let client = service.client();
    // Nobody reads the output of `yes`.
    let mut stopped = client.run(&Command::new("yes")).await.unwrap();
    for _ in 0..20 {
        let process = client.run(&shell("head -c 1000000 /dev/zero")).await.unwrap();
        let output = in_time(process.wait_with_output()).await.unwrap();
        assert_eq!(output.stdout.len(), 1_000_000);
    }
    stopped.signal(15).await.unwrap();
    let exit = in_time(stopped.wait()).await.unwrap();
    assert_eq!(exit.end, ProcessEnd::Signal(15));
    // The pipe, the backlog, the windows of HTTP/2 and the buffers of both sides.
    assert!(exit.stdout_bytes < 1 << 20, "{} bytes were written", exit.stdout_bytes);
}

#[tokio::test]
async fn terminal_has_a_size_signals_and_an_end_of_input() {
    let service = Service::start();
    let client = service.client();
    let size = TerminalSize { rows: 33, columns: 111 };
    let script = "test -t 0 && test -t 1 && test -t 2 && echo $TERM; stty size
                  while read line; do stty size; echo got $line; done
                  echo over; exec sleep 1000";
    let mut process = client.run(shell(script).terminal(size)).await.unwrap();
    assert_eq!(read_until(&mut process, "111\r\n").await, "xterm\r\n33 111\r\n");
    process.resize(TerminalSize { rows: 5, columns: 6 }).await.unwrap();
    let mut stdin = process.stdin.take().unwrap();
    stdin.write_all(b"a line\n").await.unwrap();
    let text = read_until(&mut process, "got a line\r\n").await;
    assert!(text.contains("5 6\r\n"), "{text:?}");
    // Ctrl-D at the beginning of a line ends the input, and Ctrl-C interrupts.
    stdin.write_all(b"\x04").await.unwrap();
    read_until(&mut process, "over\r\n").await;
    stdin.write_all(b"\x03").await.unwrap();
    let exit = in_time(process.wait()).await.unwrap();
    assert_eq!((exit.end, exit.stderr_bytes), (ProcessEnd::Signal(2), 0));
}

#[tokio::test]
async fn thousand_processes_in_a_row_leave_nothing() {
    let service = Service::start();
    let client = service.client();
    let files = || std::fs::read_dir(format!("/proc/{}/fd", service.pid())).unwrap().count();
    assert_eq!(in_time(end_of(&client, &Command::new("true"))).await, ProcessEnd::Code(0));
    let before = files();
    for _ in 0..1000 {
        assert_eq!(in_time(end_of(&client, &Command::new("true"))).await, ProcessEnd::Code(0));
    }
    in_time(async {
        while service.cgroups() > 0 || files() > before {
            assert_eq!(client.list().await.unwrap(), []);
        }
    })
    .await;
}

#[tokio::test]
async fn end_of_the_service_is_an_error_of_each_stream() {
    let service = Service::start();
    let client = service.client();
    let mut process = client.run(&shell("echo here; exec sleep 1000")).await.unwrap();
    read_until(&mut process, "here\n").await;
    drop(service);
    let error = in_time(process.stdout.as_mut().unwrap().read_u8()).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    let error = in_time(process.wait()).await.unwrap_err();
    assert!(matches!(error, ExecError::Lost { .. }), "{error}");
    let error = in_time(client.run(&Command::new("true"))).await.unwrap_err();
    assert!(matches!(error, ExecError::Unreachable { .. }), "{error}");
}

#[tokio::test]
async fn box_that_was_not_booted_has_no_processes() {
    let vm = VmManager::new(BoxConfig::default(), EventEmitter::new());
    let error = vm.exec(&Command::new("true")).await.unwrap_err();
    assert!(matches!(error, ExecError::NotBooted), "{error}");
    assert!(matches!(vm.processes().await, Err(ExecError::NotBooted)));
    assert!(matches!(vm.attach("a").await, Err(ExecError::NotBooted)));
}
