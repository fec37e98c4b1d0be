//! What the cache keeps about a layer beside its tree.
//!
//! ```text
//! facts.json       {"bytes": 12, "entries": 3, "skipped_devices": 0, "opaque_root": false}
//! implicit-dirs    paths below the root, each with a NUL behind it, as a path may hold any other byte
//! ```
//!
//! Both are written before the layer is published, in a folder that only we can enter, and never
//! again.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use serde_json::{Value, json};

use crate::unpack::LayerFacts;

const FACTS: &str = "facts.json";
const IMPLICIT_DIRS: &str = "implicit-dirs";

/// Bound on `facts.json`, which has four values.
const FACTS_LIMIT_BYTES: u64 = 4096;

/// Writes the record of a layer into its folder.
pub(crate) fn write(
    folder: &OwnedFd,
    facts: &LayerFacts,
    implicit_dirs: &[PathBuf],
) -> io::Result<()> {
    let record = json!({
        "bytes": facts.bytes,
        "entries": facts.entries,
        "skipped_devices": facts.skipped_devices,
        "opaque_root": facts.opaque_root,
    });
    let paths = implicit_dirs.iter().flat_map(|path| [path.as_os_str().as_bytes(), b"\0"]);
    write_file(folder, FACTS, format!("{record}\n").as_bytes())?;
    write_file(folder, IMPLICIT_DIRS, &paths.collect::<Vec<_>>().concat())
}

/// Reads the record of a layer from its folder; `None` when it is not what `write` has written.
pub(crate) fn read(folder: &OwnedFd) -> io::Result<Option<(LayerFacts, Vec<PathBuf>)>> {
    let mut bytes = Vec::new();
    open(folder, FACTS)?.take(FACTS_LIMIT_BYTES).read_to_end(&mut bytes)?;
    let Some(facts) = facts(&serde_json::from_slice(&bytes).unwrap_or_default()) else {
        return Ok(None);
    };
    // Bounded by the limits under which the layer was unpacked.
    let mut bytes = Vec::new();
    open(folder, IMPLICIT_DIRS)?.read_to_end(&mut bytes)?;
    let paths = bytes.split_inclusive(|byte| *byte == 0).map(|path| path.strip_suffix(b"\0"));
    let paths: Option<Vec<PathBuf>> =
        paths.map(|path| path.map(|path| PathBuf::from(OsStr::from_bytes(path)))).collect();
    Ok(paths.map(|paths| (facts, paths)))
}

fn facts(record: &Value) -> Option<LayerFacts> {
    let number = |key: &str| record.get(key)?.as_u64();
    Some(LayerFacts {
        bytes: number("bytes")?,
        entries: number("entries")?,
        skipped_devices: number("skipped_devices")?,
        opaque_root: record.get("opaque_root")?.as_bool()?,
    })
}

fn write_file(folder: &OwnedFd, name: &str, content: &[u8]) -> io::Result<()> {
    let flags =
        OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let file = openat(folder, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?;
    File::from(file).write_all(content)
}

fn open(folder: &OwnedFd, name: &str) -> io::Result<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(File::from(openat(folder, name, flags, Mode::empty())?))
}
