//! The confinement of the shim, which limits what a guest can do that has broken out of its VM.
//!
//! Guest and VMM are one security context: a guest that exploits a bug of libkrun runs code with
//! the rights of the shim. The shim therefore gives up its rights in layers, before the guest
//! starts:
//!
//! ```text
//!   namespaces ──► root ──────► user ─────► process ──► capabilities ──► Landlock ──► seccomp ──► threads,
//!   (before the    the box's    ids of the  no core,    those for the    the box's    the calls   libkrun
//!    box's root    own files    box alone   no gain of  guest's files,   own files    of a VM
//!    is made)                   (root only) privileges  if it has any
//! ```
//!
//! Most layers apply only to the calling thread and to the threads that it starts later. They are
//! applied while there is only one thread, and therefore apply to all. With `best_effort`, a layer
//! that the host lacks is reported in `shim.confined`, and the others apply. With `required`, the
//! box does not start without it.

mod capabilities;
mod extent;
mod jail;
mod landlock;
mod process;
mod seccomp;
mod user_namespace;

use std::error::Error;

use a3s_box_core::config::ConfinementLevel;
use a3s_box_core::event::{EventKind, Layer, LayerReport, LayerStatus};
use a3s_box_core::one_line;
use a3s_box_sys::HostError;
use nix::sched::{CloneFlags, unshare};

use self::extent::Extent;
use self::user_namespace::Namespace;
use crate::host::box_ids::BoxIds;
use crate::host::inherited::InheritedFiles;
use crate::host::process::{Signals, is_in_user_namespace, is_root_of_host};
use crate::report::log;
use crate::rootfs::Root;
use crate::share::PinnedShare;
use crate::spec::{NetworkSpec, VmSpec};
use crate::state::dir::StateDir;

/// The box must not start, because a layer that the config requires cannot be applied.
#[derive(Debug, thiserror::Error)]
#[error("not all of the confinement can be had: {missing}")]
pub(crate) struct ConfinementError {
    missing: String,
}

/// The files that a confined shim can still reach.
#[derive(Debug)]
pub(crate) struct Files<'a> {
    pub(crate) state: &'a StateDir,
    pub(crate) root: &'a Root,
    pub(crate) shares: &'a mut [PinnedShare],
}

/// The user that the VMM becomes.
#[derive(Debug)]
pub(crate) struct User<'a> {
    /// Ids for a shim that root started. Without them it stays the user that it is.
    pub(crate) ids: Option<&'a BoxIds>,
    /// The setting for the parent's death, which ends with a change of user.
    pub(crate) signals: &'a Signals,
}

/// The layers that have been applied so far.
#[derive(Debug)]
pub(crate) struct Confinement {
    level: ConfinementLevel,
    layers: Vec<LayerReport>,
}

impl Confinement {
    /// Enters the namespaces that no mount depends on.
    ///
    /// Callers must have one thread only, and must have entered the shim's user namespace if it has
    /// one.
    pub(crate) fn begin(spec: &VmSpec) -> Self {
        let mut confinement = Self { level: spec.confinement, layers: Vec::new() };
        if spec.confinement == ConfinementLevel::None {
            return confinement;
        }
        // Every box has a mount namespace, and without root a user namespace, because its root
        // could not be made without them. Here they are only reported.
        confinement.report(Layer::MountNamespace, LayerStatus::Applied, None);
        if is_in_user_namespace() {
            confinement.report(Layer::UserNamespace, LayerStatus::Applied, None);
        }
        confinement.add(Layer::IpcNamespace, || unshare(CloneFlags::CLONE_NEWIPC));
        confinement.add(Layer::UtsNamespace, || unshare(CloneFlags::CLONE_NEWUTS));
        match spec.network {
            NetworkSpec::None => {
                confinement.add(Layer::NetNamespace, || unshare(CloneFlags::CLONE_NEWNET));
            }
            // `Network::start` enters it later, after passt has started in the host's network. If
            // it cannot, the box does not start.
            NetworkSpec::Passt(_) => {
                confinement.report(Layer::NetNamespace, LayerStatus::Applied, None);
            }
            // The shim opens the guest's sockets in the host's network, as the config asks for.
            NetworkSpec::Tsi => {}
        }
        confinement
    }

