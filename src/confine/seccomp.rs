//! The seccomp layer: the system calls that are left to the VMM. Any other call kills the process.
//!
//! [`calls`] has the calls whose arguments are free, each with the reason. All other calls are in
//! [`filter`], with the arguments that they may have. A box gets only the calls that its config
//! needs ([`Needs`]).
//!
//! No call names another process: calls that take a process or thread id are not allowed, or only
//! with the id of this process, or with 0, which is the caller.
//!
//! `tests/vm/calls.rs` compares the filter with the calls that real boxes make, and gives a reason
//! for each call that it does not see.
//!
//! connect(2) takes its address in memory, which a filter cannot read. The filter allows it for two
//! places in memory that the process cannot change, which have the addresses of the box's own sockets
//! ([`pinned_addresses`]).
//!
//! The filter is installed while there is only one thread, so that all threads inherit it. It must
//! allow what libkrun does long after the guest has started: libkrun starts threads and opens files
//! when the guest activates a device (libkrun 1.19.7).

mod calls;
mod requests;

use std::io;
use std::path::PathBuf;

use a3s_box_core::config::SeccompMode;
use a3s_box_sys::pinned_addresses::{self, PinnedAddress};
use libc::{
    AF_INET, AF_INET6, AF_UNIX, F_ADD_SEALS, F_DUPFD_CLOEXEC, F_GETFD, F_GETFL, F_SETFD, F_SETFL,
    SOCK_DGRAM, SOCK_STREAM, SYS_clock_gettime, SYS_clock_nanosleep, SYS_clone, SYS_connect,
    SYS_fcntl, SYS_getsockopt, SYS_ioctl, SYS_memfd_create, SYS_mmap, SYS_mprotect, SYS_mremap,
    SYS_munmap, SYS_prctl, SYS_prlimit64, SYS_sendmsg, SYS_sendto, SYS_setsockopt, SYS_socket,
    SYS_socketpair, SYS_tgkill,
};
use seccompiler::{BackendError, SeccompRule};

use self::calls::Call;
use super::extent::Extent;
use crate::host::seccomp::{
    Filter, above_pinned, bits, equal, null, own_clock, pinned, pretend_missing, socket,
    socket_option, without,
};
use crate::spec::NetworkSpec;
use crate::state::dir::StateDir;

/// The parts of a box that need calls which other boxes do not make.
#[derive(Clone, Copy, Debug)]
pub(super) struct Needs<'a> {
    pub(super) network: &'a NetworkSpec,
    /// Whether the guest sees directories of the host: shares, or a shared root. libkrun's virtio-fs
    /// server then changes owners, modes, names and links for the guest.
    pub(super) has_directories: bool,
    /// Whether the log goes to the journal.
    pub(super) has_journal: bool,
    /// Addresses of the sockets of the box, to which the VMM connects.
    pub(super) sockets: &'a [PinnedAddress],
}

