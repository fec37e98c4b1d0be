//! `a3s-box`: the command for people.
//!
//! A subcommand is a module, with its options beside what they do. What fails is one line on standard
//! error and exit status 1; a command line that makes no sense is status 2.

mod timeline;

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
    Timeline(timeline::Options),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let done = match &cli.command {
        Command::Timeline(options) => timeline::run(options, &mut stdout()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody to tell when that fails.
            let _written = writeln!(io::stderr(), "a3s-box: {}", one_line(&error));
            ExitCode::FAILURE
        }
    }
}

/// Standard output, locked: what this program is for.
#[expect(clippy::disallowed_methods, reason = "there is no event stream here, people read it")]
fn stdout() -> io::StdoutLock<'static> {
    io::stdout().lock()
}

/// Help and version are errors to clap, too.
fn usage(error: &clap::Error) -> ExitCode {
    let text = error.render();
    if error.use_stderr() {
        let _written = write!(io::stderr(), "{text}");
        return ExitCode::from(2);
    }
    let _written = write!(stdout(), "{text}");
    ExitCode::SUCCESS
}