    /// Applies the other layers.
    ///
    /// Callers must have made all files of the box, because the root changes. They must still have
    /// one thread only.
    pub(crate) fn complete(
        &mut self,
        spec: &VmSpec,
        files: Files<'_>,
        user: &User<'_>,
        inherited: InheritedFiles,
    ) {
        if self.level == ConfinementLevel::None {
            return;
        }
        let Files { state, root, shares } = files;
        // Only a directory of the host that the guest changes needs capabilities, and calls that
        // change attributes and links of files.
        let has_directories = root.disks.is_none() || !shares.is_empty();
        // The order is fixed: the root needs CAP_SYS_ADMIN over the host's mounts, which nobody has
        // in the user namespace, Landlock opens paths in the new root and needs `no_new_privs`, and
        // the filter refuses the calls that the other layers make.
        if user.ids.is_none() && is_root_of_host() {
            let lack = "with a shared root, the shim stays root of the host";
            self.add(Layer::UserNamespace, || Ok::<_, HostError>(Extent::Partial(lack)));
        }
        let namespace = user.ids.and_then(|ids| self.make_namespace(ids, shares));
        self.add(Layer::Root, || jail::enter(state, shares));
        if let Some(namespace) = namespace {
            self.enter_namespace(&namespace, state, shares, user.signals);
        }
        let limited = process::Limited {
            guest_memory_mib: spec.memory_mib,
            has_own_user: user.ids.is_some(),
        };
        self.add(Layer::Process, || process::restrict(inherited, limited));
        self.add(Layer::Capabilities, || capabilities::drop(has_directories));
        self.add(Layer::Landlock, || landlock::restrict(spec, state, root.disks.as_ref(), shares));
        let has_journal = log::journal_socket().is_some();
        self.add(Layer::Seccomp, || {
            let sockets = seccomp::pin(state)?;
            let needs =
                seccomp::Needs { network: &spec.network, has_directories, has_journal, sockets };
            seccomp::install(spec.seccomp, needs)
        });
    }

    /// Makes the user namespace of a shim that root started. A failure is recorded.
    fn make_namespace(&mut self, ids: &BoxIds, shares: &[PinnedShare]) -> Option<Namespace> {
        if !is_selected(Layer::UserNamespace) {
            return None;
        }
        user_namespace::prepare(ids, shares)
            .inspect_err(|error| self.miss(Layer::UserNamespace, one_line(error)))
            .ok()
    }

    /// Enters the user namespace, unless the root is missing: a user of the box could not pass
    /// through the directories of the host to its own files.
    fn enter_namespace(
        &mut self,
        namespace: &Namespace,
        state: &StateDir,
        shares: &[PinnedShare],
        signals: &Signals,
    ) {
        let has_root = self
            .layers
            .iter()
            .any(|report| report.layer == Layer::Root && report.status == LayerStatus::Applied);
        match has_root {
            true => self.add(Layer::UserNamespace, || {
                user_namespace::enter(namespace, state, shares, signals)
            }),
            false => self.miss(Layer::UserNamespace, "it needs the layer `root`".to_owned()),
        }
    }

    /// Returns the event that reports the layers, or none with `confinement.level` `none`.
    pub(crate) fn event(&self) -> Option<EventKind> {
        let is_confined = self.level != ConfinementLevel::None;
        is_confined
            .then(|| EventKind::ShimConfined { level: self.level, layers: self.layers.clone() })
    }

    /// Fails if the config requires all layers and one is missing.
    pub(crate) fn check(&self) -> Result<(), ConfinementError> {
        let missing = self.layers.iter().filter(|report| report.status == LayerStatus::Missing);
        let missing: Vec<String> = missing.map(LayerReport::to_string).collect();
        if self.level != ConfinementLevel::Required || missing.is_empty() {
            return Ok(());
        }
        Err(ConfinementError { missing: missing.join("; ") })
    }

    /// Applies a layer and records the result.
    fn add<E: Into<Extent>, F: Error + 'static>(
        &mut self,
        layer: Layer,
        apply: impl FnOnce() -> Result<E, F>,
    ) {
        if !is_selected(layer) {
            return;
        }
        match apply().map(Into::into) {
            Ok(Extent::Full) => self.report(layer, LayerStatus::Applied, None),
            Ok(Extent::Partial(lack)) => {
                self.report(layer, LayerStatus::Partial, Some(lack.to_owned()));
            }
            Err(error) => self.miss(layer, one_line(&error)),
        }
    }

    fn miss(&mut self, layer: Layer, why: String) {
        self.report(layer, LayerStatus::Missing, Some(why));
    }

    fn report(&mut self, layer: Layer, status: LayerStatus, detail: Option<String>) {
        self.layers.push(LayerReport { layer, status, detail });
    }
}

/// Returns whether a layer is to be applied. Tests with the fake VM select layers, to see what they
/// prevent without the others.
fn is_selected(layer: Layer) -> bool {
    if !cfg!(feature = "fake-vm") {
        return true;
    }
    std::env::var("A3S_BOX_FAKE_LAYER")
        .map_or(true, |only| only.split(',').any(|name| name == layer.as_str()))
}
