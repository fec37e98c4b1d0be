//! The fake guest: a process that takes the place of the whole guest in tests without a VM.
//!
//! The backend `fake` of the crate `krun` starts it, and connects its standard output and standard
//! error to the console. Its standard input has the paths of the vsock ports and the config of the
//! guest program. The workload's arguments in that config are the script: each argument is one
//! step, and [`Guest::play`] lists the steps. Scripts can follow the protocol or break it.

use std::collections::HashMap;
use std::error::Error;
use std::io::{BufRead, Read, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use a3s_box_proto::agent::agent_server::{Agent, AgentServer};
use a3s_box_proto::agent::{
    HealthCheckRequest, HealthCheckResponse, MetricsRequest, MetricsResponse, State, Status,
};
use a3s_box_proto::control::guest_message::Message as FromGuest;
use a3s_box_proto::control::shim_message::Message as FromShim;
use a3s_box_proto::control::{
    Drained, Exited, GuestConfig, GuestMessage, Hello, Interface, Kill, Notified, ShimMessage,
    StartFailed, Started, exited,
};
use a3s_box_proto::frame::{self, FrameBuffer};
use a3s_box_proto::{AGENT_PORT, CONTROL_PORT, EXEC_PORT, PROTOCOL_VERSION, decode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;
use tokio::time::sleep;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic::transport::server::Router;
use tonic::{Request, Response};
use tonic_health::pb::health_server::{Health as StandardHealth, HealthServer};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

struct Guest {
    control: Option<UnixStream>,
    received: FrameBuffer,
    stdout_bytes: u64,
    /// Line about the network that the config describes.
    network: String,
    /// The latest notification of the workload. Each message to the shim repeats all its fields.
    notified: Notified,
    health: Health,
    /// Stops the server of the agent when it is dropped.
    server: Option<oneshot::Sender<()>>,
}

/// The current answer of the health services. All clones share it.
#[derive(Clone)]
struct Health(Arc<Mutex<HealthAnswer>>);

#[derive(Clone, Copy)]
struct HealthAnswer {
    status: Status,
    state: State,
    delay_ms: u64,
}

#[tonic::async_trait]
impl Agent for Health {
    async fn health_check(
        &self,
        _request: Request<HealthCheckRequest>,
    ) -> std::result::Result<Response<HealthCheckResponse>, tonic::Status> {
        let HealthAnswer { status, state, delay_ms } = self.now();
        sleep(Duration::from_millis(delay_ms)).await;
        Ok(Response::new(HealthCheckResponse {
            status: status.into(),
            state: state.into(),
            version: "0.0.0".into(),
            uptime_ms: 1,
        }))
    }

    async fn metrics(
        &self,
        _request: Request<MetricsRequest>,
    ) -> std::result::Result<Response<MetricsResponse>, tonic::Status> {
        Ok(Response::new(MetricsResponse {
            memory_total_kib: 1000,
            memory_available_kib: 600,
            load_1m: 0.5,
            // A hostile guest can send NaN, for which JSON has no number.
            load_5m: f64::NAN,
            load_15m: 0.25,
            processes: 12,
        }))
    }
}

#[tonic::async_trait]
impl StandardHealth for Health {
    async fn check(
        &self,
        _request: Request<tonic_health::pb::HealthCheckRequest>,
    ) -> std::result::Result<Response<tonic_health::pb::HealthCheckResponse>, tonic::Status> {
        let HealthAnswer { status, delay_ms, .. } = self.now();
        sleep(Duration::from_millis(delay_ms)).await;
        // Both services use the same numbers for a status.
        Ok(Response::new(tonic_health::pb::HealthCheckResponse { status: status.into() }))
    }

    type WatchStream = tokio_stream::Pending<
        std::result::Result<tonic_health::pb::HealthCheckResponse, tonic::Status>,
    >;

    async fn watch(
        &self,
        _request: Request<tonic_health::pb::HealthCheckRequest>,
    ) -> std::result::Result<Response<Self::WatchStream>, tonic::Status> {
        Err(tonic::Status::unimplemented("no watch"))
    }
}

impl Health {
    fn now(&self) -> HealthAnswer {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut HealthAnswer)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

fn main() -> Result<ExitCode> {
    let config = read_config()?;
    let (shim_ended, end_of_shim) = oneshot::channel();
    std::thread::spawn(|| wait_for_end_of_shim(shim_ended));
    // A box without a workload has no arguments, so its script comes from the environment.
    let script_of_environment = || std::env::var("A3S_BOX_FAKE_SCRIPT").unwrap_or_default();
    let words = |text: String| text.split_whitespace().map(str::to_owned).collect();
    let network = network_text(&config);
    let script =
        config.workload.map_or_else(|| words(script_of_environment()), |workload| workload.args);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let answer = HealthAnswer { status: Status::Serving, state: State::Ready, delay_ms: 0 };
        let mut guest = Guest {
            control: None,
            received: FrameBuffer::default(),
            stdout_bytes: 0,
            network,
            notified: Notified::default(),
            health: Health(Arc::new(Mutex::new(answer))),
            server: None,
        };
        let played = async {
            for step in &script {
                guest.play(step).await?;
            }
            Ok(ExitCode::SUCCESS)
        };
        tokio::select! {
            result = played => result,
            _ended = end_of_shim => {
                remove_socket();
                Ok(ExitCode::SUCCESS)
            }
        }
    })
}

/// Reads standard input: a line `<name>=<path>` for each vsock port, a line with the length of the
/// config, an empty line, and the config.
fn read_config() -> Result<GuestConfig> {
    let mut stdin = std::io::stdin().lock();
    let mut ports = HashMap::new();
    loop {
        let mut line = String::new();
        stdin.read_line(&mut line)?;
        // The empty line has no `=`.
        let Some((name, path)) = line.trim_end().split_once('=') else { break };
        ports.insert(name.to_owned(), path.to_owned());
    }
    let bytes =
        ports.get("CONFIG_BYTES").ok_or("standard input has no length of the config")?.parse()?;
    let mut config = vec![0; bytes];
    stdin.read_exact(&mut config)?;
    PORTS.get_or_init(|| ports);
    Ok(decode(&config)?)
}

/// Blocks until the shim has ended, and then sends on the channel.
///
/// The shim keeps the other end of standard input open until its process ends, also by SIGKILL. A
/// parent-death signal does not work here: a confined shim has no right to signal other processes,
/// and the kernel checks the rights of the parent that dies (`check_kill_permission`).
fn wait_for_end_of_shim(ended: oneshot::Sender<()>) {
    // An end of file and an error mean the same here.
    let _end_of_file = std::io::stdin().lock().read(&mut [0]);
    // The send fails if the script is at its end already.
    let _ignored = ended.send(());
}

impl Guest {
    /// Plays one step of the script, which is `verb` or `verb=value`.
    ///
    /// A step without a value has the value 0.
    async fn play(&mut self, step: &str) -> Result<()> {
        let (verb, value) = step.split_once('=').unwrap_or((step, "0"));
        match verb {
            "connect" => self.control = Some(UnixStream::connect(socket(CONTROL_PORT)?).await?),
            // The value is added to the protocol version, so `hello=1` is a version that is too
            // new.
            "hello" => {
                let protocol_version = PROTOCOL_VERSION + value.parse::<u32>()?;
                let guest_version = "0.0.0".into();
                self.send_message(FromGuest::Hello(Hello { protocol_version, guest_version }))
                    .await?;
            }
            "accept-and-close" => accept_and_close().await?,
            "started" => {
                self.send_message(FromGuest::Started(Started { pid: value.parse()? })).await?;
            }
            "not-started" => {
                let (reason, message) = (value.parse()?, "as the script says\u{1b}".into());
                self.send_message(FromGuest::StartFailed(StartFailed { reason, message })).await?;
            }
            "exited" => self.exited(exited::Status::ExitCode(value.parse()?)).await?,
            "signaled" => self.exited(exited::Status::Signal(value.parse()?)).await?,
            "print" => self.print(value.parse()?)?,
            "print-network" => self.print_text(&self.network.clone())?,
            "drained" => {
                let stdout_bytes = self.stdout_bytes;
                self.send_message(FromGuest::Drained(Drained { stdout_bytes, stderr_bytes: 0 }))
                    .await?;
            }
            // This frame announces three bytes, which are not a valid message.
            "garbage" => self.send_bytes(&[3, 0, 0, 0, 0xff, 0xff, 0xff]).await?,
            // This frame announces the largest possible length.
            "huge-frame" => self.send_bytes(&u32::MAX.to_le_bytes()).await?,
            // A message of a kind that the shim does not have decodes as an empty message.
            "empty-message" => self.send_bytes(&[0; 4]).await?,
            "close" => self.control = None,
            "wait-stop" => while !matches!(self.receive().await?, FromShim::Stop(_)) {},
            // The workload is killed by the signal of the stop message.
            "obey-stop" => loop {
                if let FromShim::Stop(stop) = self.receive().await? {
                    break self.exited(exited::Status::Signal(stop.signal)).await?;
                }
            },
            "wait-kill" => while self.receive().await? != FromShim::Kill(Kill {}) {},
            "wait-ack" => while !matches!(self.receive().await?, FromShim::Acknowledged(_)) {},
            "sleep-ms" => sleep(Duration::from_millis(value.parse()?)).await,
            "stamp" => stamp()?,
            "hang" => std::future::pending().await,
            // libkrun ends with 0 when the guest resets, or with a code that a process of the guest
            // set.
            "exit" => exit(value.parse()?),
            // The shim then aborts too, as libkrun does when one of its threads panics.
            "abort" => std::process::abort(),
            _ => return self.play_agent(verb, value).await,
        }
        Ok(())
    }

    /// Plays a step of the agent, or a notification of the workload.
    async fn play_agent(&mut self, verb: &str, value: &str) -> Result<()> {
        match verb {
            "serve" => {
                self.server = Some(serve(
                    Server::builder().add_service(AgentServer::new(self.health.clone())),
                )?);
            }
            // This is the server of an image, which has the standard health service only.
            "serve-standard" => {
                self.server = Some(serve(
                    Server::builder().add_service(HealthServer::new(self.health.clone())),
                )?);
            }
            // The service of the guest program, for the processes of this machine.
            "serve-exec" => serve_exec()?,
            "serving" => self.health.change(|answer| answer.status = Status::Serving),
            "not-serving" => self.health.change(|answer| answer.status = Status::NotServing),
            "answer-busy" => self.health.change(|answer| answer.state = State::Busy),
            "answer-after-ms" => {
                let delay_ms = value.parse()?;
                self.health.change(|answer| answer.delay_ms = delay_ms);
            }
            "vanish" => drop(self.server.take()),
            // A workload notifies on $NOTIFY_SOCKET, and the guest program sends it to the shim.
            "notify-ready" => self.notify(|notified| notified.ready = true).await?,
            "notify-stopping" => self.notify(|notified| notified.stopping = true).await?,
            "notify-status" => {
                let status = Some(value.to_owned());
                self.notify(|notified| notified.status = status).await?;
            }
            "notify-state" => {
                let state = value.parse()?;
                self.notify(|notified| notified.state = state).await?;
            }
            // The states alternate between ready and busy, so each message is a change.
            "notify-flood" => {
                for i in 0..value.parse::<i32>()? {
                    self.notify(|notified| notified.state = 1 + i % 2).await?;
                }
            }
            _ => return Err(format!("the script has an unknown step `{verb}`").into()),
        }
        Ok(())
    }

    /// Reports the end of the workload.
    async fn exited(&mut self, status: exited::Status) -> Result<()> {
        self.send_message(FromGuest::Exited(Exited { status: Some(status) })).await
    }

    /// Sends a message to the shim.
    async fn send_message(&mut self, message: FromGuest) -> Result<()> {
        self.send_bytes(&frame::encode(&GuestMessage { message: Some(message) })).await
    }

    /// Sends bytes on the control connection, which need not be a valid frame.
    async fn send_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self
            .control
            .as_mut()
            .ok_or("the script has no step `connect` before this step")?
            .write_all(bytes)
            .await?)
    }

    /// Waits for the next message of the shim.
    async fn receive(&mut self) -> Result<FromShim> {
        loop {
            if let Some(ShimMessage { message: Some(message) }) = self.received.next_message()? {
                return Ok(message);
            }
            let mut buffer = [0; 256];
            let control =
                self.control.as_mut().ok_or("the script has no step `connect` before this step")?;
            let count = control.read(&mut buffer).await?;
            if count == 0 {
                return Err("the shim closed the connection".into());
            }
            self.received.push(&buffer[..count]);
        }
    }

    /// Changes the notification of the workload, and sends it to the shim.
    async fn notify(&mut self, change: impl FnOnce(&mut Notified)) -> Result<()> {
        change(&mut self.notified);
        self.send_message(FromGuest::Notified(self.notified.clone())).await
    }

    /// Writes `count` bytes to the standard output of the workload.
    ///
    /// Each line of eight bytes has its number, so that tests can see which lines are missing.
    fn print(&mut self, count: usize) -> Result<()> {
        // Opening the path makes a new open file description, which is blocking. fd 1 may have
        // O_NONBLOCK set, and then a write to a full pipe would fail.
        let mut stdout = std::fs::OpenOptions::new().write(true).open("/dev/stdout")?;
        let text: String = (0..count.div_ceil(8)).map(|i| format!("{i:07}\n")).collect();
        stdout.write_all(&text.as_bytes()[..count])?;
        self.stdout_bytes += count as u64;
        Ok(())
    }

    /// Writes a text to the standard output of the workload.
    fn print_text(&mut self, text: &str) -> Result<()> {
        std::fs::OpenOptions::new().write(true).open("/dev/stdout")?.write_all(text.as_bytes())?;
        self.stdout_bytes += text.len() as u64;
        Ok(())
    }
}

