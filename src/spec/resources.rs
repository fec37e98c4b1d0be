//! The resources of a box: `resources` of the config, validated.

use std::ops::RangeInclusive;

use a3s_box_core::config::{ConfigError, DiskPlace, IoConfig, ResourcesConfig, Rlimit, RlimitName};
use a3s_box_krun::{MAX_VCPUS, MIN_MEMORY_MIB};
use a3s_box_proto::control;

use super::field::absolute;

/// Limits of `resources.disk_mib`.
///
/// A smaller ext4 has no space left beside its own metadata. The upper limit is half of the largest
/// file on ext4 (16 TiB), because a larger disk image may not fit the host's file system.
const DISK_MIB: RangeInclusive<u32> = 16..=8 * 1024 * 1024;

/// Checks all resources except for the rlimits.
pub(super) fn check(resources: &ResourcesConfig) -> Result<(), ConfigError> {
    let ResourcesConfig { vcpus, memory_mib, timeout_ms, .. } = resources;
    if !(1..=MAX_VCPUS).contains(vcpus) {
        let expected = format!("1 to {MAX_VCPUS}");
        return Err(ConfigError::invalid("resources.vcpus", vcpus.to_string(), expected));
    }
    if *memory_mib < MIN_MEMORY_MIB {
        let expected = format!("at least {MIN_MEMORY_MIB}");
        return Err(ConfigError::invalid("resources.memory_mib", memory_mib.to_string(), expected));
    }
    if let Some(mib) = resources.disk_mib.filter(|mib| !DISK_MIB.contains(mib)) {
        let expected = format!("{} to {}", DISK_MIB.start(), DISK_MIB.end());
        return Err(ConfigError::invalid("resources.disk_mib", mib.to_string(), expected));
    }
    if *timeout_ms == Some(0) {
        return Err(ConfigError::invalid("resources.timeout_ms", "0", "at least 1, or no value"));
    }
    check_io(resources)?;
    resources.cgroup.as_deref().map_or(Ok(()), |path| absolute("resources.cgroup", path))
}

fn check_io(resources: &ResourcesConfig) -> Result<(), ConfigError> {
    let limits = resources.io;
    for (name, limit) in
        [("read_mib_per_s", limits.read_mib_per_s), ("write_mib_per_s", limits.write_mib_per_s)]
    {
        if limit == Some(0) {
            let field = format!("resources.io.{name}");
            return Err(ConfigError::invalid(field, "0", "at least 1, or no value"));
        }
    }
    if limits != IoConfig::default() && resources.cgroup.is_none() {
        let expected = "`resources.cgroup` beside it, because a cgroup has the limits";
        return Err(ConfigError::invalid("resources.io", "a limit", expected));
    }
    Ok(())
}

/// Refuses `disk_keep` for a box without a disk that could be kept. `kind_is_shared` tells whether
/// the root is a directory that the host serves.
pub(super) fn check_disk_keep(
    kind_is_shared: bool,
    resources: &ResourcesConfig,
) -> Result<(), ConfigError> {
    let refused = |found, expected| {
        Err(ConfigError::invalid("resources.disk_keep", format!("true with {found}"), expected))
    };
    if !resources.disk_keep {
        Ok(())
    } else if resources.disk == DiskPlace::Memory {
        refused("`resources.disk` `memory`", "`resources.disk` `state_dir`, or false")
    } else if kind_is_shared {
        refused("`root.kind` `shared`", "`root.kind` `block`, or false")
    } else {
        Ok(())
    }
}

/// Returns the resource limits that PID 1 sets for the workload.
pub(super) fn rlimits(resources: &ResourcesConfig) -> Result<Vec<control::Rlimit>, ConfigError> {
    let check = |(name, limit): (&RlimitName, &Rlimit)| {
        if limit.0 > limit.1 {
            let field = format!("resources.rlimits.{}", format!("{name:?}").to_lowercase());
            let found = format!("soft limit {} over hard limit {}", limit.0, limit.1);
            return Err(ConfigError::invalid(field, found, "[soft, hard] with soft up to hard"));
        }
        Ok(control::Rlimit { resource: rlimit_number(*name), soft: limit.0, hard: limit.1 })
    };
    resources.rlimits.iter().map(check).collect()
}

/// Returns the number of a limit in the guest kernel. x86-64 and aarch64 use the same numbers
/// (`asm-generic/resource.h`).
fn rlimit_number(name: RlimitName) -> u32 {
    match name {
        RlimitName::Cpu => 0,
        RlimitName::Fsize => 1,
        RlimitName::Data => 2,
        RlimitName::Stack => 3,
        RlimitName::Core => 4,
        RlimitName::Rss => 5,
        RlimitName::Nproc => 6,
        RlimitName::Nofile => 7,
        RlimitName::Memlock => 8,
        RlimitName::As => 9,
        RlimitName::Locks => 10,
        RlimitName::Sigpending => 11,
        RlimitName::Msgqueue => 12,
        RlimitName::Nice => 13,
        RlimitName::Rtprio => 14,
        RlimitName::Rttime => 15,
    }
}
