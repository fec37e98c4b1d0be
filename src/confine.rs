//! Confines the shim: guest and VMM are one security context, so what a guest that breaks out could do
//! is decided here.
//!
//! ```text
//!   namespaces ──► process ──► capabilities ──► Landlock ──► seccomp ──► threads, libkrun
//!   (before the     no core,    what guest       the box's    what the
//!    root is made)  no gain     files need       own files    VM calls
//! ```
//!
//! Each layer but the first binds the thread that takes it on and those that it starts: there is one
//! thread so far, and all others come from it. With `best_effort` a layer that this host does not have is
//! told in `shim.confined`, and the others hold.

mod capabilities;
mod landlock;
mod seccomp;

use std::fmt::Display;
use std::fs;

use a3s_box_core::config::{ConfinementLevel, SeccompMode};
use a3s_box_core::event::{EventKind, Layer, LayerReport, LayerStatus};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::{set_dumpable, set_no_new_privs};
use nix::sys::resource::{Resource, setrlimit};

use crate::spec::{NetworkSpec, VmSpec};
use crate::state_dir::StateDir;

const NO_LANDLOCK: &str = "this kernel has no Landlock (Linux 5.13, with `landlock` in its LSMs)";

const OLD_LANDLOCK: &str = "this kernel's Landlock is older than ABI 6 (Linux 6.12)";

/// What holds so far.
#[derive(Debug, Default)]
pub(crate) struct Confinement {
    layers: Vec<LayerReport>,
}

impl Confinement {
    /// Takes the namespaces on that no mount depends on. To be called before any thread exists, in the
    /// shim's own user namespace if it has one.
    pub(crate) fn begin(spec: &VmSpec) -> Self {
        let mut confinement = Self::default();
        if spec.confinement == ConfinementLevel::None {
            return confinement;
        }
        confinement.report(Layer::MountNamespace, LayerStatus::Applied, None);
        let is_user = fs::read_to_string("/proc/self/uid_map")
            .is_ok_and(|map| !map.split_whitespace().eq(["0", "0", "4294967295"]));
        if is_user {
            confinement.report(Layer::UserNamespace, LayerStatus::Applied, None);
        }
        confinement.add(Layer::IpcNamespace, unshare(CloneFlags::CLONE_NEWIPC));
        confinement.add(Layer::UtsNamespace, unshare(CloneFlags::CLONE_NEWUTS));
        match spec.network {
            NetworkSpec::None => {
                confinement.add(Layer::NetNamespace, unshare(CloneFlags::CLONE_NEWNET));
            }
            // Entered when passt runs, or the box does not start.
            NetworkSpec::Passt(_) => {
                confinement.report(Layer::NetNamespace, LayerStatus::Applied, None);
            }
            // Asked for: sockets of the guest are the shim's.
            NetworkSpec::Tsi => {}
        }
        confinement
    }

    /// Takes the other layers on. To be called when the box's files are there, and before any thread is.
    pub(crate) fn complete(mut self, spec: &VmSpec, state: &StateDir) -> Option<EventKind> {
        if spec.confinement == ConfinementLevel::None {
            return None;
        }
        self.add(Layer::Process, confine_process());
        self.add(Layer::Capabilities, capabilities::drop_all_but_files());
        match landlock::restrict(spec, state) {
            Ok(None) => self.report(Layer::Landlock, LayerStatus::Missing, Some(NO_LANDLOCK)),
            Ok(Some(status)) => {
                let less = (status == LayerStatus::Partial).then_some(OLD_LANDLOCK);
                self.report(Layer::Landlock, status, less);
            }
            Err(error) => self.add(Layer::Landlock, Err(error)),
        }
        match seccomp::install(spec.seccomp, &spec.network) {
            Ok(()) if spec.seccomp == SeccompMode::Log => {
                let less = "calls are logged, not refused";
                self.report(Layer::Seccomp, LayerStatus::Partial, Some(less));
            }
            installed => self.add(Layer::Seccomp, installed),
        }
        Some(EventKind::ShimConfined { level: spec.confinement, layers: self.layers })
    }

    /// A layer that was taken on, or could not be.
    fn add<E: Display>(&mut self, layer: Layer, taken_on: Result<(), E>) {
        match taken_on {
            Ok(()) => self.report(layer, LayerStatus::Applied, None),
            Err(error) => self.report(layer, LayerStatus::Missing, Some(&error.to_string())),
        }
    }

    fn report(&mut self, layer: Layer, status: LayerStatus, detail: Option<&str>) {
        self.layers.push(LayerReport { layer, status, detail: detail.map(str::to_owned) });
    }
}

/// A core file would hold the guest's memory, and secrets; a process that is not dumpable cannot be
/// traced by others of its user, nor read through `/proc`.
fn confine_process() -> nix::Result<()> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    set_no_new_privs()?;
    set_dumpable(false)
}