/// Returns the text of an address with 4 or 16 bytes.
fn address_text(octets: &[u8]) -> String {
    let v4 = <[u8; 4]>::try_from(octets).map(IpAddr::from);
    let address = v4.or_else(|_| <[u8; 16]>::try_from(octets).map(IpAddr::from));
    address.map_or_else(|_| format!("{octets:?}"), |address| address.to_string())
}

/// Returns a line with the network that the guest program would set up for this config.
fn network_text(config: &GuestConfig) -> String {
    let interface = config.interface.as_ref().map_or("no interface;".to_owned(), |interface| {
        let [address, gateway] = [interface.address, interface.gateway].map(Ipv4Addr::from);
        let Interface { name, prefix_length, mtu, ipv6, .. } = interface;
        let ipv6 = ipv6.as_ref().map_or(String::new(), |ipv6| {
            let [address, link_local, gateway] =
                [&ipv6.address, &ipv6.link_local, &ipv6.gateway].map(|it| address_text(it));
            format!(" {address}/{} {link_local} via {gateway}", ipv6.prefix_length)
        });
        format!("interface {name} {address}/{prefix_length} via {gateway}{ipv6} mtu {mtu}")
    });
    let servers = match &config.name_servers {
        None => "resolver of the image".to_owned(),
        Some(servers) if servers.addresses.is_empty() => "dns none".to_owned(),
        Some(servers) => servers
            .addresses
            .iter()
            .fold("dns".to_owned(), |text, server| format!("{text} {}", address_text(server))),
    };
    format!("{interface} {servers}\n")
}

