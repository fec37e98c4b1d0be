//! `a3s-box exec`: runs a command in a running box, with the options of `docker exec`.
//!
//! The box is found by its id and the state directory; there is no daemon. The exit status is that
//! of the command, 128 plus the number of the signal that ended it, or one of Docker's for a failure:
//! 125 for one of the box, 126 for a command that cannot be executed, 127 for one that does not exist.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use a3s_box_core::{BoxDir, BoxId};
use a3s_box_runtime::exec::{
    BoxProcesses, Command, ExecError, Process, ProcessEnd, ProcessInput, ProcessOutput, Refusal,
};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::signals::{Received, Signals};
use crate::terminal::{self, RawMode};

/// Exit status for a failure of the box, or of this program.
const FAILED: u8 = 125;

/// Exit status for a command that cannot be executed.
const NOT_EXECUTABLE: u8 = 126;

/// Exit status for a command that does not exist.
const NOT_FOUND: u8 = 127;

/// Exit status when nobody reads the output any more, as a shell reports SIGPIPE.
const BROKEN_PIPE: u8 = 128 + 13;

/// Number of signals after which this program ends without waiting for the command, as Docker does.
const IMPATIENCE: u32 = 3;

/// Bytes that are read from standard input at once.
const BUFFER_BYTES: usize = 32 * 1024;

/// Runs a command in a running box
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Pass standard input on
    #[arg(short, long)]
    interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    tty: bool,
    /// User to run as: `user[:group]`, names or numbers
    #[arg(short, long)]
    user: Option<String>,
    /// Working directory in the box
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// Set a variable: `NAME=VALUE`, or `NAME` to pass on the value that it has here
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Leave the command to itself, and print the id of its process
    #[arg(short, long, conflicts_with_all = ["interactive", "tty"])]
    detach: bool,
    /// Directory with the directories of all boxes, `paths.state_dir` of their configs
    #[arg(long, value_name = "DIR", default_value = "/run/a3s-box")]
    state_dir: PathBuf,
    /// Id of the box
    id: String,
    /// The command with its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// The command could not be run, or its end is not known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExecCommandError {
    #[error("`{id}` is no id of a box")]
    Id { id: String, source: a3s_box_core::BoxIdError },
    #[error("standard input is no terminal, which `--tty` with `--interactive` needs")]
    NoTerminal,
    #[error("cannot {action}")]
    Io { action: &'static str, source: io::Error },
    #[error(transparent)]
    Exec(#[from] ExecError),
}

impl ExecCommandError {
    /// Returns the exit status for the error.
    pub(crate) fn status(&self) -> u8 {
        match self {
            Self::Exec(ExecError::Refused { refusal: Refusal::NotFound, .. }) => NOT_FOUND,
            Self::Exec(ExecError::Refused { refusal: Refusal::NotExecutable, .. }) => {
                NOT_EXECUTABLE
            }
            _ => FAILED,
        }
    }

    fn io(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, source }
    }
}

/// Runs the command, and returns its exit status. `stdout` gets the id of a detached process.
pub(crate) fn run(
    options: &Options,
    stdout: &mut impl Write,
) -> Result<ExitCode, ExecCommandError> {
    let id: BoxId = options.id.parse().map_err(|source| {
        let id = options.id.clone();
        ExecCommandError::Id { id, source }
    })?;
    let client = BoxProcesses::of(&BoxDir::new(&options.state_dir, &id));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(ExecCommandError::io("make the event loop"))?;
    let status = runtime.block_on(async {
        if options.detach {
            let process = client.run(command(options).keep()).await?;
            let printed = writeln!(stdout, "{}", process.id());
            printed.map_err(ExecCommandError::io("write to standard output"))?;
            return Ok(0);
        }
        attached(options, &client).await
    });
    // A drop of the runtime would wait for the thread that reads standard input.
    runtime.shutdown_background();
    status.map(ExitCode::from)
}

/// Makes the command of the options.
fn command(options: &Options) -> Command {
    let (program, args) = options
        .command
        .split_first()
        .map_or(("", &[][..]), |(program, args)| (program.as_str(), args));
    let mut command = Command::new(program);
    command.args(args).stdin(options.interactive);
    for variable in &options.env {
        match variable.split_once('=') {
            Some((name, value)) => {
                command.env(name, value);
            }
            // As Docker does, a variable that is not set here is not set there.
            None => {
                if let Ok(value) = std::env::var(variable) {
                    command.env(variable, value);
                }
            }
        }
    }
    if let Some(user) = &options.user {
        command.user(user);
    }
    if let Some(directory) = &options.workdir {
        command.current_dir(directory);
    }
    command
}

