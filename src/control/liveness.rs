//! Finds out that a guest has halted.
//!
//! `poweroff -f` and `halt -f` stop an x86 guest's CPUs, and libkrun waits for ever. A guest that
//! does not answer may just be busy, so silence alone means nothing: a guest has halted when it
//! does not answer *and* its virtual CPUs hardly run *and* they are not waiting for a CPU of the
//! host either.

use std::fs;
use std::path::Path;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

use super::agent::Agent;
use super::health::LastAnswer;

/// Pause between two looks: a tenth of a per mille of a CPU.
const INTERVAL: Duration = Duration::from_secs(1);

/// Looks in a row that must find the guest silent and still.
const LOOKS: u32 = 3;

/// A guest that lives runs for longer to answer one question; a halted one is only woken by the
/// question's interrupt, some microseconds.
const STILL_NS: u64 = 5_000_000;

/// How long an answer may take: a busy host's guest needs some tens of milliseconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// libkrun names the threads of virtual CPUs `fc_vcpu 0` and on (1.19.7, vstate.rs).
const VCPU_THREAD: &str = "fc_vcpu";

/// Who can be asked.
#[derive(Debug)]
pub(super) enum Probe {
    /// The agent, which answers health checks. Not asked where it has just answered one: that is
    /// what the other end says.
    Agent(Agent, LastAnswer),
    /// Nobody: the guest's kernel refuses a connection, and so answers too.
    Kernel,
}

/// Comes back when the guest behind `socket` has halted.
pub(super) async fn until_halted(mut probe: Probe, socket: &Path) {
    let mut still = 0;
    while still < LOOKS {
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
        tracing::debug!(answered, ?ran, "looked whether the guest lives");
        still = if !answered && ran.is_some_and(CpuTime::is_still) { still + 1 } else { 0 };
    }
}

/// Whether the agent answers, be it that it does not serve.
async fn answers(agent: &mut Agent) -> bool {
    !agent.check(ANSWER_TIMEOUT).await.is_err_and(|failure| failure.is_silence())
}

/// Nobody listens in the guest: its kernel resets the connection.
async fn kernel_answers(socket: &Path) -> bool {
    let ask = async {
        let Ok(mut stream) = UnixStream::connect(socket).await else { return false };
        // Any end of the stream is the answer.
        let _reset = stream.read(&mut [0; 16]).await;
        true
    };
    timeout(2 * INTERVAL, ask).await.unwrap_or(false)
}

/// Time in nanoseconds that threads ran, and that they waited for a CPU.
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

/// How long the virtual CPUs ran so far: tells a guest that is slow from one that is stuck.
pub(super) fn vcpu_ran() -> Duration {
    Duration::from_nanos(vcpu_time().map_or(0, |time| time.ran_ns))
}

/// Of all virtual CPUs of this process (`/proc/thread-self/schedstat`, proc(5)); nothing if there
/// is none.
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
