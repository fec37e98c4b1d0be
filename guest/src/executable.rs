//! Finds the workload's program, and explains why one could not be executed.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use a3s_box_proto::control::StartFailure;
use nix::errno::Errno;
use nix::libc;
use nix::unistd::{AccessFlags, access};

/// Where programs are looked for if the environment does not say: Docker's default.
pub(crate) const DEFAULT_PATH: &str =
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How much of a script's first line the kernel reads (`BINPRM_BUF_SIZE`).
const SHEBANG_BYTES: usize = 256;

/// Longest path of an interpreter that is read (`PATH_MAX`).
const INTERPRETER_BYTES: u64 = 4096;

/// Program headers that are looked at; real programs have about a dozen.
const MAX_HEADERS: u16 = 64;

/// Why a program cannot be executed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExecutableError {
    /// Not in any directory of the search path.
    #[error("program `{name}` not found in PATH")]
    NotInPath {
        /// As given.
        name: String,
    },
    /// No such file.
    #[error("program `{path}` does not exist", path = path.display())]
    Missing {
        /// The program.
        path: PathBuf,
    },
    /// The file exists, and what it names as its interpreter does not.
    #[error(
        "interpreter `{interpreter}` of program `{path}` does not exist",
        interpreter = interpreter.display(), path = path.display()
    )]
    MissingInterpreter {
        /// The program.
        path: PathBuf,
        /// What it needs.
        interpreter: PathBuf,
    },
    /// Neither a program for this machine nor a script that names its interpreter.
    #[error(
        "program `{path}`: found neither an executable for this machine nor a script with `#!`",
        path = path.display()
    )]
    Format {
        /// The program.
        path: PathBuf,
    },
    /// A directory.
    #[error("program `{path}`: found a directory", path = path.display())]
    Directory {
        /// The program.
        path: PathBuf,
    },
    /// Anything else.
    #[error("program `{path}` cannot be executed", path = path.display())]
    NotExecutable {
        /// The program.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

impl ExecutableError {
    /// The kind of failure that the shim is told.
    pub(crate) fn reason(&self) -> StartFailure {
        match self {
            Self::NotInPath { .. } | Self::Missing { .. } | Self::MissingInterpreter { .. } => {
                StartFailure::NotFound
            }
            Self::Format { .. } | Self::Directory { .. } | Self::NotExecutable { .. } => {
                StartFailure::NotExecutable
            }
        }
    }
}

/// The path to execute: a name without a slash is looked up in `search`.
///
/// The first executable file wins, as in a shell; a file that is not executable is only an
/// error if no other is found.
pub(crate) fn find(name: &str, search: &OsStr, cwd: &Path) -> Result<PathBuf, ExecutableError> {
    if name.is_empty() {
        return Err(ExecutableError::NotInPath { name: String::new() });
    }
    if name.contains('/') {
        return Ok(PathBuf::from(name));
    }
    let mut found = None;
    for directory in search.as_bytes().split(|byte| *byte == b':') {
        // An empty or relative entry is relative to the working directory.
        let path = cwd.join(OsStr::from_bytes(directory)).join(name);
        match path.metadata() {
            Ok(metadata) if metadata.is_file() => {}
            _ => continue,
        }
        match access(&path, AccessFlags::X_OK) {
            Ok(()) => return Ok(path),
            Err(errno) => found = found.or(Some((path, errno))),
        }
    }
    Err(match found {
        Some((path, errno)) => ExecutableError::NotExecutable { path, source: errno.into() },
        None => ExecutableError::NotInPath { name: name.to_owned() },
    })
}

/// Explains what `execve` said.
pub(crate) fn explain(program: &Path, cwd: &Path, errno: Errno) -> ExecutableError {
    let path = cwd.join(program);
    match errno {
        Errno::ENOENT => match interpreter(&path) {
            Some(interpreter) => ExecutableError::MissingInterpreter { path, interpreter },
            None => ExecutableError::Missing { path },
        },
        Errno::ENOTDIR => ExecutableError::Missing { path },
        Errno::ENOEXEC => ExecutableError::Format { path },
        _ if path.is_dir() => ExecutableError::Directory { path },
        _ => ExecutableError::NotExecutable { path, source: errno.into() },
    }
}

/// The interpreter that an existing program names, if it names one.
fn interpreter(path: &Path) -> Option<PathBuf> {
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.read(true).custom_flags(libc::O_NONBLOCK).open(path).ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut start = Vec::new();
    file.by_ref().take(SHEBANG_BYTES as u64).read_to_end(&mut start).ok()?;
    let name = match start.strip_prefix(b"#!") {
        Some(line) => shebang(line)?.to_vec(),
        None => elf_interpreter(&mut file, &start)?,
    };
    Some(PathBuf::from(OsStr::from_bytes(&name)))
}

fn shebang(line: &[u8]) -> Option<&[u8]> {
    let line = line.split(|byte| *byte == b'\n').next()?.trim_ascii();
    line.split(|byte| matches!(byte, b' ' | b'\t')).next().filter(|name| !name.is_empty())
}

/// `PT_INTERP` of a little-endian 64-bit ELF file.
fn elf_interpreter(file: &mut File, header: &[u8]) -> Option<Vec<u8>> {
    const PT_INTERP: u32 = 3;
    const HEADER_BYTES: u64 = 56;
    if !header.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let table = u64::from_le_bytes(field(header, 32)?);
    let count = u16::from_le_bytes(field(header, 56)?).min(MAX_HEADERS);
    for index in 0..u64::from(count) {
        let entry = read_at(file, table.checked_add(index * HEADER_BYTES)?, HEADER_BYTES)?;
        if u32::from_le_bytes(field(&entry, 0)?) == PT_INTERP {
            let offset = u64::from_le_bytes(field(&entry, 8)?);
            let length = u64::from_le_bytes(field(&entry, 32)?).min(INTERPRETER_BYTES);
            let name = read_at(file, offset, length)?;
            return name.split(|byte| *byte == 0).next().map(<[u8]>::to_vec);
        }
    }
    None
}

fn field<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk().copied()
}

