//! The lists of the layers that make the root of an image, so that its next start finds them at
//! once.
//!
//! ```text
//! sha256-…                the layers that are mounted, the bottom first
//! on-sha256-…
//! meta-sha256-…
//!                         an empty line
//! end                     without this line, the list was not written completely
//! ```
//!
//! The list of a block root has its metadata image, and then the layer files that are its devices,
//! in order. A list is named by the `ChainID` of the image's topmost layer. It is only a hint: a
//! reader checks that everything in it is ready, and composes the root again if something is not.

use std::fs::File;
use std::io::{self, Read, Write};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::Mode;

use super::error::CacheError;
use super::layer_cache::{LayerCache, modified, names};
use super::name;

/// Upper bound on the size of a list. An overlay mount takes 500 layers, whose names fill 72 KiB.
const LIST_LIMIT_BYTES: u64 = 1 << 17;

/// Age from which an unfinished list is taken for the rest of a process that died. Writing a list
/// takes milliseconds.
const UNFINISHED_AGE: Duration = Duration::from_secs(3600);

/// Suffix of a list that is being written.
const NEW: &str = ".new";

/// Number of lists that this process has begun to write.
static BEGUN: AtomicU64 = AtomicU64::new(0);

/// The content of a list.
pub(crate) struct StackList {
    /// The layers that are mounted, the bottom first.
    pub(crate) names: Vec<String>,
}

impl StackList {
    /// Parses the text of a list. Returns `None` for text that [`to_text`](Self::to_text) does not
    /// make.
    fn parse(text: &str) -> Option<Self> {
        let lines = text.strip_suffix("\nend\n")?.split('\n');
        let names: Vec<String> = lines.filter(|name| !name.is_empty()).map(str::to_owned).collect();
        // Each name becomes a path component below `ready`, so it must not contain a slash.
        names.iter().all(|name| name::is_known(name)).then_some(Self { names })
    }

    fn to_text(&self) -> String {
        let mut text = String::new();
        for name in &self.names {
            text.push_str(name);
            text.push('\n');
        }
        text.push_str("\nend\n");
        text
    }
}

impl LayerCache {
    /// Reads the list `name`. Returns `None` if there is none, or if it is not valid.
    pub(crate) fn read_list(&self, name: &str) -> Result<Option<StackList>, CacheError> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut text = String::new();
        match openat(&self.stacks, name, flags, Mode::empty()) {
            Ok(file) => {
                let read = File::from(file).take(LIST_LIMIT_BYTES).read_to_string(&mut text);
                // A list that cannot be read is like one that is damaged: the stack is composed
                // again.
                read.unwrap_or_default();
                Ok(StackList::parse(&text))
            }
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(self.error("read", &format!("stacks/{name}"))(errno)),
        }
    }

    /// Writes the list `name`.
    pub(crate) fn write_list(&self, name: &str, list: &StackList) -> Result<(), CacheError> {
        // Several threads and processes may write the same list, so each writes a file of its own
        // and renames it.
        let number = BEGUN.fetch_add(1, Ordering::Relaxed);
        let new = format!("{name}.{}.{number}{NEW}", process::id());
        let write = || -> io::Result<()> {
            let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_CLOEXEC;
            let file = openat(&self.stacks, new.as_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR)?;
            File::from(file).write_all(list.to_text().as_bytes())?;
            Ok(renameat(&self.stacks, new.as_str(), &self.stacks, name)?)
        };
        write().map_err(self.error("write", &format!("stacks/{name}")))
    }

    /// Removes lists that name a layer which is not ready, and unfinished lists of dead processes.
    pub(super) fn remove_stale_lists(&self, now: SystemTime) -> Result<(), CacheError> {
        for name in names(&self.stacks).map_err(self.error("list", "stacks"))? {
            let is_stale = match name.ends_with(NEW) {
                true => modified(&self.stacks, &name).is_none_or(|time| {
                    now.duration_since(time).is_ok_and(|age| age > UNFINISHED_AGE)
                }),
                false => !self.is_complete(&name)?,
            };
            if is_stale {
                self.remove_file(&self.stacks, "stacks", &name)?;
            }
        }
        Ok(())
    }

    /// Returns whether all layers of the list `name` are ready.
    fn is_complete(&self, name: &str) -> Result<bool, CacheError> {
        let Some(StackList { names, .. }) = self.read_list(name)? else { return Ok(false) };
        for name in names {
            if !self.is_ready(&name)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
