//! Finds the executable of the workload, and turns an error of `execve(2)` into one with a cause.

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

/// The search path of a workload whose environment has no PATH, the same as Docker's.
pub(crate) const DEFAULT_PATH: &str =
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Number of bytes that the kernel reads of a script's first line (`BINPRM_BUF_SIZE`).
const SHEBANG_BYTES: usize = 256;

/// Maximum length of an interpreter's path in bytes (`PATH_MAX`).
const INTERPRETER_BYTES: u64 = 4096;

/// Maximum number of program headers that are read. Usual executables have about a dozen, but a
/// file of a hostile image can announce 65535.
const MAX_HEADERS: u16 = 64;

/// The reason why a program cannot be executed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExecutableError {
    /// No directory of the search path contains the program. The error does not contain PATH,
    /// because values of the environment can be secret.
    #[error("program `{name}` not found in PATH")]
    NotInPath {
        /// The name as the config has it.
        name: String,
    },
    /// The file does not exist.
    #[error("program `{path}` does not exist", path = path.display())]
    Missing {
        /// The program.
        path: PathBuf,
    },
    /// The file exists, but not its interpreter.
    #[error(
        "interpreter `{interpreter}` of program `{path}` does not exist",
        interpreter = interpreter.display(), path = path.display()
    )]
    MissingInterpreter {
        /// The program.
        path: PathBuf,
        /// The interpreter that the file names.
        interpreter: PathBuf,
    },
    /// The file is neither an executable for this architecture nor a script with an interpreter.
    #[error(
        "program `{path}`: found neither an executable for this machine nor a script with `#!`",
        path = path.display()
    )]
    Format {
        /// The program.
        path: PathBuf,
    },
    /// The file is a directory.
    #[error("program `{path}`: found a directory", path = path.display())]
    Directory {
        /// The program.
        path: PathBuf,
    },
    /// Any other error, for example a missing permission.
    #[error("program `{path}` cannot be executed", path = path.display())]
    NotExecutable {
        /// The program.
        path: PathBuf,
        /// Error of the kernel.
        source: io::Error,
    },
}

impl ExecutableError {
    /// Returns the kind of failure for `StartFailed`.
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

/// Returns the path of the executable. Looks up a name without a slash in `search`, a list of
/// directories in the form of PATH.
///
/// The first executable file is taken, as in a shell. A file without execute permission is an error
/// only if no executable one follows.
///
/// A name with a slash is returned as it is, and may not exist. `execve(2)` reports that.
pub(crate) fn find(name: &str, search: &OsStr, cwd: &Path) -> Result<PathBuf, ExecutableError> {
    // No file has an empty name, so there is nothing to look up.
    if name.is_empty() {
        return Err(ExecutableError::NotInPath { name: String::new() });
    }
    if name.contains('/') {
        return Ok(PathBuf::from(name));
    }
    let mut found = None;
    for directory in search.as_bytes().split(|byte| *byte == b':') {
        // An empty or relative entry is relative to the working directory (POSIX, section 8.3). PID
        // 1 has another one, so the path is made absolute here.
        let path = cwd.join(OsStr::from_bytes(directory)).join(name);
        match path.metadata() {
            Ok(metadata) if metadata.is_file() => {}
            _ => continue,
        }
        match access(&path, AccessFlags::X_OK) {
            Ok(()) => return Ok(path),
            // The first error is kept, for the file that a shell would report.
            Err(errno) => found = found.or(Some((path, errno))),
        }
    }
    Err(match found {
        Some((path, errno)) => ExecutableError::NotExecutable { path, source: errno.into() },
        None => ExecutableError::NotInPath { name: name.to_owned() },
    })
}

/// Returns the cause of an error of `execve(2)`. The file is examined after the fact. If another
/// process changes it meanwhile, the cause can be wrong, but the kind of failure is from `errno`.
pub(crate) fn explain(program: &Path, cwd: &Path, errno: Errno) -> ExecutableError {
    let path = cwd.join(program);
    match errno {
        // execve(2) reports ENOENT for a missing file and for a missing interpreter alike.
        Errno::ENOENT => match interpreter(&path) {
            Some(interpreter) => ExecutableError::MissingInterpreter { path, interpreter },
            None => ExecutableError::Missing { path },
        },
        Errno::ENOTDIR => ExecutableError::Missing { path },
        Errno::ENOEXEC => ExecutableError::Format { path },
        // execve(2) reports EACCES for a directory, as for a file without permission.
        _ if path.is_dir() => ExecutableError::Directory { path },
        _ => ExecutableError::NotExecutable { path, source: errno.into() },
    }
}

/// Returns the interpreter that the file at `path` names. Returns `None` if the file does not
/// exist, names no interpreter, or cannot be parsed.
fn interpreter(path: &Path) -> Option<PathBuf> {
    let mut options = std::fs::OpenOptions::new();
    // O_NONBLOCK, because the open of a FIFO would wait for a writer.
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

/// Returns the interpreter of a script from the start of the file, without `#!`. An argument may
/// follow it in the line (`execve(2)`).
fn shebang(line: &[u8]) -> Option<&[u8]> {
    let line = line.split(|byte| *byte == b'\n').next()?.trim_ascii();
    line.split(|byte| matches!(byte, b' ' | b'\t')).next().filter(|name| !name.is_empty())
}

/// Returns the path in the `PT_INTERP` header of a little-endian 64-bit ELF file (`elf(5)`).
/// `header` is the start of the file.
///
/// No number in the file is trusted: counts and lengths are bounded, and offsets are checked.
fn elf_interpreter(file: &mut File, header: &[u8]) -> Option<Vec<u8>> {
    const PT_INTERP: u32 = 3;
    /// Size of `Elf64_Phdr`.
    const HEADER_BYTES: u64 = 56;
    // The bytes after the magic number are ELFCLASS64 and ELFDATA2LSB.
    if !header.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    // `e_phoff` and `e_phnum`.
    let table = u64::from_le_bytes(field(header, 32)?);
    let count = u16::from_le_bytes(field(header, 56)?).min(MAX_HEADERS);
    for index in 0..u64::from(count) {
        let entry = read_at(file, table.checked_add(index * HEADER_BYTES)?, HEADER_BYTES)?;
        if u32::from_le_bytes(field(&entry, 0)?) == PT_INTERP {
            // `p_offset` and `p_filesz`.
            let offset = u64::from_le_bytes(field(&entry, 8)?);
            let length = u64::from_le_bytes(field(&entry, 32)?).min(INTERPRETER_BYTES);
            let name = read_at(file, offset, length)?;
            return name.split(|byte| *byte == 0).next().map(<[u8]>::to_vec);
        }
    }
    None
}

/// Returns `N` bytes at `offset`, or `None` if they are not there.
fn field<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk().copied()
}

/// Reads up to `length` bytes at `offset`.
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

