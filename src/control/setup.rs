//! What the main thread gives to the control thread: once at its start, and later as news.

use std::sync::Arc;

use a3s_box_core::ErrorReport;

use crate::console::Relay;
use crate::host::process::Signals;
use crate::machine::Guest;
use crate::network::Carrier;
use crate::report::events::EventWriter;
use crate::report::service_manager::ServiceManager;
use crate::spec::VmSpec;
use crate::state::dir::StateDir;

/// The parts of the shim that the control thread needs.
#[derive(Debug)]
pub(crate) struct Setup<'a> {
    pub(crate) spec: &'a VmSpec,
    pub(crate) state: &'a StateDir,
    pub(crate) guest: &'a Guest,
    pub(crate) console: Relay,
    /// The processes that carry the guest's network.
    pub(crate) carrier: Option<Carrier>,
    pub(crate) signals: Signals,
    pub(crate) service_manager: ServiceManager,
    pub(crate) events: Arc<EventWriter>,
    /// End of the phase `config`, in milliseconds since the shim started.
    pub(crate) configured_ms: u64,
}

/// News of the main thread.
#[derive(Debug)]
pub(super) enum VmNews {
    /// It enters libkrun now.
    Entering,
    /// libkrun has called `_exit` with this code.
    Exited(i32),
    /// libkrun has refused the machine.
    Refused(ErrorReport),
}
