//! Unpacks images by umoci, which applies one layer after the other to one directory.

use std::path::Path;
use std::process::Command;

use crate::bench::run;

/// Unpacks an image into `target`. An error is the last line of umoci's messages.
pub(crate) fn unpack(layout: &Path, reference: &str, target: &Path) -> Result<(), String> {
    let image = format!("{}:{reference}", layout.display());
    run(Command::new("umoci").args(["raw", "unpack", "--image", &image]).arg(target)).map(drop)
}
