//! The gate: the process between the VM's Ethernet device and passt, and the parent of passt.
//!
//! All frames of the guest pass through it. With egress `deny` it also relays the published ports
//! into the empty network namespace of passt. Its phases, in order:
//!
//! ```text
//!   open the published ports, and sockets to name servers ─► (deny: empty network, start connector)
//!   ─► give up what passt must not have ─► start passt ─► (allow: empty network)
//!   ─► become a user without rights, give up files and most system calls
//!   ─► carry frames until the VM's end of the wire closes or passt ends
//! ```
//!
//! passt starts in the network in which it is to open its sockets, which is why the empty network
//! comes before it or after it.

mod calls;
mod config;
mod limits;
mod refuser;
mod resolving;

use std::cell::RefCell;
use std::convert::Infallible;
use std::ffi::{CStr, OsStr, OsString};
use std::fs::File;
use std::future;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, ExitCode, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use a3s_box_core::config::{ConfigError, SeccompMode};
use a3s_box_core::one_line;
use a3s_box_sys::HostError;
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_name;
use tokio::io::AsyncWriteExt;
use tokio::sync::Mutex;

pub(super) use self::config::GateConfig;
use self::refuser::Refuser;
use self::resolving::{Resolving, Upstream};
use super::connector::{Connector, ConnectorConfig};
use super::filter::{Egress, Filter, Verdict};
use super::frames::{carry, without_length};
use super::names::NameRules;
use super::relay::{self, ListenError, PublishedPort};
use super::{host_addresses, jail, loopback, passt};
use crate::host::inherited::InheritedFiles;
use crate::host::process;
use crate::report::terminal;
use crate::spec::{EgressSpec, NetworkSpec, PasstSpec};

/// First argument of this executable when it is to be the gate. The path of passt follows. Standard
/// input is the wire, on which the [`GateConfig`] comes first, and standard output takes notices.
pub(super) const ARGUMENT: &str = "--network-gate";

/// Name of the process in `ps`.
const NAME: &CStr = c"a3s-box-gate";

/// Time that passt gets to exit by itself after it has closed its end of the wire.
const EXIT_GRACE: Duration = Duration::from_millis(50);

/// Why the gate ended.
#[derive(Debug, thiserror::Error)]
enum GateError {
    #[error("the gate was called without the path of passt, or for another mode")]
    Arguments,
    #[error("the gate's config is not valid")]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Host(#[from] HostError),
    #[error("passt ended: {0}")]
    PasstEnded(String),
}

/// Runs the gate to its end if the arguments of this process ask for it, and returns its exit
/// status.
///
/// Callers must do this before anything else, because the gate closes every inherited fd.
pub(super) fn run_if_asked() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    arguments.next().filter(|argument| argument == ARGUMENT)?;
    let result = arguments.next().ok_or(GateError::Arguments).and_then(|passt| run(&passt));
    Some(match result {
        Ok(()) => ExitCode::SUCCESS,
        // The shim reads the gate's standard error and reports it.
        Err(error) => terminal::print(io::stderr(), &one_line(&error), a3s_box_core::exit::FAILED),
    })
}

