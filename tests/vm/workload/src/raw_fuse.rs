//! Sends FUSE requests to a virtio-fs device that no Linux kernel sends.
//!
//! The module drives the device itself, because the guest kernel passes on no name with a slash or
//! `..`. Root of a guest can access the registers of the device with busybox's `devmem`, and can
//! read the physical addresses of its own memory from `/proc/self/pagemap`. The guest kernel stays
//! unmodified.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::attempts::{attempt, print_line};

const PAGE_BYTES: u64 = 4096;

/// Device id of a file system (virtio 1.2, section 5).
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
/// Registers for the addresses of the descriptor table, the available ring and the used ring. Each
/// address takes two registers of 32 bits, the low one first.
const QUEUE_ADDRESSES: [u64; 3] = [0x80, 0x90, 0xa0];
const CONFIG: u64 = 0x100;

/// Offsets in the page: the three parts of the queue, in the order of [`QUEUE_ADDRESSES`], the
/// request, and its answer.
const PLACES: [u64; 3] = [0, 0x100, 0x200];
const REQUEST: u64 = 0x400;
const ANSWER: u64 = 0x800;
const ANSWER_BYTES: u32 = 0x800;

/// Index of the request queue. Queue 0 is for high-priority requests (virtio 1.2, section 5.11.2).
const REQUESTS: u32 = 1;

/// Number of descriptors in the queue.
const ENTRIES: u16 = 8;

/// Longest time to wait for an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Opcodes, flags of `fuse_setattr_in.valid`, and the node id of the root (linux/fuse.h).
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

/// A virtio-fs device that this process drives.
struct Device {
    /// Physical address of the registers.
    registers: u64,
    /// `/proc/self/mem`, by which the page is read and written without `unsafe` code.
    memory: File,
    /// Virtual address of the page with the queue.
    page: u64,
    /// Physical address of the page.
    physical: u64,
    /// Number of requests so far.
    sent: u16,
    /// Owns the memory of the page.
    _memory: Vec<u8>,
}

/// Makes all attempts. `value` is `TAG,CANARY`: the tag of a device whose file system is unmounted,
/// and the path of a file on the host beside the shared directory.
pub(crate) fn try_all(value: &str) -> Result<()> {
    let (tag, canary) = value.split_once(',').context("TAG,CANARY")?;
    let mut device = Device::take(tag)?;
    print_line(&format!("has taken {tag}"));
    // FUSE version 7.38, no read-ahead, no flags.
    let init = numbers(&[7, 38, 0, 0]);
    device.request(INIT, ROOT, &init).context("FUSE_INIT")?;
    let own = device.look_up("inside")?;
    // Without this, a device that answers no request at all would look safe.
    read_file(&mut device, own).context("an honest request")?;
    let up = "../".repeat(40);
    let canaries = ["../canary", &format!("{up}{canary}"), canary];
    for (i, name) in canaries.into_iter().enumerate() {
        let label = format!("{tag}/{i}");
        if let Some(node) = device.reach(&label, name) {
            device.change(&label, node);
        }
    }
    // These exist on every host, but must not exist in the root of the confined shim.
    for name in ["/etc/passwd", "/proc/1/environ", "/proc/self/root/etc/passwd"] {
        device.reach(&format!("{tag}{name}"), name);
    }
    let beside = canary.strip_suffix("canary").context("the canary's directory")?;
    device.change_beside(tag, &format!("{up}{beside}"));
    Ok(())
}

impl Device {
    /// Resets the device and starts it with a queue of this process (virtio 1.2, section 3.1.1).
    fn take(tag: &str) -> Result<Self> {
        let registers = find(tag)?;
        // Two pages always contain a whole aligned one. Ones, not zeros, make the allocator touch
        // the memory, so that the page has a physical address.
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
        // The status bits are reset, ACKNOWLEDGE, and DRIVER. FEATURES_OK and DRIVER_OK follow.
        device.set(STATUS, 0)?;
        device.set(STATUS, 1)?;
        device.set(STATUS, 3)?;
        // VIRTIO_F_VERSION_1 is bit 32, the first bit of the second word.
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

    /// Writes a register.
    fn set(&self, offset: u64, value: u32) -> Result<()> {
        register(self.registers + offset, Some(value)).map(drop)
    }

    /// Writes to the page.
    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.memory.write_all_at(bytes, self.page + offset)
    }

