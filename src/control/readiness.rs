//! The way of a box to ready: its boot phases, and the milestone that makes it ready.
//!
//! ```text
//!  shim starts ─ config ─ rootfs ─ vm ─► libkrun entered ─ kernel ─► PID 1 connects
//!                                         ─ agent ─► first answer of the agent
//! ```

use std::time::Duration;

use a3s_box_core::config::Readiness as Condition;
use a3s_box_core::event::{BootPhases, EventKind};
use a3s_box_core::{ErrorCode, ErrorReport};
use a3s_box_proto::control::Started;

use super::verdict::failure;

/// How far the boot of a box has come. Times are milliseconds since the shim started.
#[derive(Debug)]
pub(super) struct Readiness {
    condition: Condition,
    phases: BootPhases,
    /// Absent until PID 1 of the guest has connected.
    guest_version: Option<String>,
    has_started: bool,
}

impl Readiness {
    /// Describes a box that becomes ready by `condition`. `config_ms` and `rootfs_ms` are the
    /// durations of the phases that are over.
    pub(super) fn new(condition: Condition, config_ms: u64, rootfs_ms: u64) -> Self {
        let phases = BootPhases { config_ms, rootfs_ms, ..BootPhases::default() };
        Self { condition, phases, guest_version: None, has_started: false }
    }

    pub(super) fn phases(&self) -> BootPhases {
        self.phases
    }

    /// Whether the workload was started.
    pub(super) fn has_started(&self) -> bool {
        self.has_started
    }

    /// Whether `milestone` makes the box ready.
    pub(super) fn is_met_by(&self, milestone: Condition) -> bool {
        self.condition == milestone
    }

    /// Ends the phase `vm`: the main thread enters libkrun.
    pub(super) fn vm_entered(&mut self, now_ms: u64) {
        self.phases.vm_ms = self.since_phases(now_ms);
    }

    /// Ends the phase `kernel`: PID 1 of the guest has connected. A guest that repeats its greeting
    /// does not lengthen the phase.
    pub(super) fn guest_connected(&mut self, guest_version: String, now_ms: u64) {
        self.guest_version = Some(guest_version);
        if self.phases.kernel_ms == 0 {
            self.phases.kernel_ms = self.since_phases(now_ms);
        }
    }

    /// Takes the report that the workload was started, and returns its event. A repeated report is
    /// ignored.
    pub(super) fn workload_started(&mut self, started: &Started) -> Option<EventKind> {
        if std::mem::replace(&mut self.has_started, true) {
            return None;
        }
        Some(EventKind::GuestStarted {
            guest_version: self.guest_version.clone().unwrap_or_default(),
            // The guest sends pid 0 if the box has no workload.
            workload_pid: Some(started.pid).filter(|pid| *pid != 0),
        })
    }

    /// Ends the phase `agent`, and returns the event of the first answer.
    pub(super) fn agent_answered(&mut self, now_ms: u64) -> EventKind {
        self.phases.agent_ms = self.since_phases(now_ms);
        self.phases.total_ms = now_ms;
        EventKind::AgentReady { phases: self.phases }
    }

    /// Returns the error of a box that was not ready in time. `vcpus_ran` distinguishes a guest
    /// that is slow from one that is stuck.
    pub(super) fn timeout(&self, now_ms: u64, vcpus_ran: Duration) -> ErrorReport {
        let BootPhases { config_ms, rootfs_ms, .. } = self.phases;
        let waited_ms = now_ms.saturating_sub(config_ms + rootfs_ms);
        let progress = match (&self.guest_version, self.has_started, self.condition) {
            (None, ..) => "it has not said anything",
            (Some(_), false, _) => "it was still preparing itself",
            (Some(_), true, Condition::Notify) => "its workload has not sent `READY=1`",
            (Some(_), true, _) => "its agent does not answer",
        };
        let ran_ms = vcpus_ran.as_millis();
        let message = format!(
            "the guest was not ready {waited_ms} ms after its start (`agent.boot_timeout_ms`)"
        );
        let cause = format!("{progress}; its CPUs ran for {ran_ms} ms");
        // A busy host is a possible reason, so another start may succeed.
        ErrorReport { causes: vec![cause], ..failure(ErrorCode::BootTimeout, &message) }.retryable()
    }

    /// Returns the time that belongs to no phase yet.
    fn since_phases(&self, now_ms: u64) -> u64 {
        let BootPhases { config_ms, rootfs_ms, vm_ms, kernel_ms, .. } = self.phases;
        now_ms.saturating_sub(config_ms + rootfs_ms + vm_ms + kernel_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_follow_each_other_without_gaps() {
        let mut readiness = Readiness::new(Condition::Health, 3, 20);
        readiness.vm_entered(30);
        readiness.guest_connected("1".into(), 250);
        readiness.guest_connected("1".into(), 260);
        let event = readiness.workload_started(&Started { pid: 7 });
        let expected = EventKind::GuestStarted { guest_version: "1".into(), workload_pid: Some(7) };
        assert_eq!(event, Some(expected));
        assert_eq!(readiness.workload_started(&Started { pid: 8 }), None, "only once");
        let phases = BootPhases {
            config_ms: 3,
            rootfs_ms: 20,
            vm_ms: 7,
            kernel_ms: 220,
            agent_ms: 50,
            total_ms: 300,
        };
        assert_eq!(readiness.agent_answered(300), EventKind::AgentReady { phases });
    }

    #[test]
    fn timeout_reports_how_far_the_guest_came() {
        let cause = |readiness: &Readiness| {
            let report = readiness.timeout(5023, Duration::from_millis(9));
            assert_eq!(report.code, ErrorCode::BootTimeout);
            assert!(report.retryable && report.message.contains("ready 5000 ms"), "{report:?}");
            report.causes[0].clone()
        };
        let mut readiness = Readiness::new(Condition::Notify, 3, 20);
        assert_eq!(cause(&readiness), "it has not said anything; its CPUs ran for 9 ms");
        readiness.guest_connected("1".into(), 100);
        assert!(cause(&readiness).starts_with("it was still preparing itself;"));
        readiness.workload_started(&Started { pid: 7 });
        assert!(cause(&readiness).starts_with("its workload has not sent `READY=1`;"));
        readiness.condition = Condition::Health;
        assert!(cause(&readiness).starts_with("its agent does not answer;"));
    }

    #[test]
    fn box_is_ready_by_its_condition_only() {
        let readiness = Readiness::new(Condition::Notify, 0, 0);
        let met = [Condition::Started, Condition::Notify, Condition::Health]
            .map(|milestone| readiness.is_met_by(milestone));
        assert_eq!(met, [false, true, false]);
    }
}
