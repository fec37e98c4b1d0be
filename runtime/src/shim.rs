//! Finds the executable of the shim and spawns it.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::{Child, ChildStdin, Command};

/// Name of the executable.
const PROGRAM: &str = "a3s-box-shim";

/// Why no shim was started.
#[derive(Debug, thiserror::Error)]
pub enum ShimStartError {
    /// No candidate path has an executable file.
    #[error("`{PROGRAM}` was not found as any of {}", quoted(searched))]
    NotFound {
        /// The paths that were tried, in this order.
        searched: Vec<PathBuf>,
    },
    /// The host refused to spawn the executable.
    #[error("cannot run the shim `{}`", shim.display())]
    Spawn {
        /// Path of the executable.
        shim: PathBuf,
        /// Why the spawn failed.
        source: io::Error,
    },
}

/// Finds the executable of the shim: in the directory of this process's executable, in the
/// directory above, which is the one of `deps/` or `examples/` of a cargo build, or in `PATH`.
pub(crate) fn find() -> Result<PathBuf, ShimStartError> {
    let program = std::env::current_exe().ok();
    let beside = program.iter().flat_map(|program| program.ancestors().skip(1).take(2));
    let path = std::env::var_os("PATH").unwrap_or_default();
    // With a relative directory in `PATH`, the current directory would select the executable.
    let in_path = std::env::split_paths(&path).filter(|directory| directory.is_absolute());
    let directories = beside.map(Path::to_owned).chain(in_path);
    let searched: Vec<PathBuf> = directories.map(|directory| directory.join(PROGRAM)).collect();
    match searched.iter().find(|path| is_executable(path)) {
        Some(found) => Ok(found.clone()),
        None => Err(ShimStartError::NotFound { searched }),
    }
}

/// Spawns the shim and writes `config` to its standard input. Callers must be in a tokio runtime.
///
/// The shim stays in the process group of this process, so that Ctrl-C on a terminal signals both.
/// It inherits standard error, where it logs.
pub(crate) fn spawn(shim: &Path, config: Vec<u8>) -> Result<Child, ShimStartError> {
    let mut command = Command::new(shim);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    // With the pid, the shim notices if this process ended before the shim requested the signal at
    // its parent's death.
    command.arg("--parent").arg(std::process::id().to_string());
    let mut child = command
        // The end of the tokio runtime drops the child. The box must not outlive its manager.
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| ShimStartError::Spawn { shim: shim.to_owned(), source })?;
    if let Some(stdin) = child.stdin.take() {
        // A pipe has less space than the longest config, so a write here could block until the
        // shim reads. The task ends at the latest when the shim ends and the pipe closes.
        tokio::spawn(write_config(stdin, config));
    }
    Ok(child)
}

async fn write_config(mut stdin: ChildStdin, config: Vec<u8>) {
    // The write fails if the shim ends before it has read the config. The shim then reports its
    // own error.
    let _reader_gone = stdin.write_all(&config).await;
}

fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

fn quoted(paths: &[PathBuf]) -> String {
    let quoted: Vec<String> = paths.iter().map(|path| format!("`{}`", path.display())).collect();
    quoted.join(", ")
}
