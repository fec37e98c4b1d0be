//! A guest without a VM: a process that speaks the guest's part, well or badly.
//!
//! The backend `fake` of the crate `krun` starts it. The workload's arguments in the guest's config
//! are the script; each word is one step (see [`Guest::play`]).

use std::collections::HashMap;
use std::error::Error;
use std::io::{BufRead, Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use a3s_box_proto::agent::agent_server::{Agent, AgentServer};
use a3s_box_proto::agent::{
    HealthCheckRequest, HealthCheckResponse, MetricsRequest, MetricsResponse, State, Status,
};
use a3s_box_proto::control::{
    Drained, Exited, GuestConfig, GuestMessage, Hello, Interface, Notified, ShimMessage,
    StartFailed, Started, exited, guest_message, shim_message,
};
use a3s_box_proto::frame::{self, FrameBuffer};
use a3s_box_proto::{AGENT_PORT, CONTROL_PORT, PROTOCOL_VERSION, decode};
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
    /// What it was told about its network.
    network: String,
    notified: Notified,
    health: Health,
    server: Option<oneshot::Sender<()>>,
}

/// What the services answer; clones share it.
#[derive(Clone)]
struct Health(Arc<Mutex<Answer>>);

#[derive(Clone, Copy)]
struct Answer {
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
        let Answer { status, state, delay_ms } = self.now();
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
        let Answer { status, delay_ms, .. } = self.now();
        sleep(Duration::from_millis(delay_ms)).await;
        // The numbers of the two services are the same.
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
    fn now(&self) -> Answer {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Answer)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

fn main() -> Result<ExitCode> {
    let config = read_config()?;
    let (ended, end) = oneshot::channel();
    std::thread::spawn(|| tell_end_of_shim(ended));
    // A box without a workload plays what the environment says.
    let of_agent = || std::env::var("A3S_BOX_FAKE_SCRIPT").unwrap_or_default();
    let words = |text: String| text.split_whitespace().map(str::to_owned).collect();
    let network = network_text(&config);
    let script = config.workload.map_or_else(|| words(of_agent()), |workload| workload.args);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let answer = Answer { status: Status::Serving, state: State::Ready, delay_ms: 0 };
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
            ended = played => ended,
            _gone = end => {
                remove_socket();
                Ok(ExitCode::SUCCESS)
            }
        }
    })
}

/// Reads where the ports lead, a line for each, and the config, whose length is one of them.
fn read_config() -> Result<GuestConfig> {
    let mut stdin = std::io::stdin().lock();
    let mut ports = HashMap::new();
    loop {
        let mut line = String::new();
        stdin.read_line(&mut line)?;
        let Some((name, path)) = line.trim_end().split_once('=') else { break };
        ports.insert(name.to_owned(), path.to_owned());
    }
    let bytes = ports.get("CONFIG_BYTES").ok_or("no VM")?.parse()?;
    let mut config = vec![0; bytes];
    stdin.read_exact(&mut config)?;
    PORTS.get_or_init(|| ports);
    Ok(decode(&config)?)
}

/// The shim holds the other end of standard input open for as long as it lives, however it ends. The signal
/// at a parent's end does not come from a confined one.
fn tell_end_of_shim(ended: oneshot::Sender<()>) {
    let _end_of_file = std::io::stdin().lock().read(&mut [0]);
    let _is_played_out = ended.send(());
}