fn run(program: &OsStr) -> Result<(), GateError> {
    // Without this, ps shows `exe`, from /proc/self/exe.
    set_name(NAME).map_err(HostError::of("set the name of the process"))?;
    // The supervisor may have left fds open that the shim passed on.
    InheritedFiles::find()?.close();
    let vm = io::stdin().as_fd().try_clone_to_owned().map_err(HostError::of("take the wire"))?;
    let vm = UnixStream::from(vm);
    let config = GateConfig::receive(&vm).map_err(HostError::of("read the gate's config"))?;
    let NetworkSpec::Passt(spec) = NetworkSpec::try_from(config.network)? else {
        return Err(GateError::Arguments);
    };
    let to_shim = take_pipe().map_err(HostError::of("take the pipe to the shim"))?;
    // Addresses and sockets are those of the host's network, which is left below.
    let (filter, names) = destinations(&spec, &config.name_servers)?;
    let user = process::is_root_of_host().then(|| config.user.unwrap_or(passt::NOBODY));
    let relayed = if spec.egress.is_deny() {
        // The host's ports must be opened before the host's network is left.
        let ports = relay::listen(&spec.publish)?;
        enter_empty_network()?;
        loopback::bring_up().map_err(HostError::of("bring the loopback interface up"))?;
        Relayed::with(ports, config.seccomp, user)?
    } else {
        // passt itself listens on the published ports.
        None
    };
    limits::apply(&spec, config.seccomp)?;
    let arguments = passt::arguments(&spec, user, config.ipv6.as_deref());
    let (passt, to_passt) = start_passt(program, arguments)?;
    if !spec.egress.is_deny() {
        enter_empty_network()?;
    }
    jail::confine(user)?;
    // The event loop comes before the filter, which does not allow the calls that make one.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(HostError::of("make the event loop"))?;
    calls::restrict(config.seccomp, passt.id(), relayed.is_some())
        .map_err(io::Error::other)
        .map_err(HostError::of("give up system calls"))?;
    runtime.block_on(async {
        // If passt has no IPv6 after all, the guest has no route to an IPv6 address, and its programs
        // use the other addresses at once.
        let has_ipv6 = config.ipv6.is_some();
        let resolving = names.map(|(rules, to)| Resolving::new(rules, to, has_ipv6)).transpose();
        let resolving = resolving.map_err(HostError::of("use the sockets to the name servers"))?;
        let work = Work { relayed, resolving, filter: RefCell::new(filter) };
        serve([vm, to_passt], passt, work, to_shim).await
    })
}

/// The names in the rules of a box, and the sockets to the name servers that resolve them.
type ToResolve = (Rc<NameRules>, Upstream);

/// Returns the filter, and what the name server of the gate needs if a rule has a name.
fn destinations(
    spec: &PasstSpec,
    name_servers: &[IpAddr],
) -> Result<(Filter, Option<ToResolve>), GateError> {
    let egress = Egress::new(spec, &host_addresses::out_of_reach(spec)?);
    let rules = match &spec.egress {
        EgressSpec::Rules(rules) if spec.egress.has_names() => {
            NameRules::new(rules, &host_addresses::all()?).map(Rc::new)
        }
        _ => None,
    };
    let filter = Filter::new(spec, egress, rules.clone());
    let open = |rules| -> Result<ToResolve, HostError> {
        let upstream = Upstream::open(name_servers);
        Ok((rules, upstream.map_err(HostError::of("make a socket to a name server"))?))
    };
    Ok((filter, rules.map(open).transpose()?))
}

/// Takes standard output, the pipe to the shim, and makes it non-blocking. A shim that does not read
/// must not hold up the guest.
fn take_pipe() -> io::Result<File> {
    let pipe = process::stdout().as_fd().try_clone_to_owned()?;
    rustix::io::ioctl_fionbio(&pipe, true)?;
    Ok(pipe.into())
}

/// The published ports that the gate relays, and the connector that it needs for them.
struct Relayed {
    ports: Vec<PublishedPort>,
    connector: Connector,
}

impl Relayed {
    /// Starts the connector in the empty network, unless there is no port.
    fn with(
        ports: Vec<PublishedPort>,
        seccomp: SeccompMode,
        user: Option<u32>,
    ) -> Result<Option<Self>, HostError> {
        let is_needed = !ports.is_empty();
        let connector =
            is_needed.then(|| Connector::start(&ConnectorConfig { seccomp, user })).transpose()?;
        Ok(connector.map(|connector| Self { ports, connector }))
    }

    /// Relays connections for ever, unless the connector fails.
    async fn serve(relayed: Option<Self>) -> io::Result<Infallible> {
        match relayed {
            Some(Self { ports, connector }) => relay::serve(ports, connector).await,
            None => future::pending().await,
        }
    }
}

fn start_passt(
    program: &OsStr,
    arguments: Vec<OsString>,
) -> Result<(Child, UnixStream), HostError> {
    let (to_passt, passts_end) =
        UnixStream::pair().map_err(HostError::of("make a pair of sockets"))?;
    let mut command = Command::new(program);
    command.args(arguments).env_clear();
    command.stdin(OwnedFd::from(passts_end)).stdout(Stdio::null());
    // The command also owns an fd of passt's end. It is dropped on return, because the gate sees an
    // end of file only when no other process or fd holds that end.
    Ok((command.spawn().map_err(HostError::of("start passt"))?, to_passt))
}

