//! Confines the shim: guest and VMM are one security context, so what a guest that breaks out could do
//! is decided here.
//!
//! ```text
//!   namespaces ──► root ──► process ──► capabilities ──► Landlock ──► seccomp ──► threads, libkrun
//!   (before the    the box's  no core,   what guest       the box's    what the
//!    box's root    own files  no gain    files need       own files    VM calls
//!    is made)
//! ```
//!
//! Each layer but the first two binds the thread that takes it on and those that it starts: there is one
//! thread so far, and all others come from it. With `best_effort` a layer that this host does not have is
//! told in `shim.confined`, and the others hold; with `required` the box does not start without it.

mod capabilities;
mod held;
mod jail;
mod landlock;
mod seccomp;

use std::error::Error;

use a3s_box_core::config::ConfinementLevel;
use a3s_box_core::event::{EventKind, Layer, LayerReport, LayerStatus};
use a3s_box_core::one_line;
use a3s_box_sys::environment;
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::{set_dumpable, set_no_new_privs};
use nix::sys::resource::{Resource, setrlimit};

use self::held::Held;
use crate::host::inherited::InheritedFiles;
use crate::host::process;
use crate::share::PinnedShare;
use crate::spec::{NetworkSpec, VmSpec};
use crate::state::dir::StateDir;

/// The box must not start.
#[derive(Debug, thiserror::Error)]
#[error("not all of the confinement can be had: {missing}")]
pub(crate) struct ConfinementError {
    missing: String,
}

/// What holds so far.
#[derive(Debug)]
pub(crate) struct Confinement {
    level: ConfinementLevel,
    layers: Vec<LayerReport>,
}

impl Confinement {
    /// Takes the namespaces on that no mount depends on. To be called before any thread exists, in the
    /// shim's own user namespace if it has one.
    pub(crate) fn begin(spec: &VmSpec) -> Self {
        let mut confinement = Self { level: spec.confinement, layers: Vec::new() };
        if spec.confinement == ConfinementLevel::None {
            return confinement;
        }
        confinement.report(Layer::MountNamespace, LayerStatus::Applied, None);
        if process::is_in_user_namespace() {
            confinement.report(Layer::UserNamespace, LayerStatus::Applied, None);
        }
        confinement.add(Layer::IpcNamespace, || unshare(CloneFlags::CLONE_NEWIPC));
        confinement.add(Layer::UtsNamespace, || unshare(CloneFlags::CLONE_NEWUTS));
        match spec.network {
            NetworkSpec::None => {
                confinement.add(Layer::NetNamespace, || unshare(CloneFlags::CLONE_NEWNET));
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
    pub(crate) fn complete(
        &mut self,
        spec: &VmSpec,
        state: &StateDir,
        shares: &mut [PinnedShare],
        inherited: InheritedFiles,
    ) {
        if self.level == ConfinementLevel::None {
            return;
        }
        self.add(Layer::Root, || jail::enter(state, shares));
        self.add(Layer::Process, || confine_process(inherited));
        self.add(Layer::Capabilities, capabilities::drop_all_but_files);
        self.add(Layer::Landlock, || landlock::restrict(spec, state, shares));
        self.add(Layer::Seccomp, || seccomp::install(spec.seccomp, &spec.network));
    }

    /// What was achieved; nothing if nothing was asked for.
    pub(crate) fn event(&self) -> Option<EventKind> {
        let asked = self.level != ConfinementLevel::None;
        asked.then(|| EventKind::ShimConfined { level: self.level, layers: self.layers.clone() })
    }

    /// Refuses less than is required.
    pub(crate) fn check(&self) -> Result<(), ConfinementError> {
        let missing = self.layers.iter().filter(|report| report.status == LayerStatus::Missing);
        let missing: Vec<String> = missing.map(LayerReport::to_string).collect();
        if self.level != ConfinementLevel::Required || missing.is_empty() {
            return Ok(());
        }
        Err(ConfinementError { missing: missing.join("; ") })
    }

    /// Takes a layer on, and says what came of it.
    fn add<H: Into<Held>, E: Error + 'static>(
        &mut self,
        layer: Layer,
        take_on: impl FnOnce() -> Result<H, E>,
    ) {
        if !is_wanted(layer) {
            return;
        }
        match take_on().map(Into::into) {
            Ok(Held::Whole) => self.report(layer, LayerStatus::Applied, None),
            Ok(Held::Part(lack)) => self.report(layer, LayerStatus::Partial, Some(lack.to_owned())),
            Err(error) => self.report(layer, LayerStatus::Missing, Some(one_line(&error))),
        }
    }

    fn report(&mut self, layer: Layer, status: LayerStatus, detail: Option<String>) {
        self.layers.push(LayerReport { layer, status, detail });
    }
}

/// Tests take on one layer, and see what it stops by itself.
fn is_wanted(layer: Layer) -> bool {
    if !cfg!(feature = "fake-vm") {
        return true;
    }
    std::env::var("A3S_BOX_FAKE_LAYER").map_or(true, |only| only == layer.as_str())
}

/// A core file would hold the guest's memory, and secrets; a process that is not dumpable cannot be
/// traced by others of its user, nor read through `/proc`. What a supervisor has left in its environment
/// or open is not for a guest either.
fn confine_process(inherited: InheritedFiles) -> Result<(), ProcessLayerError> {
    inherited.close();
    // What the shim reads later: its own settings, and how it is to panic.
    let kept: [&[u8]; 2] = [b"A3S_BOX_", b"RUST_"];
    if !environment::forget(|name| kept.iter().any(|prefix| name.starts_with(prefix))) {
        return Err(ProcessLayerError::Threads);
    }
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    set_no_new_privs()?;
    Ok(set_dumpable(false)?)
}

#[derive(Debug, thiserror::Error)]
enum ProcessLayerError {
    #[error("the environment is in use by another thread")]
    Threads,
    #[error(transparent)]
    System(#[from] Errno),
}