impl Guest {
    /// One step: `verb` or `verb=value`.
    async fn play(&mut self, step: &str) -> Result<()> {
        let (verb, value) = step.split_once('=').unwrap_or((step, "0"));
        match verb {
            // Connects to the shim.
            "connect" => self.control = Some(UnixStream::connect(socket(CONTROL_PORT)?).await?),
            "hello" => {
                let protocol_version = PROTOCOL_VERSION + value.parse::<u32>()?;
                let guest_version = "0.0.0".into();
                self.say(guest_message::Message::Hello(Hello { protocol_version, guest_version }))
                    .await?;
            }
            "accept-and-close" => accept_and_close().await?,
            "started" => {
                self.say(guest_message::Message::Started(Started { pid: value.parse()? })).await?;
            }
            "not-started" => {
                let (reason, message) = (value.parse()?, "as the script says\u{1b}".into());
                self.say(guest_message::Message::StartFailed(StartFailed { reason, message }))
                    .await?;
            }
            "exited" => self.exited(exited::Status::ExitCode(value.parse()?)).await?,
            "signaled" => self.exited(exited::Status::Signal(value.parse()?)).await?,
            "print" => self.print(value.parse()?)?,
            "print-network" => self.print_text(&self.network.clone())?,
            "drained" => {
                let stdout_bytes = self.stdout_bytes;
                self.say(guest_message::Message::Drained(Drained {
                    stdout_bytes,
                    stderr_bytes: 0,
                }))
                .await?;
            }
            "garbage" => self.send(&[3, 0, 0, 0, 0xff, 0xff, 0xff]).await?,
            "huge-frame" => self.send(&u32::MAX.to_le_bytes()).await?,
            "empty-message" => self.send(&[0; 4]).await?,
            "close" => self.control = None,
            "wait-stop" => while !matches!(self.hear().await?, shim_message::Message::Stop(_)) {},
            "wait-kill" => {
                while self.hear().await?
                    != shim_message::Message::Kill(a3s_box_proto::control::Kill {})
                {
                }
            }
            "wait-ack" => {
                while !matches!(self.hear().await?, shim_message::Message::Acknowledged(_)) {}
            }
            "sleep-ms" => sleep(Duration::from_millis(value.parse()?)).await,
            "stamp" => stamp()?,
            "hang" => std::future::pending().await,
            // As libkrun ends when the guest resets, or with a code that a process of the guest set.
            "exit" => exit(value.parse()?),
            "abort" => std::process::abort(),
            _ => return self.play_agent(verb, value).await,
        }
        Ok(())
    }

    /// A step of the agent, or of the workload on `$NOTIFY_SOCKET`.
    async fn play_agent(&mut self, verb: &str, value: &str) -> Result<()> {
        match verb {
            "serve" => {
                self.server = Some(serve(
                    Server::builder().add_service(AgentServer::new(self.health.clone())),
                )?);
            }
            // A server that knows the standard service only.
            "serve-standard" => {
                self.server = Some(serve(
                    Server::builder().add_service(HealthServer::new(self.health.clone())),
                )?);
            }
            "serving" => self.health.change(|answer| answer.status = Status::Serving),
            "not-serving" => self.health.change(|answer| answer.status = Status::NotServing),
            "answer-busy" => self.health.change(|answer| answer.state = State::Busy),
            "answer-after-ms" => {
                let delay_ms = value.parse()?;
                self.health.change(|answer| answer.delay_ms = delay_ms);
            }
            "vanish" => drop(self.server.take()),
            // As the workload would on $NOTIFY_SOCKET, passed on by PID 1.
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
            // Busy and ready in turns.
            "notify-flood" => {
                for i in 0..value.parse::<i32>()? {
                    self.notify(|notified| notified.state = 1 + i % 2).await?;
                }
            }
            _ => return Err(format!("the script has an unknown step `{verb}`").into()),
        }
        Ok(())
    }

    async fn exited(&mut self, status: exited::Status) -> Result<()> {
        self.say(guest_message::Message::Exited(Exited { status: Some(status) })).await
    }

    async fn say(&mut self, message: guest_message::Message) -> Result<()> {
        self.send(&frame::encode(&GuestMessage { message: Some(message) })).await
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.control.as_mut().ok_or("the script does not connect")?.write_all(bytes).await?)
    }

    async fn hear(&mut self) -> Result<shim_message::Message> {
        loop {
            if let Some(ShimMessage { message: Some(message) }) = self.received.next_message()? {
                return Ok(message);
            }
            let mut buffer = [0; 256];
            let control = self.control.as_mut().ok_or("the script does not connect")?;
            let count = control.read(&mut buffer).await?;
            if count == 0 {
                return Err("the shim closed the connection".into());
            }
            self.received.push(&buffer[..count]);
        }
    }

    async fn notify(&mut self, change: impl FnOnce(&mut Notified)) -> Result<()> {
        change(&mut self.notified);
        self.say(guest_message::Message::Notified(self.notified.clone())).await
    }

    /// Writes so many bytes to the workload's standard output, each eight of them their number.
    fn print(&mut self, count: usize) -> Result<()> {
        // A new handle on fd 1: the console's pipe, which libkrun has made non-blocking at most.
        let mut stdout = std::fs::OpenOptions::new().write(true).open("/dev/stdout")?;
        let text: String = (0..count.div_ceil(8)).map(|i| format!("{i:07}\n")).collect();
        stdout.write_all(&text.as_bytes()[..count])?;
        self.stdout_bytes += count as u64;
        Ok(())
    }

    fn print_text(&mut self, text: &str) -> Result<()> {
        std::fs::OpenOptions::new().write(true).open("/dev/stdout")?.write_all(text.as_bytes())?;
        self.stdout_bytes += text.len() as u64;
        Ok(())
    }
}

