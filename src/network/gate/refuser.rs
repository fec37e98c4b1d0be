//! What happens to a refused packet of the guest: the guest gets an answer, and the shim a notice.
//! The answers of the gate's name server take the same way.
//!
//! Neither may delay the frames that pass. Answers wait in a short queue, and are dropped while it
//! is full. Notices go to a pipe that does not block.

use std::cell::RefCell;
use std::convert::Infallible;
use std::fs::File;
use std::future;
use std::io::Write;
use std::time::Instant;

use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::sync::{Mutex, Notify};
use tokio::time::sleep_until;

use crate::network::frames::with_length;
use crate::network::notice::{Destination, Notices};
use crate::network::refusal;

/// Bound on the answers that wait for a guest that does not read. A program that opens more
/// connections at once tries again after a second.
const MAX_ANSWERS: usize = 64;

/// Answers refused packets, and tells the shim of their destinations.
#[derive(Debug)]
pub(super) struct Refuser {
    answers: Sender<Vec<u8>>,
    notices: RefCell<Notices>,
    /// Wakes the task that writes notices.
    noted: Notify,
    /// The shim's pipe. It is the standard output of the gate.
    to_shim: File,
}

impl Refuser {
    /// Returns the refuser, and the answers for the guest. `to_shim` must not block.
    pub(super) fn new(to_shim: File) -> (Self, Receiver<Vec<u8>>) {
        let (answers, queue) = mpsc::channel(MAX_ANSWERS);
        let notices = RefCell::new(Notices::new(Instant::now()));
        (Self { answers, notices, noted: Notify::new(), to_shim }, queue)
    }

    /// Takes note of a refused frame.
    pub(super) fn refuse(&self, destination: Destination, frame: &[u8]) {
        if let Some(answer) = refusal::answer(frame) {
            self.answer(&answer);
        }
        self.tell_of(destination);
    }

    /// Sends a frame to the guest, or drops it while the queue is full.
    pub(super) fn answer(&self, frame: &[u8]) {
        let _dropped = self.answers.try_send(with_length(frame));
    }

    /// Counts a destination for the next notice.
    pub(super) fn tell_of(&self, destination: Destination) {
        self.notices.borrow_mut().note(destination, Instant::now());
        self.noted.notify_one();
    }

    /// Writes notices to the shim when they are due.
    pub(super) async fn tell(&self) -> Infallible {
        loop {
            self.noted.notified().await;
            loop {
                let due = self.notices.borrow().due();
                let Some(due) = due else { break };
                sleep_until(due.into()).await;
                let notice = self.notices.borrow_mut().take(Instant::now());
                if let Some(notice) = notice {
                    // A line is shorter than PIPE_BUF, so the pipe takes it whole or not at all
                    // (pipe(7)). A shim that does not read, or has ended, loses it.
                    let _lost = (&self.to_shim).write(format!("{notice}\n").as_bytes());
                }
            }
        }
    }
}

/// Writes answers to the guest, each between two other frames.
pub(super) async fn answer(
    mut answers: Receiver<Vec<u8>>,
    to_vm: &Mutex<impl AsyncWrite + Unpin>,
) -> Infallible {
    while let Some(framed) = answers.recv().await {
        if to_vm.lock().await.write_all(&framed).await.is_err() {
            break;
        }
    }
    // The VM has closed its end of the wire. The other directions notice that and end the gate.
    future::pending().await
}