fn enter_empty_network() -> Result<(), HostError> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(HostError::of("make a network namespace"))
}

/// What the gate does besides carrying frames.
struct Work {
    relayed: Option<Relayed>,
    resolving: Option<Resolving>,
    filter: RefCell<Filter>,
}

/// Carries frames between the VM and passt until one of them closes its end.
async fn serve(
    wires: [UnixStream; 2],
    mut passt: Child,
    work: Work,
    to_shim: File,
) -> Result<(), GateError> {
    let Work { relayed, resolving, filter } = work;
    let resolving = resolving.as_ref();
    let [vm, to_passt] = wires.map(|wire| {
        wire.set_nonblocking(true).and_then(|()| tokio::net::UnixStream::from_std(wire))
    });
    let vm = vm.map_err(HostError::of("use the wire"))?;
    let to_passt = to_passt.map_err(HostError::of("use the wire"))?;
    let (from_vm, to_vm) = vm.into_split();
    let (from_passt, mut to_passt) = to_passt.into_split();
    // The directions take turns in this thread, and none keeps a borrow of the filter while it
    // waits. Frames of passt and answers of the gate share the way to the VM.
    let to_vm = Mutex::new(to_vm);
    let (refuser, answers) = Refuser::new(to_shim);
    let leave = async |framed: &[u8]| -> io::Result<()> {
        let frame = without_length(framed);
        let verdict = filter.borrow_mut().leave(frame, Instant::now());
        match verdict {
            Verdict::Pass => to_passt.write_all(framed).await?,
            Verdict::Drop => {}
            Verdict::Refuse(destination) => refuser.refuse(destination, frame),
            Verdict::Ask => {
                resolving.into_iter().for_each(|names| names.ask(frame, &filter, &refuser));
                // The answer leaves its queue before the next question, so that a program which asks
                // for a hundred names at once loses none.
                tokio::task::yield_now().await;
            }
        }
        Ok(())
    };
    let arrive = async |framed: &[u8]| -> io::Result<()> {
        let frame = without_length(framed);
        let passes = filter.borrow_mut().may_arrive(frame, Instant::now());
        if passes { to_vm.lock().await.write_all(framed).await } else { Ok(()) }
    };
    tokio::select! {
        end = carry(from_vm, leave) => vm_ended(end, &mut passt),
        end = carry(from_passt, arrive) => match end {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                Err(HostError::of("carry frames to the guest")(error).into())
            }
            // passt has closed its end, be it with an end of file or with a reset.
            _ => Err(passt_ended(&mut passt)),
        },
        Err(error) = Relayed::serve(relayed) => {
            Err(HostError::of("serve the published ports")(error).into())
        }
        never = refuser::answer(answers, &to_vm) => match never {},
        never = refuser.tell() => match never {},
        never = Resolving::hear(resolving, &filter, &refuser) => match never {},
        never = Resolving::watch(resolving, &filter, &refuser) => match never {},
    }
}

/// Ends passt after the frames of the VM have ended.
fn vm_ended(end: io::Result<()>, passt: &mut Child) -> Result<(), GateError> {
    match end {
        // EPIPE on a write means that passt has closed its end before the VM closed its own.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(passt_ended(passt)),
        end => {
            // `kill` fails if passt has exited (ESRCH) or has not yet become the gate's user
            // (EPERM). In both cases passt ends by itself when its socket closes, and must not be
            // waited for.
            if passt.kill().is_ok() {
                let _reaped = passt.wait();
            }
            end.map_err(|error| HostError::of("carry the guest's frames")(error).into())
        }
    }
}

/// Reports the exit status of passt, which has closed its end of the wire.
fn passt_ended(passt: &mut Child) -> GateError {
    std::thread::sleep(EXIT_GRACE);
    // A process that has already exited keeps its status, so this only ends a passt that hangs.
    let _killed = passt.kill();
    GateError::PasstEnded(match passt.wait() {
        Ok(status) => status.to_string(),
        Err(error) => error.to_string(),
    })
}
