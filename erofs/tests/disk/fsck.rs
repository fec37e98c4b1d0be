//! fsck.erofs of erofs-utils.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use crate::disk::Disk;

/// The directory of the programs of erofs-utils 1.8 or later.
static PROGRAMS: LazyLock<PathBuf> = LazyLock::new(|| {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/install-erofs-utils");
    let output = Command::new(script).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "erofs-utils could not be installed: {stderr}");
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
});

/// Checks a disk by fsck.erofs, with the data of its files.
///
/// fsck.erofs 1.8 reads data only of devices that are files of their own.
pub(crate) fn check(disk: &Disk) {
    let directory = tempfile::tempdir().unwrap();
    let parts = disk.split(directory.path());
    let mut fsck = Command::new(PROGRAMS.join("fsck.erofs"));
    fsck.args(["-d3", "--extract"]);
    parts[1..].iter().for_each(|part| {
        fsck.arg(format!("--device={}", part.display()));
    });
    let output = fsck.arg(&parts[0]).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    assert!(output.status.success(), "fsck.erofs failed: {text}");
    assert!(text.contains("No errors found"), "fsck.erofs reports: {text}");
}
