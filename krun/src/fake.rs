//! A replacement of libkrun for tests. It runs no VM: a process, the fake guest, plays the guest.
//!
//! The functions have libkrun's signatures and record their arguments. The fake guest is the
//! program named by the environment variable `A3S_BOX_FAKE_GUEST`. It starts when the guest kernel
//! would be loaded, because a shim cannot start a process once it has confined itself.
//! `krun_start_enter` sends the recorded arguments to its standard input:
//!
//! ```text
//! VSOCK_<port>=<socket path>     one line for each vsock port
//! DISK_<id>=<path>               one line for each disk, in order
//! CONFIG_BYTES=<n>
//!                                an empty line
//! <n bytes>                      the content of the last overlay file
//! ```
//!
//! Standard output and standard error of the fake guest are the console ports. Its standard input
//! stays open for as long as the shim lives, so the fake guest can exit at the end of its input.
//! `krun_start_enter` opens the disks first, and fails with EINVAL if it cannot, as libkrun does.
//! It also writes a line to fd 1 of the shim, as a library that prints would, and
//! then ends as libkrun would:
//!
//! | the fake guest | the shim |
//! |---|---|
//! | exits with status n | calls `_exit(n)` |
//! | is killed by a signal | calls `abort()`, as a worker thread of libkrun that panics |
//!
//! If `A3S_BOX_FAKE_PROBE` is set, the shim itself makes an attempt to break out ([`probe`]).

mod acts;
mod probe;
mod recorded;

use std::ffi::{CStr, c_char, c_int};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;

pub use self::acts::act;
use self::recorded::{RECORDED, Recorded, RecordedDisk, RecordedShare, record};
use crate::KrunError;
use crate::disk::DISK_FORMAT_VMDK;

pub(crate) extern "C" fn krun_create_ctx() -> i32 {
    record(|_| {})
}

pub(crate) extern "C" fn krun_get_max_vcpus() -> i32 {
    16
}

pub(crate) extern "C" fn krun_set_vm_config(_ctx: u32, _vcpus: u8, _mib: u32) -> i32 {
    0
}

pub(crate) extern "C" fn krun_disable_implicit_init(_ctx: u32) -> i32 {
    0
}

pub(crate) unsafe extern "C" fn krun_add_virtiofs4(
    _ctx: u32,
    tag: *const c_char,
    path: *const c_char,
    _shm_bytes: u64,
    read_only: bool,
    semantics: u32,
) -> i32 {
    // SAFETY: libkrun's contract requires a string that ends in NUL and outlives the call.
    // `Vm::add_virtiofs` passes a pointer to a live `CString`.
    let tag = unsafe { CStr::from_ptr(tag) };
    // The root is no share, so the probe must not find it among the shares. Its path is null if it
    // has no directory of the host.
    if tag == c"/dev/root" {
        return 0;
    }
    if path.is_null() {
        return -libc::EINVAL;
    }
    // SAFETY: the path is not null, and thus a live `CString` of `Vm::add_virtiofs` as well.
    let path = unsafe { CStr::from_ptr(path) }.to_string_lossy().into_owned();
    record(|recorded| recorded.shares.push(RecordedShare { path, read_only, semantics }))
}

pub(crate) unsafe extern "C" fn krun_fs_add_overlay_file(
    _ctx: u32,
    _tag: *const c_char,
    _path: *const c_char,
    data: *const u8,
    length: usize,
    _mode: u32,
    _one_shot: bool,
) -> i32 {
    // SAFETY: libkrun's contract requires a buffer of `length` bytes. `Vm::add_overlay_file` passes
    // pointer and length of one slice that is never freed.
    let content = unsafe { std::slice::from_raw_parts(data, length) };
    record(|recorded| recorded.config = content.to_vec())
}

pub(crate) unsafe extern "C" fn krun_fs_add_overlay_dir(
    _ctx: u32,
    _tag: *const c_char,
    _path: *const c_char,
    _mode: u32,
) -> i32 {
    0
}

pub(crate) unsafe extern "C" fn krun_add_disk3(
    _ctx: u32,
    id: *const c_char,
    path: *const c_char,
    format: u32,
    read_only: bool,
    _direct_io: bool,
    _sync_mode: u32,
) -> i32 {
    // SAFETY: libkrun's contract requires a string that ends in NUL and outlives the call.
    // `Vm::add_disk` passes a pointer to a live `CString`.
    let id = unsafe { CStr::from_ptr(id) }.to_string_lossy().into_owned();
    // SAFETY: the path is a live `CString` of `Vm::add_disk` as well.
    let path = unsafe { CStr::from_ptr(path) }.to_string_lossy().into_owned();
    record(|recorded| recorded.disks.push(RecordedDisk { id, path, format, read_only }))
}

