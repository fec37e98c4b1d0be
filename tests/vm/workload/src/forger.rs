//! Forges messages of PID 1 on the control connection.
//!
//! Root of a guest can get a copy of the connection's fd from PID 1 by `pidfd_getfd(2)`.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::io::write;
use rustix::net::{AddressFamily, getpeername};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use crate::attempts::print_line;

/// Duration of a flood.
const FLOOD: Duration = Duration::from_secs(3);

/// Sends the messages that `words` name, separated by commas, on the connection of PID 1.
///
/// The messages are protobuf, encoded by hand.
pub(crate) fn forge(words: &str) -> Result<()> {
    let stream = stolen_stream()?;
    for word in words.split(',') {
        match word.split_once('-').unwrap_or((word, "")) {
            ("exited", code) => send(&stream, &frame(&[0x22, 2, 8, code.parse()?]))?,
            ("started", "") => send(&stream, &frame(&[0x12, 2, 8, 9]))?,
            ("hello", "") => send(&stream, &frame(&[0x0a, 2, 8, 1]))?,
            ("drained", "") => send(&stream, &frame(&[0x2a, 0]))?,
            ("garbage", "") => send(&stream, &frame(&[0xff; 64]))?,
            ("huge", "") => send(&stream, &u32::MAX.to_le_bytes())?,
            ("flood", "") => flood(&stream)?,
            _ => bail!("unknown word `{word}`"),
        }
    }
    print_line("forged");
    Ok(())
}

/// Returns a copy of PID 1's control connection.
///
/// It is the first connected vsock among the fds of PID 1, because the agent accepts its
/// connections later.
fn stolen_stream() -> Result<OwnedFd> {
    let init = pidfd_open(Pid::INIT, PidfdFlags::empty())?;
    for number in 0..256 {
        let Ok(fd) = pidfd_getfd(&init, number, PidfdGetfdFlags::empty()) else { continue };
        let peer = getpeername(&fd).ok().flatten();
        if peer.is_some_and(|peer| peer.address_family() == AddressFamily::VSOCK) {
            return Ok(fd);
        }
    }
    None.context("PID 1 has no connected vsock")
}

/// Puts the length of a message before it, as the control protocol does.
fn frame(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap_or_default();
    [&length.to_le_bytes(), message].concat()
}

/// Sends all bytes. The fd of PID 1 is nonblocking, so a full socket is tried again after 1 ms.
fn send(stream: &OwnedFd, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        match write(stream, bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(rustix::io::Errno::AGAIN) => std::thread::sleep(Duration::from_millis(1)),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Sends the workload states busy and ready in turn, as fast as the connection accepts them.
fn flood(stream: &OwnedFd) -> Result<()> {
    let states = [frame(&[0x32, 2, 0x20, 2]), frame(&[0x32, 2, 0x20, 1])].concat().repeat(256);
    let start = Instant::now();
    let mut count = 0;
    while start.elapsed() < FLOOD {
        send(stream, &states)?;
        count += 512;
    }
    print_line(&format!("{count} messages"));
    Ok(())
}
