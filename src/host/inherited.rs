//! Open files that the shim was started with beside its three standard ones: a supervisor's, left open by
//! mistake.

use std::os::fd::RawFd;

use a3s_box_sys::HostError;
use nix::libc::STDERR_FILENO;

/// What was open before the shim opened anything.
#[derive(Debug, Default)]
pub(crate) struct InheritedFiles(Vec<RawFd>);

impl InheritedFiles {
    /// To be called first of all.
    pub(crate) fn find() -> Result<Self, HostError> {
        let mut found = Vec::new();
        let listed =
            std::fs::read_dir("/proc/self/fd").map_err(HostError::of("list the open files"))?;
        for entry in listed {
            let name = entry.map_err(HostError::of("list the open files"))?.file_name();
            found.extend(name.to_str().and_then(|name| name.parse::<RawFd>().ok()));
        }
        // The listing's own fd was the last to be opened, and so is the first that is free now.
        found.retain(|fd| *fd > STDERR_FILENO && std::fs::read_link(fd_path(*fd)).is_ok());
        Ok(Self(found))
    }

    /// Closes them: whoever asked for one by `/dev/fd/<n>` in the config has opened it anew.
    pub(crate) fn close(self) {
        for fd in self.0 {
            // It is closed whatever close(2) says.
            let _closed = nix::unistd::close(fd);
        }
    }
}

fn fd_path(fd: RawFd) -> String {
    format!("/proc/self/fd/{fd}")
}
