//! The command line. Its flags are for people and for other modes; a supervisor that starts a box
//! needs none of them.

use std::ffi::OsString;
use std::num::NonZeroU32;
use std::path::PathBuf;

/// Output of `--version`.
pub(crate) const VERSION: &str = concat!("a3s-box-shim ", env!("CARGO_PKG_VERSION"));

/// Output of `--help`.
pub(crate) const USAGE: &str = "\
usage: a3s-box-shim [--config FILE] [--parent PID] [--check | --prepare | --gc | --verify]
       a3s-box-shim [--config FILE] --doctor [--json]
       a3s-box-shim --print-schema | --version | --help

Reads a BoxConfig (JSON) on standard input, becomes the microVM that it describes, and
writes events (NDJSON) on standard output. The exit status is the workload's.

  --config FILE   read the BoxConfig from FILE instead
  --parent PID    the process that starts this one: its death is noticed even if it is early
  --check         only check whether the BoxConfig is valid
  --prepare       do everything up to the mounted root, undo it and exit; needs no KVM
  --gc            remove layers until the cache is within the config's `cache`, and exit
  --verify        compare the image's layers in the cache with its blobs, repair them, and exit
  --doctor        examine this host: what boxes need, what was found, and what to do; with
                  --config for that box, and with --json as one JSON document. Exit status:
                  0 all is well, 1 boxes run with less, 2 no box can run, 125 the doctor failed
  --print-schema  print the JSON Schema of BoxConfig
  --version       print the version";

/// Mode of the shim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Run,
    Check,
    Prepare,
    Gc,
    Verify,
    Doctor,
    PrintSchema,
    Version,
    Help,
}

/// The parsed command line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Arguments {
    pub(crate) mode: Mode,
    pub(crate) config: Option<PathBuf>,
    /// Pid of the parent, as the parent has passed it. Never 0.
    pub(crate) parent: Option<u32>,
    /// Whether the doctor writes JSON.
    pub(crate) json: bool,
}

/// Why a command line is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ArgumentError {
    #[error("unknown argument `{0}`")]
    Unknown(String),
    #[error("--config requires a file")]
    NoFile,
    #[error("--parent requires the id of a process")]
    NoParent,
    #[error(
        "more than one of --check, --prepare, --gc, --verify, --doctor, --print-schema, --version and --help"
    )]
    TwoModes,
    #[error("--json requires --doctor")]
    JsonWithoutDoctor,
}

impl Arguments {
    /// Parses the arguments behind the name of the executable.
    pub(crate) fn parse(words: impl Iterator<Item = OsString>) -> Result<Self, ArgumentError> {
        let mut words = words;
        let mut arguments = Self { mode: Mode::Run, config: None, parent: None, json: false };
        while let Some(word) = words.next() {
            let mode = match word.to_str() {
                Some("--config") => {
                    arguments.config = Some(words.next().ok_or(ArgumentError::NoFile)?.into());
                    continue;
                }
                Some("--parent") => {
                    arguments.parent = Some(pid(words.next()).ok_or(ArgumentError::NoParent)?);
                    continue;
                }
                Some("--json") => {
                    arguments.json = true;
                    continue;
                }
                Some("--check") => Mode::Check,
                Some("--prepare") => Mode::Prepare,
                Some("--gc") => Mode::Gc,
                Some("--verify") => Mode::Verify,
                Some("--doctor") => Mode::Doctor,
                Some("--print-schema") => Mode::PrintSchema,
                Some("--version") => Mode::Version,
                Some("--help" | "-h") => Mode::Help,
                _ => return Err(ArgumentError::Unknown(word.to_string_lossy().into_owned())),
            };
            // `Mode::Run` has no flag, so another mode means that a second flag of a mode was
            // given.
            if arguments.mode != Mode::Run {
                return Err(ArgumentError::TwoModes);
            }
            arguments.mode = mode;
        }
        match arguments.json && arguments.mode != Mode::Doctor {
            true => Err(ArgumentError::JsonWithoutDoctor),
            false => Ok(arguments),
        }
    }
}

/// Parses a pid. 0 is none: `getppid(2)` returns it for a parent in another pid namespace.
fn pid(word: Option<OsString>) -> Option<u32> {
    word?.to_str()?.parse().ok().map(NonZeroU32::get)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Arguments, ArgumentError> {
        Arguments::parse(words.iter().map(OsString::from))
    }

    #[test]
    fn flags_are_parsed_and_invalid_ones_are_refused() {
        let none = Arguments { mode: Mode::Run, config: None, parent: None, json: false };
        assert_eq!(parse(&[]), Ok(none));
        let (config, parent) = (Some("a".into()), Some(17));
        let check = Arguments { mode: Mode::Check, config, parent, json: false };
        assert_eq!(parse(&["--config", "a", "--parent", "17", "--check"]), Ok(check));
        let doctor = Arguments { mode: Mode::Doctor, config: None, parent: None, json: true };
        assert_eq!(parse(&["--json", "--doctor"]), Ok(doctor));
        assert_eq!(parse(&["--json"]), Err(ArgumentError::JsonWithoutDoctor));
        assert_eq!(parse(&["--json", "--check"]), Err(ArgumentError::JsonWithoutDoctor));
        for word in ["0", "-1", "", "x", "4294967296"] {
            assert_eq!(parse(&["--parent", word]), Err(ArgumentError::NoParent), "{word}");
        }
        assert_eq!(parse(&["--parent"]), Err(ArgumentError::NoParent));
        assert_eq!(parse(&["--config"]), Err(ArgumentError::NoFile));
        assert_eq!(parse(&["--check", "--prepare"]), Err(ArgumentError::TwoModes));
        assert_eq!(parse(&["-x"]), Err(ArgumentError::Unknown("-x".into())));
    }
}
