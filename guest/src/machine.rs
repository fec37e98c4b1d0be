//! The guest as it really is: what PID 1 prepares before the workload starts.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Instant;

use a3s_box_proto::GUEST_CONFIG_FILE;
use a3s_box_proto::control::GuestConfig;
use nix::unistd::sethostname;
use tokio::net::unix::pipe;

use crate::life::{Job, Machine, StartError};
use crate::notify::{self, Notices};
use crate::{agent, config, kmsg, mounts, names, network, plan, ports, syscall};

/// Host name of a box whose config has none.
const DEFAULT_HOSTNAME: &str = "localhost";

/// The box that this process is PID 1 of.
#[derive(Debug)]
pub(crate) struct Guest {
    started: Instant,
}

impl Guest {
    /// A guest that was started at that time.
    pub(crate) fn new(started: Instant) -> Self {
        Self { started }
    }
}

impl Machine for Guest {
    type Port = pipe::Sender;

    async fn prepare(&mut self) -> Result<Option<Job<Self::Port>>, StartError> {
        // First, so that nothing else has looked the name up before.
        let config = config::read(&Path::new("/").join(GUEST_CONFIG_FILE))?;
        mounts::mount_standard()?;
        if let Err(error) = network::set_loopback_up() {
            // A kernel without networking can still run most workloads.
            kmsg::line(&format!("cannot bring the loopback interface up: {error}"));
        }
        if let Some(interface) = &config.interface {
            network::set_up(interface)?;
        }
        let hostname = host_name(&config);
        sethostname(hostname)
            .map_err(|source| StartError::Hostname { name: hostname.to_owned(), source })?;
        write_names(&config, hostname);
        mounts::mount_configured(&config.mounts)?;
        let notices = Notices::bind(notify::ADDRESS)?;
        if let Some(port) = config.agent_port {
            agent::listen(port, self.started, notices.state())?;
        }
        let Some(workload) = config.workload else { return Ok(None) };
        let image = plan::plan(workload, Path::new("/"))?;
        let stdout = ports::open(ports::STDOUT).await?;
        let stderr = ports::open(ports::STDERR).await?;
        Ok(Some(Job { image, stdout, stderr, notices }))
    }

    fn kill_everything(&self) {
        syscall::kill_everything();
    }
}

fn host_name(config: &GuestConfig) -> &str {
    if config.hostname.is_empty() { DEFAULT_HOSTNAME } else { &config.hostname }
}

/// An image in which they cannot be written runs without.
fn write_names(config: &GuestConfig, hostname: &str) {
    let address = config.interface.as_ref().map(|interface| Ipv4Addr::from(interface.address));
    let name_servers = config.name_servers.as_ref();
    if let Err(error) = names::write(Path::new("/"), hostname, address, name_servers) {
        kmsg::error(&error);
    }
}
