//! The mounts of a box, validated.

use std::path::{Component, Path, PathBuf};

use a3s_box_core::config::{ConfigError, MountConfig};
use a3s_box_krun::{Access, MAX_SHARES};

use super::absolute;

/// A file system that the guest mounts besides its root.
#[derive(Debug)]
pub(crate) struct MountSpec {
    pub(crate) target: String,
    pub(crate) source: MountSource,
}

/// Where its content comes from.
#[derive(Debug)]
pub(crate) enum MountSource {
    Virtiofs { tag: String, path: PathBuf, access: Access },
    Tmpfs { size_mib: u64 },
}

pub(super) fn check(mounts: &[MountConfig]) -> Result<Vec<MountSpec>, ConfigError> {
    let shares =
        mounts.iter().filter(|mount| matches!(mount, MountConfig::Virtiofs { .. })).count();
    if shares > MAX_SHARES {
        let expected = format!("at most {MAX_SHARES}: the machine has no more interrupts");
        return Err(ConfigError::invalid("mounts", format!("{shares} of type virtiofs"), expected));
    }
    mounts.iter().enumerate().map(|(i, mount)| check_one(i, mount)).collect()
}

fn check_one(i: usize, mount: &MountConfig) -> Result<MountSpec, ConfigError> {
    let path = format!("mounts[{i}]");
    match mount {
        MountConfig::Virtiofs { source, target, read_only } => Ok(MountSpec {
            target: check_target(&path, target)?,
            source: MountSource::Virtiofs {
                tag: format!("mount{i}"),
                path: check_source(&path, source)?,
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
    Err(ConfigError::invalid(field, format!("`{target}`"), "a folder below `/`, without `..`"))
}

/// The folder, without symlinks: libkrun opens it late, and with `O_NOFOLLOW`.
fn check_source(path: &str, source: &Path) -> Result<PathBuf, ConfigError> {
    let field = format!("{path}.source");
    absolute(&field, source)?;
    let found = match source.canonicalize() {
        Ok(folder) if folder.is_dir() => return Ok(folder),
        Ok(_) => format!("`{}`, which is not a folder", source.display()),
        Err(error) => format!("`{}` ({error})", source.display()),
    };
    Err(ConfigError::invalid(field, found, "an existing folder of the host"))
}