    fn write_file(path: &Path, content: &[u8], mode: u32) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
        std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn finds_the_first_executable_file_in_the_search_path() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        std::fs::create_dir_all(root.join("a/tool")).unwrap();
        write_file(&root.join("b/tool"), b"", 0o644);
        write_file(&root.join("c/tool"), b"", 0o755);
        write_file(&root.join("d/tool"), b"", 0o755);
        let search = ["a", "b", "c", "d"].map(|name| root.join(name).display().to_string());
        let found = find("tool", OsStr::new(&search.join(":")), Path::new("/")).unwrap();
        assert_eq!(found, root.join("c/tool"));
    }

    #[test]
    fn resolves_relative_and_empty_entries_in_the_working_directory() {
        let directory = tempfile::tempdir().unwrap();
        write_file(&directory.path().join("here"), b"", 0o755);
        write_file(&directory.path().join("bin/there"), b"", 0o755);
        let search = OsStr::new("/nowhere::bin");
        assert_eq!(find("here", search, directory.path()).unwrap(), directory.path().join("here"));
        assert_eq!(
            find("there", search, directory.path()).unwrap(),
            directory.path().join("bin/there")
        );
    }

    #[test]
    fn does_not_look_up_a_name_with_a_slash() {
        let found = find("./tool", OsStr::new("/bin"), Path::new("/")).unwrap();
        assert_eq!(found, Path::new("./tool"));
    }

    #[test]
    fn reports_a_file_without_permission_as_not_executable_and_a_missing_one_as_not_found() {
        let directory = tempfile::tempdir().unwrap();
        write_file(&directory.path().join("tool"), b"", 0o644);
        let error = find("tool", directory.path().as_os_str(), Path::new("/")).unwrap_err();
        assert_eq!(error.reason(), StartFailure::NotExecutable);
        let error = find("ghost", directory.path().as_os_str(), Path::new("/")).unwrap_err();
        assert_eq!(error.reason(), StartFailure::NotFound);
        assert!(
            !error.to_string().contains(directory.path().to_str().unwrap()),
            "the error contains PATH"
        );
        let error = find("", directory.path().as_os_str(), Path::new("/")).unwrap_err();
        assert_eq!(error.reason(), StartFailure::NotFound);
    }

    #[test]
    fn reads_the_interpreter_of_a_script_or_executable() {
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
            write_file(&path, content, 0o755);
            assert_eq!(interpreter(&path).as_deref(), expected.map(Path::new), "{content:?}");
        }
        let loader = interpreter(Path::new("/proc/self/exe")).unwrap();
        assert!(loader.display().to_string().contains("ld-linux"), "{}", loader.display());
    }

    #[test]
    fn finds_no_interpreter_in_an_elf_file_with_offsets_beyond_its_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        let mut header = vec![0xff; 128];
        header[..6].copy_from_slice(b"\x7fELF\x02\x01");
        write_file(&path, &header, 0o755);
        assert_eq!(interpreter(&path), None);
    }
}
