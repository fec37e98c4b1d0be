//! Detects a guest that has halted.
//!
//! `poweroff -f` and `halt -f` stop the CPUs of an x86 guest, and libkrun then waits forever.
//! Silence alone is no proof, because a busy guest is silent too. A guest counts as halted if three
//! things hold at once: it does not answer, its virtual CPUs hardly run, and they do not wait for a
//! CPU of the host.

use std::fs;
use std::path::Path;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

use super::agent::Agent;
use super::health::LastAnswer;

/// Pause between two probes. At this rate they cost about 0.01 % of a CPU.
const INTERVAL: Duration = Duration::from_secs(1);

/// Number of consecutive probes that must find the guest silent and still.
const PROBES: u32 = 3;

/// Time on a CPU below which the virtual CPUs count as still. A running guest needs more than this
/// to answer one probe. The probe's interrupt wakes a halted guest for some microseconds only.
const STILL_NS: u64 = 5_000_000;

/// Timeout of an answer. The guest of a busy host needs some tens of milliseconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// libkrun names the threads of virtual CPUs `fc_vcpu 0` and on (1.19.7, vstate.rs).
const VCPU_THREAD: &str = "fc_vcpu";

/// The part of the guest that is probed.
#[derive(Debug)]
pub(super) enum Probe {
    /// The agent. It is left alone for an interval after it has answered a health check, whose time
    /// is in the [`LastAnswer`].
    Agent(Agent, LastAnswer),
    /// The guest kernel, for a box without health checks. It resets a connection to a port on which
    /// no process listens, and this reset is an answer.
    Kernel,
}

/// Returns when the guest behind `socket` has halted.
pub(super) async fn until_halted(mut probe: Probe, socket: &Path) {
    let mut still = 0;
    while still < PROBES {
        sleep(INTERVAL).await;
        let before = vcpu_time();
        let answered = match &mut probe {
            Probe::Agent(agent, last_answer) => {
                let last_answer = *last_answer.borrow();
                last_answer.is_some_and(|at| at.elapsed() <= INTERVAL) || answers(agent).await
            }
            Probe::Kernel => kernel_answers(socket).await,
        };
        let ran = before.zip(vcpu_time()).map(|(before, after)| after.since(before));
        tracing::debug!(answered, ?ran, "probed the guest");
        // An unreadable schedstat gives no time; it must not turn a silent guest into a halted one.
        still = if !answered && ran.is_some_and(CpuTime::is_still) { still + 1 } else { 0 };
    }
}

/// Whether the agent answers. An answer that it does not serve counts.
async fn answers(agent: &mut Agent) -> bool {
    !agent.check(ANSWER_TIMEOUT).await.is_err_and(|failure| failure.is_silence())
}

/// Whether the guest kernel resets a connection to the agent's port.
async fn kernel_answers(socket: &Path) -> bool {
    let ask = async {
        let Ok(mut stream) = UnixStream::connect(socket).await else { return false };
        // Data, an end of file and an error all prove that the guest kernel runs.
        let _reset = stream.read(&mut [0; 16]).await;
        true
    };
    timeout(2 * INTERVAL, ask).await.unwrap_or(false)
}

/// Time that threads ran, and time that they waited for a CPU of the host.
#[derive(Clone, Copy, Debug)]
struct CpuTime {
    ran_ns: u64,
    waited_ns: u64,
}

impl CpuTime {
    fn since(self, before: Self) -> Self {
        Self {
            ran_ns: self.ran_ns.saturating_sub(before.ran_ns),
            waited_ns: self.waited_ns.saturating_sub(before.waited_ns),
        }
    }

    fn is_still(self) -> bool {
        self.ran_ns < STILL_NS && self.waited_ns < STILL_NS
    }
}

/// Returns the time that the virtual CPUs have run so far. In the error of a boot that took too
/// long, it distinguishes a slow guest from a stuck one.
pub(super) fn vcpu_ran() -> Duration {
    Duration::from_nanos(vcpu_time().map_or(0, |time| time.ran_ns))
}

/// Returns the sum over all virtual CPUs of this process, from `schedstat` of each thread
/// (proc(5)), or nothing if there is no such thread.
fn vcpu_time() -> Option<CpuTime> {
    let threads = fs::read_dir("/proc/self/task").ok()?;
    let times = threads.flatten().filter_map(|thread| {
        let read = |file| fs::read_to_string(thread.path().join(file)).ok();
        read("comm")?.starts_with(VCPU_THREAD).then_some(())?;
        let schedstat = read("schedstat")?;
        let mut numbers = schedstat.split(' ').map(|number| number.parse().unwrap_or(0));
        Some(CpuTime { ran_ns: numbers.next()?, waited_ns: numbers.next()? })
    });
    times.reduce(|a, b| CpuTime {
        ran_ns: a.ran_ns + b.ran_ns,
        waited_ns: a.waited_ns + b.waited_ns,
    })
}
