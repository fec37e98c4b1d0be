//! `a3s-box-shim`: the process that becomes a microVM.
//!
//! ```text
//!  supervisor ──► stdin: BoxConfig          main thread                     control thread
//!                                                │
//!                      read, parse, validate     │ BoxConfig → VmSpec
//!                      set the process up        │ fds, signals, limits, cgroup
//!                      private mounts, state     │ flock on the box's directory
//!                      network                   │ gate and passt; an empty one for the shim
//!                      root file system          │ unpack, overlay
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
//! Nothing here relies on `Drop` once the VM is entered: the process ends in `exit_group`.

mod arguments;
mod cgroup;
mod confine;
mod console;
mod control;
mod disk;
mod doctor;
mod error;
mod events;
mod filter;
mod guest;
mod log;
mod network;
mod printable;
mod process;
mod program;
mod record;
mod rootfs;
mod rotated_file;
mod run;
mod spec;
mod state_dir;
mod supervisor;
mod upkeep;

use std::io::{self, Read, Write};
use std::process::ExitCode;
use std::sync::Arc;

use a3s_box_core::config::MAX_CONFIG_BYTES;
use a3s_box_core::event::{EventKind, StopReason, StopReport};
use a3s_box_core::{BoxConfig, ErrorCode, ErrorReport, exit, schema};
use a3s_box_krun::kernel::Kernel;
use a3s_box_krun::{Machine, Vm};

use crate::arguments::{Arguments, Mode, USAGE};
use crate::confine::Confinement;
use crate::control::Control;
use crate::error::ShimError;
use crate::events::{EventFileError, EventWriter};
use crate::log::Phase;
use crate::network::Network;
use crate::process::{InheritedFiles, Parent, Signals, StopRequest};
use crate::rootfs::{Observers, Root};
use crate::rotated_file::Rotation;
use crate::spec::VmSpec;
use crate::state_dir::{BoxEnd, StateDir};
use crate::supervisor::Supervisor;

fn main() -> ExitCode {
    if let Some(ended) = network::run_if_asked() {
        return ended;
    }
    let arguments = match Arguments::parse(std::env::args_os().skip(1)) {
        Ok(arguments) => arguments,
        Err(error) => return say(io::stderr(), &format!("{error}\n\n{USAGE}"), exit::FAILED),
    };
    match arguments.mode {
        Mode::Doctor => doctor::run(&arguments),
        Mode::Help => say(process::stdout(), USAGE, 0),
        Mode::Version => say(process::stdout(), arguments::VERSION, 0),
        Mode::PrintSchema => say(process::stdout(), schema::BOX_CONFIG, 0),
        Mode::Run | Mode::Check | Mode::Prepare | Mode::Gc | Mode::Verify => live(&arguments),
    }
}

/// The life of a box, with the error of any phase turned into events and the exit status.
fn live(arguments: &Arguments) -> ExitCode {
    let begun = InheritedFiles::find().and_then(|found| Ok((found, process::take_stdout()?)));
    let (inherited, events) = match begun {
        Ok((inherited, stdout)) => (inherited, Arc::new(EventWriter::new(stdout))),
        Err(error) => return say(io::stderr(), &error.to_string(), exit::FAILED),
    };
    log::install();
    let mut box_end = None;
    let Err(error) = run(arguments, inherited, &events, &mut box_end) else {
        return ExitCode::SUCCESS;
    };
    let (ending, report) = (error.ending(), error.report());
    let stop = error.stop(events.elapsed_ms());
    if let Some(BoxEnd { exit_file, .. }) = &box_end {
        exit_file.publish(&ending, events.elapsed(), stop, report.as_ref());
    }
    if let Some(report) = report {
        events.emit(EventKind::Error(report));
    }
    events.emit(ending.into_event(events.elapsed(), stop));
    events.finish();
    if let Some(box_end) = box_end {
        box_end.exit_file.settle();
        box_end.remove_transient();
    }
    ExitCode::from(ending.exit_code)
}

/// From the config to what the mode asks for. Comes back for all modes but the VM's, and for errors.
/// `box_end` is set once there is a directory.
fn run(
    arguments: &Arguments,
    inherited: InheritedFiles,
    events: &Arc<EventWriter>,
    box_end: &mut Option<BoxEnd>,
) -> Result<(), ShimError> {
    let parent = Parent::watch(arguments.parent)?;
    let supervisor = Supervisor::from_environment();
    let spec = read_spec(arguments, events)?;
    if arguments.mode == Mode::Check {
        return Ok(());
    }
    let kept = introduce(arguments.mode, &spec, events);
    let signals = Signals::block(spec.die_with_parent.then_some(parent))?;
    process::raise_limits()?;
    if matches!(arguments.mode, Mode::Gc | Mode::Verify) {
        process::enter_private_mounts()?;
        return upkeep::run(arguments.mode, &spec, events, &signals);
    }
    let program = guest::load_program(&spec)?;
    let kernel = (arguments.mode == Mode::Run).then(|| load_kernel(&spec)).transpose()?;
    if arguments.mode == Mode::Run {
        cgroup::join(&spec)?;
    }
    process::enter_private_mounts()?;
    let mut confinement = Confinement::begin(&spec);
    let state = StateDir::acquire(&spec)?;
    *box_end = Some(state.box_end());
    // Not earlier: when another shim has this id, that is what is wrong, and not that it has the file.
    kept?;
    let mut network = Network::start(arguments.mode, &spec)?;
    let configured_ms = events.elapsed_ms();
    log::enter(Phase::Rootfs);
    let observers = Observers { events, signals: &signals, supervisor: &supervisor };
    let mut root = rootfs::mount(&spec, &state, observers)?;
    let Some(kernel) = kernel else { return undo(&root, &state, events) };
    root.sync_meanwhile(spec.confinement)?;
    log::enter(Phase::Vm);
    let mut guest = guest::describe(&spec, root.image.as_ref(), &network)?;
    let console = console::open(&spec, &state)?;
    confinement.complete(&spec, &state, &mut guest.shares, inherited);
    confinement.event().into_iter().for_each(|confined| events.emit(confined));
    confinement.check()?;
    let console = console.start()?;
    network.warn(events);
    let control = Control::start(control::Setup {
        spec: &spec,
        state: &state,
        guest: &guest,
        console: console.relay,
        carrier: network.take_carrier(),
        signals,
        supervisor,
        events: Arc::clone(events),
        configured_ms,
    })?;
    events.emit(EventKind::VmStarting { vcpus: spec.vcpus, memory_mib: spec.memory_mib });
    let machine = guest::machine(&spec, &state, &guest, program, console.ports);
    become_vm(Machine { net: network.device, ..machine }, &kernel, control)
}

