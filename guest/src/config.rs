//! Reads the config of the guest program, a virtual file of libkrun that can be opened once.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use a3s_box_proto::control::GuestConfig;
use nix::libc;
use prost::Message;

/// Maximum size of the config in bytes. It has room for the longest arguments and environment that
/// `execve(2)` accepts, which are 6 MiB together, and for the rest.
const MAX_BYTES: u64 = 8 * 1024 * 1024;

/// The reason why the config cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// The file cannot be opened or read.
    #[error("cannot read the guest's config `{path}`", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Error of the kernel.
        source: io::Error,
    },
    /// The path does not lead to a regular file, so it is not the virtual file.
    #[error("guest's config `{path}`: found no regular file", path = path.display())]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
    /// The file is larger than the limit.
    #[error("guest's config `{path}`: found over {MAX_BYTES} bytes", path = path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// The content cannot be decoded as a `GuestConfig`.
    #[error("guest's config `{path}`: found no GuestConfig message", path = path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Error of the decoder.
        source: prost::DecodeError,
    },
}

/// Reads the config.
///
/// Looks the path up only once, because a one-shot file of libkrun vanishes after its first lookup.
/// The kind of file is therefore read from the open file.
pub(crate) fn read(path: &Path) -> Result<GuestConfig, ConfigError> {
    let at = || path.to_path_buf();
    let failed = |source| ConfigError::Read { path: at(), source };
    // libkrun's file hides one of the image with the same name. If it is missing, the file of the
    // image can be of any kind: O_NOFOLLOW refuses a symbolic link, and O_NONBLOCK keeps the open
    // of a FIFO from waiting.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
        .map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(ConfigError::NotAFile { path: at() });
    }
    let mut bytes = Vec::new();
    // One byte more than the limit shows that the file is larger.
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
    fn reads_a_config() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config");
        let config = GuestConfig { hostname: "ünï".into(), ..GuestConfig::default() };
        std::fs::write(&path, config.encode_to_vec()).unwrap();
        assert_eq!(read(&path).unwrap(), config);
    }

    #[test]
    fn refuses_anything_that_is_not_a_config_and_names_the_file() {
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
