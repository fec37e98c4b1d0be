//! Sets up a real guest before the workload starts.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Instant;

use a3s_box_proto::GUEST_CONFIG_FILE;
use a3s_box_proto::control::{
    BlockRoot, GuestConfig, Interface, Mount, Root, Workload, mount, root as config_root,
};
use nix::unistd::sethostname;
use tokio::net::unix::pipe;

use crate::children::Exits;
use crate::lifecycle::{Job, Machine, StartError};
use crate::listener::{self, Peers};
use crate::network::NetworkError;
use crate::notify::{self, Notices};
use crate::power::{self, Outlasting};
use crate::processes::{self, Cgroups, Table};
use crate::{
    agent, config, ipv6, kmsg, mounts, names, network, open_files, plan, ports, root, syscall,
};

/// Host name of a guest whose config has none.
const DEFAULT_HOSTNAME: &str = "localhost";

/// The guest that this process is PID 1 of.
#[derive(Debug)]
pub(crate) struct Guest {
    started: Instant,
    /// The root in which this process started, if it has entered another one.
    initial_root: Option<File>,
    outlasting: Outlasting,
}

impl Guest {
    /// Creates a guest. `started` is the start of this process, from which the agent counts its
    /// uptime.
    pub(crate) fn new(started: Instant) -> Self {
        Self { started, initial_root: None, outlasting: Outlasting::All }
    }

    /// Ends the VM with the exit code `code`.
    pub(crate) fn reboot(self, code: u8) -> ! {
        // Only the root in which this process started is a device of libkrun.
        power::reboot(code, self.initial_root, self.outlasting)
    }
}

impl Machine for Guest {
    type Port = pipe::Sender;

    async fn prepare(&mut self, exits: Exits) -> Result<Option<Job<Self::Port>>, StartError> {
        // The config comes first: libkrun serves the file once, and only to the first lookup of its
        // name.
        let config = config::read(&Path::new("/").join(GUEST_CONFIG_FILE))?;
        // The root comes before all mounts, which would leave with the old one.
        if let Some(root) = &config.root {
            self.initial_root = Some(root::enter(root)?);
            self.outlasting = outlasting(root, &config.mounts);
        }
        mounts::mount_standard()?;
        if let Err(error) = network::set_loopback_up() {
            // Most workloads do not need the loopback interface, so an error is only logged.
            kmsg::line(&format!("cannot bring the loopback interface up: {error}"));
        }
        let addresses = match &config.interface {
            Some(interface) => set_up_network(interface)?,
            None => Vec::new(),
        };
        let hostname = host_name(&config);
        sethostname(hostname)
            .map_err(|source| StartError::Hostname { name: hostname.to_owned(), source })?;
        // The names come before the mounts, because a share of the host can be mounted on `/etc`.
        write_names(&config, hostname, &addresses);
        mounts::mount_configured(&config.mounts)?;
        // The agent opens its files in `/proc` now, before the workload can mount over them.
        let notices = Notices::bind(notify::ADDRESS)?;
        if let Some(port) = config.agent_port {
            agent::listen(port, self.started, notices.state())?;
        }
        if let Some(port) = config.exec_port {
            serve_processes(port, config.workload.as_ref(), exits)?;
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

/// Serves the processes of the box to the host in the background, until this process ends.
fn serve_processes(port: u32, workload: Option<&Workload>, exits: Exits) -> Result<(), StartError> {
    // The descriptors of 256 processes and of their connections are more than the usual limit.
    open_files::raise_limit();
    let cgroups = Cgroups::open(Path::new(mounts::CGROUP))?;
    let incoming = listener::listen(port, Peers::Host)?;
    let table = Table::new(workload, Some(cgroups), exits);
    tokio::spawn(async move {
        if let Err(error) = processes::serve(incoming, table).await {
            kmsg::error(&error);
        }
    });
    Ok(())
}

/// Returns the file systems whose data someone can read after the end of the box.
fn outlasting(root: &Root, mounts: &[Mount]) -> Outlasting {
    let Some(config_root::Kind::Block(BlockRoot { volatile: true, .. })) = root.kind else {
        return Outlasting::All;
    };
    let is_share = |mount: &&Mount| matches!(mount.source, Some(mount::Source::Virtiofs(_)));
    Outlasting::Mounts(mounts.iter().filter(is_share).map(|it| PathBuf::from(&it.target)).collect())
}

/// Returns the host name of the config, or [`DEFAULT_HOSTNAME`] if it has none.
fn host_name(config: &GuestConfig) -> &str {
    if config.hostname.is_empty() { DEFAULT_HOSTNAME } else { &config.hostname }
}

/// Configures the interface, and returns the addresses that it has. An error about IPv6 is only
/// logged: the guest kernel can have none, and programs then use IPv4 without a wait.
fn set_up_network(interface: &Interface) -> Result<Vec<IpAddr>, NetworkError> {
    let name = interface.name.as_str();
    let v4 = Ipv4Addr::from(interface.address).into();
    let Some(v6) = &interface.ipv6 else {
        return network::set_up(interface).map(|()| vec![v4]);
    };
    // The kernel configures an interface itself when it comes up, unless it is told otherwise before.
    let is_manual = ipv6::make_manual(name);
    network::set_up(interface)?;
    match is_manual.and_then(|()| ipv6::set_up(name, v6)) {
        Ok(v6) => Ok(vec![v4, v6.into()]),
        Err(error) => {
            kmsg::error(&error);
            Ok(vec![v4])
        }
    }
}

/// Writes the files for the resolution of names. An error is only logged: the root can be
/// read-only, and many workloads need none of the files.
fn write_names(config: &GuestConfig, hostname: &str, addresses: &[IpAddr]) {
    let name_servers = config.name_servers.as_ref();
    if let Err(error) = names::write(Path::new("/"), hostname, addresses, name_servers) {
        kmsg::error(&error);
    }
}

#[cfg(test)]
mod tests {
    use a3s_box_proto::control::{TmpfsMount, VirtiofsMount};

    use super::*;

    fn root(volatile: bool) -> Root {
        let block = BlockRoot { volatile, ..BlockRoot::default() };
        Root { kind: Some(config_root::Kind::Block(block)) }
    }

    #[test]
    fn only_shares_outlast_a_box_whose_writes_end_with_it() {
        let share = mount::Source::Virtiofs(VirtiofsMount { tag: "a".into(), read_only: false });
        let tmpfs = mount::Source::Tmpfs(TmpfsMount::default());
        let mounts = [("/a", share), ("/b", tmpfs)]
            .map(|(target, source)| Mount { target: target.into(), source: Some(source) });
        let ended = outlasting(&root(true), &mounts);
        assert!(matches!(&ended, Outlasting::Mounts(it) if *it == [Path::new("/a")]), "{ended:?}");
        let kept = outlasting(&root(false), &mounts);
        assert!(matches!(kept, Outlasting::All), "{kept:?}");
    }
}
