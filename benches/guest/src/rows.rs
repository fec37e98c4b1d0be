//! The rows of the benchmark, in the order in which they run.
//!
//! A row is *cold* if nothing before it in this boot has used the same files. Rows that must not warm
//! each other's files use different directories of the image (`benches/guest/image`).

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Result;

/// A file of 64 MiB in a layer of the image.
pub const SEQUENTIAL: &str = "/bench/sequential";

/// Another one, for random reads.
const RANDOM: &str = "/bench/random";

/// An archive of small files in a layer of the image.
const ARCHIVE: &str = "/bench/archive.tar";

/// The directory into which the rows write. It is on the root file system.
const WRITES: &str = "/bench/writes";

/// The tree of the row `find`. No other row uses it.
const FOUND_TREE: &str = "/usr/lib/python3/dist-packages/sympy";

/// The names of the files whose metadata the row `lstat` reads, one a line. No other row uses them.
const NAMES: &str = "/bench/names";

/// Modules of the standard library and of Django, which load some 600 more.
const IMPORTS: &str = "import asyncio, concurrent.futures, csv, email.mime.text, http.server, json, \
    logging.config, multiprocessing, sqlite3, ssl, unittest, urllib.request, xml.dom.minidom, \
    xmlrpc.client, zipfile; import django.core.handlers.wsgi, django.db.models, django.forms";

/// A library of Node.js with 90 files.
const REQUIRE: &str = "require('/usr/share/nodejs/undici')";

const SMALL_FILES: usize = 200;
const SMALL_BYTES: usize = 3000;
const WRITTEN_MIB: usize = 64;
const SYNCS: usize = 100;
const RANDOM_READS: u64 = 2000;
const BLOCK: usize = 4096;

/// The function of a row.
type Row = fn() -> Result<()>;

/// Names and functions of all rows.
pub const ROWS: [(&str, Row); 15] = [
    ("find, cold", find),
    ("find, again", find),
    ("lstat of 500 files, cold", lstat),
    ("lstat of 500 files, again", lstat),
    ("Python imports, cold", python),
    ("Python imports, again", python),
    ("Node.js, cold", node),
    ("Node.js, again", node),
    ("create 200 small files", create),
    ("unpack an archive", untar),
    ("read 64 MiB, cold", read),
    ("read 64 MiB, again", read),
    ("write 64 MiB", write),
    ("100 times write 4 KiB and fsync", sync),
    ("2,000 random reads of 4 KiB", random_reads),
];

/// Waits until the writes of the row before are done, so that the next row does not pay for them.
pub fn settle() -> Result<()> {
    run(&mut Command::new("sync"))?;
    fs::create_dir_all(WRITES)?;
    Ok(())
}

/// Lists all directories of a tree, as `find` does.
fn find() -> Result<()> {
    let mut directories = vec![PathBuf::from(FOUND_TREE)];
    let mut found = 0;
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            found += 1;
            if entry.file_type()?.is_dir() {
                directories.push(entry.path());
            }
        }
    }
    at_least(found, 1000, "entries in the tree of `find`")
}

/// Reads the metadata of files whose names are known.
fn lstat() -> Result<()> {
    let names = fs::read_to_string(NAMES)?;
    for name in names.lines() {
        fs::symlink_metadata(name)?;
    }
    at_least(names.lines().count(), 500, "names of files")
}

fn python() -> Result<()> {
    run(Command::new("python3").args(["-c", IMPORTS]))
}

fn node() -> Result<()> {
    run(Command::new("node").args(["-e", REQUIRE]))
}

fn create() -> Result<()> {
    let directory = Path::new(WRITES).join("small");
    fs::create_dir(&directory)?;
    for number in 0..SMALL_FILES {
        fs::write(directory.join(number.to_string()), [b'x'; SMALL_BYTES])?;
    }
    Ok(())
}

fn untar() -> Result<()> {
    let directory = Path::new(WRITES).join("unpacked");
    fs::create_dir(&directory)?;
    run(Command::new("tar").args(["-xf", ARCHIVE, "-C"]).arg(directory))
}

fn read() -> Result<()> {
    let mut file = File::open(SEQUENTIAL)?;
    let mut buffer = vec![0; 1 << 17];
    let mut total = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            count => total += count,
        }
    }
    at_least(total, WRITTEN_MIB << 20, "bytes in the large file")
}

fn write() -> Result<()> {
    let mut file = File::create(Path::new(WRITES).join("large"))?;
    let chunk = vec![b'x'; 1 << 20];
    for _ in 0..WRITTEN_MIB {
        file.write_all(&chunk)?;
    }
    Ok(())
}

fn sync() -> Result<()> {
    let mut file = File::create(Path::new(WRITES).join("synced"))?;
    for _ in 0..SYNCS {
        file.write_all(&[b'x'; BLOCK])?;
        file.sync_all()?;
    }
    Ok(())
}

fn random_reads() -> Result<()> {
    let file = File::open(RANDOM)?;
    let blocks = file.metadata()?.len() / BLOCK as u64;
    let mut buffer = [0; BLOCK];
    // A linear congruential generator (Knuth's MMIX), because all VMs must read the same blocks.
    let mut state: u64 = 1;
    for _ in 0..RANDOM_READS {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // The high bits of such a generator are the good ones.
        file.read_exact_at(&mut buffer, (state >> 33) % blocks * BLOCK as u64)?;
    }
    Ok(())
}

/// Runs a program of the image.
fn run(command: &mut Command) -> Result<()> {
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status()?;
    if status.success() { Ok(()) } else { Err(format!("{command:?} ended with {status}").into()) }
}

/// Fails if a row had less to do than it is meant to have.
fn at_least(found: usize, expected: usize, what: &str) -> Result<()> {
    if found >= expected {
        Ok(())
    } else {
        Err(format!("{found} {what}, expected {expected}").into())
    }
}
