//! The places of the box that attempts start from, and their targets on the host.

use std::io;

use crate::fake::recorded::RECORDED;

/// Returns a new path in the box directory, in which the VMM can create files.
pub(super) fn own_file() -> io::Result<String> {
    Ok(format!("{}/probe-{}", own_directory()?, std::process::id()))
}

/// Creates a file in the box directory, and returns its path.
pub(super) fn existing_file() -> io::Result<String> {
    let name = own_file()?;
    std::fs::write(&name, "").map(|()| name)
}

/// Returns the socket of the control connection, which is the first vsock port.
pub(super) fn control_socket() -> io::Result<String> {
    let recorded = RECORDED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let socket = recorded.as_ref().and_then(|recorded| recorded.ports.first());
    socket.map(|(_, path)| path.clone()).ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// Returns the box directory, which contains the sockets of the vsock ports.
pub(super) fn own_directory() -> io::Result<String> {
    let socket = control_socket()?;
    let directory = socket.rsplit_once('/').map(|(directory, _)| directory.to_owned());
    directory.ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// Returns a path in the first share that is read-only, or in the first one that is not.
pub(super) fn in_share(read_only: bool, name: &str) -> io::Result<String> {
    let recorded = RECORDED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut shares = recorded.iter().flat_map(|recorded| &recorded.shares);
    let share = shares.find(|share| share.read_only == read_only);
    share
        .map(|share| format!("{}/{name}", share.path))
        .ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// Returns a target of an attempt, from the environment: an address at which the test listens, or a
/// process.
pub(super) fn listener(kind: &str) -> String {
    std::env::var(format!("A3S_BOX_FAKE_PROBE_{kind}")).unwrap_or_default()
}
