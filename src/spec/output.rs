//! The output files and the `metrics` events of a box: `console` and `events` of the config,
//! validated.

use std::path::{Path, PathBuf};
use std::time::Duration;

use a3s_box_core::config::{ConfigError, ConsoleConfig, EventsConfig};

use super::field::{MAX_WAIT_MS, absolute, within};
use super::mounts::{MountSource, MountSpec};
use super::paths::{Location, ShimDirectories, check_parents};

/// Shortest time between two `metrics` events. Reading the metrics takes a millisecond, and several
/// for a guest with much memory.
const MIN_METRICS_MS: u64 = 100;

/// Largest limit of a file: 1 TiB for a limit in MiB, 1 GiB for a limit in KiB.
const MAX_FILE_UNITS: u64 = 1024 * 1024;

/// The file for the workload's output.
#[derive(Clone, Debug)]
pub(crate) struct ConsoleSpec {
    /// Path of the file. If absent, the file is in the box directory.
    pub(crate) path: Option<PathBuf>,
    /// Limit on the sizes of the file and of the previous file, together.
    pub(crate) max_bytes: u64,
}

/// The event file, and the `metrics` events.
#[derive(Clone, Debug)]
pub(crate) struct EventsSpec {
    pub(crate) file: Option<PathBuf>,
    /// Limit on the sizes of the file and of the previous file, together.
    pub(crate) file_max_bytes: u64,
    pub(crate) metrics_interval: Option<Duration>,
}

impl TryFrom<ConsoleConfig> for ConsoleSpec {
    type Error = ConfigError;

    fn try_from(console: ConsoleConfig) -> Result<Self, ConfigError> {
        within("console.max_mib", console.max_mib.into(), 1..=MAX_FILE_UNITS)?;
        if let Some(path) = &console.path {
            absolute("console.path", path)?;
        }
        Ok(Self { path: console.path, max_bytes: u64::from(console.max_mib) << 20 })
    }
}

impl TryFrom<EventsConfig> for EventsSpec {
    type Error = ConfigError;

    fn try_from(events: EventsConfig) -> Result<Self, ConfigError> {
        within("events.file_max_kib", events.file_max_kib.into(), 64..=MAX_FILE_UNITS)?;
        if let Some(path) = &events.file {
            absolute("events.file", path)?;
        }
        if let Some(interval_ms) = events.metrics_interval_ms {
            within("events.metrics_interval_ms", interval_ms, MIN_METRICS_MS..=MAX_WAIT_MS)?;
        }
        Ok(Self {
            file: events.file,
            file_max_bytes: u64::from(events.file_max_kib) << 10,
            metrics_interval: events.metrics_interval_ms.map(Duration::from_millis),
        })
    }
}

/// Checks the places of both files: that no other user and no guest can replace them, and that they
/// are not in the layer cache, which removes unknown files.
pub(super) fn check_files(
    console: &ConsoleSpec,
    events: &EventsSpec,
    directories: &ShimDirectories,
    mounts: &[MountSpec],
) -> Result<(), ConfigError> {
    for (field, file) in [("console.path", &console.path), ("events.file", &events.file)] {
        let Some(file) = file else { continue };
        directories.refuse_in_cache(field, file)?;
        check_parents(field, file)?;
        refuse_in_shares(field, file, mounts)?;
    }
    Ok(())
}

/// Refuses a file in a share. The guest could put a symbolic link in its place, which would lead a
/// shim of root to any file of the host.
fn refuse_in_shares(field: &str, file: &Path, mounts: &[MountSpec]) -> Result<(), ConfigError> {
    // If the location cannot be found, the phase that opens the file reports the reason.
    let Ok(location) = Location::find(file) else { return Ok(()) };
    for (i, mount) in mounts.iter().enumerate() {
        let MountSource::Virtiofs { directory: share, .. } = &mount.source else { continue };
        if location.is_below(&share.path, Some(share.inode)) {
            let found = format!(
                "`{}`, which is in the share `{}` (`mounts[{i}].source`)",
                file.display(),
                share.path.display()
            );
            let expected = "a path outside of all shares, because a guest can change their files";
            return Err(ConfigError::invalid(field, found, expected));
        }
    }
    Ok(())
}
