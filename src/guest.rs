//! What runs in the guest: the program that is PID 1, its config, and the machine around it.
//!
//! The image's config and `process` are merged as container engines do it: `args` replace the
//! image's default arguments and follow its entrypoint; an `entrypoint` replaces the image's and
//! drops its default arguments; the environment is merged name by name.

use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use a3s_box_krun::{Connect, Machine, OverlayFile, Share, VsockPort};
use a3s_box_oci::{Image, ImageConfig};
use a3s_box_proto::control::{
    EnvironmentVariable, GuestConfig, Mount, TmpfsMount, VirtiofsMount, Workload, mount,
};
use a3s_box_proto::{CONTROL_PORT, GUEST_CONFIG_FILE, encode};
use nix::sys::signal::Signal;

use crate::console::Ports;
use crate::process;
use crate::spec::{MountSource, VmSpec};
use crate::state_dir::StateDir;

/// Name of the program, beside the shim or in `../lib/a3s-box`.
const PROGRAM: &str = "a3s-box-guest";

/// libkrun starts `/init.krun` as PID 1 (`INIT_PATH`, libkrun 1.19.7, lib.rs).
const INIT: &str = "init.krun";

/// The search path of a workload whose image and config set none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The guest cannot be described.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GuestError {
    #[error("guest program `{PROGRAM}` not found, looked at: {searched}")]
    ProgramMissing { searched: String },
    #[error("cannot read the guest program `{}`", path.display())]
    ProgramUnreadable { path: PathBuf, source: io::Error },
    #[error(
        "nothing to run: the image has neither entrypoint nor command, and `process.args` is empty"
    )]
    NothingToRun,
    #[error("the image's stop signal `{found}` is unknown")]
    StopSignal { found: String },
    #[error("cannot look for the guest program")]
    Process(#[from] process::ProcessError),
}

/// A guest: what PID 1 is told, and what the control thread must know of it.
#[derive(Debug)]
pub(crate) struct Guest {
    config: GuestConfig,
    /// First signal of a stop.
    pub(crate) stop_signal: Signal,
}

/// Reads the program that will be PID 1.
pub(crate) fn load_program(spec: &VmSpec) -> Result<Vec<u8>, GuestError> {
    let candidates = match &spec.paths.guest {
        Some(path) => vec![path.clone()],
        None => beside(&process::executable()?),
    };
    for path in &candidates {
        match std::fs::read(path) {
            Ok(program) => return Ok(program),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => {
                return Err(GuestError::ProgramUnreadable { path: path.clone(), source });
            }
        }
    }
    let searched: Vec<String> =
        candidates.iter().map(|path| format!("`{}`", path.display())).collect();
    Err(GuestError::ProgramMissing { searched: searched.join(", ") })
}

fn beside(executable: &Path) -> Vec<PathBuf> {
    let Some(folder) = executable.parent() else { return Vec::new() };
    let library = folder.parent().map(|prefix| prefix.join("lib/a3s-box").join(PROGRAM));
    [Some(folder.join(PROGRAM)), library].into_iter().flatten().collect()
}

/// Merges image and config into what PID 1 is told.
pub(crate) fn describe(spec: &VmSpec, image: Option<&Image>) -> Result<Guest, GuestError> {
    let image = image.map(|image| &image.config);
    let config = GuestConfig {
        workload: workload(spec, image)?,
        mounts: spec.mounts.iter().map(guest_mount).collect(),
        hostname: spec.id.clone(),
        agent_port: spec.serve_health.then_some(spec.agent_port),
    };
    let of_image = image.and_then(|image| image.stop_signal.as_deref());
    let stop_signal = match (spec.stop_signal, of_image) {
        (Some(signal), _) => signal,
        (None, Some(name)) => parse_signal(name)?,
        (None, None) => Signal::SIGTERM,
    };
    Ok(Guest { config, stop_signal })
}