fn read_at(file: &mut File, offset: u64, length: u64) -> Option<Vec<u8>> {
    file.seek(SeekFrom::Start(offset)).ok()?;
    let mut bytes = Vec::new();
    file.take(length).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn file(path: &Path, content: &[u8], mode: u32) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
        std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn the_first_executable_file_of_the_path_wins() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        std::fs::create_dir_all(root.join("a/tool")).unwrap();
        file(&root.join("b/tool"), b"", 0o644);
        file(&root.join("c/tool"), b"", 0o755);
        file(&root.join("d/tool"), b"", 0o755);
        let search = ["a", "b", "c", "d"].map(|name| root.join(name).display().to_string());
        let found = find("tool", OsStr::new(&search.join(":")), Path::new("/")).unwrap();
        assert_eq!(found, root.join("c/tool"));
    }

    #[test]
    fn relative_and_empty_entries_are_relative_to_the_working_directory() {
        let directory = tempfile::tempdir().unwrap();
        file(&directory.path().join("here"), b"", 0o755);
        file(&directory.path().join("bin/there"), b"", 0o755);
        let search = OsStr::new("/nowhere::bin");
        assert_eq!(find("here", search, directory.path()).unwrap(), directory.path().join("here"));
        assert_eq!(
            find("there", search, directory.path()).unwrap(),
            directory.path().join("bin/there")
        );
    }

    #[test]
    fn a_name_with_a_slash_is_not_looked_up() {
        let found = find("./tool", OsStr::new("/bin"), Path::new("/")).unwrap();
        assert_eq!(found, Path::new("./tool"));
    }

    #[test]
    fn a_name_found_only_without_permission_is_not_executable() {
        let directory = tempfile::tempdir().unwrap();
        file(&directory.path().join("tool"), b"", 0o644);
        let error = find("tool", directory.path().as_os_str(), Path::new("/")).unwrap_err();
        assert_eq!(error.reason(), StartFailure::NotExecutable);
        let error = find("ghost", directory.path().as_os_str(), Path::new("/")).unwrap_err();
        assert_eq!(error.reason(), StartFailure::NotFound);
        assert!(!error.to_string().contains(directory.path().to_str().unwrap()), "PATH is secret");
        let error = find("", directory.path().as_os_str(), Path::new("/")).unwrap_err();
        assert_eq!(error.reason(), StartFailure::NotFound);
    }

    #[test]
    fn interpreters_are_read_from_scripts_and_executables() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        let cases: [(&[u8], Option<&str>); 7] = [
            (b"#!/bin/foo\n", Some("/bin/foo")),
            (b"#! /usr/bin/env -S bar\n", Some("/usr/bin/env")),
            (b"#!/bin/foo\r\n", Some("/bin/foo")),
            (b"#!\n", None),
            (b"", None),
            (b"\x7fELF\x02\x01 cut short", None),
            (b"\x7fELF\x01\x01", None),
        ];
        for (content, expected) in cases {
            file(&path, content, 0o755);
            assert_eq!(interpreter(&path).as_deref(), expected.map(Path::new), "{content:?}");
        }
        let loader = interpreter(Path::new("/proc/self/exe")).unwrap();
        assert!(loader.display().to_string().contains("ld-linux"), "{}", loader.display());
    }

    #[test]
    fn a_hostile_executable_costs_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        let mut header = vec![0xff; 128];
        header[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file(&path, &header, 0o755);
        assert_eq!(interpreter(&path), None);
    }
}
