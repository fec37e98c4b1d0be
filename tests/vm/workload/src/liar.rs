//! An agent that lies: a listener on the agent's port that gives each connection the next of several
//! wrong answers, and no right one.

use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_vsock::{VsockAddr, VsockListener, VsockStream};

use crate::attempts::say;

/// Frames of HTTP/2 (RFC 9113, section 4.1): length, type, flags, stream.
const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
/// `:status: 200`, the end of the headers.
const HEADERS: [u8; 10] = [0, 0, 1, 1, 4, 0, 0, 0, 1, 0x88];
/// `:status: 200`, and more to come.
const OPEN_HEADERS: [u8; 10] = [0, 0, 1, 1, 0, 0, 0, 0, 1, 0x88];
const CONTINUATION: [u8; 9] = [0, 0x40, 0, 9, 0, 0, 0, 0, 1];
const DATA: [u8; 9] = [0, 0x40, 0, 0, 0, 0, 0, 0, 1];
const PING: [u8; 17] = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
/// A message of 1 GiB, not compressed, as gRPC says it.
const HUGE_MESSAGE: [u8; 5] = [0, 0x40, 0, 0, 0];

const PAYLOAD_BYTES: usize = 0x4000;

const LIES: [&str; 8] =
    ["garbage", "reset", "silence", "huge-message", "headers", "pings", "settings", "bytes"];

/// Lies until `end`; then the port is free.
pub(crate) async fn lie(address: VsockAddr, duration: Duration) -> Result<()> {
    let end = Instant::now() + duration;
    let listener = VsockListener::bind(address)?;
    let mut count = 0;
    while let Ok(accepted) = timeout_at(end, listener.accept()).await {
        let (stream, _) = accepted?;
        let lie = LIES[count % LIES.len()];
        count += 1;
        // A connection that breaks is what some of them are for.
        tokio::spawn(async move { timeout_at(end, tell(stream, lie)).await });
    }
    sleep_until(end).await;
    say(&format!("{count} lies"));
    Ok(())
}

async fn tell(mut stream: VsockStream, lie: &str) -> Result<()> {
    let mut question = [0; 1024];
    AsyncReadExt::read(&mut stream, &mut question).await?;
    let mut answer = SETTINGS.to_vec();
    let repeated = match lie {
        "garbage" => {
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n\0\xff\xff\xff").await?;
            return std::future::pending().await;
        }
        "reset" => return Ok(()),
        "silence" => return std::future::pending().await,
        "huge-message" => {
            answer.extend(HEADERS);
            answer.extend([0, 0, 5, 0, 0, 0, 0, 0, 1]);
            answer.extend(HUGE_MESSAGE);
            [&DATA[..], &[0; PAYLOAD_BYTES]].concat()
        }
        "headers" => {
            answer.extend(OPEN_HEADERS);
            [&CONTINUATION[..], &[0x40; PAYLOAD_BYTES]].concat()
        }
        "pings" => PING.repeat(1000),
        "settings" => SETTINGS.repeat(1000),
        _ => vec![0; 64 * 1024],
    };
    stream.write_all(&answer).await?;
    loop {
        stream.write_all(&repeated).await?;
    }
}
