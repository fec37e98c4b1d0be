//! The mounts of the guest: `mounts` of the config, validated.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path};

use a3s_box_core::config::{self, ConfigError, DiskPlace, MountConfig, RootKind};
use a3s_box_krun::{Access, ShareCache, max_shares};
use a3s_box_oci::{StoreError, open_safely};

use super::field::absolute;
use super::network::NetworkSpec;
use super::paths::{Location, ShimDirectories};
use crate::share::SharedDirectory;

/// A file system that the guest mounts in addition to its root.
#[derive(Debug)]
pub(crate) struct MountSpec {
    pub(crate) target: String,
    pub(crate) source: MountSource,
}

/// What a mount contains.
#[derive(Debug)]
pub(crate) enum MountSource {
    /// A share. libkrun serves it under the tag, by which the guest program mounts it.
    Virtiofs { tag: String, directory: SharedDirectory, access: Access, cache: ShareCache },
    /// A tmpfs in the guest. Size 0 leaves the limit to the guest kernel.
    Tmpfs { size_mib: u64 },
}

/// Returns the largest number of shares beside a root of `kind`.
///
/// Every virtio device takes an interrupt. The Ethernet device is one, and so is each disk: the
/// image's, and the one for what the box writes, unless that is in memory.
pub(super) fn most_shares(kind: RootKind, disk: DiskPlace, network: &NetworkSpec) -> usize {
    let disks = match kind {
        RootKind::Shared => 0,
        RootKind::Block => 1 + usize::from(disk == DiskPlace::StateDir),
    };
    max_shares(disks, usize::from(matches!(network, NetworkSpec::Passt(_))))
}

/// Validates the mounts, of which at most `most` are shares, and finds the directories of the
/// shares.
pub(super) fn check(
    mounts: &[MountConfig],
    directories: &ShimDirectories,
    most: usize,
) -> Result<Vec<MountSpec>, ConfigError> {
    let shares =
        mounts.iter().filter(|mount| matches!(mount, MountConfig::Virtiofs { .. })).count();
    if shares > most {
        let expected = format!("at most {most}: the machine has no more interrupts");
        return Err(ConfigError::invalid("mounts", format!("{shares} of type virtiofs"), expected));
    }
    mounts.iter().enumerate().map(|(i, mount)| check_one(i, mount, directories)).collect()
}

fn check_one(
    i: usize,
    mount: &MountConfig,
    directories: &ShimDirectories,
) -> Result<MountSpec, ConfigError> {
    let field = format!("mounts[{i}]");
    match mount {
        MountConfig::Virtiofs { source, target, read_only, cache } => Ok(MountSpec {
            target: check_target(&field, target)?,
            source: MountSource::Virtiofs {
                tag: format!("mount{i}"),
                directory: check_source(&format!("{field}.source"), source, directories)?,
                access: if *read_only { Access::ReadOnly } else { Access::ReadWrite },
                cache: match cache {
                    config::ShareCache::None => ShareCache::None,
                    config::ShareCache::Auto => ShareCache::Auto,
                },
            },
        }),
        MountConfig::Tmpfs { target, size_mib } => {
            if *size_mib == Some(0) {
                return Err(ConfigError::invalid(
                    format!("{field}.size_mib"),
                    "0",
                    "at least 1, or no value",
                ));
            }
            Ok(MountSpec {
                target: check_target(&field, target)?,
                source: MountSource::Tmpfs { size_mib: size_mib.unwrap_or(0) },
            })
        }
    }
}

fn check_target(mount: &str, target: &str) -> Result<String, ConfigError> {
    let field = format!("{mount}.target");
    absolute(&field, Path::new(target))?;
    // A mount point with `..` would depend on the symbolic links of the image.
    let is_plain = |component| matches!(component, Component::RootDir | Component::Normal(_));
    let components = || Path::new(target).components();
    if components().all(is_plain) && components().count() > 1 {
        return Ok(target.to_owned());
    }
    Err(ConfigError::invalid(field, format!("`{target}`"), "a directory below `/`, without `..`"))
}

/// Returns the directory that `source` leads to, with its path without symbolic links. The inode
/// lets a later phase detect that the directory was replaced.
///
/// The path often leads through directories of other users. They can put their own directories on
/// the way, but they must not lead a shim of root to a directory that only root can reach.
fn check_source(
    field: &str,
    source: &Path,
    directories: &ShimDirectories,
) -> Result<SharedDirectory, ConfigError> {
    absolute(field, source)?;
    let refuse = |reason: String| {
        let found = format!("`{}`{reason}", source.display());
        ConfigError::invalid(field, found, "an existing directory of the host")
    };
    let reached = open_safely(source).map_err(|error| match error {
        StoreError::Host(error) if error.source.kind() == io::ErrorKind::NotADirectory => {
            refuse(", which is not a directory".to_owned())
        }
        StoreError::Host(error) => refuse(format!(" ({})", error.source)),
        StoreError::Exposed { path, found, expected } => {
            let found = format!("`{}` with `{}`, {found}", source.display(), path.display());
            ConfigError::invalid(field, found, expected)
        }
    })?;
    let found = File::from(reached.directory).metadata();
    let inode = found.map(|found| (found.dev(), found.ino()));
    let location = Location::find(&reached.path);
    let (inode, location) = inode
        .and_then(|inode| Ok((inode, location?)))
        .map_err(|error| refuse(format!(" ({error})")))?;
    // The location is found by the path, which could lead to another directory by now.
    if location.inode != Some(inode) {
        return Err(refuse(", which was replaced while the config was validated".to_owned()));
    }
    directories.refuse_share(field, &location)?;
    Ok(SharedDirectory { path: location.path, inode })
}
