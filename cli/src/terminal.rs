//! The terminal of the user: its size, and its raw mode.

use std::io;
use std::sync::{Mutex, PoisonError};

use a3s_box_runtime::exec::TerminalSize;
use rustix::stdio::{stderr, stdin, stdout};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};

/// Size of a terminal whose size is unknown.
const DEFAULT_SIZE: TerminalSize = TerminalSize { rows: 24, columns: 80 };

/// The attributes before raw mode. They are in a static, because the hook of a panic restores them,
/// too: a panic aborts this program without dropping any value.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Raw mode of the terminal at standard input: each key goes to the box, including Ctrl-C. Dropping
/// it restores the terminal.
#[derive(Debug)]
pub(crate) struct RawMode(());

impl RawMode {
    /// Enters raw mode.
    pub(crate) fn enter() -> io::Result<Self> {
        let before = tcgetattr(stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        // The value exists before the change, so that an error restores the terminal.
        let mode = Self(());
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            restore();
            report(panic);
        }));
        tcsetattr(stdin(), OptionalActions::Drain, &raw)?;
        Ok(mode)
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Restores the attributes, if they were changed.
fn restore() {
    if let Some(before) = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take() {
        // The terminal may be gone.
        let _ignored = tcsetattr(stdin(), OptionalActions::Drain, &before);
    }
}

/// Returns whether standard input is a terminal.
pub(crate) fn is_standard_input() -> bool {
    isatty(stdin())
}

/// Returns the size of the first standard stream that is a terminal.
pub(crate) fn size() -> TerminalSize {
    [stdin(), stdout(), stderr()]
        .into_iter()
        .find_map(|stream| tcgetwinsize(stream).ok())
        // A serial line has the size 0.
        .filter(|size| size.ws_row > 0 && size.ws_col > 0)
        .map_or(DEFAULT_SIZE, |size| TerminalSize { rows: size.ws_row, columns: size.ws_col })
}
