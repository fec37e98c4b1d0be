//! Creates detached overlay mounts.
//!
//! A detached mount is an fd that is not attached to any path. Files in it can be opened by
//! `openat2(2)` at once, it can be attached to a directory later, and the kernel removes it when
//! the fd is closed.
//!
//! The directories of the overlay are passed to the kernel by fds, so that their paths can have any
//! length and any characters. Which methods of passing fds work depends on the host kernel. Its
//! version is not a reliable test, because distributions backport changes. The methods are
//! therefore tried, the newest first.
//!
//! All fds must have been opened in the mount namespace of the caller, because overlayfs refuses
//! directories of another mount namespace (`EINVAL`).

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

/// Largest number of lower layers of one mount: `OVL_MAX_STACK` in the kernel's
/// `fs/overlayfs/params.h`.
pub(crate) const LAYERS_LIMIT: usize = 500;

/// Limit on the options of `mount(2)`: one page, including the NUL. The kernel truncates longer
/// options without an error.
const OPTIONS_LIMIT_BYTES: usize = 4095;

/// Size of the buffer for one message of the kernel. The longest message holds a path of 4096
/// bytes, in which special characters can be escaped.
const MESSAGE_BYTES: usize = 8192;

/// Largest number of messages that a context keeps: `struct fc_log` in the kernel's `fs_context.h`.
const MESSAGES: usize = 8;

/// Name of the temporary mount point of `mount(2)` in the work directory.
const MOUNT_POINT: &str = "mount";

/// The parameters of an overlay mount.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Overlay<'a> {
    /// The layers, topmost first.
    pub(crate) lower: &'a [OwnedFd],
    /// The upper directory, which receives all writes.
    pub(crate) upper: &'a OwnedFd,
    /// The work directory of overlayfs. It must be on the file system of `upper`.
    pub(crate) work: &'a OwnedFd,
    /// The extended attributes that hold the marks of overlayfs.
    pub(crate) overlay_xattrs: OverlayXattrs,
    /// Whether overlayfs omits all syncs, for an upper directory that is not needed after a crash.
    /// The kernel refuses to mount the same work directory again until it is emptied.
    pub(crate) volatile: bool,
}

/// An error of the kernel while a mount is created.
#[derive(Debug, thiserror::Error)]
#[error("the kernel refused {step}{}", explanation.as_deref().map(|text| format!(" (kernel message: {text})")).unwrap_or_default())]
struct Refusal {
    step: Step,
    /// The kernel's messages.
    explanation: Option<String>,
    source: io::Error,
}

