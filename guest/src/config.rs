//! The guest's part of the box's config: a virtual file that is gone once it was read.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use a3s_box_proto::control::GuestConfig;
use nix::libc;
use prost::Message;

/// Largest config: room for the kernel's own limit on arguments and environment (`ARG_MAX`,
/// at most 6 MiB) and the rest.
const MAX_BYTES: u64 = 8 * 1024 * 1024;

/// Why there is no config.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// The file cannot be opened or read.
    #[error("cannot read the guest's config `{path}`", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Not the virtual file.
    #[error("guest's config `{path}`: found no regular file", path = path.display())]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
    /// Beyond the limit.
    #[error("guest's config `{path}`: found over {MAX_BYTES} bytes", path = path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// Not a `GuestConfig`.
    #[error("guest's config `{path}`: found no GuestConfig message", path = path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What prost said.
        source: prost::DecodeError,
    },
}

/// Reads the config. Looks the name up once: libkrun's one-shot files vanish after that.
pub(crate) fn read(path: &Path) -> Result<GuestConfig, ConfigError> {
    let at = || path.to_path_buf();
    let failed = |source| ConfigError::Read { path: at(), source };
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
        .map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(ConfigError::NotAFile { path: at() });
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(ConfigError::TooLong { path: at() });
    }
    GuestConfig::decode(bytes.as_slice())
        .map_err(|source| ConfigError::Malformed { path: at(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_is_read_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config");
        let config = GuestConfig { hostname: "ünï".into(), ..GuestConfig::default() };
        std::fs::write(&path, config.encode_to_vec()).unwrap();
        assert_eq!(read(&path).unwrap(), config);
    }

    #[test]
    fn what_is_not_a_config_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config");
        assert!(matches!(read(&path), Err(ConfigError::Read { .. })));
        std::fs::write(&path, [0xff; 9]).unwrap();
        assert!(matches!(read(&path), Err(ConfigError::Malformed { .. })));
        let big = std::fs::File::create(&path).unwrap();
        big.set_len(MAX_BYTES + 1).unwrap();
        assert!(matches!(read(&path), Err(ConfigError::TooLong { .. })));
        assert!(matches!(read(directory.path()), Err(ConfigError::NotAFile { .. })));
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let message = read(&link).unwrap_err().to_string();
        assert!(message.contains(link.to_str().unwrap()), "{message}");
    }
}
