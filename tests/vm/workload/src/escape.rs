//! Attempts to reach files of the host outside of a writable share by links, races and unusual
//! files, through the unmodified guest kernel.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, chmodat, makedev, mkdirat, mknodat, openat,
    renameat_with,
};

use crate::attempts::{attempt, print_line};

/// Duration of a race between two threads.
const RACE: Duration = Duration::from_secs(3);

/// Number of nested directories.
const DEPTH: usize = 64;

/// Makes all attempts from the shares `own` and `other`. `canary` is the path of a file on the host
/// beside the two directories.
pub(crate) fn try_all(own: &Path, other: &Path, canary: &Path) -> Result<()> {
    fs::write(own.join("file"), "of the guest")?;
    follow_links(own, canary)?;
    attempt("link-across", fs::hard_link(own.join("file"), other.join("linked")));
    attempt("link-root-file", fs::hard_link("/etc/passwd", own.join("linked")));
    attempt("rename-across", fs::rename(own.join("file"), other.join("renamed")));
    race(own, canary)?;
    make_devices(own);
    leave_odd_files(own)?;
    Ok(())
}

/// Attempts to read the canary through symbolic links and paths.
///
/// The guest kernel resolves all of them in the guest, so they must lead to no file of the host.
fn follow_links(own: &Path, canary: &Path) -> Result<()> {
    let up = "../".repeat(40);
    let relative = format!("{up}{}", canary.display());
    let targets = [
        ("absolute", canary.display().to_string()),
        ("relative", relative.clone()),
        ("proc-root", format!("/proc/self/root/{relative}")),
        ("sibling", "../canary".to_owned()),
    ];
    for (name, target) in targets {
        let link = own.join(name);
        symlink(&target, &link)?;
        attempt(&format!("symlink-{name}"), fs::read(&link));
        // The same by a link to the link.
        symlink(&link, own.join(format!("{name}-again")))?;
        attempt(&format!("symlink-{name}-again"), fs::read(own.join(format!("{name}-again"))));
        attempt(&format!("path-{name}"), fs::read(own.join(target)));
    }
    Ok(())
}

/// Swaps a directory with a link to the canary's directory in one thread, while another thread
/// opens a file below that name.
///
/// A server that resolves a path in several steps could follow the link between two of them.
fn race(own: &Path, canary: &Path) -> Result<()> {
    let (directory, link) = (own.join("swapped"), own.join("swapping"));
    let (parent, name) = canary.parent().zip(canary.file_name()).context("a path of a file")?;
    fs::create_dir(&directory)?;
    fs::write(directory.join(name), "of the guest")?;
    symlink(parent, &link)?;
    let is_over = AtomicBool::new(false);
    let (mut opened, mut missed, mut reached) = (0_u32, 0_u32, 0_u32);
    std::thread::scope(|scope| {
        let swapper = scope.spawn(|| {
            let mut swaps = 0_u32;
            while !is_over.load(Ordering::Relaxed) {
                let swap = renameat_with(CWD, &directory, CWD, &link, RenameFlags::EXCHANGE);
                swaps += u32::from(swap.is_ok());
            }
            swaps
        });
        let start = Instant::now();
        while start.elapsed() < RACE {
            match fs::read(directory.join(name)) {
                Ok(content) if content == b"of the guest" => opened += 1,
                Ok(_) => reached += 1,
                Err(_) => missed += 1,
            }
        }
        is_over.store(true, Ordering::Relaxed);
        print_line(&format!("swaps {}", swapper.join().unwrap_or(0)));
    });
    print_line(&format!("race opened {opened} missed {missed}"));
    // ENOENT stands for a race that was never won.
    let outcome = if reached == 0 { Err(io::Error::from_raw_os_error(2)) } else { Ok(()) };
    attempt("race", outcome);
    Ok(())
}

/// Attempts to make device nodes, which would give access to devices of the host if they existed on
/// the host.
fn make_devices(own: &Path) {
    let devices = [
        ("memory", FileType::CharacterDevice, makedev(1, 1)),
        ("kernel-log", FileType::CharacterDevice, makedev(1, 11)),
        ("kvm", FileType::CharacterDevice, makedev(10, 232)),
        ("disk", FileType::BlockDevice, makedev(254, 0)),
    ];
    for (name, kind, device) in devices {
        let made = mknodat(CWD, own.join(name), kind, Mode::RWXU | Mode::RWXO, device);
        attempt(&format!("mknod-{name}"), made.map_err(io::Error::from));
    }
}

/// Makes unusual files, which are allowed. The test then checks on the host that they are harmless.
fn leave_odd_files(own: &Path) -> Result<()> {
    fs::write(own.join("setuid"), "#!/bin/sh\n")?;
    chmodat(CWD, own.join("setuid"), Mode::from_raw_mode(0o6755), AtFlags::empty())?;
    mknodat(CWD, own.join("fifo"), FileType::Fifo, Mode::RUSR, 0)?;
    drop(UnixListener::bind(own.join("socket"))?);
    mknodat(CWD, own.join("whiteout"), FileType::CharacterDevice, Mode::RUSR, makedev(0, 0))?;
    File::create(own.join(OsStr::from_bytes(b"\x1b[2J\n\xff")))?;
    File::create(own.join("n".repeat(255)))?;
    attempt("name-of-256", File::create(own.join("n".repeat(256))));
    attempt("path-of-5000", File::open(own.join("x/".repeat(2500))));
    let mut directory = openat(CWD, own, OFlags::DIRECTORY, Mode::empty())?;
    for _ in 0..DEPTH {
        mkdirat(&directory, "deep", Mode::RWXU)?;
        directory = openat(&directory, "deep", OFlags::DIRECTORY, Mode::empty())?;
    }
    drop(openat(&directory, "deepest", OFlags::CREATE | OFlags::WRONLY, Mode::RWXU)?);
    print_line("odd files are made");
    Ok(())
}