/// Images write `SIGTERM`, `TERM` or `15`.
fn parse_signal(name: &str) -> Result<Signal, GuestError> {
    let number = name.parse().ok().and_then(|number: i32| Signal::try_from(number).ok());
    number
        .or_else(|| Signal::from_str(name).ok())
        .or_else(|| Signal::from_str(&format!("SIG{name}")).ok())
        .ok_or_else(|| GuestError::StopSignal { found: name.to_owned() })
}

fn workload(spec: &VmSpec, image: Option<&ImageConfig>) -> Result<Option<Workload>, GuestError> {
    let process = &spec.process;
    let default = ImageConfig::default();
    let image_config = image.unwrap_or(&default);
    let (entrypoint, default_args) = match &process.entrypoint {
        Some(entrypoint) => (entrypoint, &[][..]),
        None => (&image_config.entrypoint, image_config.cmd.as_slice()),
    };
    let args = if process.args.is_empty() { default_args } else { &process.args };
    let args: Vec<String> = entrypoint.iter().chain(args).cloned().collect();
    if args.is_empty() {
        return if image.is_some() { Err(GuestError::NothingToRun) } else { Ok(None) };
    }
    let cwd =
        process.cwd.as_deref().or(Some(&image_config.working_dir)).filter(|cwd| !cwd.is_empty());
    Ok(Some(Workload {
        args,
        env: environment(spec, image_config),
        cwd: cwd.unwrap_or("/").to_owned(),
        user: process.user.clone().unwrap_or_else(|| image_config.user.clone()),
        rlimits: spec.rlimits.clone(),
    }))
}

fn environment(spec: &VmSpec, image: &ImageConfig) -> Vec<EnvironmentVariable> {
    let configured = &spec.process.env.0;
    let of_image = image.env.iter().filter(|(name, _)| !configured.contains_key(name));
    let merged = of_image.map(|(name, value)| (name, value)).chain(configured);
    let mut env: Vec<EnvironmentVariable> = merged
        .map(|(name, value)| EnvironmentVariable { name: name.clone(), value: value.clone() })
        .collect();
    if !env.iter().any(|variable| variable.name == "PATH") {
        env.push(EnvironmentVariable { name: "PATH".into(), value: DEFAULT_PATH.into() });
    }
    env
}

fn guest_mount(spec: &crate::spec::MountSpec) -> Mount {
    let source = match &spec.source {
        MountSource::Virtiofs { tag, access, .. } => mount::Source::Virtiofs(VirtiofsMount {
            tag: tag.clone(),
            read_only: *access == a3s_box_krun::Access::ReadOnly,
        }),
        MountSource::Tmpfs { size_mib } => mount::Source::Tmpfs(TmpfsMount { size_mib: *size_mib }),
    };
    Mount { target: spec.target.clone(), source: Some(source) }
}

/// Everything that libkrun is told.
pub(crate) fn machine(
    spec: &VmSpec,
    state: &StateDir,
    guest: &Guest,
    program: Vec<u8>,
    console: Ports,
) -> Machine {
    let shares = spec.mounts.iter().filter_map(|mount| match &mount.source {
        MountSource::Virtiofs { tag, path, access } => {
            Some(Share { tag: tag.clone(), path: path.clone(), access: *access })
        }
        MountSource::Tmpfs { .. } => None,
    });
    Machine {
        vcpus: spec.vcpus,
        memory_mib: spec.memory_mib,
        root: state.root(),
        overlay_files: vec![
            OverlayFile {
                name: INIT.into(),
                content: program,
                permissions: 0o700,
                one_shot: false,
            },
            OverlayFile {
                name: GUEST_CONFIG_FILE.into(),
                content: encode(&guest.config),
                permissions: 0o600,
                one_shot: true,
            },
        ],
        shares: shares.collect(),
        vsock_ports: vec![
            VsockPort {
                port: CONTROL_PORT,
                socket: state.control_socket(),
                connect: Connect::FromGuest,
            },
            VsockPort {
                port: spec.agent_port,
                socket: state.agent_socket(),
                connect: Connect::FromHost,
            },
        ],
        stdout: console.stdout,
        stderr: console.stderr,
    }
}
