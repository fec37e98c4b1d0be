//! Overlay mounts that are attached nowhere.
//!
//! A mount is made as an fd: it can be worked in with `openat2` at once, be attached somewhere, and
//! is gone when the fd is closed. Directories are handed to the kernel by fds, so that no path of any
//! length or with any characters matters. How fds can be handed over depends on the kernel, whose
//! version says little about it, as distributions carry changes back; so the ways are tried, newest
//! first.
//!
//! All fds must be opened in the mount namespace of the caller: overlayfs takes no directories of
//! another one (`EINVAL`).

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, chdir, unlinkat};
use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_fd, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount,
    open_tree,
};

use super::overlay_xattr::OverlayXattrs;

/// Most lower layers of one mount: `OVL_MAX_STACK` of the kernel's `fs/overlayfs/params.h`.
pub(crate) const LAYERS_LIMIT: usize = 500;

/// Bound on the options of `mount(2)`: one page with its NUL; the kernel cuts what is longer
/// without saying so.
const OPTIONS_LIMIT_BYTES: usize = 4095;

/// Size of a buffer for one message of the kernel: the longest holds a path of 4096 bytes, whose
/// special characters may be escaped.
const MESSAGE_BYTES: usize = 8192;

/// Most messages that a context keeps: `struct fc_log` of the kernel's `fs_context.h`.
const MESSAGES: usize = 8;

/// Where `mount(2)` mounts for a moment, in the work directory.
const MOUNT_POINT: &str = "mount";

/// An overlay mount to be made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Overlay<'a> {
    /// The layers, topmost first.
    pub(crate) lower: &'a [OwnedFd],
    /// Takes what is written.
    pub(crate) upper: &'a OwnedFd,
    /// Overlayfs' own directory, on the file system of `upper`.
    pub(crate) work: &'a OwnedFd,
    /// Where the marks are.
    pub(crate) overlay_xattrs: OverlayXattrs,
    /// Nothing is ever synced, for an upper directory that nobody needs after a crash. The kernel
    /// refuses to mount the same work directory again until it is emptied.
    pub(crate) volatile: bool,
}

/// What the kernel did not do, and why.
#[derive(Debug, thiserror::Error)]
#[error("the kernel refused {step}{}", explanation.as_deref().map(|text| format!(" (it says: {text})")).unwrap_or_default())]
struct Refusal {
    step: Step,
    /// The kernel's own words.
    explanation: Option<String>,
    source: io::Error,
}

/// A step of making a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Overlayfs itself.
    Open,
    Option(&'static str),
    Create,
    /// `mount(2)` and what belongs to it.
    Classic(&'static str),
    Detach,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open => f.write_str("an overlay file system"),
            Self::Option(name) => write!(f, "the overlay option `{name}`"),
            Self::Create => f.write_str("to make the overlay"),
            Self::Classic(what) => f.write_str(what),
            Self::Detach => f.write_str("a detached mount"),
        }
    }
}

/// How directories are handed to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Handover {
    /// Each as an fd (Linux 6.13).
    Fds,
    /// Each as a path that leads to an fd (Linux 6.8).
    Paths,
    /// All in the options of `mount(2)`.
    Classic,
}

/// Makes a detached overlay mount that survives a crash as its upper directory does, and returns the
/// root directory of it.
///
/// `lower` has the topmost layer first. The mount has neither setuid bits nor device nodes.
///
/// # Errors
///
/// What the kernel refuses, with its own explanation where it gives one; more than [`LAYERS_LIMIT`]
/// layers.
pub(crate) fn overlay(
    lower: &[OwnedFd],
    upper: &OwnedFd,
    work: &OwnedFd,
    overlay_xattrs: OverlayXattrs,
) -> io::Result<OwnedFd> {
    Overlay { lower, upper, work, overlay_xattrs, volatile: false }.mount()
}

