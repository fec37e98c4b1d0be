//! The signals that a command in a box gets in the place of this program.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Handlers of signals, which otherwise would end this program.
#[derive(Debug)]
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    quit: Signal,
    window: Signal,
}

/// A signal that has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// The terminal has another size.
    Resized,
    /// The signal with this number, which is the command's.
    Passed(u32),
}

impl Signals {
    /// Installs the handlers.
    pub(crate) fn catch() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            quit: signal(SignalKind::quit())?,
            window: signal(SignalKind::window_change())?,
        })
    }

    /// Waits for the next signal. Loses nothing when it is cancelled.
    pub(crate) async fn next(&mut self) -> Received {
        let passed = |kind: SignalKind| {
            Received::Passed(u32::try_from(kind.as_raw_value()).unwrap_or_default())
        };
        // tokio never ends these streams, so no result is `None`.
        tokio::select! {
            _ = self.interrupt.recv() => passed(SignalKind::interrupt()),
            _ = self.terminate.recv() => passed(SignalKind::terminate()),
            _ = self.hangup.recv() => passed(SignalKind::hangup()),
            _ = self.quit.recv() => passed(SignalKind::quit()),
            _ = self.window.recv() => Received::Resized,
        }
    }
}
