//! `a3s-box`: the command line tool for people.
//!
//! Each subcommand is a module that also declares its options. A failure is reported as one line on
//! standard error, with exit status 1, or for `exec` with those of Docker. An invalid command line
//! has exit status 2.

mod exec;
mod signals;
mod terminal;
mod timeline;

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use a3s_box_core::one_line;
use clap::{Parser, Subcommand};

/// Runs and explains a3s boxes.
#[derive(Debug, Parser)]
#[command(name = "a3s-box", version, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Exec(exec::Options),
    Timeline(timeline::Options),
}

fn main() -> ExitCode {
    // `parse` would call `exit` for an error. Only `main` decides the exit status.
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return print_usage(&error),
    };
    match &cli.command {
        // Not locked here: `exec` writes the output of its command from another thread.
        Command::Exec(options) => exec::run(options, &mut unlocked_stdout())
            .unwrap_or_else(|error| report(&error, error.status())),
        Command::Timeline(options) => match timeline::run(options, &mut stdout()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => report(&error, 1),
        },
    }
}

/// Reports an error as one line, and returns the exit status.
fn report(error: &dyn Error, status: u8) -> ExitCode {
    // A failed write is ignored, because standard error is the only place to report it. The text
    // can be that of a hostile guest, so controls do not reach the terminal.
    let text: String = one_line(error).chars().map(printable).collect();
    let _written = writeln!(io::stderr(), "a3s-box: {text}");
    ExitCode::from(status)
}

/// Replaces a control character.
fn printable(character: char) -> char {
    if character.is_control() { char::REPLACEMENT_CHARACTER } else { character }
}

/// Returns standard output, locked. Unlike in the shim, it carries text for people and no events.
#[expect(clippy::disallowed_methods, reason = "standard output is no event stream here")]
fn stdout() -> io::StdoutLock<'static> {
    io::stdout().lock()
}

/// Returns standard output, not locked.
#[expect(clippy::disallowed_methods, reason = "standard output is no event stream here")]
fn unlocked_stdout() -> io::Stdout {
    io::stdout()
}

/// Prints the text that clap rendered, and returns the exit status.
///
/// clap reports `--help` and `--version` as errors, too. These go to standard output with status 0.
/// A true error goes to standard error with status 2.
fn print_usage(error: &clap::Error) -> ExitCode {
    let text = error.render();
    if error.use_stderr() {
        let _written = write!(io::stderr(), "{text}");
        return ExitCode::from(2);
    }
    let _written = write!(stdout(), "{text}");
    ExitCode::SUCCESS
}
