//! Turns the config of the workload into a [`Command`]: resolves names and converts strings for the
//! kernel.

use std::ffi::{CString, NulError, OsStr};
use std::fs::DirBuilder;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use a3s_box_proto::control::{EnvironmentVariable, Workload};

use crate::account::{AccountError, Accounts};
use crate::executable::{self, DEFAULT_PATH, ExecutableError};
use crate::notify;
use crate::open_files;
use crate::syscall::{Command, Limit, StringArray};

/// Mode of a working directory that was missing, the same as Docker's.
const CWD_MODE: u32 = 0o755;

/// The reason why no command can be made of a workload.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlanError {
    /// The list of arguments is empty.
    #[error("found no arguments, expected a program")]
    NoProgram,
    /// The working directory is a relative path.
    #[error("working directory `{found}`: expected an absolute path")]
    RelativeCwd {
        /// The path as the config has it.
        found: String,
    },
    /// The working directory cannot be created.
    #[error("cannot make working directory `{path}`", path = path.display())]
    MakeCwd {
        /// The directory.
        path: PathBuf,
        /// Error of the kernel.
        source: io::Error,
    },
    /// A string contains a NUL byte, at which the kernel would cut it. The error does not contain
    /// the string, which can be a secret.
    #[error("found a NUL byte in {place}")]
    Nul {
        /// The part of the workload that has the string.
        place: &'static str,
        /// Position of the byte.
        source: NulError,
    },
    /// The user cannot be resolved.
    #[error(transparent)]
    Account(#[from] AccountError),
    /// The executable was not found.
    #[error(transparent)]
    Program(#[from] ExecutableError),
}

/// Makes the command of a workload, and its working directory if that is missing.
///
/// `/etc/passwd` and `/etc/group` are read below `root`. All other paths are relative to the root
/// of this process.
pub(crate) fn plan(workload: Workload, root: &Path) -> Result<Command, PlanError> {
    // Refused before the working directory is made.
    if workload.args.is_empty() {
        return Err(PlanError::NoProgram);
    }
    let cwd = make_cwd(&workload.cwd)?;
    command(workload, root, &cwd, &[(notify::VARIABLE, notify::ADDRESS)])
}

/// Makes the command of a process that is started in the running box. Unlike that of a workload,
/// its working directory must exist, and the process gets no notify socket: its notifications would
/// count as those of the workload.
pub(crate) fn plan_process(process: Workload, root: &Path) -> Result<Command, PlanError> {
    let cwd = absolute(&process.cwd)?;
    command(process, root, &cwd, &[])
}

/// Makes the command. The environment gets HOME and `defaults` unless it has them.
fn command(
    workload: Workload,
    root: &Path,
    cwd: &Path,
    defaults: &[(&str, &str)],
) -> Result<Command, PlanError> {
    let name = workload.args.first().ok_or(PlanError::NoProgram)?;
    let account = Accounts::read(root)?.resolve(&workload.user)?;
    // The lookup uses the PATH of the workload, not the one of PID 1, which comes from the kernel.
    let search = workload.env.iter().find(|variable| variable.name == "PATH");
    let search = search.map_or(DEFAULT_PATH, |variable| &variable.value);
    let program = executable::find(name, OsStr::new(search), cwd)?;
    let env = environment(&workload.env, &account.home, defaults)?;
    let args = workload
        .args
        .into_iter()
        .map(|arg| string(arg, "an argument"))
        .collect::<Result<_, _>>()?;
    let limits = workload.rlimits.into_iter().map(|limit| Limit {
        resource: limit.resource,
        soft: limit.soft,
        hard: limit.hard,
    });
    Ok(Command {
        program: string(program.as_os_str().as_bytes(), "the program's path")?,
        args: StringArray::new(args),
        env: StringArray::new(env),
        cwd: string(cwd.as_os_str().as_bytes(), "the working directory")?,
        credentials: Some(account.credentials),
        limits: open_files::original_limit().into_iter().chain(limits).collect(),
    })
}

/// Returns the variables that are given. Adds `HOME` and `defaults` if they are not among them.
fn environment(
    given: &[EnvironmentVariable],
    home: &str,
    defaults: &[(&str, &str)],
) -> Result<Vec<CString>, PlanError> {
    // Container engines add HOME, too. An empty value that is given counts as present and stays.
    let missing = [("HOME", home)]
        .into_iter()
        .chain(defaults.iter().copied())
        .filter(|(name, _)| given.iter().all(|variable| variable.name != *name));
    given
        .iter()
        .map(|variable| (variable.name.as_str(), variable.value.as_str()))
        .chain(missing)
        .map(|(name, value)| string(format!("{name}={value}"), "an environment variable"))
        .collect()
}

/// Creates the working directory with its parents. An empty path means `/`.
fn make_cwd(cwd: &str) -> Result<PathBuf, PlanError> {
    let path = absolute(cwd)?;
    // With `recursive`, an existing directory is no error.
    match DirBuilder::new().recursive(true).mode(CWD_MODE).create(&path) {
        Ok(()) => Ok(path),
        Err(source) => Err(PlanError::MakeCwd { path, source }),
    }
}

/// Returns an absolute path. An empty one means `/`.
fn absolute(cwd: &str) -> Result<PathBuf, PlanError> {
    let path = PathBuf::from(if cwd.is_empty() { "/" } else { cwd });
    if path.is_absolute() {
        Ok(path)
    } else {
        Err(PlanError::RelativeCwd { found: cwd.to_owned() })
    }
}

/// Converts a string for the kernel. `place` stands for the text in an error.
fn string(text: impl Into<Vec<u8>>, place: &'static str) -> Result<CString, PlanError> {
    CString::new(text).map_err(|source| PlanError::Nul { place, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(args: &[&str], env: &[(&str, &str)]) -> Workload {
        Workload {
            args: args.iter().map(ToString::to_string).collect(),
            env: env
                .iter()
                .map(|(name, value)| EnvironmentVariable {
                    name: (*name).into(),
                    value: (*value).into(),
                })
                .collect(),
            cwd: "/".into(),
            ..Workload::default()
        }
    }

    fn texts(array: &StringArray) -> Vec<&str> {
        array.strings().iter().map(|string| string.to_str().unwrap()).collect()
    }

    fn plan_in_empty_root(workload: Workload) -> Result<Command, PlanError> {
        plan(workload, tempfile::tempdir().unwrap().path())
    }

    #[test]
    fn looks_up_the_program_in_path_and_keeps_the_first_argument() {
        let command =
            plan_in_empty_root(workload(&["sh", "-c", "x"], &[("PATH", "/bin")])).unwrap();
        assert_eq!(command.program.to_str().unwrap(), "/bin/sh");
        assert_eq!(texts(&command.args), ["sh", "-c", "x"]);
    }

    #[test]
    fn adds_home_and_notify_socket_only_if_the_config_has_none() {
        let notify = "NOTIFY_SOCKET=@a3s-box/notify";
        for (given, expected) in [
            (&[("A", "b")][..], &["A=b", "HOME=/", notify][..]),
            (&[("HOME", ""), ("A", "")], &["HOME=", "A=", notify]),
            (&[("NOTIFY_SOCKET", "/run/own")], &["NOTIFY_SOCKET=/run/own", "HOME=/"]),
            (&[("NOTIFY_SOCKET", ""), ("HOME", "/h")], &["NOTIFY_SOCKET=", "HOME=/h"]),
        ] {
            let command = plan_in_empty_root(workload(&["/x"], given)).unwrap();
            assert_eq!(texts(&command.env), expected);
        }
    }

    #[test]
    fn creates_a_missing_working_directory() {
        let directory = tempfile::tempdir().unwrap();
        let cwd = directory.path().join("a/b");
        let command = plan_in_empty_root(Workload {
            cwd: cwd.display().to_string(),
            ..workload(&["/x"], &[])
        })
        .unwrap();
        assert!(cwd.is_dir());
        assert_eq!(command.cwd.to_bytes(), cwd.as_os_str().as_bytes());
    }

    #[test]
    fn refuses_an_invalid_workload_and_keeps_secrets_out_of_the_error() {
        assert!(matches!(plan_in_empty_root(workload(&[], &[])), Err(PlanError::NoProgram)));
        let relative = Workload { cwd: "srv".into(), ..workload(&["/x"], &[]) };
        assert!(matches!(plan_in_empty_root(relative), Err(PlanError::RelativeCwd { .. })));
        let file = Workload { cwd: "/etc/passwd/x".into(), ..workload(&["/x"], &[]) };
        let message = plan_in_empty_root(file).unwrap_err().to_string();
        assert!(message.contains("/etc/passwd/x"), "{message}");
        let nul = plan_in_empty_root(workload(&["/x"], &[("TOKEN", "s3cret\0")])).unwrap_err();
        let message = crate::kmsg::chain(&nul);
        assert!(!message.contains("s3cret"), "{message}");
    }
}
