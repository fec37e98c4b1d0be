//! The image of a box and the limits of the layer cache: `image` and `cache` of the config,
//! validated.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use a3s_box_core::config::{CacheConfig, ConfigError, ImageConfig};
use a3s_box_oci::{Platform, Retention};

use super::field::absolute;

/// The image from which the root of a box is made.
#[derive(Debug)]
pub(crate) struct ImageSpec {
    pub(crate) layout: PathBuf,
    pub(crate) reference: Option<String>,
    pub(crate) platform: Platform,
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
        Ok(Self { layout: image.layout, reference: image.reference, platform })
    }
}

/// Returns the limits of the layer cache. A limit that overflows saturates, because no cache
/// reaches it in either case.
pub(super) fn retention(cache: CacheConfig) -> Retention {
    Retention {
        max_bytes: cache.max_mib.map(|mib| mib.saturating_mul(1 << 20)),
        max_age: cache.max_age_hours.map(|hours| Duration::from_secs(hours.saturating_mul(3600))),
    }
}
