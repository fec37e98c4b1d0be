//! The modes of the shim, each a list of phases. Most phases are modules that hand a value to the
//! next one.
//!
//! ```text
//!  supervisor ──► stdin: BoxConfig          main thread                     control thread
//!                                                │
//!                      read, parse, validate     │ BoxConfig → VmSpec
//!                      set the process up        │ fds, signals, limits, cgroup
//!                      private mounts, state     │ flock on the box's directory
//!                      network                   │ gate and passt; an empty one for the shim
//!                      root file system          │ unpack; disks, or an overlay mount
//!                      describe the guest        │ image config + process → GuestConfig
//!                      confine                   │ root, capabilities, Landlock, seccomp
//!                      start control ────────────┼──────────────► signals, guest, health,
//!                      configure libkrun         │                deadlines, events
//!                      krun_start_enter          ▼                         │
//!                                           the VM runs                    │
//!                      libkrun: _exit(code) ─────┼──── hook: code ────────►│
//!                                                ▼◄─── exit status ────────┤ box.stopped
//!                                           exit_group                     ▼
//! ```
//!
//! # Invariants
//!
//! Nothing relies on `Drop` once libkrun is entered, because the process then ends in
//! `exit_group(2)`.

use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use a3s_box_core::config::{ConfinementLevel, RootKind};
use a3s_box_core::event::EventKind;
use a3s_box_core::{ErrorCode, ErrorReport, exit};
use a3s_box_krun::guest_kernel::GuestKernel;
use a3s_box_krun::{Machine, Vm};

use crate::confine::{Confinement, Files, User};
use crate::control::{self, Control};
use crate::error::ShimError;
use crate::host::box_ids::{BoxIds, BoxIdsError};
use crate::host::cgroup;
use crate::host::inherited::InheritedFiles;
use crate::host::parent::Parent;
use crate::host::process::{self, Signals};
use crate::input::arguments::Arguments;
use crate::input::config::{self, InputError};
use crate::network::Network;
use crate::report::events::{EventFileError, EventWriter};
use crate::report::log::{self, Phase};
use crate::report::rotated_file::Rotation;
use crate::report::service_manager::ServiceManager;
use crate::report::terminal;
use crate::rootfs::kind::Choice;
use crate::rootfs::{self, Observers};
use crate::spec::VmSpec;
use crate::state::dir::{BoxCleanup, StateDir};
use crate::{console, guest_program, machine, maintenance};

/// The parts of the shim that all modes have and that are still needed after a phase failed.
#[derive(Debug)]
pub(crate) struct Shim<'a> {
    arguments: &'a Arguments,
    inherited: InheritedFiles,
    events: Arc<EventWriter>,
    /// Set once the box has a directory.
    cleanup: Option<BoxCleanup>,
}

/// The validated config, and the processes that the shim reports to or watches.
#[derive(Debug)]
struct Request {
    parent: Parent,
    service_manager: ServiceManager,
    spec: VmSpec,
}

/// Runs `mode` and turns its error into events and the exit status.
pub(crate) fn start(
    arguments: &Arguments,
    mode: fn(&mut Shim<'_>) -> Result<(), ShimError>,
) -> ExitCode {
    // The list of inherited files must be made before the shim opens a file of its own.
    let taken = InheritedFiles::find().and_then(|found| Ok((found, process::take_stdout()?)));
    let (inherited, stdout) = match taken {
        Ok(taken) => taken,
        // Without standard output there is no event stream yet.
        Err(error) => return terminal::print(io::stderr(), &error.to_string(), exit::FAILED),
    };
    let events = Arc::new(EventWriter::new(stdout));
    log::install();
    let mut shim = Shim { arguments, inherited, events, cleanup: None };
    match mode(&mut shim) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => shim.fail(&error),
    }
}