pub(crate) extern "C" fn krun_disable_implicit_vsock(_ctx: u32) -> i32 {
    0
}

pub(crate) extern "C" fn krun_add_vsock(_ctx: u32, _tsi: u32) -> i32 {
    0
}

pub(crate) unsafe extern "C" fn krun_add_vsock_port2(
    _ctx: u32,
    port: u32,
    path: *const c_char,
    _listen: bool,
) -> i32 {
    // SAFETY: libkrun's contract requires a string that ends in NUL and outlives the call.
    // `Vm::add_vsock_port` passes a pointer to a live `CString`.
    let path = unsafe { CStr::from_ptr(path) }.to_string_lossy().into_owned();
    record(|recorded| recorded.ports.push((format!("VSOCK_{port}"), path)))
}

pub(crate) unsafe extern "C" fn krun_add_net_unixstream(
    _ctx: u32,
    _path: *const c_char,
    socket: c_int,
    _mac: *const u8,
    _features: u32,
    _flags: u32,
) -> i32 {
    // The fd stays open until the process ends, as it does with libkrun. The peer would otherwise
    // see the end of the VM too early.
    if socket < 0 { -libc::EINVAL } else { 0 }
}

pub(crate) extern "C" fn krun_disable_implicit_console(_ctx: u32) -> i32 {
    0
}

pub(crate) unsafe extern "C" fn krun_add_virtio_console_default(
    _ctx: u32,
    _input: c_int,
    output: c_int,
    error: c_int,
) -> i32 {
    let duplicate = |fd| {
        // SAFETY: the fd must stay open during the borrow. `Vm::configure` has given up its
        // ownership, so no code closes it.
        unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned()
    };
    match (duplicate(output), duplicate(error)) {
        (Ok(output), Ok(error)) => record(|recorded| recorded.console = Some((output, error))),
        _ => -libc::EBADF,
    }
}

static GUEST: Mutex<Option<Child>> = Mutex::new(None);

/// Starts the fake guest, if the environment names one.
///
/// # Errors
///
/// [`KrunError::FakeGuest`] if the program cannot be started.
pub(crate) fn start_guest() -> Result<(), KrunError> {
    let Some(program) = std::env::var_os("A3S_BOX_FAKE_GUEST") else { return Ok(()) };
    let mut command = Command::new(&program);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let guest = command.spawn().map_err(|source| {
        let program = program.to_string_lossy().into_owned();
        KrunError::FakeGuest { program, source }
    })?;
    GUEST.lock().unwrap_or_else(PoisonError::into_inner).replace(guest);
    Ok(())
}

pub(crate) extern "C" fn krun_start_enter(_ctx: u32) -> i32 {
    if let Some(name) = std::env::var_os("A3S_BOX_FAKE_PROBE") {
        probe::run(&name.to_string_lossy());
    }
    let recorded = RECORDED.lock().unwrap_or_else(PoisonError::into_inner).take();
    let guest = GUEST.lock().unwrap_or_else(PoisonError::into_inner).take();
    let (Some(recorded), Some(mut guest)) = (recorded, guest) else { return -libc::ENOENT };
    // The files stay open for as long as the VM runs, as they do with libkrun.
    let Ok(_disks) = recorded.disks.iter().map(open_disk).collect::<io::Result<Vec<_>>>() else {
        return -libc::EINVAL;
    };
    let noise = b"a library prints to standard output\n";
    // SAFETY: `write(2)` reads `noise.len()` bytes at the pointer, which is what the array has. The
    // result is ignored because the tests check the line where it arrives.
    unsafe { libc::write(libc::STDOUT_FILENO, noise.as_ptr().cast(), noise.len()) };
    // libkrun's workers log from threads of their own, so the log must accept lines from any
    // thread.
    let worker = std::thread::spawn(|| log::info!(target: "krun_devices::fake", "a worker logs"));
    // The thread only logs, so its result holds nothing.
    let _joined = worker.join();
    // The write end stays open in this process, so the fake guest reads the end of its input
    // exactly when the process ends.
    let stdin = guest.stdin.take();
    if let Some(mut stdin) = stdin.as_ref() {
        // Some tests have a fake guest that exits before it reads its config, which makes these
        // writes fail.
        let _ignored = stdin.write_all(header(&recorded).as_bytes());
        let _ignored = stdin.write_all(&recorded.config);
    }
    if let Some((output, error)) = recorded.console {
        relay(&mut guest, output, error);
    }
    match guest.wait().map(|status| status.code()) {
        // SAFETY: `_exit` takes a number, accesses no memory of the caller and does not return.
        Ok(Some(code)) => unsafe { libc::_exit(code) },
        Ok(None) => std::process::abort(),
        Err(_) => -libc::EINVAL,
    }
}