/// A step of creating a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Opening a context of the file system type `overlay`.
    Open,
    /// Setting a mount option.
    Option(&'static str),
    /// Creating the file system.
    Create,
    /// A step of the method `mount(2)`.
    Classic(&'static str),
    /// Creating the detached mount.
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

/// A method of passing directories to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    /// `fsconfig(2)` with an fd for each directory (Linux 6.13).
    Fds,
    /// `fsconfig(2)` with a path in procfs that stands for the fd (Linux 6.8).
    Paths,
    /// The options of `mount(2)`.
    Classic,
}

/// Creates a detached overlay mount, and returns the fd of its root directory.
///
/// `lower` has the topmost layer first. The mount is not volatile. It is nosuid and nodev.
///
/// # Errors
///
/// When there are more than [`LAYERS_LIMIT`] layers, or when the kernel refuses the mount. The
/// error has the kernel's own messages if there are any.
pub(crate) fn overlay(
    lower: &[OwnedFd],
    upper: &OwnedFd,
    work: &OwnedFd,
    overlay_xattrs: OverlayXattrs,
) -> io::Result<OwnedFd> {
    Overlay { lower, upper, work, overlay_xattrs, volatile: false }.mount()
}

/// Attaches a detached mount to a directory. The mount then stays after the fd is closed.
///
/// # Errors
///
/// When the directory does not exist, or when the mount is already attached.
pub(crate) fn attach(mount: &OwnedFd, target: &Path) -> io::Result<()> {
    Ok(move_mount(mount, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

impl Overlay<'_> {
    /// Creates the detached mount; see [`overlay`].
    pub(crate) fn mount(&self) -> io::Result<OwnedFd> {
        let found = self.lower.len();
        if found > LAYERS_LIMIT {
            let text = format!(
                "{found} layers are too many for one overlay mount: expected at most {LAYERS_LIMIT}"
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        try_methods(|method| self.mount_by(method)).map_err(Into::into)
    }

    fn mount_by(&self, method: Method) -> Result<OwnedFd, Refusal> {
        match method {
            Method::Fds => self.configure(&|context, name, directory| {
                Ok(fsconfig_set_fd(context, name, directory)?)
            }),
            Method::Paths => self.configure(&|context, name, directory| {
                let path = format!("/proc/thread-self/fd/{}", directory.as_raw_fd());
                Ok(fsconfig_set_string(context, name, path)?)
            }),
            Method::Classic => self.mount_classic(),
        }
    }

    /// Creates the mount by `fsopen(2)`, `fsconfig(2)` and `fsmount(2)`. Overlayfs accepts one
    /// layer in each call (`lowerdir+`), so that no limit on the length of the options applies.
    fn configure(
        &self,
        pass_directory: &dyn Fn(&OwnedFd, &str, &OwnedFd) -> io::Result<()>,
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
        // Overlayfs does not use the source. `/proc/self/mountinfo` shows it as the mount source.
        set("source", Some("overlay"))?;
        // Each `lowerdir+` adds a layer below the ones before it, so the topmost layer comes first.
        let lower = self.lower.iter().map(|directory| ("lowerdir+", directory));
        for (name, directory) in lower.chain([("upperdir", self.upper), ("workdir", self.work)]) {
            pass_directory(&context, name, directory).map_err(explain(Step::Option(name)))?;
        }
        for (name, value) in self.overlay_xattrs.options() {
            set(name, *value)?;
        }
        if self.volatile {
            set("volatile", None)?;
        }
        fsconfig_create(&context).map_err(|errno| explain(Step::Create)(errno.into()))?;
        // Without these flags, setuid files and device nodes of an image would be effective on the
        // host.
        let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
            .map_err(|errno| explain(Step::Detach)(errno.into()))
    }

    /// Creates the mount by `mount(2)` on a temporary directory in the work directory.
    ///
    /// The options of `mount(2)` must fit into one page. 500 layers fit if each is named by the
    /// number of its fd, relative to the working directory `/proc/thread-self/fd`. The working
    /// directory belongs to the process, so that this needs a thread that has unshared it.
    fn mount_classic(&self) -> Result<OwnedFd, Refusal> {
        let classic = |what| move |errno: Errno| Refusal::of(Step::Classic(what), errno);
        let mount = || {
            unshare(CloneFlags::CLONE_FS).map_err(classic("a working directory of a thread"))?;
            chdir("/proc/thread-self/fd").map_err(classic("the directory of open files"))?;
            match self.mount_relative(self.volatile) {
                // The option `volatile` needs Linux 5.10.
                Err(refusal) if self.volatile && refusal.is_unsupported_method() => {
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
        // The kernel truncates longer options, and the mount would then lack layers or the upper
        // directory.
        if options.len() > OPTIONS_LIMIT_BYTES {
            return Err(refused(Step::Classic("options longer than a page"))(Errno::E2BIG));
        }
        match mkdirat(self.work, MOUNT_POINT, Mode::S_IRWXU) {
            // An earlier attempt can have left the mount point, for example the attempt with
            // `volatile`.
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(refused(Step::Classic("a mount point"))(errno)),
        }
        let point = format!("{}/{MOUNT_POINT}", self.work.as_raw_fd());
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("overlay"), point.as_str(), Some("overlay"), flags, Some(options.as_str()))
            .map_err(refused(Step::Create))?;
        // `OPEN_TREE_CLONE` returns a detached copy of the mount, which stays after the mount on
        // the temporary mount point is removed.
        let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let detached = open_tree(self.work.as_fd(), MOUNT_POINT, clone)
            .map_err(|errno| Refusal::of(Step::Detach, errno));
        umount2(point.as_str(), MntFlags::MNT_DETACH).map_err(refused(Step::Detach))?;
        // An error is ignored: a remaining mount point does no harm in the work directory.
        let _best_effort = unlinkat(self.work, MOUNT_POINT, UnlinkatFlags::RemoveDir);
        detached
    }

    fn classic_options(&self, volatile: bool) -> String {
        // Numbers of fds need no escapes, unlike paths with a colon or a comma.
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

    /// Returns whether the host kernel possibly does not support the method, so that another method
    /// could succeed.
    ///
    /// | errno        | reason                                                                    |
    /// |--------------|---------------------------------------------------------------------------|
    /// | `ENOSYS`     | the system call does not exist                                            |
    /// | `EINVAL`     | the option does not exist; overlayfs also returns it for bad directories  |
    /// | `EBADF`      | the option does not accept an fd (seen on Linux 6.12)                     |
    /// | `EOPNOTSUPP` | overlayfs does not use the new mount API yet, whose wrapper for old file  |
    /// |              | systems accepts no fds (seen on Linux 6.1)                                |
    fn is_unsupported_method(&self) -> bool {
        let unsupported = [Errno::EINVAL, Errno::ENOSYS, Errno::EBADF, Errno::EOPNOTSUPP];
        errno(&self.source).is_some_and(|errno| unsupported.contains(&errno))
    }

    /// Returns whether the kernel's messages name a reason other than an unsupported option. Such a
    /// reason is about the directories, and applies to each method.
    fn has_specific_reason(&self) -> bool {
        let unsupported = ["Unknown parameter", "Bad value for"];
        self.explanation
            .as_ref()
            .is_some_and(|text| unsupported.iter().all(|message| !text.contains(message)))
    }
}

impl From<Refusal> for io::Error {
    fn from(refusal: Refusal) -> Self {
        Self::new(refusal.source.kind(), refusal)
    }
}

/// Returns the errno of an error. The error can be one of this module or of any system call.
pub(crate) fn errno(error: &io::Error) -> Option<Errno> {
    let of_refusal = || error.get_ref()?.downcast_ref::<Refusal>()?.source.raw_os_error();
    error.raw_os_error().or_else(of_refusal).map(Errno::from_raw)
}

/// Tries the methods until one succeeds.
///
/// If all fail, returns the first error with a specific reason, or else the last one. An earlier
/// error is preferred, because `mount(2)` returns no messages.
fn try_methods<T>(mut attempt: impl FnMut(Method) -> Result<T, Refusal>) -> Result<T, Refusal> {
    let mut kept = match attempt(Method::Fds) {
        Err(refusal) if refusal.is_unsupported_method() => refusal,
        other => return other,
    };
    // After other errors the kernel does not support `lowerdir+` in any form. To try it by path
    // would only write a message to the kernel log.
    let methods: &[Method] = match errno(&kept.source) {
        Some(Errno::EINVAL | Errno::EBADF) => &[Method::Paths, Method::Classic],
        _ => &[Method::Classic],
    };
    for method in methods {
        let refusal = match attempt(*method) {
            Ok(mounted) => return Ok(mounted),
            Err(refusal) => refusal,
        };
        let is_final = !refusal.is_unsupported_method();
        if !kept.has_specific_reason() {
            kept = refusal;
        }
        if is_final {
            break;
        }
    }
    Err(kept)
}

/// Reads the kernel's error messages from a context. Each `read(2)` returns one message, and the
/// first letter is its severity.
fn explanation(context: &OwnedFd) -> Option<String> {
    let mut buffer = vec![0; MESSAGE_BYTES];
    let mut errors = Vec::new();
    for _ in 0..MESSAGES {
        // The read fails with `ENODATA` after the last message, and on old kernels at once.
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
