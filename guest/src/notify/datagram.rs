//! Parses one datagram of the protocol of `sd_notify(3)`. The functions are pure, and no other code
//! reads the content of a datagram.

use a3s_box_proto::control::{BoxState, Notified};

/// Maximum length of a status in characters, as the control protocol defines it. The status is one
/// line for people.
const STATUS_CHARS: usize = 256;

/// Merges the content of a datagram into `received`.
///
/// The rules are those of systemd:
///
/// - A datagram has lines of the form `KEY=VALUE`.
/// - One NUL byte at the end is allowed. A datagram with any other NUL byte is ignored.
/// - A status that is not UTF-8 is ignored. An empty status removes the last one.
///
/// Unknown keys and values are ignored, among them keys of systemd that have no meaning for a box
/// (`WATCHDOG`, `MAINPID`, `FDSTORE`, `RELOADING`).
pub(crate) fn apply(datagram: &[u8], received: &mut Notified) {
    // A sender in C may count the terminator of its string.
    let text = datagram.strip_suffix(b"\0").unwrap_or(datagram);
    if text.contains(&0) {
        return;
    }
    for line in text.split(|byte| *byte == b'\n') {
        match line {
            // Nothing resets these two, because the protocol defines no other value than 1 for
            // them.
            b"READY=1" => received.ready = true,
            b"STOPPING=1" => received.stopping = true,
            b"X_A3S_STATE=ready" => received.set_state(BoxState::Ready),
            b"X_A3S_STATE=busy" => received.set_state(BoxState::Busy),
            b"X_A3S_STATE=compacting" => received.set_state(BoxState::Compacting),
            _ => {
                if let Some(Ok(status)) = line.strip_prefix(b"STATUS=").map(str::from_utf8) {
                    received.status = (!status.is_empty()).then(|| cut(status).to_owned());
                }
            }
        }
    }
}

/// Returns the first [`STATUS_CHARS`] characters of a text.
fn cut(text: &str) -> &str {
    text.char_indices().nth(STATUS_CHARS).map_or(text, |(end, _)| &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apply_all(datagrams: &[&[u8]]) -> Notified {
        let mut received = Notified::default();
        for datagram in datagrams {
            apply(datagram, &mut received);
        }
        received
    }

    fn status(text: &str) -> Notified {
        Notified { status: Some(text.to_owned()), ..Notified::default() }
    }

    #[test]
    fn merges_each_known_line() {
        let ready = Notified { ready: true, ..Notified::default() };
        let all = Notified {
            ready: true,
            stopping: true,
            status: Some("a=b".to_owned()),
            state: BoxState::Compacting.into(),
        };
        let cases: [(&[&[u8]], Notified); 14] = [
            (&[b"READY=1"], ready.clone()),
            (&[b"READY=1\n"], ready.clone()),
            (&[b"READY=1\0"], ready.clone()),
            (&[b"\n\nREADY=1\n\n"], ready.clone()),
            (&[b"READY=1", b"RELOADING=1\nMONOTONIC_USEC=1", b"READY=1"], ready),
            (&[b"STOPPING=1"], Notified { stopping: true, ..Notified::default() }),
            (&[b"STATUS=a", b"STATUS=b\nSTATUS=c"], status("c")),
            (&[b"STATUS=a\rb\tc"], status("a\rb\tc")),
            (&[b"STATUS=a", b"STATUS="], Notified::default()),
            (&[b"STATUS=a", b"STATUS=\xff"], status("a")),
            (&[b"X_A3S_STATE=ready"], Notified { state: 1, ..Notified::default() }),
            (&[b"X_A3S_STATE=busy"], Notified { state: 2, ..Notified::default() }),
            (
                &[b"X_A3S_STATE=compacting", b"X_A3S_STATE=asleep\nX_A3S_STATE="],
                Notified { state: 3, ..Notified::default() },
            ),
            (&[b"READY=1\nWATCHDOG=1\nSTATUS=a=b\nSTOPPING=1\nX_A3S_STATE=compacting"], all),
        ];
        for (datagrams, expected) in cases {
            let shown: Vec<_> = datagrams.iter().map(|datagram| datagram.escape_ascii()).collect();
            assert_eq!(apply_all(datagrams), expected, "{shown:?}");
        }
    }

    #[test]
    fn ignores_unknown_and_malformed_lines() {
        let cases: [&[u8]; 20] = [
            b"",
            b"\0",
            b"\n",
            b"=",
            b"READY",
            b"READY=",
            b"READY=0",
            b"READY=11",
            b"READY=1\r",
            b" READY=1",
            b"ready=1",
            b"READY=1\0STATUS=x",
            b"READY=1\0\0",
            b"READY=1\nSTATUS=a\0b",
            b"NOTREADY=1\nSTATU",
            b"STATUS",
            b"STOPPING=true",
            b"WATCHDOG=1\nMAINPID=1\nFDSTORE=1\nFDNAME=x\nBARRIER=1\nERRNO=2\nEXTEND_TIMEOUT_USEC=1",
            b"X_A3S_STATE=Busy",
            b"\xff\xfe\xfd",
        ];
        for datagram in cases {
            assert_eq!(apply_all(&[datagram]), Notified::default(), "{}", datagram.escape_ascii());
        }
    }

    #[test]
    fn cuts_a_long_status_between_characters() {
        for (unit, bytes) in [("x", 256), ("ü", 512), ("☃", 768), ("🦀", 1024)] {
            let exact = unit.repeat(STATUS_CHARS);
            assert_eq!(exact.len(), bytes);
            assert_eq!(apply_all(&[format!("STATUS={exact}").as_bytes()]), status(&exact));
            assert_eq!(apply_all(&[format!("STATUS={exact}{unit}").as_bytes()]), status(&exact));
            assert_eq!(
                apply_all(&[format!("STATUS={}", unit.repeat(1500)).as_bytes()]),
                status(&exact)
            );
        }
    }

    #[test]
    fn accepts_any_inserted_byte_and_any_cut_without_a_panic() {
        let whole = "READY=1\nSTATUS=ünï☃\nX_A3S_STATE=busy\nSTOPPING=1".as_bytes();
        for length in 0..=whole.len() {
            for byte in 0..=u8::MAX {
                let mut datagram = whole[..length].to_vec();
                datagram.push(byte);
                datagram.extend_from_slice(&whole[length..]);
                apply_all(&[&datagram, &whole[..length]]);
            }
        }
    }
}
