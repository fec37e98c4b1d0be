//! Finds and maps the guest program, the executable `a3s-box-guest` that is PID 1 of a box.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use a3s_box_krun::Content;
use a3s_box_sys::HostError;

use crate::host::process;
use crate::spec::VmSpec;

/// File name of the guest program.
const PROGRAM: &str = "a3s-box-guest";

/// Why the guest program cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GuestProgramError {
    #[error("guest program `{PROGRAM}` not found, looked at: {searched}")]
    Missing { searched: String },
    #[error("cannot read the guest program `{}`", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("cannot look for the guest program")]
    Host(#[from] HostError),
}

/// Maps the guest program into memory.
pub(crate) fn load(spec: &VmSpec) -> Result<Content, GuestProgramError> {
    find(spec).map(|(_, program)| program)
}

/// Finds the guest program, and returns its path and content.
///
/// The file is opened before the shim has private mounts or a new root, because the path is the
/// host's. libkrun gets the content and serves it to the guest as a file.
pub(crate) fn find(spec: &VmSpec) -> Result<(PathBuf, Content), GuestProgramError> {
    let candidates = match &spec.paths.guest {
        Some(path) => vec![path.clone()],
        None => beside(&process::executable()?),
    };
    for path in &candidates {
        match File::open(path).and_then(Content::of) {
            Ok(program) => return Ok((path.clone(), program)),
            // Any other error ends the search. Otherwise a file without read permission would be
            // hidden by the guest program of another installation.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => {
                return Err(GuestProgramError::Unreadable { path: path.clone(), source });
            }
        }
    }
    let searched: Vec<String> =
        candidates.iter().map(|path| format!("`{}`", path.display())).collect();
    Err(GuestProgramError::Missing { searched: searched.join(", ") })
}

/// Returns the paths at which installations have the guest program: beside the shim, as in a build
/// directory, or in `../lib/a3s-box`, as in a package.
fn beside(executable: &Path) -> Vec<PathBuf> {
    let Some(directory) = executable.parent() else { return Vec::new() };
    let library = directory.parent().map(|prefix| prefix.join("lib/a3s-box").join(PROGRAM));
    [Some(directory.join(PROGRAM)), library].into_iter().flatten().collect()
}
