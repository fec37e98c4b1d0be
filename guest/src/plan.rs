//! What the workload is, made ready to run: names resolved, strings in the kernel's form.

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
use crate::syscall::{Image, Limit, StringArray};

/// Mode of a working directory that was missing: Docker's.
const CWD_MODE: u32 = 0o755;

/// Why a workload cannot be planned.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlanError {
    /// Nothing to run.
    #[error("workload: found no arguments, expected a program")]
    NoProgram,
    /// Not absolute.
    #[error("working directory `{found}`: expected an absolute path")]
    RelativeCwd {
        /// As given.
        found: String,
    },
    /// Cannot be made.
    #[error("cannot make working directory `{path}`", path = path.display())]
    MakeCwd {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A NUL byte ends a string for the kernel. The text itself may be secret.
    #[error("workload: found a NUL byte in {place}")]
    Nul {
        /// Where.
        place: &'static str,
        /// At which byte.
        source: NulError,
    },
    /// The user.
    #[error(transparent)]
    Account(#[from] AccountError),
    /// The program.
    #[error(transparent)]
    Program(#[from] ExecutableError),
}

/// Resolves a workload below `root`, and makes its working directory.
pub(crate) fn plan(workload: Workload, root: &Path) -> Result<Image, PlanError> {
    let name = workload.args.first().ok_or(PlanError::NoProgram)?;
    let cwd = make_cwd(&workload.cwd)?;
    let account = Accounts::read(root)?.resolve(&workload.user)?;
    let search = workload.env.iter().find(|variable| variable.name == "PATH");
    let search = search.map_or(DEFAULT_PATH, |variable| &variable.value);
    let program = executable::find(name, OsStr::new(search), &cwd)?;
    let env = environment(&workload.env, &account.home)?;
    let args = workload
        .args
        .into_iter()
        .map(|arg| string(arg, "an argument"))
        .collect::<Result<_, _>>()?;
    Ok(Image {
        program: string(program.as_os_str().as_bytes(), "the program's path")?,
        args: StringArray::new(args),
        env: StringArray::new(env),
        cwd: string(cwd.as_os_str().as_bytes(), "the working directory")?,
        credentials: Some(account.credentials),
        limits: workload
            .rlimits
            .into_iter()
            .map(|limit| Limit { resource: limit.resource, soft: limit.soft, hard: limit.hard })
            .collect(),
    })
}

/// The variables as given, and those that a workload counts on unless it was given its own.
fn environment(given: &[EnvironmentVariable], home: &str) -> Result<Vec<CString>, PlanError> {
    let defaults = [("HOME", home), (notify::VARIABLE, notify::ADDRESS)];
    let missing = defaults
        .into_iter()
        .filter(|(name, _)| given.iter().all(|variable| variable.name != *name));
    given
        .iter()
        .map(|variable| (variable.name.as_str(), variable.value.as_str()))
        .chain(missing)
        .map(|(name, value)| string(format!("{name}={value}"), "an environment variable"))
        .collect()
}

fn make_cwd(cwd: &str) -> Result<PathBuf, PlanError> {
    let path = PathBuf::from(if cwd.is_empty() { "/" } else { cwd });
    if !path.is_absolute() {
        return Err(PlanError::RelativeCwd { found: cwd.to_owned() });
    }
    match DirBuilder::new().recursive(true).mode(CWD_MODE).create(&path) {
        Ok(()) => Ok(path),
        Err(source) => Err(PlanError::MakeCwd { path, source }),
    }
}

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

    fn empty_root(workload: Workload) -> Result<Image, PlanError> {
        plan(workload, tempfile::tempdir().unwrap().path())
    }

    #[test]
    fn the_name_stays_as_given_and_the_program_is_its_path() {
        let image = empty_root(workload(&["sh", "-c", "x"], &[("PATH", "/bin")])).unwrap();
        assert_eq!(image.program.to_str().unwrap(), "/bin/sh");
        assert_eq!(texts(&image.args), ["sh", "-c", "x"]);
    }

    #[test]
    fn home_and_notify_socket_are_added_only_if_the_environment_has_none() {
        let notify = "NOTIFY_SOCKET=@a3s-box/notify";
        for (given, expected) in [
            (&[("A", "b")][..], &["A=b", "HOME=/", notify][..]),
            (&[("HOME", ""), ("A", "")], &["HOME=", "A=", notify]),
            (&[("NOTIFY_SOCKET", "/run/own")], &["NOTIFY_SOCKET=/run/own", "HOME=/"]),
            (&[("NOTIFY_SOCKET", ""), ("HOME", "/h")], &["NOTIFY_SOCKET=", "HOME=/h"]),
        ] {
            let image = empty_root(workload(&["/x"], given)).unwrap();
            assert_eq!(texts(&image.env), expected);
        }
    }

    #[test]
    fn a_missing_working_directory_is_made() {
        let directory = tempfile::tempdir().unwrap();
        let cwd = directory.path().join("a/b");
        let image =
            empty_root(Workload { cwd: cwd.display().to_string(), ..workload(&["/x"], &[]) })
                .unwrap();
        assert!(cwd.is_dir());
        assert_eq!(image.cwd.to_bytes(), cwd.as_os_str().as_bytes());
    }

    #[test]
    fn what_cannot_be_planned_is_refused() {
        assert!(matches!(empty_root(workload(&[], &[])), Err(PlanError::NoProgram)));
        let relative = Workload { cwd: "srv".into(), ..workload(&["/x"], &[]) };
        assert!(matches!(empty_root(relative), Err(PlanError::RelativeCwd { .. })));
        let file = Workload { cwd: "/etc/passwd/x".into(), ..workload(&["/x"], &[]) };
        let message = empty_root(file).unwrap_err().to_string();
        assert!(message.contains("/etc/passwd/x"), "{message}");
        let nul = empty_root(workload(&["/x"], &[("TOKEN", "s3cret\0")])).unwrap_err();
        let message = crate::kmsg::chain(&nul);
        assert!(!message.contains("s3cret"), "{message}");
    }
}