/// Becomes the microVM of the config. Returns only if a phase fails.
pub(crate) fn run(shim: &mut Shim<'_>) -> Result<(), ShimError> {
    let Request { parent, service_manager, spec } = shim.read_request()?;
    let event_file = shim.announce(&spec, spec.events.file.as_deref());
    let signals = set_process_up(&spec, parent)?;
    // An incomplete installation is reported before anything is created on the host.
    let program = guest_program::load(&spec)?;
    let kernel = GuestKernel::load(spec.paths.libkrunfw.as_deref(), &process::executable()?)?;
    let choice = Choice::of(&spec, &kernel)?;
    // The cgroup comes before the first thread and child, which inherit it.
    cgroup::join(&spec)?;
    process::enter_private_mounts()?;
    let mut confinement = Confinement::begin(&spec);
    let state = shim.acquire_state(&spec, event_file)?;
    let ids = box_ids(&spec, choice)?;
    // This enters an empty network. unshare(2) moves only the calling thread, so it comes before
    // the first other thread.
    let mut network = Network::start(&spec, ids.as_ref())?;
    let configured_ms = shim.events.elapsed_ms();

    log::enter(Phase::Rootfs);
    let observers =
        Observers { events: &shim.events, signals: &signals, service_manager: &service_manager };
    let mut root = rootfs::make(&spec, choice, &state, observers)?;
    root.sync_meanwhile(spec.confinement)?;

    log::enter(Phase::Vm);
    let mut guest = machine::describe(&spec, &root, &network)?;
    let console = console::open(&spec, &state)?;
    let files = Files { state: &state, root: &root, shares: &mut guest.shares };
    let user = User { ids: ids.as_ref(), signals: &signals };
    confinement.complete(&spec, files, &user, std::mem::take(&mut shim.inherited));
    // The event precedes the check, so that a supervisor gets the state of all layers in each case.
    confinement.event().into_iter().for_each(|confined| shim.events.emit(confined));
    confinement.check()?;
    // Seccomp and Landlock bind the calling thread and the threads that it starts, so the first
    // other thread is started only now.
    let console = console.start()?;
    network.warn(&shim.events);
    let control = Control::start(control::Setup {
        spec: &spec,
        state: &state,
        guest: &guest,
        console: console.relay,
        carrier: network.take_carrier(),
        signals,
        service_manager,
        events: Arc::clone(&shim.events),
        configured_ms,
    })?;
    shim.events.emit(EventKind::VmStarting {
        vcpus: spec.vcpus,
        memory_mib: spec.memory_mib,
        ipv6: network.has_ipv6(),
    });
    let machine = machine::assemble(&spec, &state, &guest, program, console.ports);
    become_vm(Machine { net: network.device, ..machine }, &kernel, control)
}

/// `--check`: validates the config.
pub(crate) fn check(shim: &mut Shim<'_>) -> Result<(), ShimError> {
    shim.read_request().map(drop)
}

/// `--prepare`: makes the root of the box, which fills the layer cache, and undoes that.
pub(crate) fn prepare(shim: &mut Shim<'_>) -> Result<(), ShimError> {
    let Request { parent, service_manager, spec } = shim.read_request()?;
    // Nothing that this mode makes outlives it, except for the cache.
    let spec = VmSpec { disk_keep: false, ..spec };
    let event_file = shim.announce(&spec, spec.events.file.as_deref());
    let signals = set_process_up(&spec, parent)?;
    // A missing guest program is reported here, because the box could not start without it. The
    // guest kernel also determines the kind of the root.
    drop(guest_program::load(&spec)?);
    let kernel = GuestKernel::load(spec.paths.libkrunfw.as_deref(), &process::executable()?)?;
    let choice = Choice::of(&spec, &kernel)?;
    process::enter_private_mounts()?;
    let _confinement = Confinement::begin(&spec);
    let state = shim.acquire_state(&spec, event_file)?;

    log::enter(Phase::Rootfs);
    let observers =
        Observers { events: &shim.events, signals: &signals, service_manager: &service_manager };
    let root = rootfs::make(&spec, choice, &state, observers)?;
    // A supervisor that has read `prepare.done` can rely on the cache after a crash of the host.
    root.sync()?;
    shim.events.emit(EventKind::PrepareDone {});
    root.unmount(&state)?;
    state.remove();
    Ok(())
}

/// `--gc`: brings the layer cache within its limits.
pub(crate) fn gc(shim: &mut Shim<'_>) -> Result<(), ShimError> {
    let Request { parent, spec, .. } = shim.read_request()?;
    shim.announce(&spec, None)?;
    let _signals = set_process_up(&spec, parent)?;
    process::enter_private_mounts()?;
    Ok(maintenance::collect(&spec, &shim.events)?)
}

/// `--verify`: compares the layers of the config's image with its blobs.
pub(crate) fn verify(shim: &mut Shim<'_>) -> Result<(), ShimError> {
    let Request { parent, spec, .. } = shim.read_request()?;
    shim.announce(&spec, None)?;
    let signals = set_process_up(&spec, parent)?;
    process::enter_private_mounts()?;
    Ok(maintenance::verify(&spec, &shim.events, &signals)?)
}

