//! [`VmSpec`]: a `BoxConfig` that makes sense. This is the only validation.
//!
//! What is in a `VmSpec` was checked against everything that can be known without a side effect;
//! later phases do not check again.

mod mounts;
mod network;
mod places;

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use a3s_box_core::config::{
    AgentConfig, AgentProvider, CacheConfig, ConfigError, ConfinementConfig, ConfinementLevel,
    ConsoleConfig, DiskPlace, EventsConfig, HealthConfig, ImageConfig, OnUnhealthy, PathsConfig,
    ProcessConfig, Readiness, ResourcesConfig, RlimitName, SeccompMode, StopConfig,
};
use a3s_box_core::{BoxConfig, BoxDir, BoxId};
use a3s_box_krun::{MAX_SOCKET_PATH_BYTES, MAX_VCPUS, MIN_MEMORY_MIB};
use a3s_box_oci::{Platform, Retention};
use a3s_box_proto::{CONTROL_PORT, control};
use nix::sys::signal::Signal;

pub(crate) use self::mounts::{MountSource, MountSpec};
pub(crate) use self::network::{MAX_NAME_SERVERS, NetworkSpec, PasstSpec, is_reachable};
use self::places::{Places, absolute};

/// Longest wait of any kind: nobody means a day.
const MAX_WAIT_MS: u64 = 3_600_000;

/// Shortest pause between health checks: each wakes the guest.
const MIN_INTERVAL_MS: u64 = 10;

/// Shortest time between two `metrics` events: reading them takes a millisecond, or several for a
/// large guest.
const MIN_METRICS_MS: u64 = 100;

/// Largest limit on a file: 1 TiB, or of what is given in KiB, 1 GiB.
const MAX_FILE_MIB: u64 = 1024 * 1024;

/// Limits on `resources.disk_mib`: less leaves no room beside the records of an ext4, and more than
/// half of what ext4 takes as one file may not fit the host's file system.
const DISK_MIB: RangeInclusive<u32> = 16..=8 * 1024 * 1024;

/// A box that can be started, as far as the config tells.
#[derive(Debug)]
pub(crate) struct VmSpec {
    pub(crate) id: BoxId,
    pub(crate) hostname: String,
    pub(crate) image: Option<ImageSpec>,
    pub(crate) process: ProcessConfig,
    pub(crate) vcpus: u8,
    pub(crate) memory_mib: u32,
    pub(crate) disk: DiskPlace,
    pub(crate) disk_mib: Option<u32>,
    pub(crate) cgroup: Option<PathBuf>,
    pub(crate) rlimits: Vec<control::Rlimit>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) mounts: Vec<MountSpec>,
    pub(crate) agent: AgentSpec,
    pub(crate) console: ConsoleSpec,
    pub(crate) events: EventsSpec,
    /// Absent: the image's, else SIGTERM.
    pub(crate) stop_signal: Option<Signal>,
    pub(crate) stop_grace: Duration,
    pub(crate) die_with_parent: bool,
    pub(crate) confinement: ConfinementLevel,
    pub(crate) seccomp: SeccompMode,
    pub(crate) network: NetworkSpec,
    pub(crate) paths: PathsConfig,
    pub(crate) retention: Retention,
}

/// The agent in the guest.
#[derive(Clone, Debug)]
pub(crate) struct AgentSpec {
    pub(crate) provider: AgentProvider,
    /// vsock port of the guest for health checks.
    pub(crate) port: u32,
    pub(crate) readiness: Readiness,
    pub(crate) boot_timeout: Duration,
    /// Absent with provider `none`.
    pub(crate) health: Option<HealthSpec>,
}

/// Health checks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HealthSpec {
    pub(crate) interval: Duration,
    pub(crate) timeout: Duration,
    pub(crate) retries: u32,
    pub(crate) start_period: Duration,
    pub(crate) on_unhealthy: OnUnhealthy,
}

/// Where the workload's output goes.
#[derive(Clone, Debug)]
pub(crate) struct ConsoleSpec {
    /// Absent: in the box's state directory.
    pub(crate) path: Option<PathBuf>,
    /// Of the file and the one before it.
    pub(crate) max_bytes: u64,
}

/// The event stream beside standard output.
#[derive(Clone, Debug)]
pub(crate) struct EventsSpec {
    pub(crate) file: Option<PathBuf>,
    /// Of the file and the one before it.
    pub(crate) file_max_bytes: u64,
    pub(crate) metrics_interval: Option<Duration>,
}

/// An image that is to be the root.
#[derive(Debug)]
pub(crate) struct ImageSpec {
    pub(crate) layout: PathBuf,
    pub(crate) reference: Option<String>,
    pub(crate) platform: Platform,
}

impl TryFrom<BoxConfig> for VmSpec {
    type Error = ConfigError;

