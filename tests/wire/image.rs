//! Makes small images for tests with umoci.

use std::path::Path;
use std::process::Command;

/// Makes an image of one layer in `directory`, and returns the `image` of a config for it.
///
/// The shell commands `script` create the files of the layer in their working directory.
pub(crate) fn image(directory: &Path, script: &str) -> serde_json::Value {
    let version = Command::new("umoci").arg("--version").output();
    let is_installed = version.is_ok_and(|output| output.status.success());
    assert!(is_installed, "this test needs umoci: install the package `umoci`");
    let script = format!(
        "umoci init --layout image && umoci new --image image:t && umoci unpack --image image:t one
        (cd one/rootfs && {script})
        umoci repack --image image:t one && rm -r one"
    );
    let output =
        Command::new("bash").args(["-euc", &script]).current_dir(directory).output().unwrap();
    assert!(
        output.status.success(),
        "umoci or the script failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::json!({"layout": directory.join("image"), "reference": "t"})
}