/// Reads and checks the config. What is wrong with it is told of the box that it names.
fn read_spec(arguments: &Arguments, events: &EventWriter) -> Result<VmSpec, ShimError> {
    let config = BoxConfig::from_json(&read_config(arguments)?)?;
    events.name(config.id.as_deref().unwrap_or_default());
    Ok(VmSpec::try_from(config)?)
}

/// Begins the stream of the box, and says whether its file is kept.
fn introduce(mode: Mode, spec: &VmSpec, events: &EventWriter) -> Result<(), EventFileError> {
    events.name(&spec.id);
    log::name(&spec.id);
    let kept = keep_events(mode, spec, events);
    let version = env!("CARGO_PKG_VERSION").to_owned();
    events.emit(EventKind::ShimStarted { version, pid: std::process::id() });
    kept
}

/// The end of `--prepare`: all that was mounted goes.
fn undo(root: &Root, state: &StateDir, events: &EventWriter) -> Result<(), ShimError> {
    root.sync()?;
    events.emit(EventKind::PrepareDone {});
    rootfs::unmount(state)?;
    state.remove();
    Ok(())
}

/// Enters libkrun. From here on the control thread ends the process.
fn become_vm(machine: Machine, kernel: &Kernel, control: Control) -> ! {
    let failure = match Vm::configure(machine, kernel) {
        Ok(vm) => {
            log::enter(Phase::Kernel);
            control.entering();
            vm.enter()
        }
        Err(error) => error,
    };
    let error = ShimError::from(failure);
    control.finish(error.report().unwrap_or_else(|| ErrorReport::new(ErrorCode::Internal, &error)))
}

/// Keeps the events of a box in its file. Upkeep goes on beside boxes, and leaves their files alone.
fn keep_events(mode: Mode, spec: &VmSpec, events: &EventWriter) -> Result<(), EventFileError> {
    match &spec.events.file {
        Some(path) if matches!(mode, Mode::Run | Mode::Prepare) => {
            let rotation = Rotation::of(spec.confinement);
            events.keep(path, spec.events.file_max_bytes, rotation)
        }
        _ => Ok(()),
    }
}

fn load_kernel(spec: &VmSpec) -> Result<Kernel, ShimError> {
    Ok(Kernel::load(spec.paths.libkrunfw.as_deref(), &process::executable()?)?)
}

fn read_config(arguments: &Arguments) -> Result<Vec<u8>, ShimError> {
    // One byte more than is allowed, so that the parser sees that there is more.
    let limit = MAX_CONFIG_BYTES as u64 + 1;
    let mut json = Vec::new();
    let read = match &arguments.config {
        Some(path) => {
            std::fs::File::open(path).and_then(|file| file.take(limit).read_to_end(&mut json))
        }
        None => io::stdin().take(limit).read_to_end(&mut json),
    };
    let source = arguments
        .config
        .as_ref()
        .map_or("standard input".into(), |path| format!("`{}`", path.display()));
    read.map_err(|error| ShimError::ReadConfig { source_name: source, source: error })?;
    Ok(json)
}

/// Writes to a person; nobody to tell when that fails.
fn say(mut to: impl Write, text: &str, status: u8) -> ExitCode {
    match writeln!(to, "{}", text.trim_end()) {
        Ok(()) => ExitCode::from(status),
        Err(_) => ExitCode::from(exit::FAILED),
    }
}

/// How a box ended, as its last event and exit status say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ending {
    reason: StopReason,
    exit_code: u8,
    signal: Option<u8>,
}

impl Ending {
    /// That of a box which was asked to stop, and has no word of its guest.
    fn stopped(request: StopRequest) -> Self {
        let number = request.signal_number();
        Self {
            reason: StopReason::Stopped,
            exit_code: exit::for_signal(number),
            signal: matches!(request, StopRequest::Signal(_)).then_some(number),
        }
    }

    fn into_event(self, uptime: std::time::Duration, stop: Option<StopReport>) -> EventKind {
        EventKind::BoxStopped {
            reason: self.reason,
            exit_code: Some(self.exit_code),
            signal: self.signal,
            uptime_ms: u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX),
            stop,
        }
    }
}