/// Why the layer cannot be applied.
#[derive(Debug, thiserror::Error)]
pub(super) enum SeccompError {
    #[error("cannot put the addresses of the box's sockets into memory that does not change")]
    Pin(#[source] io::Error),
    #[error(transparent)]
    Filter(#[from] seccompiler::Error),
}

impl From<BackendError> for SeccompError {
    fn from(error: BackendError) -> Self {
        Self::Filter(error.into())
    }
}

/// Pins the addresses of the sockets that the VMM connects to. A process can do this once.
pub(super) fn pin(state: &StateDir) -> Result<&'static [PinnedAddress], SeccompError> {
    let sockets = [state.control_socket(), state.agent_socket()];
    pinned_addresses::pin(&sockets.each_ref().map(PathBuf::as_path)).map_err(SeccompError::Pin)
}

/// Installs the filter, which cannot be removed again.
pub(super) fn install(mode: SeccompMode, needs: Needs<'_>) -> Result<Extent, SeccompError> {
    let filter = filter(needs)?;
    // The order is fixed: the second filter does not allow the call that installs another one.
    pretend_missing()?;
    filter.install(mode)?;
    Ok(match mode {
        SeccompMode::Enforce => Extent::Full,
        SeccompMode::Log => Extent::Partial("calls are logged, not refused"),
    })
}

fn filter(needs: Needs<'_>) -> Result<Filter, BackendError> {
    let mut filter = Filter::default();
    free_calls(needs).into_iter().flatten().for_each(|(call, _reason)| filter.allow(*call));
    allow_processes(&mut filter)?;
    allow_memory(&mut filter)?;
    allow_files(&mut filter, needs)?;
    allow_sockets(&mut filter, needs)?;
    Ok(filter)
}

/// Returns the lists of the calls whose arguments are free.
fn free_calls(needs: Needs<'_>) -> Vec<&'static [Call]> {
    let mut lists = calls::OF_EVERY_BOX.to_vec();
    if needs.has_directories {
        lists.push(&calls::DIRECTORIES);
    }
    if needs.has_journal || *needs.network == NetworkSpec::Tsi {
        lists.push(&calls::SENDTO);
    }
    match needs.network {
        NetworkSpec::None => {}
        NetworkSpec::Tsi => lists.push(&calls::TSI),
        NetworkSpec::Passt(_) => lists.push(&calls::PASST),
    }
    lists
}

/// Allows calls on memory, threads, clocks and this process.
fn allow_processes(filter: &mut Filter) -> Result<(), BackendError> {
    // CLONE_THREAD allows threads and excludes processes. It also excludes most namespaces, because
    // the kernel refuses to make them for a thread.
    let thread = u64::from(libc::CLONE_THREAD.unsigned_abs());
    filter.allow_if(SYS_clone, vec![bits(0, thread, thread)?]);
    // libkrun interrupts a virtual CPU by a signal to its thread.
    filter.allow_if(SYS_tgkill, vec![equal(0, std::process::id().into())?]);
    // glibc reads the limit of the stack. Another process of the same user could be killed by a
    // limit of its CPU time.
    filter.allow_if(SYS_prlimit64, vec![equal(0, 0)?]);
    // Timers, and clocks where the vDSO cannot read them.
    filter.allow_if(SYS_clock_gettime, vec![own_clock()?]);
    filter.allow_if(SYS_clock_nanosleep, vec![own_clock()?]);
    // The options read and set names of threads and of memory, and test for a capability.
    let options = [libc::PR_SET_NAME, libc::PR_GET_NAME, libc::PR_CAPBSET_READ, libc::PR_SET_VMA];
    filter.allow_if(SYS_prctl, one_of(0, options)?);
    Ok(())
}

/// Allows calls that map memory. None of them can make memory executable, because the VMM compiles
/// no code, and the guest kernel's library is loaded before. None of them can put other memory in
/// the place of the pinned addresses, which cannot be made writable either.
fn allow_memory(filter: &mut Filter) -> Result<(), BackendError> {
    let data = || without(2, libc::PROT_EXEC);
    filter.allow_if(SYS_mprotect, vec![SeccompRule::new(vec![data()?])?]);
    let unplaced = SeccompRule::new(vec![data()?, without(3, libc::MAP_FIXED)?])?;
    filter.allow_if(SYS_mmap, vec![unplaced, SeccompRule::new(vec![data()?, above_pinned(0)?])?]);
    filter.allow_if(SYS_munmap, vec![SeccompRule::new(vec![above_pinned(0)?])?]);
    let unplaced = SeccompRule::new(vec![above_pinned(0)?, without(3, libc::MREMAP_FIXED)?])?;
    let placed = SeccompRule::new(vec![above_pinned(0)?, above_pinned(4)?])?;
    filter.allow_if(SYS_mremap, vec![unplaced, placed]);
    Ok(())
}

/// Allows calls on open files, and files in memory.
fn allow_files(filter: &mut Filter, needs: Needs<'_>) -> Result<(), BackendError> {
    // Rust duplicates fds, and its debug builds ask whether an fd is open before they close it.
    // libkrun makes sockets and pipes non-blocking. fdopendir(3) of glibc, by which the files of a
    // guest are removed, sets the flag of its fd. Commands that have the kernel signal a process
    // (F_SETOWN) or hold up other processes (F_SETLEASE, locks) are excluded. So is flock(2): the shim
    // has taken its locks before, and a VMM that unlocked its ids or its box directory would let others
    // have them while it runs.
    let mut commands = one_of(1, [F_DUPFD_CLOEXEC, F_GETFD, F_GETFL, F_SETFD, F_SETFL])?;
    if needs.has_journal {
        // A record that is too long for a datagram is sent as a sealed file in memory
        // (`tracing-journald` 0.3.2).
        commands.push(equal(1, F_ADD_SEALS.unsigned_abs().into())?);
        let flags = u64::from(libc::MFD_ALLOW_SEALING | libc::MFD_CLOEXEC);
        filter.allow_if(SYS_memfd_create, vec![equal(1, flags)?]);
        let flags = u64::from(libc::MSG_NOSIGNAL.unsigned_abs());
        filter.allow_if(SYS_sendmsg, vec![equal(2, flags)?]);
    }
    filter.allow_if(SYS_fcntl, commands);
    let requests = [&requests::KVM[..], &requests::KVM_OF_ARCHITECTURE, &requests::OTHER].concat();
    let requests = requests.into_iter().map(|(_name, number)| equal(1, number));
    filter.allow_if(SYS_ioctl, requests.collect::<Result<_, _>>()?);
    Ok(())
}

/// Allows to make sockets and to use their options. A socket has the family, type and protocol that
/// the shim and libkrun ask for, which excludes netlink, by which networks are configured.
fn allow_sockets(filter: &mut Filter, needs: Needs<'_>) -> Result<(), BackendError> {
    let mut sockets = vec![socket(AF_UNIX, SOCK_STREAM)?];
    // tokio asks for the result of a connection.
    let mut options_read = vec![socket_option(libc::SO_ERROR)?];
    // libkrun connects the guest to the control socket, and the control thread connects to that of
    // the agent. A share may have other sockets. With TSI the addresses are those of the guest.
    // An empty list would allow every address.
    if *needs.network != NetworkSpec::Tsi && !needs.sockets.is_empty() {
        let sockets = needs.sockets.iter().map(pinned).collect::<Result<_, _>>()?;
        filter.allow_if(SYS_connect, sockets);
    }
    // The sockets are connected. Only records for the journal have an address.
    if *needs.network != NetworkSpec::Tsi && !needs.has_journal {
        filter.allow_if(SYS_sendto, vec![null(4)?]);
    }
    match needs.network {
        NetworkSpec::None => {}
        NetworkSpec::Tsi => {
            for family in [AF_INET, AF_INET6] {
                sockets.push(socket(family, SOCK_STREAM)?);
                sockets.push(socket(family, SOCK_DGRAM)?);
            }
            // A guest's socket may have to wait for the port of an earlier one
            // (`vsock/tsi_stream.rs`).
            filter.allow_if(SYS_setsockopt, vec![socket_option(libc::SO_REUSEPORT)?]);
        }
        NetworkSpec::Passt(_) => {
            // libkrun enlarges the buffer of the wire to the gate, and logs the sizes
            // (`net/unixstream.rs`).
            filter.allow_if(SYS_setsockopt, vec![socket_option(libc::SO_SNDBUF)?]);
            options_read.push(socket_option(libc::SO_SNDBUF)?);
            options_read.push(socket_option(libc::SO_RCVBUF)?);
        }
    }
    filter.allow_if(SYS_socket, sockets);
    filter.allow_if(SYS_getsockopt, options_read);
    // tokio's runtime makes a socket pair if a crate of the same build enables its feature
    // `signal`.
    filter.allow_if(SYS_socketpair, vec![socket(AF_UNIX, SOCK_STREAM)?]);
    Ok(())
}

/// Returns the rules that the argument at `index` is one of `values`.
fn one_of<const COUNT: usize>(
    index: u8,
    values: [i32; COUNT],
) -> Result<Vec<SeccompRule>, BackendError> {
    values.into_iter().map(|value| equal(index, value.unsigned_abs().into())).collect()
}

#[cfg(test)]
mod tests;