/// Attaches a detached mount to a directory, where it stays when the fd is closed.
///
/// # Errors
///
/// When the directory is missing, or the mount is attached already.
pub(crate) fn attach(mount: &OwnedFd, target: &Path) -> io::Result<()> {
    Ok(move_mount(mount, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

impl Overlay<'_> {
    /// Makes the mount, detached; see [`overlay`].
    pub(crate) fn mount(&self) -> io::Result<OwnedFd> {
        let found = self.lower.len();
        if found > LAYERS_LIMIT {
            let text = format!(
                "{found} layers are too many for one overlay mount: expected at most {LAYERS_LIMIT}"
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        first_that_works(|handover| self.mount_by(handover)).map_err(Into::into)
    }

    fn mount_by(&self, handover: Handover) -> Result<OwnedFd, Refusal> {
        match handover {
            Handover::Fds => self.configure(&|context, name, directory| {
                Ok(fsconfig_set_fd(context, name, directory)?)
            }),
            Handover::Paths => self.configure(&|context, name, directory| {
                let path = format!("/proc/thread-self/fd/{}", directory.as_raw_fd());
                Ok(fsconfig_set_string(context, name, path)?)
            }),
            Handover::Classic => self.mount_classic(),
        }
    }

    /// Makes the mount by the system calls of Linux 5.2, where overlayfs takes one layer at a time.
    fn configure(
        &self,
        hand_over: &dyn Fn(&OwnedFd, &str, &OwnedFd) -> io::Result<()>,
    ) -> Result<OwnedFd, Refusal> {
        let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
            .map_err(|errno| Refusal::of(Step::Open, errno))?;
        let explain = |step| {
            let context = &context;
            move |error: io::Error| Refusal {
                step,
                explanation: explanation(context),
                source: error,
            }
        };
        let set = |name, value: Option<&str>| {
            let set = match value {
                Some(value) => fsconfig_set_string(&context, name, value),
                None => fsconfig_set_flag(&context, name),
            };
            set.map_err(|errno| explain(Step::Option(name))(errno.into()))
        };
        set("source", Some("overlay"))?;
        let lower = self.lower.iter().map(|directory| ("lowerdir+", directory));
        for (name, directory) in lower.chain([("upperdir", self.upper), ("workdir", self.work)]) {
            hand_over(&context, name, directory).map_err(explain(Step::Option(name)))?;
        }
        for (name, value) in self.overlay_xattrs.options() {
            set(name, *value)?;
        }
        if self.volatile {
            set("volatile", None)?;
        }
        fsconfig_create(&context).map_err(|errno| explain(Step::Create)(errno.into()))?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
            .map_err(|errno| explain(Step::Detach)(errno.into()))
    }

    /// Makes the mount by `mount(2)`, on a directory in the work directory that is there for a moment
    /// only.
    ///
    /// Its options have to fit into one page, and five hundred do as the mere numbers of their fds:
    /// names relative to `/proc/thread-self/fd`. That takes a working directory, hence a thread
    /// with one of its own.
    fn mount_classic(&self) -> Result<OwnedFd, Refusal> {
        let classic = |what| move |errno: Errno| Refusal::of(Step::Classic(what), errno);
        let mount = || {
            unshare(CloneFlags::CLONE_FS).map_err(classic("a working directory of a thread"))?;
            chdir("/proc/thread-self/fd").map_err(classic("the directory of open files"))?;
            match self.mount_relative(self.volatile) {
                // Linux 5.10 has it.
                Err(refusal) if self.volatile && refusal.may_be_of_the_way() => {
                    self.mount_relative(false)
                }
                other => other,
            }
        };
        let spawned = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("mount".to_owned());
            thread.spawn_scoped(scope, mount).map(std::thread::ScopedJoinHandle::join)
        });
        match spawned {
            Ok(Ok(mounted)) => mounted,
            Ok(Err(_panic)) => Err(classic("a thread's work")(Errno::ECANCELED)),
            Err(source) => {
                Err(Refusal { step: Step::Classic("a thread"), explanation: None, source })
            }
        }
    }

    fn mount_relative(&self, volatile: bool) -> Result<OwnedFd, Refusal> {
        let refused = |step| move |errno: Errno| Refusal::of(step, errno);
        let options = self.classic_options(volatile);
        if options.len() > OPTIONS_LIMIT_BYTES {
            return Err(refused(Step::Classic("options longer than a page"))(Errno::E2BIG));
        }
        match mkdirat(self.work, MOUNT_POINT, Mode::S_IRWXU) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(refused(Step::Classic("a mount point"))(errno)),
        }
        let point = format!("{}/{MOUNT_POINT}", self.work.as_raw_fd());
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("overlay"), point.as_str(), Some("overlay"), flags, Some(options.as_str()))
            .map_err(refused(Step::Create))?;
        let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let detached = open_tree(self.work.as_fd(), MOUNT_POINT, clone)
            .map_err(|errno| Refusal::of(Step::Detach, errno));
        umount2(point.as_str(), MntFlags::MNT_DETACH).map_err(refused(Step::Detach))?;
        // Left over it harms nobody: the directory is overlayfs' own.
        let _best_effort = unlinkat(self.work, MOUNT_POINT, UnlinkatFlags::RemoveDir);
        detached
    }

    fn classic_options(&self, volatile: bool) -> String {
        let lower: Vec<String> =
            self.lower.iter().map(|directory| directory.as_raw_fd().to_string()).collect();
        let mut options = format!(
            "lowerdir={},upperdir={},workdir={}",
            lower.join(":"),
            self.upper.as_raw_fd(),
            self.work.as_raw_fd()
        );
        let volatile = volatile.then_some(("volatile", None));
        for (name, value) in self.overlay_xattrs.options().iter().copied().chain(volatile) {
            options.push(',');
            options.push_str(name);
            if let Some(value) = value {
                options.push('=');
                options.push_str(value);
            }
        }
        options
    }
}

