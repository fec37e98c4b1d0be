//! Processes in a running box, in the manner of [`tokio::process`].
//!
//! [`BoxProcesses`] is a client of the socket `exec.sock` in the box directory, behind which the
//! guest program serves `a3s.box.process.v1`. Whoever may open the socket can use it: the
//! supervisor with its [`VmManager`](crate::VmManager), or another process of the same user.
//!
//! ```text
//! Command ──► BoxProcesses ──► Process ── stdin, stdout, stderr
//!                 │               └────── wait, kill, signal, resize, detach
//!                 └── list, attach, wait, signal
//! ```
//!
//! Each [`Process`] has a connection of its own. A reader that stops therefore stops the process
//! that writes, and nothing else.

mod client;
mod command;
mod error;
mod process;
mod streams;

pub use client::{BoxProcesses, ProcessInfo};
pub use command::{Command, TerminalSize};
pub use error::{ExecError, Refusal};
pub use process::{Output, Process, ProcessEnd, ProcessExit};
pub use streams::{ProcessInput, ProcessOutput};
