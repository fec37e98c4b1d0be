//! The workload of VM tests. Each argument is one step, `verb` or `verb=value`.
//!
//! The steps run in order. The program exits with 0 after the last step, or with 1 if a step fails.

mod attempts;
mod escape;
mod file_operations;
mod forger;
mod host_changes;
mod limits;
mod malformed_agent;
mod raw_fuse;
mod read_only;
mod requests;

use std::io::Write;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_vsock::{VMADDR_CID_ANY, VsockAddr, VsockListener, VsockStream};
use tonic::transport::Server;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

/// Vsock port on which the shim expects the agent.
const AGENT_PORT: u32 = 4088;

/// Vsock port of the shim for the control connection.
const CONTROL_PORT: u32 = 4087;

/// Context id of the host: `VMADDR_CID_HOST` of vsock(7).
const HOST: u32 = 2;

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut reporter = None;
        for step in std::env::args().skip(1) {
            play(&step, &mut reporter).await.with_context(|| format!("step `{step}`"))?;
        }
        Ok(())
    })
}

/// Runs one step. `reporter` keeps the health service between steps.
async fn play(step: &str, reporter: &mut Option<HealthReporter>) -> Result<()> {
    let (verb, value) = step.split_once('=').unwrap_or((step, ""));
    match verb {
        "sleep-ms" => sleep(Duration::from_millis(value.parse()?)).await,
        "notify" => notify(value)?,
        // This step never ends.
        "notify-flood" => loop {
            // Errors are ignored, because the flood is meant to fill the socket.
            let _sent = notify("X_A3S_STATE=busy").and(notify("X_A3S_STATE=ready"));
        },
        "serve-standard" => *reporter = Some(serve_standard().await?),
        "not-serving" => {
            let reporter = reporter.as_ref().context("nothing is served")?;
            reporter.set_service_status("", ServingStatus::NotServing).await;
        }
        "deaf-agent" => deaf_agent()?,
        "print-mib" => print(value.parse()?)?,
        "flood-output" => flood_output(),
        "flood-control" => drop(tokio::spawn(flood_control())),
        "forge" => forger::forge(value)?,
        "lie-ms" => {
            let address = VsockAddr::new(VMADDR_CID_ANY, AGENT_PORT);
            malformed_agent::serve(address, Duration::from_millis(value.parse()?)).await?;
        }
        "another-control" => another_control().await?,
        "reach" => reach(value).await?,
        "change-read-only" => {
            let (directory, tag) = value.split_once(',').context("DIRECTORY,TAG")?;
            read_only::try_all(Path::new(directory), tag)?;
        }
        "escape" => match value.split(',').collect::<Vec<_>>()[..] {
            [own, other, canary] => {
                escape::try_all(Path::new(own), Path::new(other), Path::new(canary))?;
            }
            _ => bail!("OWN,OTHER,CANARY"),
        },
        "use-files" => file_operations::use_all(Path::new(value))?,
        "watch-host" => host_changes::watch(Path::new(value))?,
        "reopen" => {
            let (path, times) = value.split_once(',').context("PATH,TIMES")?;
            host_changes::reopen(Path::new(path), times.parse()?)?;
        }
        "exchange-xattrs" => host_changes::exchange_xattrs(Path::new(value))?,
        "print-limits" => limits::print_all(Path::new(value))?,
        "unmount" => rustix::mount::unmount(value, rustix::mount::UnmountFlags::empty())?,
        "raw-fuse" => raw_fuse::try_all(value)?,
        "count-requests" => requests::count(value)?,
        "drop-caches" => requests::drop_caches()?,
        _ => bail!("unknown"),
    }
    Ok(())
}

/// Sends a datagram to `$NOTIFY_SOCKET`, as `sd_notify(3)` does.
fn notify(text: &str) -> Result<()> {
    let path = std::env::var("NOTIFY_SOCKET").context("NOTIFY_SOCKET")?;
    let socket = UnixDatagram::unbound()?;
    match path.strip_prefix('@') {
        Some(name) => {
            socket.send_to_addr(text.as_bytes(), &SocketAddr::from_abstract_name(name)?)?
        }
        None => socket.send_to(text.as_bytes(), path)?,
    };
    Ok(())
}