impl Refusal {
    fn of(step: Step, errno: impl Into<io::Error>) -> Self {
        Self { step, explanation: None, source: errno.into() }
    }

    /// Whether another way of handing directories over could help: an old kernel does not know a system
    /// call (`ENOSYS`), an option (`EINVAL`), or that options can be fds: then it has no such fds as
    /// these (`EBADF`, seen of Linux 6.12), or no such options as long as overlayfs was a file system
    /// of the old kind (`EOPNOTSUPP`, seen of Linux 6.1).
    fn may_be_of_the_way(&self) -> bool {
        let of_the_way = [Errno::EINVAL, Errno::ENOSYS, Errno::EBADF, Errno::EOPNOTSUPP];
        errno(&self.source).is_some_and(|errno| of_the_way.contains(&errno))
    }

    /// Whether the kernel's words are about the directories, and not about an option that it does not
    /// take in this way.
    fn explains_more_than_the_way(&self) -> bool {
        let of_the_way = ["Unknown parameter", "Bad value for"];
        self.explanation
            .as_ref()
            .is_some_and(|text| of_the_way.iter().all(|way| !text.contains(way)))
    }
}

impl From<Refusal> for io::Error {
    fn from(refusal: Refusal) -> Self {
        Self::new(refusal.source.kind(), refusal)
    }
}

/// Returns what the system said, of an error of this module or any other.
pub(crate) fn errno(error: &io::Error) -> Option<Errno> {
    let of_refusal = || error.get_ref()?.downcast_ref::<Refusal>()?.source.raw_os_error();
    error.raw_os_error().or_else(of_refusal).map(Errno::from_raw)
}

/// Tries one way after the other. Of the refusals the first that explains itself is told about, as
/// `mount(2)` never does, else the last.
fn first_that_works<T>(
    mut attempt: impl FnMut(Handover) -> Result<T, Refusal>,
) -> Result<T, Refusal> {
    let mut kept = match attempt(Handover::Fds) {
        Err(refusal) if refusal.may_be_of_the_way() => refusal,
        other => return other,
    };
    // A kernel that does not know the option at all would only complain in its log.
    let ways: &[Handover] = match errno(&kept.source) {
        Some(Errno::EINVAL | Errno::EBADF) => &[Handover::Paths, Handover::Classic],
        _ => &[Handover::Classic],
    };
    for handover in ways {
        let refusal = match attempt(*handover) {
            Ok(made) => return Ok(made),
            Err(refusal) => refusal,
        };
        let last = !refusal.may_be_of_the_way();
        if !kept.explains_more_than_the_way() {
            kept = refusal;
        }
        if last {
            break;
        }
    }
    Err(kept)
}

/// Reads the kernel's error messages of a context.
fn explanation(context: &OwnedFd) -> Option<String> {
    let mut buffer = vec![0; MESSAGE_BYTES];
    let mut errors = Vec::new();
    for _ in 0..MESSAGES {
        // There are no more (`ENODATA`), or an old kernel has none.
        let Ok(length) = rustix::io::read(context, &mut buffer) else { break };
        let line = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned();
        if let Some(error) = line.strip_prefix("e ") {
            errors.push(error.trim_end().escape_debug().to_string());
        }
    }
    if errors.is_empty() { None } else { Some(errors.join("; ")) }
}

#[cfg(test)]
mod tests;
