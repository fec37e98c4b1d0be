//! `confinement.ids`: the ids of the host that boxes get.

use a3s_box_core::config::{ConfigError, IdsConfig};

/// Number of ids of one box: all user ids that images have in practice, and `nobody` (65534).
pub(crate) const IDS_PER_BOX: u32 = 65_536;

/// The ids below belong to the users and groups of the host (`/etc/login.defs`).
const LEAST: u32 = 65_536;

/// Checks that the range has ids for at least one box, and none of the host's own users.
pub(super) fn check(ids: IdsConfig) -> Result<IdsConfig, ConfigError> {
    let IdsConfig { first, count } = ids;
    if first < LEAST {
        let expected = format!("at least {LEAST}: the ids below belong to users of the host");
        return Err(ConfigError::invalid("confinement.ids.first", first.to_string(), expected));
    }
    // 4294967295 is no id: it means "no change" in setresuid(2) and other calls.
    let most = u32::MAX - first;
    if !(IDS_PER_BOX..=most).contains(&count) {
        let expected = format!("{IDS_PER_BOX} to {most}: {IDS_PER_BOX} for each box that runs");
        return Err(ConfigError::invalid("confinement.ids.count", count.to_string(), expected));
    }
    Ok(ids)
}
