//! From a request to stop to the end of the process.

use std::sync::atomic::Ordering;
use std::time::Duration;

use a3s_box_core::event::EventKind;
use a3s_box_core::{BoxState, ErrorCode};
use a3s_box_proto::control::{Kill, Stop as StopMessage, shim_message};
use tokio::time::{Instant, sleep};

use super::super::deadlines::Due;
use super::super::link::Link;
use super::super::stopping::Stopping;
use super::super::verdict::{Stop, failure};
use super::{Monitor, TICK};
use crate::host::process::{StopRequest, signal_number};
use crate::report::log::{self, Phase};

/// From the workload's end (or the kill) to the end of the VM: the guest kills what is left, drains
/// its output (5 s at most), waits for our word (5 s at most), syncs and reboots.
pub(super) const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(20);

/// From the guest's last word, or the loss of its connection, to the end of the VM.
pub(super) const LAST_WORD_TIMEOUT: Duration = Duration::from_secs(5);

/// What a stop may take beyond its grace period, all of the bounds here together and then some.
const STOP_MARGIN: Duration = Duration::from_secs(40);

/// How long the console may take for what has left the guest.
const CONSOLE_TIMEOUT: Duration = Duration::from_secs(2);

impl Monitor {
    /// A second request shortens the grace period, a third ends the VM. Whether the box has ended.
    pub(super) fn on_request(&mut self, request: StopRequest, link: &mut Link) -> bool {
        match &mut self.stopping {
            None => self.stop(Stop::Request(request), link),
            // Nobody asks twice by dying.
            Some(_) if request == StopRequest::ParentDied => false,
            Some(stopping) if stopping.is_killing() => {
                stopping.ended_by_host();
                true
            }
            Some(_) => {
                self.kill(link);
                false
            }
        }
    }

    /// Asks the guest to end. Whether that is the end already, because there is nobody to ask.
    pub(super) fn stop(&mut self, stop: Stop, link: &mut Link) -> bool {
        if self.facts.report.is_some() || self.stopping.is_some() {
            return false;
        }
        log::enter(Phase::Stopping);
        self.supervisor.stopping();
        self.supervisor.extend_timeout(self.stop_grace + STOP_MARGIN);
        self.facts.stop = Some(stop);
        let (cause, now_ms) = (stop.cause(), self.events.elapsed_ms());
        let stopping = self.stopping.insert(Stopping::new(cause, now_ms));
        self.events.emit(EventKind::StopRequested {
            cause,
            signal: self.stop_signal.as_str().to_owned(),
            grace_ms: u64::try_from(self.stop_grace.as_millis()).unwrap_or(u64::MAX),
        });
        if !self.started {
            return true;
        }
        // From here on the grace period is the only clock.
        self.deadlines.clear(&[Due::Boot, Due::Timeout]);
        let signal = u32::from(signal_number(self.stop_signal));
        link.send(shim_message::Message::Stop(StopMessage { signal }));
        stopping.signaled(now_ms);
        self.deadlines.set(Due::Grace, self.stop_grace);
        false
    }

    /// Has every process of the guest killed.
    pub(super) fn kill(&mut self, link: &mut Link) {
        if self.facts.report.is_some() {
            return;
        }
        self.deadlines.clear(&[Due::Grace]);
        self.events.emit(EventKind::StopKilled {});
        link.send(shim_message::Message::Kill(Kill {}));
        if let Some(stopping) = &mut self.stopping {
            stopping.killed(self.events.elapsed_ms());
        }
        self.deadlines.set(Due::GiveUp, LAST_WORD_TIMEOUT);
    }

    /// Ends a VM that does not end by itself.
    pub(super) fn give_up(&mut self) -> bool {
        if let Some(stopping) = &mut self.stopping {
            stopping.ended_by_host();
        }
        let message = "the virtual machine did not end by itself and was ended";
        self.fail(failure(ErrorCode::ShutdownTimeout, message))
    }

    /// Writes the last events and ends the process. Nothing else of it runs after that.
    pub(super) async fn end(mut self) {
        let patience = Instant::now() + CONSOLE_TIMEOUT;
        while !self.console.finish() && Instant::now() < patience {
            sleep(TICK).await;
        }
        log::enter(Phase::Stopping);
        self.supervisor.stopping();
        self.tell_held_back();
        let (ending, error) = self.facts.verdict();
        self.exit_status.store(ending.exit_code, Ordering::Release);
        let stop = self.stopping.as_ref().map(Stopping::report);
        self.box_end.exit_file.publish(&ending, self.events.elapsed(), stop, error.as_ref());
        if let Some(error) = error {
            self.events.emit(EventKind::Error(error));
        }
        self.change_state(BoxState::Stopped);
        self.events.emit(ending.into_event(self.events.elapsed(), stop));
        self.events.finish();
        self.box_end.exit_file.settle();
        // Last, as it may take its time: a guest may have written a million files.
        self.box_end.remove_transient();
        a3s_box_sys::exit::now(ending.exit_code)
    }
}
