//! Reads the `BoxConfig` from standard input or from the file of `--config`.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use a3s_box_core::config::MAX_CONFIG_BYTES;
use a3s_box_core::{BoxConfig, ConfigError};

/// Why there is no valid config.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InputError {
    #[error("cannot read the config from {source_name}")]
    Read { source_name: String, source: io::Error },
    #[error("the config is not valid")]
    Invalid(#[from] ConfigError),
}

/// Reads and parses the config in the file at `path`, or on standard input if there is no path.
///
/// The result is not validated: `VmSpec::try_from` does that.
pub(crate) fn read(path: Option<&Path>) -> Result<BoxConfig, InputError> {
    let read = match path {
        Some(path) => File::open(path).and_then(read_bounded),
        None => read_bounded(io::stdin()),
    };
    let json = read.map_err(|source| {
        let source_name =
            path.map_or("standard input".into(), |path| format!("`{}`", path.display()));
        InputError::Read { source_name, source }
    })?;
    Ok(BoxConfig::from_json(&json)?)
}

/// Reads one byte more than the limit, so that the parser detects and refuses a config that is too
/// long instead of parsing its beginning.
fn read_bounded(source: impl Read) -> io::Result<Vec<u8>> {
    let mut json = Vec::new();
    source.take(MAX_CONFIG_BYTES as u64 + 1).read_to_end(&mut json)?;
    Ok(json)
}