    fn try_from(config: BoxConfig) -> Result<Self, ConfigError> {
        let id = BoxId::try_from(config.id.unwrap_or_else(made_up_id))?;
        check_process(&config.process)?;
        check_resources(&config.resources)?;
        check_paths(&config.paths, &id)?;
        let places = Places::find(&config.paths, &id)?;
        let image = config.image.map(ImageSpec::try_from).transpose()?;
        let console = ConsoleSpec::try_from(config.console)?;
        let network = NetworkSpec::try_from(config.network)?;
        let events = EventsSpec::try_from(config.events)?;
        image.as_ref().map_or(Ok(()), |image| places.refuse_layout(&image.layout))?;
        for (field, file) in [("console.path", &console.path), ("events.file", &events.file)] {
            file.as_deref().map_or(Ok(()), |file| places.refuse_in_cache(field, file))?;
        }
        Ok(Self {
            hostname: network::hostname(config.hostname, &id)?,
            id,
            image,
            process: config.process,
            vcpus: config.resources.vcpus,
            memory_mib: config.resources.memory_mib,
            disk: config.resources.disk,
            disk_mib: config.resources.disk_mib,
            rlimits: rlimits(&config.resources)?,
            cgroup: config.resources.cgroup,
            timeout: config.resources.timeout_ms.map(Duration::from_millis),
            mounts: mounts::check(&config.mounts, &places, &network)?,
            agent: AgentSpec::try_from(&config.agent)?,
            console,
            events,
            stop_signal: stop_signal(&config.stop)?,
            stop_grace: Duration::from_millis(config.stop.grace_ms),
            die_with_parent: config.stop.die_with_parent,
            confinement: config.confinement.level,
            seccomp: seccomp(&config.confinement)?,
            network,
            paths: config.paths,
            retention: retention(config.cache),
        })
    }
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

impl TryFrom<&AgentConfig> for AgentSpec {
    type Error = ConfigError;

    fn try_from(agent: &AgentConfig) -> Result<Self, ConfigError> {
        let port = agent.vsock_port;
        // VMADDR_PORT_ANY is all ones (vsock(7)).
        if port == 0 || port == u32::MAX || port == CONTROL_PORT {
            let expected = format!("a port other than 0, {CONTROL_PORT} and {}", u32::MAX);
            return Err(ConfigError::invalid("agent.vsock_port", port.to_string(), expected));
        }
        within("agent.boot_timeout_ms", agent.boot_timeout_ms, 1..=MAX_WAIT_MS)?;
        let is_asked = agent.provider != AgentProvider::None;
        let readiness = match agent.readiness {
            Some(Readiness::Health) if !is_asked => {
                let expected = "`started` or `notify`, as provider `none` has no health checks";
                return Err(ConfigError::invalid("agent.readiness", "`health`", expected));
            }
            Some(readiness) => readiness,
            None if is_asked => Readiness::Health,
            None => Readiness::Started,
        };
        let health = HealthSpec::try_from(&agent.health)?;
        Ok(Self {
            provider: agent.provider,
            port,
            readiness,
            boot_timeout: Duration::from_millis(agent.boot_timeout_ms),
            health: is_asked.then_some(health),
        })
    }
}

impl TryFrom<&HealthConfig> for HealthSpec {
    type Error = ConfigError;

    fn try_from(health: &HealthConfig) -> Result<Self, ConfigError> {
        within("agent.health.interval_ms", health.interval_ms, MIN_INTERVAL_MS..=MAX_WAIT_MS)?;
        within("agent.health.timeout_ms", health.timeout_ms, 1..=MAX_WAIT_MS)?;
        within("agent.health.retries", health.retries.into(), 1..=1000)?;
        within("agent.health.start_period_ms", health.start_period_ms, 0..=MAX_WAIT_MS)?;
        Ok(Self {
            interval: Duration::from_millis(health.interval_ms),
            timeout: Duration::from_millis(health.timeout_ms),
            retries: health.retries,
            start_period: Duration::from_millis(health.start_period_ms),
            on_unhealthy: health.on_unhealthy,
        })
    }
}

impl TryFrom<ConsoleConfig> for ConsoleSpec {
    type Error = ConfigError;

    fn try_from(console: ConsoleConfig) -> Result<Self, ConfigError> {
        within("console.max_mib", console.max_mib.into(), 1..=MAX_FILE_MIB)?;
        if let Some(path) = &console.path {
            absolute("console.path", path)?;
        }
        Ok(Self { path: console.path, max_bytes: u64::from(console.max_mib) << 20 })
    }
}

impl TryFrom<EventsConfig> for EventsSpec {
    type Error = ConfigError;

