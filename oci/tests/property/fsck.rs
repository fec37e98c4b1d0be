//! fsck.erofs of erofs-utils, the second implementation of the format.

use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use a3s_box_oci::DiskPart;

/// The path of fsck.erofs 1.8 or later.
static PROGRAM: LazyLock<PathBuf> = LazyLock::new(|| {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../erofs/tests/install-erofs-utils");
    let output = Command::new(script).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "erofs-utils could not be installed: {text}");
    Path::new(String::from_utf8(output.stdout).unwrap().trim()).join("fsck.erofs")
});

/// Checks the disk of a block root by fsck.erofs, with the data of its files. An error is what it
/// has found.
///
/// Each part is a file of its own, because fsck.erofs 1.8 reads no data of devices that are behind
/// the metadata image in one file.
pub(crate) fn check(parts: &[DiskPart]) -> Result<(), String> {
    // The fds of this process are closed in the program, which therefore opens the files again.
    let path =
        |part: &DiskPart| format!("/proc/{}/fd/{}", std::process::id(), part.file.as_raw_fd());
    let (metadata, data) = parts.split_first().unwrap();
    let devices = data.iter().map(|part| format!("--device={}", path(part)));
    let mut fsck = Command::new(&*PROGRAM);
    let output =
        fsck.args(["-d3", "--extract"]).args(devices).arg(path(metadata)).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    // Data behind the end of a file count as zeros, and are only mentioned.
    let is_whole = !text.contains("reach EOF");
    match output.status.success() && text.contains("No errors found") && is_whole {
        true => Ok(()),
        false => Err(format!("fsck.erofs ends with {}: {text}", output.status)),
    }
}
