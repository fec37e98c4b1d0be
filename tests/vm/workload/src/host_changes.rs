//! Measures after which time the guest sees changes that the host makes in a share, and exchanges
//! extended attributes with the host.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::fs::{XattrFlags, getxattr, inotify, listxattr, setxattr};

use crate::attempts::print_line;

/// Content of the files before and after the changes of the host. Both have the same length.
const AFTER: &[u8] = b"after!";

/// Longest time to wait for a change.
const PATIENCE: Duration = Duration::from_secs(20);

/// One change, and whether the guest sees it.
type Change<'a> = (&'a str, Box<dyn Fn() -> bool + 'a>);

/// Looks at all files in `directory`, prints `ready for changes`, waits until the host has written
/// to the file `done`, and prints for each change when it was seen.
///
/// The host makes these changes to files that had the content `before`: `edited` and `held` get the
/// new content in place, `grown` and `longer` get the new content twice, `replaced` is replaced by
/// another file, `removed` is removed, `added` is added, `chmod` gets mode 0600.
pub(crate) fn watch(directory: &Path) -> Result<()> {
    let path = |name: &str| directory.join(name);
    let held = File::open(path("held"))?;
    let events = inotify::init(inotify::CreateFlags::NONBLOCK)?;
    // Reading the files below causes other events, but none of these.
    let changes = inotify::WatchFlags::MODIFY
        | inotify::WatchFlags::ATTRIB
        | inotify::WatchFlags::CREATE
        | inotify::WatchFlags::DELETE
        | inotify::WatchFlags::MOVE;
    inotify::add_watch(&events, directory, changes)?;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        fs::read(entry.path())?;
        entry.metadata()?;
    }
    held.read_exact_at(&mut [0; 6], 0)?;
    let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
    print_line("ready for changes");
    // The guest sees new content of a file that it opens at once. A new name can take seconds.
    while fs::read(path("done"))? != AFTER {
        std::thread::sleep(Duration::from_millis(20));
    }
    let start = Instant::now();
    let notified = inotify::Reader::new(&events, &mut buffer).next().is_ok();
    print_line(&format!("inotify {}", if notified { "reported" } else { "silent" }));

    let content = |name: &'static str| move || fs::read(path(name)).unwrap_or_default();
    let [edited, longer, replaced] = ["edited", "longer", "replaced"].map(content);
    let mut unseen: Vec<Change<'_>> = vec![
        ("added", Box::new(|| path("added").exists())),
        ("edited", Box::new(move || edited() == AFTER)),
        ("held", Box::new(|| read_held(&held) == AFTER)),
        ("grown", Box::new(|| fs::metadata(path("grown")).is_ok_and(|m| m.len() == 12))),
        ("longer", Box::new(move || longer().len() == 12)),
        ("replaced", Box::new(move || replaced() == AFTER)),
        ("removed", Box::new(|| !path("removed").exists())),
        (
            "chmod",
            Box::new(|| {
                fs::metadata(path("chmod")).is_ok_and(|m| m.permissions().mode() & 0o777 == 0o600)
            }),
        ),
    ];
    while !unseen.is_empty() && start.elapsed() < PATIENCE {
        unseen.retain(|(name, seen)| {
            let found = seen();
            if found {
                print_line(&format!("seen {name} {}", start.elapsed().as_millis()));
            }
            !found
        });
        std::thread::sleep(Duration::from_millis(50));
    }
    for (name, _) in unseen {
        print_line(&format!("unseen {name}"));
    }
    // A listing comes last, because its answer has the names and attributes of all files.
    let last = Instant::now();
    if lists(directory, "added") {
        print_line(&format!("seen listed {}", last.elapsed().as_millis()));
    }
    Ok(())
}

fn lists(directory: &Path, name: &str) -> bool {
    fs::read_dir(directory)
        .is_ok_and(|entries| entries.flatten().any(|entry| entry.file_name() == name))
}

fn read_held(file: &File) -> [u8; 6] {
    let mut content = [0; 6];
    // The content stays zero if the read fails, which counts as not seen.
    let _read = file.read_exact_at(&mut content, 0);
    content
}

/// Reads the file at `path` `times` times, opening it each time, and prints the interrupts of
/// virtio devices.
pub(crate) fn reopen(path: &Path, times: usize) -> Result<()> {
    let before = virtio_interrupts()?;
    let start = Instant::now();
    for _ in 0..times {
        fs::read(path)?;
    }
    let elapsed = start.elapsed().as_millis();
    let interrupts = virtio_interrupts()? - before;
    print_line(&format!("reopened {times} times: {interrupts} interrupts, {elapsed} ms"));
    Ok(())
}

fn virtio_interrupts() -> Result<u64> {
    let text = fs::read_to_string("/proc/interrupts").context("/proc/interrupts")?;
    let lines = text.lines().filter(|line| line.contains("virtio"));
    let counts = lines.map(|line| {
        line.split_whitespace().skip(1).map_while(|word| word.parse::<u64>().ok()).sum::<u64>()
    });
    Ok(counts.sum())
}

/// Prints the names and values of the extended attributes `user.*` of a file, and then sets
/// `user.given` to `changed` and `user.made` to `made`.
pub(crate) fn exchange_xattrs(file: &Path) -> Result<()> {
    let (mut names, mut value) = ([0_u8; 1024], [0_u8; 64]);
    let length = listxattr(file, &mut names)?;
    for name in names[..length].split(|byte| *byte == 0).filter(|name| name.starts_with(b"user.")) {
        let length = getxattr(file, name, &mut value)?;
        let (name, value) = (name.escape_ascii(), value[..length].escape_ascii());
        print_line(&format!("xattr {name} {value}"));
    }
    setxattr(file, c"user.given", b"changed", XattrFlags::REPLACE)?;
    setxattr(file, c"user.made", b"made", XattrFlags::CREATE)?;
    Ok(())
}
