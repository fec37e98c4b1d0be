//! File descriptors that the shim inherited beside its three standard ones.
//!
//! They belong to the supervisor, which has left them open by mistake. A guest that has taken the
//! VMM over could use them, so the confinement closes them.

use std::os::fd::RawFd;

use a3s_box_sys::HostError;
use nix::libc::STDERR_FILENO;

/// The inherited file descriptors.
#[derive(Debug, Default)]
pub(crate) struct InheritedFiles(Vec<RawFd>);

impl InheritedFiles {
    /// Lists the file descriptors that are open now. Callers must call it before the shim opens a
    /// file, because it cannot tell an inherited fd from one that the shim has opened.
    pub(crate) fn find() -> Result<Self, HostError> {
        let mut found = Vec::new();
        let listed =
            std::fs::read_dir("/proc/self/fd").map_err(HostError::of("list the open files"))?;
        for entry in listed {
            let name = entry.map_err(HostError::of("list the open files"))?.file_name();
            found.extend(name.to_str().and_then(|name| name.parse::<RawFd>().ok()));
        }
        // The list contains the fd of the listing itself, which is closed by now. Its link in
        // `/proc` no longer exists.
        found.retain(|fd| *fd > STDERR_FILENO && std::fs::read_link(fd_path(*fd)).is_ok());
        Ok(Self(found))
    }

    /// Closes the file descriptors. A path `/dev/fd/<n>` in the config stays usable, because the
    /// phases before have opened it, which made a new fd.
    pub(crate) fn close(self) {
        for fd in self.0 {
            // Linux releases the fd even if close(2) returns an error.
            let _closed = nix::unistd::close(fd);
        }
    }
}

fn fd_path(fd: RawFd) -> String {
    format!("/proc/self/fd/{fd}")
}
