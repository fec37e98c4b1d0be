//! [`ShimError`]: the errors of all phases, each with its stable code and a hint.

use a3s_box_core::event::{StopCause, StopReport};
use a3s_box_core::{ConfigError, ErrorCode, ErrorReport};
use a3s_box_krun::KrunError;
use a3s_box_sys::HostError;

use crate::confine::ConfinementError;
use crate::console::ConsoleError;
use crate::control::{ControlError, StopProgress};
use crate::ending::Ending;
use crate::guest_program::GuestProgramError;
use crate::host::box_ids::BoxIdsError;
use crate::host::cgroup::CgroupError;
use crate::input::config::InputError;
use crate::machine::GuestError;
use crate::maintenance::MaintenanceError;
use crate::network::NetworkError;
use crate::report::events::EventFileError;
use crate::rootfs::error::RootfsError;
use crate::state::dir::StateDirError;

/// Why a phase failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ShimError {
    #[error(transparent)]
    Input(#[from] InputError),
    /// Only functions of `host` return this error as it is. All other phases wrap it.
    #[error("cannot set the process up")]
    Process(#[from] HostError),
    #[error("cannot limit the resources of the box")]
    Cgroup(#[from] CgroupError),
    #[error("cannot get ids for the box")]
    Ids(#[from] BoxIdsError),
    #[error("cannot use the state directory")]
    State(#[from] StateDirError),
    #[error("cannot keep the event stream")]
    EventFile(#[from] EventFileError),
    #[error("cannot make the guest's network")]
    Network(#[from] NetworkError),
    #[error("cannot make the root file system")]
    Rootfs(#[from] RootfsError),
    #[error("cannot prepare the guest")]
    GuestProgram(#[from] GuestProgramError),
    #[error("cannot prepare the guest")]
    Guest(#[from] GuestError),
    #[error("cannot prepare the console")]
    Console(#[from] ConsoleError),
    #[error("cannot confine the shim")]
    Confinement(#[from] ConfinementError),
    #[error("cannot watch the box")]
    Control(#[from] ControlError),
    #[error("cannot start the virtual machine")]
    Vm(#[from] KrunError),
}

impl From<MaintenanceError> for ShimError {
    fn from(error: MaintenanceError) -> Self {
        match error {
            MaintenanceError::Input(error) => Self::Input(error),
            MaintenanceError::Rootfs(error) => Self::Rootfs(error),
        }
    }
}

impl ShimError {
    /// Returns the report for the event `error`, or nothing if the box was stopped.
    pub(crate) fn report(&self) -> Option<ErrorReport> {
        if self.early_stop().is_some() {
            return None;
        }
        Some(ErrorReport::new(self.code(), self).with_hint(self.hint()))
    }

    /// Returns the ending of the box that this error causes.
    pub(crate) fn ending(&self) -> Ending {
        self.early_stop().map_or_else(Ending::failed, |(_, ending)| ending)
    }

    /// Returns the report of the stop if the box was stopped. The stop is complete at once, because
    /// there is no workload yet.
    pub(crate) fn stop(&self, now_ms: u64) -> Option<StopReport> {
        self.early_stop().map(|(cause, _)| StopProgress::new(cause, now_ms).report())
    }

    /// Returns why and how the box was stopped before its control thread ran. Only unpacking and
    /// `--verify` hear stop requests earlier, and only unpacking hears the timeout.
    fn early_stop(&self) -> Option<(StopCause, Ending)> {
        match self {
            Self::Rootfs(RootfsError::Stopped(request)) => {
                Some((request.cause(), Ending::stopped(*request)))
            }
            Self::Rootfs(RootfsError::TimedOut) => Some((StopCause::Timeout, Ending::timed_out())),
            _ => None,
        }
    }

    fn code(&self) -> ErrorCode {
        match self {
            Self::Input(InputError::Invalid(ConfigError::Unsupported { .. })) => {
                ErrorCode::ConfigUnsupported
            }
            Self::Input(_) => ErrorCode::ConfigInvalid,
            Self::Process(_) | Self::Cgroup(_) | Self::Ids(_) => ErrorCode::ProcessSetup,
            Self::State(StateDirError::InUse { .. }) => ErrorCode::IdInUse,
            Self::State(_) | Self::Console(_) | Self::EventFile(_) => ErrorCode::StateDir,
            Self::Network(_) => ErrorCode::NetworkSetup,
            Self::Rootfs(error) => error.code(),
            // The config can mend both: by `process.args`, or by another directory.
            Self::Guest(GuestError::NothingToRun | GuestError::Share(_)) => {
                ErrorCode::ConfigInvalid
            }
            Self::Guest(GuestError::StopSignal { .. }) => ErrorCode::ImageInvalid,
            // The supervisor's config is valid; the installation on this host is incomplete.
            Self::GuestProgram(_) => ErrorCode::HostUnsupported,
            Self::Confinement(_) => ErrorCode::Confinement,
            Self::Control(_) => ErrorCode::Internal,
            Self::Vm(error) if error.is_host_fault() => ErrorCode::HostUnsupported,
            Self::Vm(_) => ErrorCode::VmSetup,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Vm(error) => error.hint().map(str::to_owned),
            Self::Network(error) => error.hint().map(str::to_owned),
            Self::GuestProgram(GuestProgramError::Missing { .. }) => {
                Some("install a3s-box-guest beside the shim, or set `paths.guest`".to_owned())
            }
            Self::Rootfs(error) => error.hint(),
            Self::Cgroup(error) => Some(error.hint().to_owned()),
            Self::Confinement(_) => Some(
                "`a3s-box-shim --doctor` shows what this host lacks; with \
                 `confinement.level: \"best_effort\"` the box starts with less"
                    .to_owned(),
            ),
            Self::Process(_) => Some(
                "run as root, or where an ordinary user may make user namespaces \
                 (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone and \
                 kernel.apparmor_restrict_unprivileged_userns)"
                    .to_owned(),
            ),
            _ => None,
        }
    }
}
