//! The console ports that carry the workload's output out of the box.
//!
//! libkrun opens a port for the guest once: a second open, even after a close, ends the
//! VMM. So each is opened exactly once, kept until the end, and its device node is removed,
//! so that nothing in the box opens it by chance.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::libc;
use tokio::net::unix::pipe;
use tokio::time::{Instant, sleep};

/// Name of the port for standard output.
pub(crate) const STDOUT: &str = "krun-stdout";

/// Name of the port for standard error.
pub(crate) const STDERR: &str = "krun-stderr";

/// How long the device may take to tell its ports' names: messages after the driver's start,
/// which is before PID 1's.
const NAME_TIMEOUT: Duration = Duration::from_secs(5);

/// Pause between two looks.
const NAME_PAUSE: Duration = Duration::from_millis(2);

/// Longest name that is read.
const NAME_BYTES: u64 = 256;

/// Why a port cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PortError {
    /// Not there.
    #[error("found no console port named `{name}` in `{directory}`", directory = directory.display())]
    Missing {
        /// Name of the port.
        name: &'static str,
        /// Where it was looked for.
        directory: PathBuf,
    },
    /// The device node cannot be opened.
    #[error("cannot open console port `{path}`", path = path.display())]
    Open {
        /// The device node.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The device node is something else.
    #[error("console port `{path}`: expected a character device", path = path.display())]
    NotADevice {
        /// The device node.
        path: PathBuf,
    },
}

/// Waits for the port of this name, and opens it.
pub(crate) async fn open(name: &'static str) -> Result<pipe::Sender, PortError> {
    let directory = Path::new("/sys/class/virtio-ports");
    let deadline = Instant::now() + NAME_TIMEOUT;
    loop {
        if let Some(device) = find(directory, name) {
            return open_device(&Path::new("/dev").join(device));
        }
        if Instant::now() >= deadline {
            return Err(PortError::Missing { name, directory: directory.to_path_buf() });
        }
        sleep(NAME_PAUSE).await;
    }
}

/// The device with this name in its file `name`.
fn find(directory: &Path, name: &str) -> Option<PathBuf> {
    for entry in directory.read_dir().ok()?.flatten() {
        let mut text = String::new();
        let read = std::fs::File::open(entry.path().join("name"))
            .and_then(|file| file.take(NAME_BYTES).read_to_string(&mut text));
        if read.is_ok() && text.strip_suffix('\n') == Some(name) {
            return Some(PathBuf::from(entry.file_name()));
        }
    }
    None
}

fn open_device(path: &Path) -> Result<pipe::Sender, PortError> {
    let failed = |source| PortError::Open { path: path.to_path_buf(), source };
    let file = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW | libc::O_NOCTTY)
        .open(path)
        .map_err(failed)?;
    if !file.metadata().map_err(failed)?.file_type().is_char_device() {
        return Err(PortError::NotADevice { path: path.to_path_buf() });
    }
    // If it stays, it is as it would be without this.
    drop(std::fs::remove_file(path));
    // Like a pipe in all that counts: it polls, and a full one says EAGAIN.
    pipe::Sender::from_file_unchecked(file).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_found_by_its_whole_name() {
        let directory = tempfile::tempdir().unwrap();
        let ports =
            [("vport0p0", ""), ("vport1p1", "krun-stdout2\n"), ("vport1p2", "krun-stdout\n")];
        for (device, name) in ports {
            std::fs::create_dir(directory.path().join(device)).unwrap();
            std::fs::write(directory.path().join(device).join("name"), name).unwrap();
        }
        std::fs::create_dir(directory.path().join("vport1p3")).unwrap();
        assert_eq!(find(directory.path(), STDOUT), Some(PathBuf::from("vport1p2")));
        assert_eq!(find(directory.path(), STDERR), None);
        assert_eq!(find(Path::new("/nonexistent"), STDOUT), None);
    }

    #[tokio::test]
    async fn what_is_not_a_device_is_neither_used_nor_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vport1p2");
        std::fs::write(&path, "").unwrap();
        assert!(matches!(open_device(&path), Err(PortError::NotADevice { .. })));
        assert!(path.exists());
    }
}
