//! What the shim tells the service manager that started it, by the protocol of `sd_notify(3)`.
//!
//! The socket is opened once, early, and connected. The crate `sd-notify` opens it by its path for
//! each message, which a process that has left the host's root by then cannot. Each message is one
//! datagram that is sent at once or not at all: a manager that is behind must not stop the VM.
//!
//! `$NOTIFY_SOCKET` and the watchdog's variables are the shim's own: the programs that it starts do
//! not get them (`host::command::new`).

use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use super::printable::printable;

/// Bound on a status line, in which a line break would begin another assignment: people read it, and the manager takes datagrams of 4096 bytes
/// (`PIPE_BUF`, systemd's `manager.c`), of which a character takes four at most.
const MAX_STATUS_CHARACTERS: usize = 500;

/// The service manager, or nobody.
#[derive(Debug, Default)]
pub(crate) struct ServiceManager {
    socket: Option<UnixDatagram>,
    watchdog_interval: Option<Duration>,
}

/// What the manager put into the environment.
#[derive(Debug, Default)]
struct Environment {
    notify_socket: Option<OsString>,
    watchdog_usec: Option<OsString>,
    watchdog_pid: Option<OsString>,
}

impl ServiceManager {
    /// Connects to the manager that the environment names. One that cannot be understood or reached
    /// is warned of, and is nobody.
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
        // Without a socket there is no way to be alive for a watchdog.
        let watchdog_interval = socket.as_ref().and_then(|_| environment.watchdog_interval());
        Self { socket, watchdog_interval }
    }

    /// The service is up; a manager that waits for that goes on.
    pub(crate) fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={}", printable(status, MAX_STATUS_CHARACTERS)));
    }

    /// What the service is doing, for people.
    pub(crate) fn status(&self, status: &str) {
        self.send(&format!("STATUS={}", printable(status, MAX_STATUS_CHARACTERS)));
    }

    /// The service has begun to end.
    pub(crate) fn stopping(&self) {
        self.send("STOPPING=1");
    }

    /// The stop may take this much longer from now on.
    pub(crate) fn extend_timeout(&self, by: Duration) {
        self.send(&format!("EXTEND_TIMEOUT_USEC={}", by.as_micros()));
    }

    /// Time between two calls of [`Self::watchdog`]; none if nobody watches.
    pub(crate) fn watchdog_interval(&self) -> Option<Duration> {
        self.watchdog_interval
    }

    /// The service is alive.
    pub(crate) fn watchdog(&self) {
        self.send("WATCHDOG=1");
    }

    fn send(&self, message: &str) {
        if let Some(socket) = &self.socket {
            // A manager that is behind or gone is not our matter.
            let _sent = socket.send(message.as_bytes());
        }
    }
}

impl Environment {
    /// Half of the time after which the manager takes the service for dead, as
    /// `sd_watchdog_enabled(3)` recommends.
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
        // Under a millisecond a timer of ours would do nothing else; the manager gives seconds.
        (timeout >= 2000).then(|| Duration::from_micros(timeout / 2))
    }
}

/// Connects to a path, or to a name in the abstract namespace (`@`).
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
        // A confined process no longer finds the path.
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
    fn an_abstract_socket_is_one_too() {
        let name = format!("a3s-box-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        notifying(format!("@{name}")).stopping();
        assert_eq!(received(&manager), "STOPPING=1");
    }

    #[test]
    fn a_manager_that_does_not_read_or_is_gone_is_no_reason_to_wait() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let service_manager = notifying(&path);
        // More than any queue takes (net.unix.max_dgram_qlen).
        for _ in 0..10_000 {
            service_manager.watchdog();
        }
        assert_eq!(received(&manager), "WATCHDOG=1");
        drop(manager);
        service_manager.watchdog();
    }

    #[test]
    fn what_is_not_a_socket_is_nobody() {
        for address in ["", "relative", "vsock:2:1234", "/nowhere/at/all", "@nobody-listens-here"] {
            let service_manager = notifying(address);
            assert!(service_manager.socket.is_none(), "{address}");
            service_manager.ready("to nobody");
        }
        assert!(ServiceManager::new(&Environment::default()).socket.is_none());
    }

    #[test]
    fn the_watchdog_is_fed_twice_as_often_as_it_asks_and_only_by_its_process() {
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
