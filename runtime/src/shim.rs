//! Finds the shim's program and starts it.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::{Child, ChildStdin, Command};

/// Name of the program.
const PROGRAM: &str = "a3s-box-shim";

/// No shim was started.
#[derive(Debug, thiserror::Error)]
pub enum ShimStartError {
    /// It is in none of the places where it could be.
    #[error("`{PROGRAM}` was not found as any of {}", quoted(searched))]
    NotFound {
        /// Every path that was tried, in this order.
        searched: Vec<PathBuf>,
    },
    /// The system refused to run it.
    #[error("cannot run the shim `{}`", shim.display())]
    Spawn {
        /// Path of the program.
        shim: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Path of the shim: beside this program, one directory up (from `deps/` or `examples/` of a build), or
/// in `PATH`.
pub(crate) fn find() -> Result<PathBuf, ShimStartError> {
    let program = std::env::current_exe().ok();
    let beside = program.iter().flat_map(|program| program.ancestors().skip(1).take(2));
    let path = std::env::var_os("PATH").unwrap_or_default();
    // A relative directory in PATH means whatever is there in the current directory.
    let in_path = std::env::split_paths(&path).filter(|directory| directory.is_absolute());
    let directories = beside.map(Path::to_owned).chain(in_path);
    let searched: Vec<PathBuf> = directories.map(|directory| directory.join(PROGRAM)).collect();
    match searched.iter().find(|path| is_executable(path)) {
        Some(found) => Ok(found.clone()),
        None => Err(ShimStartError::NotFound { searched }),
    }
}

/// Starts the shim and gives it its config. It stays in the process group of this program, so that
/// Ctrl-C on a terminal reaches both. To be called in a tokio runtime.
pub(crate) fn spawn(shim: &Path, config: Vec<u8>) -> Result<Child, ShimStartError> {
    let mut command = Command::new(shim);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    // So that the shim sees a supervisor that ended while it began.
    command.arg("--parent").arg(std::process::id().to_string());
    let mut child = command
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| ShimStartError::Spawn { shim: shim.to_owned(), source })?;
    if let Some(stdin) = child.stdin.take() {
        // A pipe holds less than the longest config: the shim may still be reading when its first
        // event comes. The task ends with the shim at the latest.
        tokio::spawn(write_config(stdin, config));
    }
    Ok(child)
}

async fn write_config(mut stdin: ChildStdin, config: Vec<u8>) {
    // A shim that does not read its config ends, and says why itself.
    let _reader_gone = stdin.write_all(&config).await;
}

fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

fn quoted(paths: &[PathBuf]) -> String {
    let quoted: Vec<String> = paths.iter().map(|path| format!("`{}`", path.display())).collect();
    quoted.join(", ")
}
