//! The description of a box for the two that run it: [`GuestConfig`] for the guest program, and
//! [`Machine`] for libkrun.

use a3s_box_core::config::AgentProvider;
use a3s_box_krun::{
    Access, BlockRoot, Connect, Content, Machine, OverlayFile, Root, Share, VsockPort,
};
use a3s_box_proto::control::{
    EnvironmentVariable, GuestConfig, Mount, TmpfsMount, VirtiofsMount, Workload, mount,
};
use a3s_box_proto::{CONTROL_PORT, EXEC_PORT, GUEST_CONFIG_FILE, encode};

use crate::console::Ports;
use crate::network::Network;
use crate::rootfs::{self, block::Disks};
use crate::share::{PinnedShare, ShareError};
use crate::spec::{MountSource, MountSpec, NetworkSpec, StopSignal, VmSpec};
use crate::state::dir::StateDir;
use crate::workload::RunSpec;

/// libkrun starts `/init.krun` as PID 1 (`INIT_PATH`, libkrun 1.19.7, lib.rs).
const INIT: &str = "init.krun";

/// Why the guest cannot be described.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GuestError {
    #[error(
        "nothing to run: the image has neither entrypoint nor command, and `process.args` is empty"
    )]
    NothingToRun,
    #[error("the image's stop signal `{found}` is unknown")]
    StopSignal { found: String },
    #[error("cannot share a directory with the guest")]
    Share(#[from] ShareError),
}

/// A guest: the config of the guest program, and the properties that the control thread needs.
#[derive(Debug)]
pub(crate) struct Guest {
    config: GuestConfig,
    /// The disks of a block root.
    disks: Option<BlockRoot>,
    pub(crate) shares: Vec<PinnedShare>,
    /// Signal that a stop sends to the workload first.
    pub(crate) stop_signal: StopSignal,
}

/// Merges image and config into the config of the guest program, and opens the shares. Callers must
/// be in the mount namespace of the VM, see
/// [`SharedDirectory::pin`](crate::share::SharedDirectory::pin).
pub(crate) fn describe(
    spec: &VmSpec,
    root: &rootfs::Root,
    network: &Network,
) -> Result<Guest, GuestError> {
    let image = root.image.as_ref();
    let run = RunSpec::merge(spec, image.map(|image| &image.config));
    // A signal of the config is validated already, so an unknown one comes from the image.
    let found = run.stop_signal.clone();
    let stop_signal = found.parse().map_err(|_unknown| GuestError::StopSignal { found })?;
    let config = GuestConfig {
        workload: workload(spec, run, image.is_some())?,
        mounts: spec.mounts.iter().map(guest_mount).collect(),
        hostname: spec.hostname.clone(),
        // With provider `none`, or with an agent of the image, the guest program starts no agent.
        agent_port: (spec.agent.provider == AgentProvider::Builtin).then_some(spec.agent.port),
        interface: network.interface.clone(),
        name_servers: network.name_servers.clone(),
        // Without disks, the guest program starts in the root of the box.
        root: root.disks.as_ref().map(Disks::guest_root),
        exec_port: spec.agent.exec.then_some(EXEC_PORT),
    };
    let shares = pin_shares(spec)?;
    let disks = root.disks.as_ref().map(Disks::machine_root);
    Ok(Guest { config, disks, shares, stop_signal })
}

fn pin_shares(spec: &VmSpec) -> Result<Vec<PinnedShare>, ShareError> {
    let pin = |mount: &MountSpec| match &mount.source {
        MountSource::Virtiofs { tag, directory, access, cache } => {
            let pinned = directory.pin();
            Some(pinned.map(|directory| PinnedShare {
                tag: tag.clone(),
                directory,
                access: *access,
                cache: *cache,
            }))
        }
        MountSource::Tmpfs { .. } => None,
    };
    spec.mounts.iter().filter_map(pin).collect()
}

/// Returns the workload, or nothing if there is nothing to run. Without an image that is no error:
/// the box then is an empty machine, which tests and benchmarks use.
fn workload(spec: &VmSpec, run: RunSpec, has_image: bool) -> Result<Option<Workload>, GuestError> {
    let args: Vec<String> = run.entrypoint.into_iter().chain(run.args).collect();
    if args.is_empty() {
        return if has_image { Err(GuestError::NothingToRun) } else { Ok(None) };
    }
    let variable = |(name, value)| EnvironmentVariable { name, value };
    Ok(Some(Workload {
        args,
        env: run.env.into_iter().map(variable).collect(),
        cwd: run.cwd,
        user: run.user,
        rlimits: spec.rlimits.clone(),
    }))
}

fn guest_mount(spec: &MountSpec) -> Mount {
    let source = match &spec.source {
        MountSource::Virtiofs { tag, access, .. } => mount::Source::Virtiofs(VirtiofsMount {
            tag: tag.clone(),
            read_only: *access == Access::ReadOnly,
        }),
        MountSource::Tmpfs { size_mib } => mount::Source::Tmpfs(TmpfsMount { size_mib: *size_mib }),
    };
    Mount { target: spec.target.clone(), source: Some(source) }
}

/// Returns the complete description of the VM for libkrun. `guest` and the root that it was
/// described with must outlive the VM, because they keep the shares and the disks open, whose paths
/// lead through their fds.
pub(crate) fn assemble(
    spec: &VmSpec,
    state: &StateDir,
    guest: &Guest,
    program: Content,
    console: Ports,
) -> Machine {
    let shares = guest.shares.iter().map(|PinnedShare { tag, directory, access, cache }| Share {
        tag: tag.clone(),
        path: directory.path(),
        access: *access,
        cache: *cache,
    });
    Machine {
        vcpus: spec.vcpus,
        memory_mib: spec.memory_mib,
        root: match &guest.disks {
            Some(disks) => Root::Block(disks.clone()),
            None => Root::Directory(state.root()),
        },
        overlay_files: vec![
            // libkrun shows both files in the root without writing them to the box's disk.
            OverlayFile {
                name: INIT.into(),
                content: program,
                permissions: 0o700,
                one_shot: false,
            },
            OverlayFile {
                name: GUEST_CONFIG_FILE.into(),
                content: encode(&guest.config).into(),
                permissions: 0o600,
                // The config can hold secrets, so it vanishes after the guest program has read it.
                one_shot: true,
            },
        ],
        shares: shares.collect(),
        vsock_ports: vsock_ports(spec, state),
        // `boot` sets the device, because the gate's socket is moved into it.
        net: None,
        tsi: spec.network == NetworkSpec::Tsi,
        stdout: console.stdout,
        stderr: console.stderr,
    }
}

/// Returns the vsock ports, each with its socket in the box directory.
fn vsock_ports(spec: &VmSpec, state: &StateDir) -> Vec<VsockPort> {
    let control = VsockPort {
        port: CONTROL_PORT,
        socket: state.control_socket(),
        connect: Connect::FromGuest,
    };
    let agent = VsockPort {
        port: spec.agent.port,
        socket: state.agent_socket(),
        connect: Connect::FromHost,
    };
    let exec = spec.agent.exec.then(|| VsockPort {
        port: EXEC_PORT,
        socket: state.exec_socket(),
        connect: Connect::FromHost,
    });
    [control, agent].into_iter().chain(exec).collect()
}
