//! Messages to the service manager that started the shim, in the protocol of `sd_notify(3)`.
//!
//! The socket is connected once, early. The crate `sd-notify` is not used, because it opens the
//! socket by its path for each message, and a confined process has left the root that has this
//! path. Each message is one datagram, which is lost if it cannot be sent without blocking, because
//! a slow service manager must not stop the VM.
//!
//! `$NOTIFY_SOCKET` and the watchdog's variables are meant for the shim alone. Helper programs do
//! not inherit them (`host::command::new`).

use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use super::printable::printable;

/// Longest status text. systemd takes datagrams of 4096 bytes (`PIPE_BUF`, `manager.c`), and a
/// character has at most four bytes. Control characters are replaced, because a line feed would
/// begin another assignment.
const MAX_STATUS_CHARACTERS: usize = 500;

/// A connection to the service manager. Without one, all messages are dropped.
#[derive(Debug, Default)]
pub(crate) struct ServiceManager {
    socket: Option<UnixDatagram>,
    watchdog_interval: Option<Duration>,
}

/// The environment variables that the service manager sets.
#[derive(Debug, Default)]
struct Environment {
    notify_socket: Option<OsString>,
    watchdog_usec: Option<OsString>,
    watchdog_pid: Option<OsString>,
}

impl ServiceManager {
    /// Connects to the service manager that the environment names. If the address is invalid or the
    /// connection fails, it logs a warning and returns a value that drops all messages.
    pub(crate) fn from_environment() -> Self {
        Self::new(&Environment {
            notify_socket: env::var_os("NOTIFY_SOCKET"),
            watchdog_usec: env::var_os("WATCHDOG_USEC"),
            watchdog_pid: env::var_os("WATCHDOG_PID"),
        })
    }

    fn new(environment: &Environment) -> Self {
        let socket = environment.notify_socket.as_deref().and_then(|address| {
            let socket = connect(address);
            let warn = |error| {
                tracing::warn!("cannot notify NOTIFY_SOCKET={}: {error}", address.display());
            };
            socket.map_err(warn).ok()
        });
        // Without a socket no watchdog message can be sent.
        let watchdog_interval = socket.as_ref().and_then(|_| environment.watchdog_interval());
        Self { socket, watchdog_interval }
    }

    /// Reports that the service has started. Units that are ordered after it can start now.
    pub(crate) fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={}", printable(status, MAX_STATUS_CHARACTERS)));
    }

    /// Reports the current work of the service, which `systemctl status` shows.
    pub(crate) fn status(&self, status: &str) {
        self.send(&format!("STATUS={}", printable(status, MAX_STATUS_CHARACTERS)));
    }

    /// Reports that the service is stopping.
    pub(crate) fn stopping(&self) {
        self.send("STOPPING=1");
    }

    /// Requests that the start or stop may take `by` from now on before it counts as failed.
    pub(crate) fn extend_timeout(&self, by: Duration) {
        self.send(&format!("EXTEND_TIMEOUT_USEC={}", by.as_micros()));
    }

    /// Returns the time between two calls of [`Self::watchdog`], or nothing without a watchdog.
    pub(crate) fn watchdog_interval(&self) -> Option<Duration> {
        self.watchdog_interval
    }

    /// Resets the watchdog.
    pub(crate) fn watchdog(&self) {
        self.send("WATCHDOG=1");
    }

    fn send(&self, message: &str) {
        if let Some(socket) = &self.socket {
            // A service manager that is slow or has exited loses the message.
            let _sent = socket.send(message.as_bytes());
        }
    }
}

impl Environment {
    /// Returns half of the watchdog's timeout, as `sd_watchdog_enabled(3)` recommends. Returns
    /// nothing if there is no timeout or if it is for another process.
    fn watchdog_interval(&self) -> Option<Duration> {
        let number = |name: &str, text: &OsStr| {
            let number = text.to_str().and_then(|text| text.parse::<u64>().ok());
            if number.is_none() {
                tracing::warn!("{name}={} is not a number: no watchdog", text.display());
            }
            number
        };
        let timeout = number("WATCHDOG_USEC", self.watchdog_usec.as_deref()?)?;
        if let Some(pid) = &self.watchdog_pid
            && number("WATCHDOG_PID", pid)? != u64::from(std::process::id())
        {
            return None;
        }
        // A shorter interval than a millisecond would keep the control thread busy. systemd's unit
        // is the second, so such a value is a mistake.
        (timeout >= 2000).then(|| Duration::from_micros(timeout / 2))
    }
}

