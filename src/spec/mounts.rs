//! The mounts of a box, validated.

use std::path::{Component, Path};

use a3s_box_core::config::{ConfigError, MountConfig};
use a3s_box_krun::{Access, MAX_SHARES};

use super::network::NetworkSpec;
use super::places::{Place, Places, absolute};
use crate::share::SharedDirectory;

/// A file system that the guest mounts besides its root.
#[derive(Debug)]
pub(crate) struct MountSpec {
    pub(crate) target: String,
    pub(crate) source: MountSource,
}

/// Where its content comes from.
#[derive(Debug)]
pub(crate) enum MountSource {
    Virtiofs { tag: String, directory: SharedDirectory, access: Access },
    Tmpfs { size_mib: u64 },
}

pub(super) fn check(
    mounts: &[MountConfig],
    places: &Places,
    network: &NetworkSpec,
) -> Result<Vec<MountSpec>, ConfigError> {
    let shares =
        mounts.iter().filter(|mount| matches!(mount, MountConfig::Virtiofs { .. })).count();
    // The network takes an interrupt, too.
    let most = MAX_SHARES - usize::from(matches!(network, NetworkSpec::Passt(_)));
    if shares > most {
        let expected = format!("at most {most}: the machine has no more interrupts");
        return Err(ConfigError::invalid("mounts", format!("{shares} of type virtiofs"), expected));
    }
    mounts.iter().enumerate().map(|(i, mount)| check_one(i, mount, places)).collect()
}

fn check_one(i: usize, mount: &MountConfig, places: &Places) -> Result<MountSpec, ConfigError> {
    let path = format!("mounts[{i}]");
    match mount {
        MountConfig::Virtiofs { source, target, read_only } => Ok(MountSpec {
            target: check_target(&path, target)?,
            source: MountSource::Virtiofs {
                tag: format!("mount{i}"),
                directory: check_source(&format!("{path}.source"), source, places)?,
                access: if *read_only { Access::ReadOnly } else { Access::ReadWrite },
            },
        }),
        MountConfig::Tmpfs { target, size_mib } => {
            if *size_mib == Some(0) {
                return Err(ConfigError::invalid(
                    format!("{path}.size_mib"),
                    "0",
                    "at least 1, or nothing",
                ));
            }
            Ok(MountSpec {
                target: check_target(&path, target)?,
                source: MountSource::Tmpfs { size_mib: size_mib.unwrap_or(0) },
            })
        }
    }
}

fn check_target(path: &str, target: &str) -> Result<String, ConfigError> {
    let field = format!("{path}.target");
    absolute(&field, Path::new(target))?;
    let plain = |component| matches!(component, Component::RootDir | Component::Normal(_));
    let components = || Path::new(target).components();
    if components().all(plain) && components().count() > 1 {
        return Ok(target.to_owned());
    }
    Err(ConfigError::invalid(field, format!("`{target}`"), "a directory below `/`, without `..`"))
}

/// The directory, by its one path without symbolic links.
fn check_source(
    field: &str,
    source: &Path,
    places: &Places,
) -> Result<SharedDirectory, ConfigError> {
    absolute(field, source)?;
    let refuse = |why: String| {
        let found = format!("`{}`{why}", source.display());
        ConfigError::invalid(field, found, "an existing directory of the host")
    };
    let canonical = source.canonicalize().and_then(|path| Place::find(&path));
    let place = canonical.map_err(|error| refuse(format!(" ({error})")))?;
    let inode = place.inode.filter(|_| place.path.is_dir());
    let inode = inode.ok_or_else(|| refuse(", which is not a directory".to_owned()))?;
    places.refuse_share(field, &place)?;
    Ok(SharedDirectory { path: place.path, inode })
}
