//! [`VmSpec`]: a `BoxConfig` whose values have been validated. This is the only validation.
//!
//! Everything that can be checked without a side effect is checked here, and later phases do not
//! check it again. Each submodule validates one part of the config:
//!
//! | module | parts of the config |
//! |---|---|
//! | [`agent`] | `agent` |
//! | [`egress`] | `network.egress` |
//! | [`hostname`] | `hostname` |
//! | [`ids`] | `confinement.ids` |
//! | [`image`] | `image`, `cache` |
//! | [`mounts`] | `mounts` |
//! | [`name`] | names in `network.egress` |
//! | [`network`] | `network` |
//! | [`output`] | `console`, `events` |
//! | [`paths`] | `paths`, and paths in other parts that must not be in the shim's directories |
//! | [`process`] | `process`, `stop` |
//! | [`reach`] | addresses in `network` |
//! | [`resources`] | `resources` |
//! | [`signal`] | `stop.signal`, and the stop signal of an image |

mod agent;
mod egress;
mod field;
mod hostname;
mod ids;
mod image;
mod mounts;
mod name;
mod network;
mod output;
mod paths;
mod process;
mod reach;
mod resources;
mod signal;

use std::path::PathBuf;
use std::time::Duration;

use a3s_box_core::config::{
    ConfigError, ConfinementConfig, ConfinementLevel, DiskPlace, IdsConfig, IoConfig, PathsConfig,
    ProcessConfig, RootKind, SeccompMode,
};
use a3s_box_core::{BoxConfig, BoxId};
use a3s_box_oci::Retention;
use a3s_box_proto::control;

pub(crate) use self::agent::{AgentSpec, HealthSpec};
pub(crate) use self::ids::IDS_PER_BOX;
pub(crate) use self::image::ImageSpec;
pub(crate) use self::mounts::{MountSource, MountSpec};
pub(crate) use self::network::{
    EgressSpec, MAX_NAME_BYTES, MAX_NAME_SERVERS, NetworkSpec, PasstSpec, RuleSpec, Scope, Subnet,
    Target, behind_translator, is_name, is_reachable,
};
pub(crate) use self::output::{ConsoleSpec, EventsSpec};
use self::paths::ShimDirectories;
pub(crate) use self::signal::StopSignal;

/// The validated config of a box.
#[derive(Debug)]
pub(crate) struct VmSpec {
    pub(crate) id: BoxId,
    pub(crate) hostname: String,
    pub(crate) image: Option<ImageSpec>,
    /// Kind of the root that the config requires.
    pub(crate) root_kind: Option<RootKind>,
    pub(crate) process: ProcessConfig,
    pub(crate) vcpus: u8,
    pub(crate) memory_mib: u32,
    pub(crate) disk: DiskPlace,
    pub(crate) disk_mib: Option<u32>,
    pub(crate) disk_keep: bool,
    pub(crate) disk_reserve_mib: u32,
    pub(crate) cgroup: Option<PathBuf>,
    pub(crate) io: IoConfig,
    pub(crate) rlimits: Vec<control::Rlimit>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) mounts: Vec<MountSpec>,
    pub(crate) agent: AgentSpec,
    pub(crate) console: ConsoleSpec,
    pub(crate) events: EventsSpec,
    /// Signal that stops the workload. If absent, the image's stop signal is sent, or else SIGTERM.
    pub(crate) stop_signal: Option<StopSignal>,
    pub(crate) stop_grace: Duration,
    pub(crate) die_with_parent: bool,
    pub(crate) confinement: ConfinementLevel,
    pub(crate) seccomp: SeccompMode,
    /// Ids of the host for the boxes of root's shims.
    pub(crate) ids: IdsConfig,
    pub(crate) network: NetworkSpec,
    pub(crate) paths: PathsConfig,
    pub(crate) retention: Retention,
}

impl TryFrom<BoxConfig> for VmSpec {
    type Error = ConfigError;

    fn try_from(config: BoxConfig) -> Result<Self, ConfigError> {
        let id = BoxId::try_from(config.id.unwrap_or_else(generated_id))?;
        process::check(&config.process)?;
        resources::check(&config.resources)?;
        paths::check(&config.paths, &id)?;
        // Fields whose checks read the file system come after those that only compare values.
        let directories = ShimDirectories::find(&config.paths, &id)?;
        let image = config.image.map(ImageSpec::try_from).transpose()?;
        let console = ConsoleSpec::try_from(config.console)?;
        let network = NetworkSpec::try_from(config.network)?;
        let events = EventsSpec::try_from(config.events)?;
        let disk = config.resources.disk;
        let root_kind = config.root.kind;
        resources::check_disk_keep(root_kind == Some(RootKind::Shared), &config.resources)?;
        // A disk that is kept must never be replaced by a shared root, whatever the guest kernel is.
        let root_kind = root_kind.or(config.resources.disk_keep.then_some(RootKind::Block));
        // Without `root.kind`, a box with many shares gets a shared root.
        let most_shares =
            mounts::most_shares(root_kind.unwrap_or(RootKind::Shared), disk, &network);
        let mounts = mounts::check(&config.mounts, &directories, most_shares)?;
        image.as_ref().map_or(Ok(()), |image| directories.refuse_layout(&image.layout))?;
        output::check_files(&console, &events, &directories, &mounts)?;
        Ok(Self {
            hostname: hostname::hostname(config.hostname, &id)?,
            id,
            image,
            root_kind,
            process: config.process,
            vcpus: config.resources.vcpus,
            memory_mib: config.resources.memory_mib,
            disk,
            disk_mib: config.resources.disk_mib,
            disk_keep: config.resources.disk_keep,
            disk_reserve_mib: config.resources.disk_reserve_mib,
            rlimits: resources::rlimits(&config.resources)?,
            cgroup: config.resources.cgroup,
            io: config.resources.io,
            timeout: config.resources.timeout_ms.map(Duration::from_millis),
            mounts,
            agent: AgentSpec::try_from(&config.agent)?,
            console,
            events,
            stop_signal: process::stop_signal(&config.stop)?,
            stop_grace: Duration::from_millis(config.stop.grace_ms),
            die_with_parent: config.stop.die_with_parent,
            confinement: config.confinement.level,
            seccomp: seccomp(&config.confinement)?,
            ids: ids::check(config.confinement.ids)?,
            network,
            paths: config.paths,
            retention: image::retention(config.cache),
        })
    }
}

impl VmSpec {
    /// Returns whether a block root leaves enough devices for the shares.
    pub(crate) fn fits_block_root(&self) -> bool {
        let is_share = |mount: &&MountSpec| matches!(mount.source, MountSource::Virtiofs { .. });
        let shares = self.mounts.iter().filter(is_share).count();
        shares <= mounts::most_shares(RootKind::Block, self.disk, &self.network)
    }
}

/// Refuses level `required` together with a filter that only logs, because the box would then run
/// without one of the required layers.
fn seccomp(confinement: &ConfinementConfig) -> Result<SeccompMode, ConfigError> {
    if confinement.level == ConfinementLevel::Required && confinement.seccomp == SeccompMode::Log {
        let expected = "`enforce`, or `confinement.level` `best_effort`";
        return Err(ConfigError::invalid("confinement.seccomp", "`log`", expected));
    }
    Ok(confinement.seccomp)
}

/// Makes an id for a config without one. It is unique on this host, because no two processes have
/// the same pid at the same time.
fn generated_id() -> String {
    format!("box-{}-{}", std::process::id(), jiff::Timestamp::now().as_millisecond())
}

#[cfg(test)]
mod tests;