/// Connects to a path, or to a name in the abstract namespace (`@`, unix(7)).
fn connect(address: &OsStr) -> io::Result<UnixDatagram> {
    let address = match address.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        [b'/', ..] => SocketAddr::from_pathname(address)?,
        _ => {
            let text = "neither a path nor an abstract name";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.connect_addr(&address)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(manager: &UnixDatagram) -> String {
        let mut buffer = [0; 8192];
        manager.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let count = manager.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..count].to_vec()).unwrap()
    }

    fn notifying(address: impl Into<OsString>) -> ServiceManager {
        let notify_socket = Some(address.into());
        ServiceManager::new(&Environment { notify_socket, ..Environment::default() })
    }

    #[test]
    fn each_message_is_one_datagram() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let service_manager = notifying(&path);
        // A confined process cannot reach the path either.
        std::fs::remove_file(&path).unwrap();
        service_manager.status("unpacking layer 1 of 6");
        service_manager.extend_timeout(Duration::from_secs(90));
        service_manager.ready("box `demo` is ready\nMAINPID=1\u{1b}");
        service_manager.watchdog();
        service_manager.stopping();
        let expected = [
            "STATUS=unpacking layer 1 of 6",
            "EXTEND_TIMEOUT_USEC=90000000",
            "READY=1\nSTATUS=box `demo` is ready\u{fffd}MAINPID=1\u{fffd}",
            "WATCHDOG=1",
            "STOPPING=1",
        ];
        for message in expected {
            assert_eq!(received(&manager), message);
        }
        service_manager.ready(&"😀".repeat(5000));
        assert!(received(&manager).len() <= 4096);
    }

    #[test]
    fn abstract_socket_is_supported() {
        let name = format!("a3s-box-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        notifying(format!("@{name}")).stopping();
        assert_eq!(received(&manager), "STOPPING=1");
    }

    #[test]
    fn manager_that_does_not_read_or_has_exited_does_not_block() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let service_manager = notifying(&path);
        // These are more than any queue holds (net.unix.max_dgram_qlen).
        for _ in 0..10_000 {
            service_manager.watchdog();
        }
        assert_eq!(received(&manager), "WATCHDOG=1");
        drop(manager);
        service_manager.watchdog();
    }

    #[test]
    fn address_without_a_socket_drops_all_messages() {
        for address in ["", "relative", "vsock:2:1234", "/nowhere/at/all", "@no-listener-here"] {
            let service_manager = notifying(address);
            assert!(service_manager.socket.is_none(), "{address}");
            service_manager.ready("dropped");
        }
        assert!(ServiceManager::new(&Environment::default()).socket.is_none());
    }

    #[test]
    fn watchdog_interval_is_half_of_the_timeout_of_this_process() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let _manager = UnixDatagram::bind(&path).unwrap();
        let interval = |usec: Option<&str>, pid: Option<&str>, socket: bool| {
            let environment = Environment {
                notify_socket: socket.then(|| path.clone().into()),
                watchdog_usec: usec.map(OsString::from),
                watchdog_pid: pid.map(OsString::from),
            };
            ServiceManager::new(&environment).watchdog_interval()
        };
        let ours = std::process::id().to_string();
        let half = Some(Duration::from_secs(15));
        assert_eq!(interval(Some("30000000"), None, true), half);
        assert_eq!(interval(Some("30000000"), Some(&ours), true), half);
        for (usec, pid, socket) in [
            (Some("30000000"), Some("1"), true),
            (Some("30000000"), Some("x"), true),
            (Some("30000000"), None, false),
            (Some("0"), None, true),
            (Some("1"), None, true),
            (Some("soon"), None, true),
            (Some("-1"), None, true),
            (None, None, true),
        ] {
            assert_eq!(interval(usec, pid, socket), None, "{usec:?} {pid:?} {socket}");
        }
    }
}
