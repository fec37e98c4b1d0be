//! Passes open files and a job through a socket (`SCM_RIGHTS`, `unix(7)`).
//!
//! Files that a child inherits would have to be inheritable in the shim for a moment, and another
//! thread that starts an unpacker in this moment would pass them on to that one as well.
//!
//! ```text
//!  f + files ─► f + files ─► … ─► . ─► the job as a line of JSON
//! ```

use std::io::{self, BufRead, BufReader, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::cmsg_space;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use super::message::Job;

/// Files of one message. The kernel accepts 253 (`SCM_MAX_FD`).
const FILES_AT_ONCE: usize = 64;

/// Byte of a message with files, and byte of the end of files.
const FILES: u8 = b'f';
const END: u8 = b'.';

/// Longest job. A layer takes some hundred bytes, and an image has at most some hundred layers.
const JOB_BYTES: u64 = 1 << 24;

/// Sends files, and then a job.
pub(super) fn send(mut socket: &UnixStream, files: &[BorrowedFd<'_>], job: &Job) -> io::Result<()> {
    for part in files.chunks(FILES_AT_ONCE) {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(FILES_AT_ONCE))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        // The buffer has space for as many files.
        control.push(SendAncillaryMessage::ScmRights(part));
        sendmsg(socket, &[IoSlice::new(&[FILES])], &mut control, SendFlags::NOSIGNAL)?;
    }
    let mut line = vec![END];
    serde_json::to_writer(&mut line, job)?;
    line.push(b'\n');
    socket.write_all(&line)
}

/// Receives the files and the job.
pub(super) fn receive(socket: &UnixStream) -> io::Result<(Vec<OwnedFd>, Job)> {
    let mut files = Vec::new();
    loop {
        let mut byte = [0];
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(FILES_AT_ONCE))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, flags)?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                files.extend(received);
            }
        }
        match (received.bytes, byte) {
            (1, [FILES]) => {}
            (1, [END]) => break,
            _ => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
    let mut line = Vec::new();
    BufReader::new(socket.take(JOB_BYTES)).read_until(b'\n', &mut line)?;
    Ok((files, serde_json::from_slice(&line)?))
}
