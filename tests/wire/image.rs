//! A small image for tests, made by umoci.

use std::path::Path;
use std::process::Command;

/// Puts what `script` makes in its working directory into an image of one layer, and returns the
/// config's `image`.
pub(crate) fn image(directory: &Path, script: &str) -> serde_json::Value {
    let found = Command::new("umoci").arg("--version").output();
    let found = found.is_ok_and(|output| output.status.success());
    assert!(found, "this test needs umoci: install the package `umoci`");
    let script = format!(
        "umoci init --layout image && umoci new --image image:t && umoci unpack --image image:t one
        (cd one/rootfs && {script})
        umoci repack --image image:t one && rm -r one"
    );
    let output =
        Command::new("bash").args(["-euc", &script]).current_dir(directory).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::json!({"layout": directory.join("image"), "reference": "t"})
}