impl Shim<'_> {
    /// Watches the parent, connects to the service manager, and reads and validates the config.
    fn read_request(&self) -> Result<Request, ShimError> {
        // The parent comes first, because its death is not noticed until the signal is requested.
        let parent = Parent::watch(self.arguments.parent)?;
        let service_manager = ServiceManager::from_environment();
        let config = config::read(self.arguments.config.as_deref())?;
        // An event about a config that is not valid must name the box of this config.
        self.events.name(config.id.as_deref().unwrap_or_default());
        let spec = VmSpec::try_from(config).map_err(InputError::from)?;
        Ok(Request { parent, service_manager, spec })
    }

    /// Names the box in events and log, opens `event_file`, and emits the first event.
    ///
    /// The file is opened before, so that it has the first event. `--gc` and `--verify` have no
    /// event file, because they run beside a box that may be writing it.
    fn announce(&self, spec: &VmSpec, event_file: Option<&Path>) -> Result<(), EventFileError> {
        self.events.name(&spec.id);
        log::name(&spec.id);
        let rotation = Rotation::of(spec.confinement);
        let keep = |path| self.events.keep(path, spec.events.file_max_bytes, rotation);
        let opened = event_file.map_or(Ok(()), keep);
        let version = env!("CARGO_PKG_VERSION").to_owned();
        self.events.emit(EventKind::ShimStarted { version, pid: std::process::id() });
        opened
    }

    /// Locks the directory of the box, and returns the error of the event file if it has one.
    ///
    /// The error of the event file comes second. If another shim has a box of this id, that shim
    /// also has the file open, and the id in use is the error that explains both.
    fn acquire_state(
        &mut self,
        spec: &VmSpec,
        event_file: Result<(), EventFileError>,
    ) -> Result<StateDir, ShimError> {
        let state = StateDir::acquire(spec)?;
        self.cleanup = Some(state.cleanup());
        event_file?;
        Ok(state)
    }

    /// Reports `error` as the end of the box, and returns the exit status.
    fn fail(self, error: &ShimError) -> ExitCode {
        let Self { events, cleanup, .. } = self;
        let (ending, report) = (error.ending(), error.report());
        let stop = error.stop(events.elapsed_ms());
        // A supervisor that has read `box.stopped` must find the exit record.
        if let Some(BoxCleanup { exit_file, .. }) = &cleanup {
            exit_file.publish(&ending, events.elapsed(), stop, report.as_ref());
        }
        if let Some(report) = report {
            events.emit(EventKind::Error(report));
        }
        events.emit(ending.into_event(events.elapsed(), stop));
        events.finish();
        // A slow disk delays only the end of the process, because the events are written already.
        if let Some(cleanup) = cleanup {
            cleanup.exit_file.settle();
            cleanup.remove_transient();
        }
        ExitCode::from(ending.exit_code)
    }
}

/// Blocks signals, raises limits, and closes standard input. The caller must not have started a
/// thread, because a thread has the signal mask of the moment at which it was started.
fn set_process_up(spec: &VmSpec, parent: Parent) -> Result<Signals, ShimError> {
    let signals = Signals::block(spec.die_with_parent.then_some(parent))?;
    process::raise_limits()?;
    Ok(signals)
}

/// Takes ids for the box of a shim that root started. Without root, the VMM already is a user
/// without rights. With a shared root it stays root, because the files of this root belong to ids
/// of the host.
fn box_ids(spec: &VmSpec, choice: Choice) -> Result<Option<BoxIds>, BoxIdsError> {
    let has_ids = process::is_root_of_host()
        && choice.kind == RootKind::Block
        && spec.confinement != ConfinementLevel::None;
    has_ids.then(|| BoxIds::take(spec)).transpose()
}

/// Enters libkrun. From here on the control thread ends the process.
fn become_vm(machine: Machine, kernel: &GuestKernel, control: Control) -> ! {
    let failure = match Vm::configure(machine, kernel) {
        Ok(vm) => {
            log::enter(Phase::Kernel);
            control.entering();
            // It returns only if libkrun refuses the machine.
            vm.enter()
        }
        Err(error) => error,
    };
    // Only a stop request has no report, and libkrun returns none.
    let error = ShimError::from(failure);
    control.finish(error.report().unwrap_or_else(|| ErrorReport::new(ErrorCode::Internal, &error)))
}
