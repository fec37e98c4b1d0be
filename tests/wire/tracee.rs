//! Makes a running process issue system calls, as code does that has taken the process over.
//!
//! The test stops the process with ptrace(2) and has it execute one `syscall` instruction of its own
//! after another, with registers and memory of the test's choice. The calls are those of the
//! process: its user, namespaces, Landlock domain and seccomp filters apply. This also works for
//! passt, which has no code of this project.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;

use libc::user_regs_struct;
use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// The instruction `syscall` of x86-64.
const SYSCALL: [u8; 2] = [0x0f, 0x05];

/// Bytes below the stack pointer that a function may use without moving it (System V ABI).
const RED_ZONE_BYTES: u64 = 128;

/// Size of the memory of the process that takes the arguments of its calls.
const SCRATCH_BYTES: u64 = 4096;

/// Why a call did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stopped {
    /// The call failed.
    Refused(Errno),
    /// The call ended the process. A filter of system calls does so with SIGSYS.
    Killed(Signal),
}

/// A process that the test has stopped. It goes on when this value is dropped, if it still lives.
pub(crate) struct Tracee {
    pid: Pid,
    memory: File,
    /// Registers at the stop.
    saved: user_regs_struct,
    /// Address of a `syscall` instruction.
    instruction: u64,
    /// End of the unused part of the scratch memory, which grows downwards.
    top: u64,
    is_alive: bool,
}

impl Tracee {
    /// Stops the main thread of a process.
    pub(crate) fn stop(pid: i32) -> Self {
        let pid = Pid::from_raw(pid);
        ptrace::seize(pid, Options::empty()).unwrap();
        ptrace::interrupt(pid).unwrap();
        waitpid(pid, Some(WaitPidFlag::__WALL)).unwrap();
        let saved = ptrace::getregs(pid).unwrap();
        let path = format!("/proc/{pid}/mem");
        let memory = OpenOptions::new().read(true).write(true).open(path).unwrap();
        let instruction = find_instruction(pid, &memory).unwrap();
        let top = (saved.rsp - RED_ZONE_BYTES) & !0xf;
        Self { pid, memory, saved, instruction, top, is_alive: true }
    }

    /// Copies bytes into the memory of the process, and returns their address.
    pub(crate) fn put(&mut self, bytes: &[u8]) -> i64 {
        self.top = (self.top - u64::try_from(bytes.len()).unwrap()) & !0xf;
        let used = self.saved.rsp - RED_ZONE_BYTES - self.top;
        assert!(used <= SCRATCH_BYTES, "the arguments of the calls have {used} bytes");
        self.memory.write_all_at(bytes, self.top).unwrap();
        self.top.cast_signed()
    }

    /// Copies text with a NUL at its end, as [`Tracee::put`] does.
    pub(crate) fn put_text(&mut self, text: &str) -> i64 {
        self.put(format!("{text}\0").as_bytes())
    }

    /// Returns bytes of the memory of the process.
    pub(crate) fn get<const COUNT: usize>(&self, address: i64) -> [u8; COUNT] {
        let mut bytes = [0; COUNT];
        self.memory.read_exact_at(&mut bytes, address.cast_unsigned()).unwrap();
        bytes
    }

    /// Has the process make a system call, and returns its result.
    pub(crate) fn call<const COUNT: usize>(
        &mut self,
        number: i64,
        arguments: [i64; COUNT],
    ) -> Result<i64, Stopped> {
        let argument = |i: usize| arguments.get(i).map_or(0, |argument| argument.cast_unsigned());
        let mut registers = self.saved;
        registers.rax = number.cast_unsigned();
        // Otherwise the kernel would restart the call that the stop has interrupted.
        registers.orig_rax = u64::MAX;
        [registers.rdi, registers.rsi, registers.rdx] = [argument(0), argument(1), argument(2)];
        [registers.r10, registers.r8, registers.r9] = [argument(3), argument(4), argument(5)];
        registers.rip = self.instruction;
        ptrace::setregs(self.pid, registers).unwrap();
        self.step()?;
        let value = ptrace::getregs(self.pid).unwrap().rax.cast_signed();
        // The kernel returns errors as small negative numbers (`MAX_ERRNO` of `linux/err.h`).
        match i32::try_from(value) {
            Ok(error @ -4095..0) => Err(Stopped::Refused(Errno::from_raw(-error))),
            _ => Ok(value),
        }
    }

    /// Executes one instruction. Signals that arrive meanwhile are dropped.
    fn step(&mut self) -> Result<(), Stopped> {
        loop {
            ptrace::step(self.pid, None).unwrap();
            match waitpid(self.pid, Some(WaitPidFlag::__WALL)).unwrap() {
                WaitStatus::Stopped(_, Signal::SIGTRAP) => return Ok(()),
                WaitStatus::Signaled(_, signal, _) => {
                    self.is_alive = false;
                    return Err(Stopped::Killed(signal));
                }
                WaitStatus::Exited(_, status) => panic!("the process exited with {status}"),
                _ => {}
            }
        }
    }
}

impl Drop for Tracee {
    fn drop(&mut self) {
        if self.is_alive {
            // The process may have been killed from outside since its last call.
            let _set = ptrace::setregs(self.pid, self.saved);
            let _detached = ptrace::detach(self.pid, None);
        }
    }
}

/// Finds a `syscall` instruction in the executable memory of a process.
fn find_instruction(pid: Pid, memory: &File) -> io::Result<u64> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    for line in maps.lines().filter(|line| line.split(' ').nth(1).unwrap().contains('x')) {
        let (start, rest) = line.split_once('-').unwrap();
        let [start, end] = [start, rest.split(' ').next().unwrap()]
            .map(|address| u64::from_str_radix(address, 16).unwrap());
        let mut bytes = vec![0; usize::try_from(end - start).unwrap()];
        // The page of the old vsyscalls cannot be read.
        if memory.read_exact_at(&mut bytes, start).is_err() {
            continue;
        }
        if let Some(offset) = bytes.windows(2).position(|window| window == SYSCALL) {
            return Ok(start + u64::try_from(offset).unwrap());
        }
    }
    Err(io::ErrorKind::NotFound.into())
}
