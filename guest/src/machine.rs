//! Sets up a real guest before the workload starts.

use std::fs::File;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Instant;

use a3s_box_proto::GUEST_CONFIG_FILE;
use a3s_box_proto::control::GuestConfig;
use nix::unistd::sethostname;
use tokio::net::unix::pipe;

use crate::lifecycle::{Job, Machine, StartError};
use crate::notify::{self, Notices};
use crate::{agent, config, kmsg, mounts, names, network, plan, ports, root, syscall};

/// Host name of a guest whose config has none.
const DEFAULT_HOSTNAME: &str = "localhost";

/// The guest that this process is PID 1 of.
#[derive(Debug)]
pub(crate) struct Guest {
    started: Instant,
    /// The root in which this process started, if it has entered another one.
    initial_root: Option<File>,
}

impl Guest {
    /// Creates a guest. `started` is the start of this process, from which the agent counts its
    /// uptime.
    pub(crate) fn new(started: Instant) -> Self {
        Self { started, initial_root: None }
    }

    /// Returns the root in which this process started if it has entered another one. Only that one
    /// is a device of libkrun.
    pub(crate) fn into_initial_root(self) -> Option<File> {
        self.initial_root
    }
}

impl Machine for Guest {
    type Port = pipe::Sender;

    async fn prepare(&mut self) -> Result<Option<Job<Self::Port>>, StartError> {
        // The config comes first: libkrun serves the file once, and only to the first lookup of its
        // name.
        let config = config::read(&Path::new("/").join(GUEST_CONFIG_FILE))?;
        // The root comes before all mounts, which would leave with the old one.
        if let Some(root) = &config.root {
            self.initial_root = Some(root::enter(root)?);
        }
        mounts::mount_standard()?;
        if let Err(error) = network::set_loopback_up() {
            // Most workloads do not need the loopback interface, so an error is only logged.
            kmsg::line(&format!("cannot bring the loopback interface up: {error}"));
        }
        if let Some(interface) = &config.interface {
            network::set_up(interface)?;
        }
        let hostname = host_name(&config);
        sethostname(hostname)
            .map_err(|source| StartError::Hostname { name: hostname.to_owned(), source })?;
        // The names come before the mounts, because a share of the host can be mounted on `/etc`.
        write_names(&config, hostname);
        mounts::mount_configured(&config.mounts)?;
        // The agent opens its files in `/proc` now, before the workload can mount over them.
        let notices = Notices::bind(notify::ADDRESS)?;
        if let Some(port) = config.agent_port {
            agent::listen(port, self.started, notices.state())?;
        }
        let Some(workload) = config.workload else { return Ok(None) };
        // After the mounts: the program, the accounts and the working directory can be in a share.
        let command = plan::plan(workload, Path::new("/"))?;
        let stdout = ports::open(ports::STDOUT).await?;
        let stderr = ports::open(ports::STDERR).await?;
        Ok(Some(Job { command, stdout, stderr, notices }))
    }

    fn kill_everything(&self) {
        syscall::kill_everything();
    }
}

/// Returns the host name of the config, or [`DEFAULT_HOSTNAME`] if it has none.
fn host_name(config: &GuestConfig) -> &str {
    if config.hostname.is_empty() { DEFAULT_HOSTNAME } else { &config.hostname }
}

/// Writes the files for the resolution of names. An error is only logged: the root can be
/// read-only, and many workloads need none of the files.
fn write_names(config: &GuestConfig, hostname: &str) {
    let address = config.interface.as_ref().map(|interface| Ipv4Addr::from(interface.address));
    let name_servers = config.name_servers.as_ref();
    if let Err(error) = names::write(Path::new("/"), hostname, address, name_servers) {
        kmsg::error(&error);
    }
}