#[expect(
    clippy::exit,
    clippy::disallowed_methods,
    reason = "the whole process is the fake guest, so it may end anywhere"
)]
fn exit(code: i32) -> ! {
    std::process::exit(code)
}

/// Socket path of each vsock port, by the name `VSOCK_<port>`.
static PORTS: OnceLock<HashMap<String, String>> = OnceLock::new();

/// Returns the path of the socket on the host for a vsock port.
fn socket(port: u32) -> Result<String> {
    let ports = PORTS.get().ok_or("the ports have not been read")?;
    Ok(ports.get(&format!("VSOCK_{port}")).ok_or("the shim has not added this port")?.clone())
}

/// Writes the current time to the file `stamp` in the box directory, in nanoseconds since 1970.
///
/// A script does this right before the guest dies, so that a test can measure the time from there.
fn stamp() -> Result<()> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    // The agent's socket is in the box directory.
    let path = std::path::Path::new(&socket(AGENT_PORT)?).with_file_name("stamp");
    Ok(std::fs::write(path, now.as_nanos().to_string())?)
}

/// Inode number of the socket that the agent listens on.
static AGENT_SOCKET_INODE: OnceLock<u64> = OnceLock::new();

/// Removes the socket of the agent, if it is still the one that this process made.
///
/// The shim may have removed it already, and a later box may have a socket at the same path.
fn remove_socket() {
    let Ok(path) = socket(AGENT_PORT) else { return };
    let inode = std::fs::symlink_metadata(&path).map(|found| found.ino());
    if inode.ok().is_some_and(|inode| AGENT_SOCKET_INODE.get() == Some(&inode)) {
        // The shim may remove the socket after the check, and then the removal fails.
        let _ignored = std::fs::remove_file(path);
    }
}