/// Serves only the standard gRPC health service.
async fn serve_standard() -> Result<HealthReporter> {
    let (reporter, service) = tonic_health::server::health_reporter();
    reporter.set_service_status("", ServingStatus::Serving).await;
    let listener = VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, AGENT_PORT))?;
    tokio::spawn(Server::builder().add_service(service).serve_with_incoming(listener.incoming()));
    Ok(reporter)
}

/// Starts an agent that accepts connections and never reads from them.
fn deaf_agent() -> Result<()> {
    let listener = VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, AGENT_PORT))?;
    tokio::spawn(async move {
        // The connections are kept, because a dropped one would be closed.
        let mut streams = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            streams.push(stream);
        }
    });
    Ok(())
}

/// Prints `mib` MiB of numbered lines, so that a test can tell which lines were kept.
#[expect(clippy::disallowed_methods, reason = "no event is written here")]
fn print(mib: usize) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    let line_bytes = 16;
    for number in 0..mib * (1 << 20) / line_bytes {
        writeln!(stdout, "{number:015}")?;
    }
    Ok(stdout.flush()?)
}

/// Prints whether an HTTP server answers within 3 seconds. `target` is `name@address:port`.
#[expect(clippy::disallowed_methods, reason = "no event is written here")]
async fn reach(target: &str) -> Result<()> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (name, address) = target.split_once('@').context("name@address:port")?;
    let request = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.map(|_| answer)
    };
    let outcome = match timeout(Duration::from_secs(3), request).await {
        Ok(Ok(answer)) if answer.ends_with("hello\n") => "reached".to_owned(),
        Ok(Ok(answer)) => format!("not reached: {answer:?}"),
        Ok(Err(error)) => format!("not reached: {error}"),
        Err(_) => "not reached: no answer".to_owned(),
    };
    Ok(writeln!(std::io::stdout(), "{name} {outcome}")?)
}

/// Writes to standard output and standard error without end, each in a thread.
fn flood_output() {
    #[expect(clippy::disallowed_methods, reason = "no event is written here")]
    let streams: [Box<dyn Write + Send>; 2] =
        [Box::new(std::io::stdout()), Box::new(std::io::stderr())];
    for mut stream in streams {
        std::thread::spawn(move || while stream.write_all(&[b'x'; 64 * 1024]).is_ok() {});
    }
}

/// Connects to the shim again and again and sends bytes that are no message of the protocol.
async fn flood_control() {
    use tokio::io::AsyncWriteExt;
    let mut kept = std::collections::VecDeque::new();
    loop {
        let send = async {
            let mut stream = VsockStream::connect(VsockAddr::new(HOST, CONTROL_PORT)).await?;
            AsyncWriteExt::write_all(&mut stream, &[0xff; 4096]).await?;
            std::io::Result::Ok(stream)
        };
        // Errors are ignored, because most attempts are expected to fail. Up to 64 connections stay
        // open.
        if let Ok(Ok(stream)) = timeout(Duration::from_millis(20), send).await {
            kept.push_back(stream);
        }
        if kept.len() > 64 {
            kept.pop_front();
        }
    }
}

/// Tries to make a second control connection and to report the end of the workload on it.
///
/// The shim accepts only one control connection, that of PID 1.
async fn another_control() -> Result<()> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    for _ in 0..3 {
        let send = async {
            let mut stream = VsockStream::connect(VsockAddr::new(HOST, CONTROL_PORT)).await?;
            // A report that the workload has exited with 0.
            AsyncWriteExt::write_all(&mut stream, &[4, 0, 0, 0, 0x22, 2, 8, 0]).await?;
            AsyncReadExt::read(&mut stream, &mut [0; 8]).await
        };
        // libkrun neither accepts nor refuses a connection to a socket without a listener, so the
        // attempt must time out.
        let _outcome = timeout(Duration::from_millis(300), send).await;
    }
    Ok(())
}