/// Opens the file of a disk, and the files that a VMDK names.
fn open_disk(disk: &RecordedDisk) -> io::Result<Vec<File>> {
    let mut file = OpenOptions::new().read(true).write(!disk.read_only).open(&disk.path)?;
    let mut text = String::new();
    if disk.format == DISK_FORMAT_VMDK {
        file.read_to_string(&mut text)?;
    }
    let parts = text.lines().filter_map(|line| line.split('"').nth(1)).map(File::open);
    [Ok(file)].into_iter().chain(parts).collect()
}

/// Returns the lines before the config, with the empty line at their end.
fn header(recorded: &Recorded) -> String {
    let ports = recorded.ports.iter().map(|(name, path)| format!("{name}={path}\n"));
    let disks = recorded.disks.iter().map(|disk| format!("DISK_{}={}\n", disk.id, disk.path));
    let lines: String = ports.chain(disks).collect();
    format!("{lines}CONFIG_BYTES={}\n\n", recorded.config.len())
}

/// Copies the fake guest's output to the console ports until both of its pipes are closed.
fn relay(guest: &mut Child, output: OwnedFd, error: OwnedFd) {
    let stdout = guest.stdout.take().map(|from| copy(from, output));
    let stderr = guest.stderr.take().map(|from| copy(from, error));
    for thread in [stdout, stderr].into_iter().flatten() {
        // A thread that failed has lost output. The tests compare the output, so they see it.
        let _joined = thread.join();
    }
}

fn copy(mut from: impl Read + Send + 'static, to: OwnedFd) -> JoinHandle<io::Result<u64>> {
    let mut to = File::from(to);
    std::thread::spawn(move || {
        // `io::copy` would call `splice(2)`, which the shim's seccomp filter does not allow.
        let (mut buffer, mut copied) = (vec![0; 64 * 1024], 0);
        loop {
            let count = from.read(&mut buffer)?;
            if count == 0 {
                return Ok(copied);
            }
            to.write_all(buffer.get(..count).unwrap_or_default())?;
            copied += count as u64;
        }
    })
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::guest_kernel::GuestKernel;
    use crate::{
        Access, BlockRoot, Connect, Disk, DiskFormat, Machine, OverlayFile, Root, Share,
        ShareCache, SyncMode, Vm, VsockPort,
    };

    fn machine(disks: Vec<Disk>) -> Machine {
        let null = || File::open("/dev/null").unwrap().into();
        Machine {
            vcpus: 1,
            memory_mib: 128,
            root: Root::Block(BlockRoot { mount_points: vec!["root".into()], disks }),
            overlay_files: vec![OverlayFile {
                name: "config".into(),
                content: b"12345".to_vec().into(),
                permissions: 0o600,
                one_shot: true,
            }],
            shares: [ShareCache::None, ShareCache::Auto]
                .into_iter()
                .map(|cache| Share {
                    tag: format!("{cache:?}"),
                    path: "/usr".into(),
                    access: Access::ReadOnly,
                    cache,
                })
                .collect(),
            vsock_ports: vec![VsockPort {
                port: 1,
                socket: "/socket".into(),
                connect: Connect::FromGuest,
            }],
            net: None,
            tsi: false,
            stdout: null(),
            stderr: null(),
        }
    }

    #[test]
    fn fake_guest_reads_the_disks_of_a_block_root_in_order() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(512).unwrap();
        let disk = |id: &str, access| Disk {
            id: id.into(),
            file: PathBuf::from(file.path()),
            format: DiskFormat::Raw,
            access,
            sync: SyncMode::None,
            direct_io: false,
        };
        let disks = vec![disk("upper", Access::ReadWrite), disk("lower", Access::ReadOnly)];
        let kernel = GuestKernel::load(None, Path::new("/shim")).unwrap();
        Vm::configure(machine(disks), &kernel).unwrap();
        let recorded = RECORDED.lock().unwrap().take().unwrap();
        let path = file.path().display();
        assert_eq!(
            header(&recorded),
            format!("VSOCK_1=/socket\nDISK_upper={path}\nDISK_lower={path}\nCONFIG_BYTES=5\n\n")
        );
        // The values of `enum PermissionSemantics` of libkrun.
        assert_eq!(recorded.shares.iter().map(|s| s.semantics).collect::<Vec<_>>(), [1, 0]);
        assert_eq!(recorded.disks.iter().map(|d| d.read_only).collect::<Vec<_>>(), [false, true]);
        drop(file);
        open_disk(&recorded.disks[0]).unwrap_err();
    }
}