    fn try_from(events: EventsConfig) -> Result<Self, ConfigError> {
        within("events.file_max_kib", events.file_max_kib.into(), 64..=MAX_FILE_MIB)?;
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

/// A filter that refuses nothing is less than all of the confinement.
fn seccomp(confinement: &ConfinementConfig) -> Result<SeccompMode, ConfigError> {
    if confinement.level == ConfinementLevel::Required && confinement.seccomp == SeccompMode::Log {
        let expected = "`enforce`, or `confinement.level` `best_effort`";
        return Err(ConfigError::invalid("confinement.seccomp", "`log`", expected));
    }
    Ok(confinement.seccomp)
}

/// Larger limits than there are bytes and seconds are none.
fn retention(cache: CacheConfig) -> Retention {
    Retention {
        max_bytes: cache.max_mib.map(|mib| mib.saturating_mul(1 << 20)),
        max_age: cache.max_age_hours.map(|hours| Duration::from_secs(hours.saturating_mul(3600))),
    }
}

/// Unique on this host until the next boot: no two live processes share a pid.
fn made_up_id() -> String {
    format!("box-{}-{}", std::process::id(), jiff::Timestamp::now().as_millisecond())
}

fn check_process(process: &ProcessConfig) -> Result<(), ConfigError> {
    let lists = [
        ("process.entrypoint", process.entrypoint.as_deref()),
        ("process.args", Some(&process.args)),
    ];
    for (path, words) in lists {
        for (i, word) in words.unwrap_or_default().iter().enumerate() {
            no_nul(&format!("{path}[{i}]"), word)?;
        }
    }
    for (name, value) in &process.env.0 {
        if name.is_empty() || name.contains(['=', '\0']) {
            let expected = "a name without `=` and NUL";
            return Err(ConfigError::invalid(
                "process.env",
                format!("the name `{}`", name.escape_debug()),
                expected,
            ));
        }
        no_nul(&format!("process.env.{name}"), value)?;
    }
    if let Some(cwd) = &process.cwd {
        absolute("process.cwd", Path::new(cwd))?;
        no_nul("process.cwd", cwd)?;
    }
    no_nul("process.user", process.user.as_deref().unwrap_or_default())
}

fn no_nul(path: &str, text: &str) -> Result<(), ConfigError> {
    match text.find('\0') {
        None => Ok(()),
        Some(at) => {
            Err(ConfigError::invalid(path, format!("a NUL byte at {at}"), "text without NUL bytes"))
        }
    }
}

fn check_resources(resources: &ResourcesConfig) -> Result<(), ConfigError> {
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
        return Err(ConfigError::invalid("resources.timeout_ms", "0", "at least 1, or nothing"));
    }
    resources.cgroup.as_deref().map_or(Ok(()), |path| absolute("resources.cgroup", path))
}

fn rlimits(resources: &ResourcesConfig) -> Result<Vec<control::Rlimit>, ConfigError> {
    let check = |(name, limit): (&RlimitName, &a3s_box_core::config::Rlimit)| {
        if limit.0 > limit.1 {
            let path = format!("resources.rlimits.{}", format!("{name:?}").to_lowercase());
            let found = format!("soft limit {} over hard limit {}", limit.0, limit.1);
            return Err(ConfigError::invalid(path, found, "[soft, hard] with soft up to hard"));
        }
        Ok(control::Rlimit { resource: rlimit_number(*name), soft: limit.0, hard: limit.1 })
    };
    resources.rlimits.iter().map(check).collect()
}

/// Numbers of Linux on x86-64 and aarch64 (`asm-generic/resource.h`).
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

fn stop_signal(stop: &StopConfig) -> Result<Option<Signal>, ConfigError> {
    within("stop.grace_ms", stop.grace_ms, 0..=MAX_WAIT_MS)?;
    let parse = |name: &String| {
        Signal::from_str(name).map_err(|_unknown| {
            ConfigError::invalid("stop.signal", format!("`{name}`"), "a name as `SIGTERM`")
        })
    };
    stop.signal.as_ref().map(parse).transpose()
}

fn within(path: &str, found: u64, allowed: RangeInclusive<u64>) -> Result<(), ConfigError> {
    if allowed.contains(&found) {
        return Ok(());
    }
    let expected = format!("{} to {}", allowed.start(), allowed.end());
    Err(ConfigError::invalid(path, found.to_string(), expected))
}

fn check_paths(paths: &PathsConfig, id: &BoxId) -> Result<(), ConfigError> {
    absolute("paths.state_dir", &paths.state_dir)?;
    absolute("paths.cache_dir", &paths.cache_dir)?;
    for (path, file) in [("paths.libkrunfw", &paths.libkrunfw), ("paths.guest", &paths.guest)] {
        file.as_deref().map_or(Ok(()), |file| absolute(path, file))?;
    }
    let longest = BoxDir::new(&paths.state_dir, id).longest_socket_path();
    let bytes = longest.as_os_str().len();
    if bytes > MAX_SOCKET_PATH_BYTES {
        let found = format!("a socket path of {bytes} bytes (`{}`)", longest.display());
        let expected = format!("at most {MAX_SOCKET_PATH_BYTES}: choose a shorter directory or id");
        return Err(ConfigError::invalid("paths.state_dir", found, expected));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
