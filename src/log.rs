//! The log: `tracing`, and libkrun's `log` records, as text on standard error.
//!
//! `A3S_BOX_LOG` is `off`, `error`, `warn` (default), `info`, `debug` or `trace`. What the guest's
//! kernel prints is shown from `info` on: its amount is the guest's to choose.

use std::io::{self, Write};
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Target of libkrun's records that hold the guest's console (`port_io.rs`, libkrun 1.19.7).
const GUEST_KERNEL: &str = "init_or_kernel";

/// Target of libkrun's records about vsock connections: at each end of one it warns that it forgets
/// the connection a little later (`muxer_thread.rs`, 1.19.7).
const VSOCK: &str = "krun_devices::virtio::vsock";

/// Sets the log up for the whole process. A wrong level counts as `warn`.
pub(crate) fn install() {
    let level = std::env::var("A3S_BOX_LOG").ok().and_then(|level| level.parse().ok());
    let level: LevelFilter = level.unwrap_or(LevelFilter::WARN);
    let kernel = if level >= LevelFilter::INFO { level } else { LevelFilter::OFF };
    let vsock = if level >= LevelFilter::INFO { level } else { level.min(LevelFilter::ERROR) };
    let targets = Targets::new()
        .with_default(level)
        .with_target(GUEST_KERNEL, kernel)
        .with_target(VSOCK, vsock);
    let text = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(|| LossyStderr);
    // Only fails when a logger exists already, which then goes on.
    let _installed = tracing_subscriber::registry().with(targets).with(text).try_init();
}

/// Standard error that drops what cannot be written at once: libkrun logs on threads that the VM
/// waits for.
struct LossyStderr;

impl Write for LossyStderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let stderr = io::stderr();
        let mut fds = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
        let writable = poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready == 1);
        if writable {
            // A pipe that polls as writable takes PIPE_BUF (4096) bytes without blocking.
            let line = bytes.get(..4096).unwrap_or(bytes);
            // There is no other place to say that the log cannot be written.
            let _lost = nix::unistd::write(stderr.as_fd(), line);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
