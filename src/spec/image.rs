//! The image of a box, and the limits of its layers and of the layer cache: `image` and `cache` of
//! the config, validated.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use a3s_box_core::config::{CacheConfig, ConfigError, ImageConfig, ImageLimits};
use a3s_box_oci::{Limits, Platform, Retention};

use super::field::{absolute, within};

/// Upper bound of `image.limits.unpacked_mib`: 16 TiB, the largest file on ext4.
const MAX_UNPACKED_MIB: u64 = 16 << 20;

/// Upper bound of `image.limits.names_mib`. A larger value could exhaust the memory of the host.
const MAX_NAMES_MIB: u64 = 4096;

/// Upper bound of `image.limits.zstd_window_mib`, which is that of zstd on 64-bit hosts
/// (`ZSTD_WINDOWLOG_MAX_64`).
const MAX_ZSTD_WINDOW_MIB: u64 = 2048;

/// The image from which the root of a box is made.
#[derive(Debug)]
pub(crate) struct ImageSpec {
    pub(crate) layout: PathBuf,
    pub(crate) reference: Option<String>,
    pub(crate) platform: Platform,
    pub(crate) limits: Limits,
}

impl TryFrom<ImageConfig> for ImageSpec {
    type Error = ConfigError;

    fn try_from(image: ImageConfig) -> Result<Self, ConfigError> {
        absolute("image.layout", &image.layout)?;
        let platform = match &image.platform {
            None => Platform::host(),
            Some(text) => Platform::from_str(text).map_err(|_parts| {
                ConfigError::invalid(
                    "image.platform",
                    format!("`{text}`"),
                    "`os/architecture[/variant]`",
                )
            })?,
        };
        let limits = limits(image.limits)?;
        Ok(Self { layout: image.layout, reference: image.reference, platform, limits })
    }
}

/// Returns the limits of each layer.
fn limits(limits: ImageLimits) -> Result<Limits, ConfigError> {
    let ImageLimits { unpacked_mib, entries, ratio, names_mib, zstd_window_mib } = limits;
    for (field, found, max) in [
        ("unpacked_mib", unpacked_mib, MAX_UNPACKED_MIB),
        ("entries", entries, u32::MAX.into()),
        ("ratio", ratio, u32::MAX.into()),
        ("names_mib", names_mib, MAX_NAMES_MIB),
        ("zstd_window_mib", zstd_window_mib, MAX_ZSTD_WINDOW_MIB),
    ] {
        within(&format!("image.limits.{field}"), found.into(), 1..=max)?;
    }
    let bytes = |mib: u32| u64::from(mib) << 20;
    Ok(Limits {
        unpacked_bytes: bytes(unpacked_mib),
        entries: entries.into(),
        ratio: ratio.into(),
        remembered_bytes: usize::try_from(bytes(names_mib)).unwrap_or(usize::MAX),
        zstd_window_bytes: bytes(zstd_window_mib),
        ..Limits::default()
    })
}

/// Returns the limits of the layer cache. A limit that overflows saturates, because no cache
/// reaches it in either case.
pub(super) fn retention(cache: CacheConfig) -> Retention {
    Retention {
        max_bytes: cache.max_mib.map(|mib| mib.saturating_mul(1 << 20)),
        max_age: cache.max_age_hours.map(|hours| Duration::from_secs(hours.saturating_mul(3600))),
    }
}
