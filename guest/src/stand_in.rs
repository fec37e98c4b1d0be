//! The service for processes on a unix socket, in a process that is not PID 1. Tests without a VM run
//! it in the place of a guest.

use std::io;
use std::os::unix::net::UnixListener as StdListener;
use std::path::Path;

use nix::sys::prctl::set_child_subreaper;
use tokio::net::UnixListener;
use tokio::runtime::Builder;
use tokio::sync::mpsc;
use tonic::codegen::tokio_stream::{StreamExt, wrappers::ReceiverStream};

use crate::children::Children;
use crate::processes::{self, Cgroups, Table};

/// Serves the processes of this machine to the clients of `listener`, with the runtime of a guest:
/// one thread. Does not return unless it cannot start.
///
/// Each process gets a cgroup below `cgroup2`, the directory of a mount of cgroup2. Without it, a
/// process that is killed takes only its process group with it.
///
/// Reaps all children of this process, which therefore must have no others.
///
/// # Errors
///
/// The kernel refuses a call.
pub fn serve_processes(listener: StdListener, cgroup2: Option<&Path>) -> io::Result<()> {
    // As PID 1 does, this process becomes the parent of the orphans among its descendants.
    set_child_subreaper(true)?;
    listener.set_nonblocking(true)?;
    let cgroups = cgroup2.map(Cgroups::open).transpose().map_err(io::Error::other)?;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut children = Children::watch()?;
        let listener = UnixListener::from_std(listener)?;
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                if sender.send(stream).await.is_err() {
                    return;
                }
            }
        });
        let table = Table::new(None, cgroups, children.exits());
        let incoming = ReceiverStream::new(receiver).map(Ok::<_, io::Error>);
        tokio::select! {
            served = processes::serve(incoming, table) => served.map_err(io::Error::other),
            () = children.reap_forever() => Ok(()),
        }
    })
}
