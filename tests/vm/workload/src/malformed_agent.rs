//! An agent that answers no request correctly. Each connection gets the next of several malformed
//! or endless answers.

use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_vsock::{VsockAddr, VsockListener, VsockStream};

use crate::attempts::print_line;

/// An empty SETTINGS frame of HTTP/2. The header of a frame is its length, type, flags and stream
/// (RFC 9113, section 4.1).
const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
/// HEADERS with `:status: 200` and the flag `END_HEADERS`.
const HEADERS: [u8; 10] = [0, 0, 1, 1, 4, 0, 0, 0, 1, 0x88];
/// HEADERS with `:status: 200` and without `END_HEADERS`, so that CONTINUATION frames must follow.
const OPEN_HEADERS: [u8; 10] = [0, 0, 1, 1, 0, 0, 0, 0, 1, 0x88];
/// Header of a CONTINUATION frame with [`PAYLOAD_BYTES`], without `END_HEADERS`.
const CONTINUATION: [u8; 9] = [0, 0x40, 0, 9, 0, 0, 0, 0, 1];
/// Header of a DATA frame with [`PAYLOAD_BYTES`].
const DATA: [u8; 9] = [0, 0x40, 0, 0, 0, 0, 0, 0, 1];
/// A PING frame, which the peer must answer.
const PING: [u8; 17] = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
/// Prefix of an uncompressed gRPC message of 1 GiB: the flag for compression and the length.
const HUGE_MESSAGE: [u8; 5] = [0, 0x40, 0, 0, 0];

/// Largest payload of a frame by default (`SETTINGS_MAX_FRAME_SIZE`).
const PAYLOAD_BYTES: usize = 0x4000;

/// Kinds of answers, in their order.
const KINDS: [&str; 8] =
    ["garbage", "reset", "silence", "huge-message", "headers", "pings", "settings", "bytes"];

/// Serves malformed answers on `address` for `duration` and then frees the port.
pub(crate) async fn serve(address: VsockAddr, duration: Duration) -> Result<()> {
    let end = Instant::now() + duration;
    let listener = VsockListener::bind(address)?;
    let mut count = 0;
    while let Ok(accepted) = timeout_at(end, listener.accept()).await {
        let (stream, _) = accepted?;
        let kind = KINDS[count % KINDS.len()];
        count += 1;
        // The result is ignored, because the shim is expected to close most of these connections.
        tokio::spawn(async move { timeout_at(end, answer(stream, kind)).await });
    }
    sleep_until(end).await;
    print_line(&format!("{count} lies"));
    Ok(())
}

/// Sends the answer `kind`, and repeats its last part until the peer closes the connection.
async fn answer(mut stream: VsockStream, kind: &str) -> Result<()> {
    let mut request = [0; 1024];
    AsyncReadExt::read(&mut stream, &mut request).await?;
    let mut answer = SETTINGS.to_vec();
    let repeated = match kind {
        "garbage" => {
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n\0\xff\xff\xff").await?;
            return std::future::pending().await;
        }
        "reset" => return Ok(()),
        "silence" => return std::future::pending().await,
        "huge-message" => {
            answer.extend(HEADERS);
            // Header of a DATA frame of 5 bytes.
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
