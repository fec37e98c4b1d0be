//! fsck.erofs of erofs-utils, the second implementation of the format.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

/// The path of fsck.erofs 1.8 or later.
static PROGRAM: LazyLock<PathBuf> = LazyLock::new(|| {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../erofs/tests/install-erofs-utils");
    let output = Command::new(script).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "erofs-utils could not be installed: {text}");
    Path::new(String::from_utf8(output.stdout).unwrap().trim()).join("fsck.erofs")
});

/// Checks a disk by fsck.erofs, with the data of its files. An error is what it has found.
///
/// The parts of the disk are files of their own, because fsck.erofs 1.8 reads no data of devices
/// that are behind the metadata image in one file.
pub(crate) fn check(metadata: &Path, data: &[PathBuf]) -> Result<(), String> {
    let devices = data.iter().map(|part| format!("--device={}", part.display()));
    let mut fsck = Command::new(&*PROGRAM);
    let output = fsck.args(["-d3", "--extract"]).args(devices).arg(metadata).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    // Data behind the end of a file count as zeros, and are only mentioned.
    let is_whole = !text.contains("reach EOF");
    match output.status.success() && text.contains("No errors found") && is_whole {
        true => Ok(()),
        false => Err(format!("fsck.erofs ends with {}: {text}", output.status)),
    }
}
