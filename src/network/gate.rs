//! The gate: a process between VM and passt, whose parent it is. Frames of the guest pass it, and published
//! ports of a guest that reaches nothing.
//!
//! ```text
//!   open published ports ─► (deny: empty network) ─► start passt ─► (allow: empty network) ─► nobody,
//!   no files, few system calls ─► carry frames, until the VM's end of the wire closes or passt ends
//! ```

mod calls;

use std::ffi::{CStr, OsStr};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use a3s_box_core::config::{ConfigError, Egress, NetworkConfig, SeccompMode};
use a3s_box_core::one_line;
use a3s_box_sys::HostError;
use caps::CapSet;
use landlock::{ABI, Access, AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::{set_dumpable, set_name, set_no_new_privs, set_pdeathsig};
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use serde::{Deserialize, Serialize};

use super::frames::{carry, may_leave};
use super::loopback;
use super::passt::{self, NOBODY};
use super::relay::{self, ListenError};
use crate::host::inherited::InheritedFiles;
use crate::host::process;
use crate::report::terminal;
use crate::spec::{NetworkSpec, PasstSpec};

/// What makes this executable the gate: then come the path of passt, and the gate's config as JSON.
pub(super) const ARGUMENT: &str = "--network-gate";

/// What the shim tells its gate.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct GateConfig {
    pub(super) network: NetworkConfig,
    pub(super) seccomp: SeccompMode,
}

/// What it is called in lists of processes.
const NAME: &CStr = c"a3s-box-gate";

/// How long passt may take to end after it has closed its wire.
const LAST_MOMENT: Duration = Duration::from_millis(50);

/// Why the gate ended.
#[derive(Debug, thiserror::Error)]
enum GateError {
    #[error("the gate was called without a config and a program")]
    Arguments,
    #[error("the gate's config is not valid")]
    Json(#[from] serde_json::Error),
    #[error("the gate's config is not valid")]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Host(#[from] HostError),
    #[error("passt ended: {0}")]
    PasstEnded(String),
}

/// Is the gate, if that is what this process was started as. To be called first.
pub(crate) fn run_if_asked() -> Option<ExitCode> {
    let mut words = std::env::args_os().skip(1);
    words.next().filter(|word| word == ARGUMENT)?;
    let called = words.next().zip(words.next());
    let ended = called.ok_or(GateError::Arguments).and_then(|(passt, config)| run(&passt, &config));
    Some(match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => terminal::print(io::stderr(), &one_line(&error), a3s_box_core::exit::FAILED),
    })
}

fn run(program: &OsStr, config: &OsStr) -> Result<(), GateError> {
    // Else it has that of the link that it was started by.
    set_name(NAME).map_err(HostError::of("take a name"))?;
    // Whoever started the shim may have left some open.
    InheritedFiles::find()?.close();
    let config: GateConfig = serde_json::from_str(&config.to_string_lossy())?;
    let NetworkSpec::Passt(spec) = NetworkSpec::try_from(config.network)? else {
        return Err(GateError::Arguments);
    };
    let wire = io::stdin().as_fd().try_clone_to_owned().map_err(HostError::of("take the wire"))?;
    let is_root = process::is_root_of_host();
    let published = match spec.egress {
        Egress::Allow => Vec::new(),
        Egress::Deny => {
            let published = relay::listen(&spec.publish)?;
            enter_empty_network()?;
            loopback::set_up().map_err(HostError::of("bring the loopback interface up"))?;
            published
        }
    };
    let (to_passt, theirs) = UnixStream::pair().map_err(HostError::of("make a pair of sockets"))?;
    let mut command = Command::new(program);
    command.args(passt::arguments(&spec, is_root)).env_clear();
    command.stdin(std::os::fd::OwnedFd::from(theirs)).stdout(Stdio::null());
    let passt = command.spawn().map_err(HostError::of("start passt"))?;
    // It holds passt's end, too.
    drop(command);
    if spec.egress == Egress::Allow {
        enter_empty_network()?;
    }
    confine(is_root)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(HostError::of("make the event loop"))?;
    calls::restrict(config.seccomp, passt.id(), !published.is_empty())
        .map_err(io::Error::other)
        .map_err(HostError::of("give up system calls"))?;
    runtime.block_on(serve([UnixStream::from(wire), to_passt], passt, published, &spec))
}

fn enter_empty_network() -> Result<(), HostError> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(HostError::of("make a network namespace"))
}

/// Gives everything up but what is open: user, capabilities, files. passt has a jail of its own (passt(1)).
fn confine(is_root: bool) -> Result<(), HostError> {
    if is_root {
        let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
        setgroups(&[])
            .and_then(|()| setresgid(group, group, group))
            .and_then(|()| setresuid(user, user, user))
            .map_err(HostError::of("become nobody"))?;
    }
    for set in [CapSet::Ambient, CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
        caps::clear(None, set)
            .map_err(io::Error::other)
            .map_err(HostError::of("drop capabilities"))?;
    }
    set_no_new_privs()
        .and_then(|()| set_dumpable(false))
        // A second way to end: a shim that is confined may not signal it, and the wire closes.
        .and_then(|()| set_pdeathsig(Signal::SIGKILL))
        .map_err(HostError::of("confine the gate"))?;
    let no_files = || {
        Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(ABI::V5))?
            .create()?
            .restrict_self()
    };
    no_files().map(drop).map_err(io::Error::other).map_err(HostError::of("give up all files"))
}

/// Carries frames, until one of both ends.
async fn serve(
    wires: [UnixStream; 2],
    mut passt: Child,
    published: Vec<relay::Published>,
    spec: &PasstSpec,
) -> Result<(), GateError> {
    let [vm, to_passt] = wires.map(|wire| {
        wire.set_nonblocking(true).and_then(|()| tokio::net::UnixStream::from_std(wire))
    });
    let vm = vm.map_err(HostError::of("use the wire"))?;
    let to_passt = to_passt.map_err(HostError::of("use the wire"))?;
    relay::serve(published).map_err(HostError::of("serve published ports"))?;
    let (from_vm, to_vm) = vm.into_split();
    let (from_passt, to_passt) = to_passt.into_split();
    tokio::select! {
        end = carry(from_vm, to_passt, |frame| may_leave(frame, &spec.dns)) => match end {
            // Its end of the wire is closed already.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(ended(&mut passt)),
            end => {
                // A passt that has ended cannot be killed, nor one that is not nobody yet: it sees its wire close.
                if passt.kill().is_ok() {
                    let _reaped = passt.wait();
                }
                Ok(end.map_err(HostError::of("carry the guest's frames"))?)
            }
        },
        end = carry(from_passt, to_vm, |_| true) => match end {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                Err(HostError::of("carry frames to the guest")(error).into())
            }
            // However it has closed its wire.
            _ => Err(ended(&mut passt)),
        },
    }
}

/// passt has closed its wire: it has ended, or is about to.
fn ended(passt: &mut Child) -> GateError {
    std::thread::sleep(LAST_MOMENT);
    // One that has ended keeps its own status.
    let _killed = passt.kill();
    GateError::PasstEnded(match passt.wait() {
        Ok(status) => status.to_string(),
        Err(error) => error.to_string(),
    })
}