/// A line with all that PID 1 would set up.
fn network_text(config: &GuestConfig) -> String {
    let interface = config.interface.as_ref().map_or("no interface;".to_owned(), |interface| {
        let [address, gateway] = [interface.address, interface.gateway].map(Ipv4Addr::from);
        let Interface { name, prefix_length, mtu, .. } = interface;
        format!("interface {name} {address}/{prefix_length} via {gateway} mtu {mtu}")
    });
    let servers = match &config.name_servers {
        None => "resolver of the image".to_owned(),
        Some(servers) if servers.addresses.is_empty() => "dns none".to_owned(),
        Some(servers) => servers
            .addresses
            .iter()
            .fold("dns".to_owned(), |text, server| format!("{text} {}", Ipv4Addr::from(*server))),
    };
    format!("{interface} {servers}\n")
}

#[expect(clippy::exit, clippy::disallowed_methods, reason = "the whole process is the fake")]
fn exit(code: i32) -> ! {
    std::process::exit(code)
}

/// Where each port leads, by its name.
static PORTS: OnceLock<HashMap<String, String>> = OnceLock::new();

fn socket(port: u32) -> Result<String> {
    let ports = PORTS.get().ok_or("no ports")?;
    Ok(ports.get(&format!("VSOCK_{port}")).ok_or("no such port")?.clone())
}

/// Writes the time into the box's state directory, in nanoseconds since 1970: to be played right before
/// the guest dies.
fn stamp() -> Result<()> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let path = std::path::Path::new(&socket(AGENT_PORT)?).with_file_name("stamp");
    Ok(std::fs::write(path, now.as_nanos().to_string())?)
}

/// Inode of the socket that the agent listens on.
static SOCKET: OnceLock<u64> = OnceLock::new();

/// Removes the agent's socket, which the shim may have missed, and not that of a later box.
fn remove_socket() {
    let Ok(path) = socket(AGENT_PORT) else { return };
    let inode = std::fs::symlink_metadata(&path).map(|found| found.ino());
    if inode.ok().is_some_and(|inode| SOCKET.get() == Some(&inode)) {
        let _removed = std::fs::remove_file(path);
    }
}

/// Serves in the background, until the returned sender is dropped.
fn serve(server: Router) -> Result<oneshot::Sender<()>> {
    let path = socket(AGENT_PORT)?;
    let listener = std::os::unix::net::UnixListener::bind(&path)?;
    SOCKET.get_or_init(|| std::fs::symlink_metadata(&path).map_or(0, |found| found.ino()));
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (running, vanished) = oneshot::channel();
    // The connections end with the runtime.
    std::thread::spawn(move || {
        runtime.block_on(async {
            let Ok(listener) = UnixListener::from_std(listener) else { return };
            let serving = server.serve_with_incoming(UnixListenerStream::new(listener));
            tokio::select! {
                _served = serving => {}
                _vanished = vanished => {}
            }
        });
    });
    Ok(running)
}

/// What a bridged socket does while the agent does not listen yet.
async fn accept_and_close() -> Result<()> {
    let path = socket(AGENT_PORT)?;
    let listener = UnixListener::bind(&path)?;
    for _ in 0..3 {
        drop(listener.accept().await?);
    }
    Ok(std::fs::remove_file(path)?)
}
