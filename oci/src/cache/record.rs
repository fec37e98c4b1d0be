//! The record of a layer: facts about it, and its dependencies on the layers below it.
//!
//! ```text
//! facts.json   {"bytes": 12, "hole_bytes": 0, "entries": 3, "skipped_devices": 0,
//!               "opaque_root": false, "undecided": 0}
//! seams        the paths of the cross-layer dependencies. Before each path is a letter, which
//!              names its set. After it is a NUL byte, because a path can contain any other byte.
//!              d undescribed, e used early, c cleared, h hidden, o opaque, s skipped
//! ```
//!
//! Both files are written once, before the layer is published, in a directory that only this user
//! can enter.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use serde_json::{Value, json};

use crate::unpack::cross_layer::CrossLayerDependencies;
use crate::unpack::facts::LayerFacts;

pub(super) const FACTS: &str = "facts.json";
pub(super) const CROSS_LAYER_FILE: &str = "seams";

/// Upper bound on the size of `facts.json`, which has six values.
const FACTS_LIMIT_BYTES: u64 = 4096;

/// The record of a layer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) facts: LayerFacts,
    pub(crate) dependencies: CrossLayerDependencies,
}

impl Record {
    /// Writes the record of a layer into its directory.
    pub(crate) fn write(&self, directory: &OwnedFd) -> io::Result<()> {
        let Self { facts, dependencies } = self;
        let record = json!({
            "bytes": facts.bytes,
            "hole_bytes": facts.hole_bytes,
            "entries": facts.entries,
            "skipped_devices": facts.skipped_devices,
            "opaque_root": facts.opaque_root,
            "undecided": dependencies.undecided,
        });
        write_file(directory, FACTS, format!("{record}\n").as_bytes())?;
        write_file(directory, CROSS_LAYER_FILE, &encode(dependencies))
    }

    /// Reads the record of a layer from its directory. Returns `None` if a file is not in the
    /// format that [`write`](Self::write) uses.
    pub(crate) fn read(directory: &OwnedFd) -> io::Result<Option<Self>> {
        let mut bytes = Vec::new();
        open(directory, FACTS)?.take(FACTS_LIMIT_BYTES).read_to_end(&mut bytes)?;
        // A file that is not JSON has no values, and counts as damaged like any other wrong
        // content.
        let facts: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        // The limits under which the layer was unpacked bound the size of this file.
        let mut bytes = Vec::new();
        open(directory, CROSS_LAYER_FILE)?.read_to_end(&mut bytes)?;
        Ok(Self::parse(&facts, &bytes))
    }

    fn parse(facts: &Value, dependencies: &[u8]) -> Option<Self> {
        let number = |key: &str| facts.get(key)?.as_u64();
        let flag = |key: &str| facts.get(key)?.as_bool();
        Some(Self {
            facts: LayerFacts {
                bytes: number("bytes")?,
                hole_bytes: number("hole_bytes")?,
                entries: number("entries")?,
                skipped_devices: number("skipped_devices")?,
                opaque_root: flag("opaque_root")?,
            },
            dependencies: CrossLayerDependencies {
                undecided: number("undecided")?,
                ..decode(dependencies)?
            },
        })
    }
}

/// Returns the content of the file `seams`.
pub(crate) fn encode(dependencies: &CrossLayerDependencies) -> Vec<u8> {
    let sets = [
        (b"d", &dependencies.undescribed),
        (b"e", &dependencies.used_early),
        (b"c", &dependencies.cleared),
        (b"h", &dependencies.hidden),
        (b"o", &dependencies.opaque),
        (b"s", &dependencies.skipped),
    ];
    let mut bytes = Vec::new();
    for (letter, paths) in sets {
        for path in paths {
            bytes.extend([&letter[..], path.as_os_str().as_bytes(), b"\0"].concat());
        }
    }
    bytes
}

/// Parses the content of the file `seams`, without the number of undecided entries. Returns `None` for
/// bytes that [`encode`] does not make.
pub(crate) fn decode(bytes: &[u8]) -> Option<CrossLayerDependencies> {
    let mut sets: [BTreeSet<PathBuf>; 6] = Default::default();
    for line in bytes.split_inclusive(|byte| *byte == 0) {
        let [letter, path @ ..] = line.strip_suffix(b"\0")? else { return None };
        // The letters are in the order of the sets below.
        let set = b"dechos".iter().position(|known| known == letter)?;
        let path = Path::new(OsStr::from_bytes(path));
        // The record of a tree comes from a process that its blob may have taken over, and directories
        // are made of these paths.
        if !path.components().all(|part| matches!(part, Component::Normal(_))) {
            return None;
        }
        sets[set].insert(path.to_owned());
    }
    let [undescribed, used_early, cleared, hidden, opaque, skipped] = sets;
    Some(CrossLayerDependencies {
        undescribed,
        used_early,
        cleared,
        hidden,
        opaque,
        skipped,
        undecided: 0,
    })
}

fn write_file(directory: &OwnedFd, name: &str, content: &[u8]) -> io::Result<()> {
    // `O_EXCL` makes sure that a staging directory which was not emptied is an error.
    let flags =
        OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let file = openat(directory, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?;
    File::from(file).write_all(content)
}

fn open(directory: &OwnedFd, name: &str) -> io::Result<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(File::from(openat(directory, name, flags, Mode::empty())?))
}
