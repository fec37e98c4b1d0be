//! Opens the virtio console ports that carry the workload's output out of the guest.
//!
//! libkrun supports one open per port. A second one aborts the VMM, even after a close
//! (krun-devices, `src/virtio/console/device.rs`). Each port is therefore opened once and stays
//! open until the end. Its device node is removed, so that no program opens it by accident.

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

/// Time for the names of the ports to appear. The device sends them as messages after the driver
/// has started, which is before PID 1 starts.
const NAME_TIMEOUT: Duration = Duration::from_secs(5);

/// Time between two searches.
const NAME_PAUSE: Duration = Duration::from_millis(2);

/// Maximum number of bytes that are read of a name.
const NAME_BYTES: u64 = 256;

/// The reason why a port cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PortError {
    /// No port has this name.
    #[error("found no console port named `{name}` in `{directory}`", directory = directory.display())]
    Missing {
        /// Name of the port.
        name: &'static str,
        /// The directory that was searched.
        directory: PathBuf,
    },
    /// The device node cannot be opened.
    #[error("cannot open console port `{path}`", path = path.display())]
    Open {
        /// The device node.
        path: PathBuf,
        /// Error of the kernel.
        source: io::Error,
    },
    /// The path does not lead to a character device.
    #[error("console port `{path}`: expected a character device", path = path.display())]
    NotADevice {
        /// The device node.
        path: PathBuf,
    },
}

/// Waits for the port with this name, at most [`NAME_TIMEOUT`], and opens it.
pub(crate) async fn open(name: &'static str) -> Result<pipe::Sender, PortError> {
    let directory = Path::new("/sys/class/virtio-ports");
    let deadline = Instant::now() + NAME_TIMEOUT;
    // sysfs reports no event for a name that appears, so it is polled.
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

/// Returns the device whose attribute `name` in sysfs is this name. A port without a name is
/// skipped.
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

/// Opens a device node for writing and removes it.
fn open_device(path: &Path) -> Result<pipe::Sender, PortError> {
    let failed = |source| PortError::Open { path: path.to_path_buf(), source };
    // O_NONBLOCK, because PID 1 has one thread, and a full port must not block it.
    let file = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW | libc::O_NOCTTY)
        .open(path)
        .map_err(failed)?;
    if !file.metadata().map_err(failed)?.file_type().is_char_device() {
        return Err(PortError::NotADevice { path: path.to_path_buf() });
    }
    // An error is ignored: the removal only prevents accidents, and root can create the node again.
    drop(std::fs::remove_file(path));
    // The port is no pipe, so the check for one is skipped. It behaves like a pipe where tokio
    // depends on it: it supports epoll(7), and a write to a full port returns EAGAIN.
    pipe::Sender::from_file_unchecked(file).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_a_port_by_its_whole_name() {
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
    async fn refuses_and_keeps_a_file_that_is_not_a_device() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vport1p2");
        std::fs::write(&path, "").unwrap();
        assert!(matches!(open_device(&path), Err(PortError::NotADevice { .. })));
        assert!(path.exists());
    }
}