/// Listens on the socket of a port. libkrun makes this socket in the VMM, so it gets the VMM's user,
/// who has the group of the box directory.
fn listen(port: u32) -> Result<std::os::unix::net::UnixListener> {
    let path = PathBuf::from(socket(port)?);
    let listener = std::os::unix::net::UnixListener::bind(&path)?;
    let directory = path.parent().unwrap_or(&path).metadata()?;
    if directory.mode() & 0o1000 != 0 {
        std::os::unix::fs::chown(path, Some(directory.gid()), Some(directory.gid()))?;
    }
    Ok(listener)
}

/// Serves requests on a thread until the returned sender is dropped.
fn serve(server: Router) -> Result<oneshot::Sender<()>> {
    let path = socket(AGENT_PORT)?;
    let listener = listen(AGENT_PORT)?;
    AGENT_SOCKET_INODE
        .get_or_init(|| std::fs::symlink_metadata(&path).map_or(0, |found| found.ino()));
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (running, stopped) = oneshot::channel();
    // The thread owns the runtime. Its end drops the runtime, which closes all connections.
    std::thread::spawn(move || {
        runtime.block_on(async {
            let Ok(listener) = UnixListener::from_std(listener) else { return };
            let serving = server.serve_with_incoming(UnixListenerStream::new(listener));
            tokio::select! {
                _served = serving => {}
                _stopped = stopped => {}
            }
        });
    });
    Ok(running)
}

/// Serves the processes of this machine on a thread, until this process ends.
fn serve_exec() -> Result<()> {
    let listener = listen(EXEC_PORT)?;
    std::thread::spawn(move || {
        // The test that calls the service fails if it does not start.
        let _not_started = a3s_box_guest::serve_processes(listener, None);
    });
    Ok(())
}

/// Accepts three connections and closes each at once.
///
/// The socket that libkrun bridges to vsock does this while the agent in the guest does not listen
/// yet.
async fn accept_and_close() -> Result<()> {
    let listener = listen(AGENT_PORT)?;
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    for _ in 0..3 {
        drop(listener.accept().await?);
    }
    Ok(std::fs::remove_file(socket(AGENT_PORT)?)?)
}