    /// Reads from the page.
    fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.memory.read_exact_at(bytes, self.page + offset)
    }

    /// Sends one request as root of the guest and returns its answer without the header.
    fn request(&mut self, opcode: u32, node: u64, body: &[u8]) -> io::Result<Vec<u8>> {
        // fuse_in_header has 40 bytes: length, opcode, unique id, node, and zeros for uid, gid and
        // pid.
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
            // Flags: VIRTQ_DESC_F_NEXT (1) for the request, VIRTQ_DESC_F_WRITE (2) for the answer.
            // The next descriptor is number 1.
            descriptor.extend(flags.to_le_bytes());
            descriptor.extend(1_u16.to_le_bytes());
            self.write(PLACES[0] + 16 * i as u64, &descriptor)?;
        }
        // The available ring gets the head of the chain, descriptor 0, and then its new index.
        self.write(PLACES[1] + 4 + 2 * u64::from(self.sent % ENTRIES), &[0, 0])?;
        self.sent = self.sent.wrapping_add(1);
        self.write(PLACES[1] + 2, &self.sent.to_le_bytes())?;
        self.set(QUEUE_NOTIFY, REQUESTS).map_err(io::Error::other)?;
        self.answer()
    }

    /// Waits until the used ring has the answer of the last request and returns it without the
    /// header. An errno in the answer becomes an error.
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
        // fuse_out_header has 16 bytes. The second field is the negated errno.
        match i32::from_le_bytes(answer[4..8].try_into().unwrap_or_default()) {
            0 => Ok(answer.split_off(16)),
            error => Err(io::Error::from_raw_os_error(-error)),
        }
    }

    /// Looks up a name in the root of the share and returns its node id.
    fn look_up(&mut self, name: &str) -> io::Result<u64> {
        let entry = self.request(LOOKUP, ROOT, &text(name))?;
        Ok(number(&entry))
    }

    /// Attempts to look up a name outside of the share, and to read the file if that succeeds.
    /// Returns its node id.
    fn reach(&mut self, label: &str, name: &str) -> Option<u64> {
        let found = self.look_up(name);
        let node = found.as_ref().ok().copied();
        attempt(&format!("raw-lookup/{label}"), found);
        let node = node?;
        attempt(&format!("raw-getattr/{label}"), self.request(GETATTR, node, &[0; 16]));
        attempt(&format!("raw-read/{label}"), read_file(self, node));
        attempt(&format!("raw-opendir/{label}"), self.request(OPENDIR, node, &[0; 8]));
        Some(node)
    }

    /// Attempts to change a file by its node id in every way.
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

    /// Attempts to make, move and remove files in `directory`, the parent of the share on the host.
    fn change_beside(&mut self, tag: &str, directory: &str) {
        let beside = |name: &str| text(&format!("{directory}{name}"));
        // 0o101 is O_WRONLY | O_CREAT.
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

/// Opens a file, reads from it and prints its content, in which the test looks for the secret.
fn read_file(device: &mut Device, node: u64) -> io::Result<()> {
    let handle = number(&device.request(OPEN, node, &numbers(&[0, 0]))?);
    let mut read = [handle.to_le_bytes(), 0_u64.to_le_bytes()].concat();
    read.extend(numbers(&[1024, 0, 0, 0, 0, 0]));
    let content = device.request(READ, node, &read)?;
    let end = content.iter().position(|&byte| byte == 0).unwrap_or(content.len());
    print_line(&format!("content {}", String::from_utf8_lossy(&content[..end])));
    Ok(())
}

/// Returns the physical address of the registers of the virtio-fs device with this tag.
fn find(tag: &str) -> Result<u64> {
    let map = std::fs::read_to_string("/proc/iomem")?;
    for line in map.lines().filter(|line| line.contains("virtio")) {
        let start = line.trim().split('-').next().unwrap_or_default();
        let registers = u64::from_str_radix(start, 16)?;
        if register(registers + DEVICE_ID, None)? != FILE_SYSTEM {
            continue;
        }
        // The config space begins with the tag, padded with zeros to 36 bytes.
        let words = (0..9).map(|i| register(registers + CONFIG + 4 * i, None));
        let bytes: Vec<u8> =
            words.collect::<Result<Vec<u32>>>()?.into_iter().flat_map(u32::to_le_bytes).collect();
        if bytes.split(|&byte| byte == 0).next() == Some(tag.as_bytes()) {
            return Ok(registers);
        }
    }
    anyhow::bail!("no file system `{tag}` in {map}")
}

/// Writes `value` to a register, or reads the register if there is none. A write returns 0.
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

/// Returns the physical address of a page of this process.
///
/// An entry of `pagemap` has 8 bytes. Its low 55 bits are the page frame number
/// (Documentation/admin-guide/mm/pagemap.rst).
fn physical(page: u64) -> Result<u64> {
    let mut entry = [0; 8];
    File::open("/proc/self/pagemap")?.read_exact_at(&mut entry, page / PAGE_BYTES * 8)?;
    let frame = u64::from_le_bytes(entry) & ((1 << 55) - 1);
    ensure!(frame != 0, "the kernel hides physical addresses");
    Ok(frame * PAGE_BYTES)
}

/// Returns a string with a terminating zero byte.
fn text(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

/// Returns the bytes of little-endian numbers.
fn numbers(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

/// Returns the first 8 bytes of an answer as a number: a node id or a file handle.
fn number(answer: &[u8]) -> u64 {
    u64::from_le_bytes(answer[..8].try_into().unwrap_or_default())
}
