//! A guest without a VM: a process that speaks the guest's part, well or badly.
//!
//! The backend `fake` of the crate `krun` starts it. The workload's arguments in the guest's config
//! are the script; each word is one step (see [`Guest::play`]).

use std::error::Error;
use std::io::{Read, Write};
use std::process::ExitCode;
use std::time::Duration;

use a3s_box_proto::agent::agent_server::{Agent, AgentServer};
use a3s_box_proto::agent::{
    HealthCheckRequest, HealthCheckResponse, MetricsRequest, MetricsResponse, State, Status,
};
use a3s_box_proto::control::{
    Drained, Exited, GuestConfig, GuestMessage, Hello, ShimMessage, StartFailed, Started, exited,
    guest_message, shim_message,
};
use a3s_box_proto::frame::{self, FrameBuffer};
use a3s_box_proto::{AGENT_PORT, CONTROL_PORT, PROTOCOL_VERSION, decode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::sleep;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

struct Guest {
    control: Option<UnixStream>,
    received: FrameBuffer,
    stdout_bytes: u64,
}

struct Healthy;

#[tonic::async_trait]
impl Agent for Healthy {
    async fn health_check(
        &self,
        _request: Request<HealthCheckRequest>,
    ) -> std::result::Result<Response<HealthCheckResponse>, tonic::Status> {
        Ok(Response::new(HealthCheckResponse {
            status: Status::Serving.into(),
            state: State::Ready.into(),
            version: "0.0.0".into(),
            uptime_ms: 1,
        }))
    }

    async fn metrics(
        &self,
        _request: Request<MetricsRequest>,
    ) -> std::result::Result<Response<MetricsResponse>, tonic::Status> {
        Err(tonic::Status::unimplemented("no metrics"))
    }
}

fn main() -> Result<ExitCode> {
    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes)?;
    let config: GuestConfig = decode(&bytes)?;
    let script = config.workload.map(|workload| workload.args).unwrap_or_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut guest = Guest { control: None, received: FrameBuffer::default(), stdout_bytes: 0 };
        for step in &script {
            guest.play(step).await?;
        }
        Ok(ExitCode::SUCCESS)
    })
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
            "serve" => serve()?,
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
            _ => return Err(format!("the script has an unknown step `{step}`").into()),
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

    /// Writes so many bytes to the workload's standard output.
    fn print(&mut self, count: usize) -> Result<()> {
        // A new handle on fd 1: the console's pipe, which libkrun has made non-blocking at most.
        let mut stdout = std::fs::OpenOptions::new().write(true).open("/dev/stdout")?;
        stdout.write_all(&vec![b'x'; count])?;
        self.stdout_bytes += count as u64;
        Ok(())
    }
}

#[expect(clippy::exit, clippy::disallowed_methods, reason = "the whole process is the fake")]
fn exit(code: i32) -> ! {
    std::process::exit(code)
}

fn socket(port: u32) -> Result<String> {
    Ok(std::env::var(format!("VSOCK_{port}"))?)
}

/// Writes the time into the box's state folder, in nanoseconds since 1970: to be played right before
/// the guest dies.
fn stamp() -> Result<()> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let path = std::path::Path::new(&socket(AGENT_PORT)?).with_file_name("stamp");
    Ok(std::fs::write(path, now.as_nanos().to_string())?)
}

/// Serves health in the background.
fn serve() -> Result<()> {
    let listener = UnixListener::bind(socket(AGENT_PORT)?)?;
    let server = Server::builder().add_service(AgentServer::new(Healthy));
    tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
    Ok(())
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
