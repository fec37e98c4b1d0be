//! The gate's notices of refused destinations, as the control thread reads them.

use std::io;
use std::process::ChildStdout;
use std::time::Instant;

use a3s_box_core::event::EventKind;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use super::notice::{Limit, MAX_LINE_BYTES, Notice};

/// The shim's end of the pipe on which the gate writes notices.
///
/// The gate reads input of a hostile guest, so this pipe may bring anything. A line that is no notice
/// ends the reading, and notices in excess of their limit are dropped.
#[derive(Debug)]
pub(crate) struct Refusals {
    /// If absent, no further notice comes.
    pipe: Option<pipe::Receiver>,
    /// What was read and is not used yet: at most one line without its end.
    text: Vec<u8>,
    limit: Limit,
}

impl Refusals {
    /// Registers the pipe with the event loop.
    pub(super) fn new(pipe: ChildStdout) -> io::Result<Self> {
        let pipe = pipe::Receiver::from_owned_fd(pipe.into())?;
        Ok(Self { pipe: Some(pipe), text: Vec::new(), limit: Limit::new(Instant::now()) })
    }

    /// Waits for the next notice, and returns its event. Waits for ever if none can come.
    ///
    /// Callers may drop the future at any time: it keeps what it has read.
    pub(crate) async fn next(&mut self) -> EventKind {
        loop {
            while let Some(line) = self.take_line() {
                match Notice::read(&line) {
                    Some(notice) if self.limit.take(Instant::now()) => return event(notice),
                    Some(_) => {}
                    None => self.give_up("it wrote a line that is no notice"),
                }
            }
            let Some(pipe) = &mut self.pipe else { return std::future::pending().await };
            let mut buffer = [0; MAX_LINE_BYTES];
            // A read error is treated as the end of the notices.
            match pipe.read(&mut buffer).await {
                Ok(count @ 1..) => self.text.extend(buffer.iter().take(count)),
                Ok(_) | Err(_) => self.pipe = None,
            }
        }
    }

    /// Takes a line without its end off the text, if there is a whole one.
    fn take_line(&mut self) -> Option<String> {
        let Some(end) = self.text.iter().position(|byte| *byte == b'\n') else {
            if self.text.len() >= MAX_LINE_BYTES {
                self.give_up("it wrote a line that is too long");
            }
            return None;
        };
        let line: Vec<u8> = self.text.drain(..=end).collect();
        Some(String::from_utf8_lossy(line.get(..end).unwrap_or_default()).into_owned())
    }

    fn give_up(&mut self, reason: &str) {
        tracing::warn!("the gate is not listened to any more: {reason}");
        self.pipe = None;
        self.text.clear();
    }
}

fn event(Notice { destination, count }: Notice) -> EventKind {
    tracing::debug!("refused: {destination:?}");
    EventKind::NetworkRefused {
        protocol: destination.protocol,
        address: destination.address,
        port: destination.port,
        name: destination.name.as_deref().map(str::to_owned),
        count,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Child, ChildStdin, Command, Stdio};
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    /// A process that writes what it reads into the pipe, in the place of the gate.
    struct FakeGate {
        process: Child,
        input: ChildStdin,
    }

    fn refusals() -> (FakeGate, Refusals) {
        let mut command = Command::new("cat");
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let refusals = Refusals::new(process.stdout.take().unwrap()).unwrap();
        let input = process.stdin.take().unwrap();
        (FakeGate { process, input }, refusals)
    }

    async fn next(refusals: &mut Refusals) -> Option<String> {
        let event = timeout(Duration::from_millis(500), refusals.next()).await.ok()?;
        Some(serde_json::to_string(&event).unwrap())
    }

    #[tokio::test]
    async fn notices_become_events_however_the_pipe_cuts_them() {
        let (mut gate, mut refusals) = refusals();
        gate.input.write_all(b"tcp 192.0.2.7 443 3\nicmp 192.0.2.8 - 1\nudp 19").unwrap();
        let tcp = r#"{"type":"network.refused","protocol":"tcp","address":"192.0.2.7","port":443,"count":3}"#;
        let icmp =
            r#"{"type":"network.refused","protocol":"icmp","address":"192.0.2.8","count":1}"#;
        let udp = r#"{"type":"network.refused","protocol":"udp","address":"192.0.2.9","port":53,"count":2}"#;
        assert_eq!(next(&mut refusals).await.as_deref(), Some(tcp));
        assert_eq!(next(&mut refusals).await.as_deref(), Some(icmp));
        assert_eq!(next(&mut refusals).await, None, "the line has no end yet");
        gate.input.write_all(b"2.0.2.9 53 2\ndns 10.0.2.3 53 1 a.example\n").unwrap();
        assert_eq!(next(&mut refusals).await.as_deref(), Some(udp));
        let dns = r#"{"type":"network.refused","protocol":"dns","address":"10.0.2.3","port":53,"name":"a.example","count":1}"#;
        assert_eq!(next(&mut refusals).await.as_deref(), Some(dns));
        let FakeGate { mut process, input } = gate;
        drop(input);
        process.wait().unwrap();
        assert_eq!(next(&mut refusals).await, None);
    }

    #[tokio::test]
    async fn gate_that_writes_anything_else_is_not_listened_to_any_more() {
        let long = "x".repeat(MAX_LINE_BYTES);
        for line in ["tcp 192.0.2.7 443 0\n", "\n", "tcp 192.0.2.7 443 \u{ff}1\n", &long] {
            let (mut gate, mut refusals) = refusals();
            gate.input.write_all(format!("{line}tcp 192.0.2.7 443 3\n").as_bytes()).unwrap();
            assert_eq!(next(&mut refusals).await, None, "{line:?}");
            assert!(refusals.pipe.is_none() && refusals.text.is_empty(), "{line:?}");
            gate.process.kill().unwrap();
            gate.process.wait().unwrap();
        }
    }

    #[tokio::test]
    async fn gate_that_floods_causes_ten_events_at_once() {
        let (gate, mut refusals) = refusals();
        let FakeGate { mut process, mut input } = gate;
        let writer = std::thread::spawn(move || {
            // The reader may be gone before the end.
            let _ended = input.write_all("tcp 192.0.2.7 443 1\n".repeat(2000).as_bytes());
        });
        let mut events = 0;
        while next(&mut refusals).await.is_some() {
            events += 1;
        }
        assert!((10..13).contains(&events), "{events}");
        assert!(refusals.text.len() < 2 * MAX_LINE_BYTES);
        writer.join().unwrap();
        process.wait().unwrap();
    }
}
