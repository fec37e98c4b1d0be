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

use std::fs;

use a3s_box_core::config::{ConfinementLevel, NetworkMode};
use a3s_box_core::event::{EventKind, Layer, LayerReport, LayerStatus};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::{set_dumpable, set_no_new_privs};
use nix::sys::resource::{Resource, setrlimit};

use crate::spec::VmSpec;
use crate::state_dir::StateDir;

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
        confinement.add(Layer::MountNamespace, Ok(None));
        let is_user = fs::read_to_string("/proc/self/uid_map")
            .is_ok_and(|map| !map.split_whitespace().eq(["0", "0", "4294967295"]));
        if is_user {
            confinement.add(Layer::UserNamespace, Ok(None));
        }
        let unshared = |flags| match unshare(flags) {
            Ok(()) => Ok(None),
            Err(errno) => Err(errno.to_string()),
        };
        confinement.add(Layer::IpcNamespace, unshared(CloneFlags::CLONE_NEWIPC));
        confinement.add(Layer::UtsNamespace, unshared(CloneFlags::CLONE_NEWUTS));
        if spec.network == NetworkMode::None {
            confinement.add(Layer::NetNamespace, unshared(CloneFlags::CLONE_NEWNET));
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
        let landlock = landlock::restrict(spec, state);
        self.add(Layer::Landlock, landlock);
        self.add(Layer::Seccomp, seccomp::install(spec.seccomp));
        Some(EventKind::ShimConfined { level: spec.confinement, layers: self.layers })
    }

    /// A layer that holds in part says what is missing of it.
    fn add(&mut self, layer: Layer, achieved: Result<Option<String>, String>) {
        let (status, detail) = match achieved {
            Ok(None) => (LayerStatus::Applied, None),
            Ok(Some(missing)) => (LayerStatus::Partial, Some(missing)),
            Err(error) => (LayerStatus::Missing, Some(error)),
        };
        self.layers.push(LayerReport { layer, status, detail });
    }
}

/// A core file would hold the guest's memory, and secrets; a process that is not dumpable cannot be
/// traced by others of its user, nor read through `/proc`.
fn confine_process() -> Result<Option<String>, String> {
    let text = |errno: nix::errno::Errno| errno.to_string();
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(text)?;
    set_no_new_privs().map_err(text)?;
    set_dumpable(false).map_err(text)?;
    Ok(None)
}