/// Runs the command in the foreground.
async fn attached(options: &Options, client: &BoxProcesses) -> Result<u8, ExecCommandError> {
    if options.tty && options.interactive && !terminal::is_standard_input() {
        return Err(ExecCommandError::NoTerminal);
    }
    let mut command = command(options);
    if options.tty {
        command.terminal(terminal::size());
    }
    // Before the command starts, so that no signal is missed.
    let mut signals = Signals::catch().map_err(ExecCommandError::io("catch signals"))?;
    let mut process = client.run(&command).await?;
    // The terminal is restored when this value is dropped, in every way out of this function.
    let _raw = if options.tty && options.interactive {
        Some(RawMode::enter().map_err(ExecCommandError::io("change the mode of the terminal"))?)
    } else {
        None
    };
    let (stdout, stderr) = (process.stdout.take(), process.stderr.take());
    let stdin = process.stdin.take();
    let input = pass_input(stdin.filter(|_| options.interactive));
    let output = async {
        let stdout = pass_output(stdout, tokio::io::stdout());
        let stderr = pass_output(stderr, tokio::io::stderr());
        tokio::try_join!(stdout, stderr)
    };
    let done = tokio::select! {
        done = output => done,
        () = input => Ok(((), ())),
        () = pass_signals(&process, &mut signals, options.tty) => return Ok(128 + 15),
    };
    match done {
        // Dropping the process kills the command, which nobody reads any more.
        Err(PassError::Reader) => return Ok(BROKEN_PIPE),
        Err(PassError::Box) | Ok(_) => {}
    }
    let exit = process.wait().await?;
    Ok(match exit.end {
        ProcessEnd::Code(code) => code,
        ProcessEnd::Signal(signal) => signal.saturating_add(128),
    })
}

/// Why a stream of output ended early.
enum PassError {
    /// Nobody reads the output of this program.
    Reader,
    /// The connection was lost. The wait for the process returns the error.
    Box,
}

/// Copies output until its end.
async fn pass_output(
    from: Option<ProcessOutput>,
    mut to: impl AsyncWrite + Unpin,
) -> Result<(), PassError> {
    let Some(mut from) = from else { return Ok(()) };
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let length = from.read(&mut buffer).await.map_err(|_lost| PassError::Box)?;
        if length == 0 {
            return Ok(());
        }
        // Flushed each time, because the command may wait for an answer of the user.
        let written = async {
            to.write_all(&buffer[..length]).await?;
            to.flush().await
        };
        written.await.map_err(|_broken| PassError::Reader)?;
    }
}

/// Copies standard input. Never returns, because the command may go on after the end of its input.
async fn pass_input(to: Option<ProcessInput>) {
    if let Some(mut to) = to {
        let mut stdin = tokio::io::stdin();
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            // An error of standard input is its end, as for any other program.
            let length = stdin.read(&mut buffer).await.unwrap_or(0);
            // The write fails when the command has ended.
            if length == 0 || to.write_all(&buffer[..length]).await.is_err() {
                break;
            }
        }
        // The end of the value is the end of the input.
        drop(to);
    }
    std::future::pending::<()>().await;
}

/// Passes signals on, and follows the size of the terminal. Returns after [`IMPATIENCE`] signals.
async fn pass_signals(process: &Process, signals: &mut Signals, has_terminal: bool) {
    let mut count = 0;
    while count < IMPATIENCE {
        match signals.next().await {
            Received::Resized if has_terminal => {
                // The process may have ended.
                let _ignored = process.resize(terminal::size()).await;
            }
            Received::Resized => {}
            Received::Passed(number) => {
                count += 1;
                let _ignored = process.signal(number).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn parse(line: &str) -> Result<Options, clap::Error> {
        Line::try_parse_from(line.split(' ')).map(|line| line.options)
    }

    #[test]
    fn options_are_those_of_docker() {
        let options =
            parse("exec -it -u root:wheel -w /srv -e A=b -e C demo ls -l -i --all").unwrap();
        assert!(options.interactive && options.tty && !options.detach);
        assert_eq!(options.user.as_deref(), Some("root:wheel"));
        assert_eq!(options.workdir.as_deref(), Some("/srv"));
        assert_eq!(options.env, ["A=b", "C"]);
        assert_eq!(options.id, "demo");
        assert_eq!(options.command, ["ls", "-l", "-i", "--all"]);
        assert_eq!(options.state_dir, PathBuf::from("/run/a3s-box"));
        for line in ["exec demo", "exec", "exec -d -i demo true", "exec -x demo true"] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
