//! Mounts the root file system of a box from its disks, and enters it.
//!
//! The guest program starts in a root of virtual files, a virtio-fs device. Of that root it needs
//! one directory, `/dev`, as a mount point. [`plan`] turns the config into a list of steps, and
//! [`enter`] takes them:
//!
//! ```text
//! /dev             tmpfs     the stage: directories to mount on, which the initial root lacks
//! /dev/nodes       devtmpfs  the nodes of the disks
//! /dev/settings    sysfs     only if the readahead is set
//! /dev/lower       erofs     the image, read-only
//! /dev/upper       ext4      or tmpfs: `upper` receives the writes, `work` belongs to overlayfs
//! /dev/root        overlay   ──► becomes `/`; everything above leaves with the initial root
//! ```
//!
//! The overlay keeps the two file systems under it mounted, by mounts of its own that have no path
//! (`clone_private_mount`, Linux 6.12 fs/overlayfs/super.c). No process of the box can reach them.
//!
//! # Options of the overlay
//!
//! A root on one file system is the model. Container engines turn some of these options off because
//! they read the upper directory themselves, or use it on other kernels. Here only this program
//! mounts it. The image cannot contain attributes of overlayfs, because the host drops them when it
//! makes the EROFS. The sources are Documentation/filesystems/overlayfs.rst and fs/overlayfs of
//! Linux 6.12.
//!
//! - `redirect_dir=on`: otherwise `rename(2)` of a directory of the image fails with EXDEV.
//! - `index=on`: hard links of the image stay links of one file when it is written. The kernel
//!   refuses a disk (ESTALE) that was used with another image, for which its index would be wrong.
//! - `metacopy=on`: `chown -R` and `chmod -R`, which many entry points call, copy no data. The data
//!   stays in the image, which never changes. It needs `redirect_dir=on`.
//! - `xino=on`: all files have one `st_dev`, and directories keep their `st_ino`. Otherwise
//!   programs that stay on one file system leave out the files of the image, as `du -x` does. The
//!   price is that bit 63 of an image's `st_ino` is set. JavaScript's numbers are floating-point
//!   and cannot tell such values apart (`bigint` can), and a 32-bit program without large-file
//!   support gets EOVERFLOW.
//! - `volatile`, only if the writes end with the box: `fsync(2)` and `syncfs(2)` do nothing. The
//!   kernel refuses to mount the disk again (EINVAL).
//!
//! The access time is the kernel's default, `relatime`, as in container engines. Overlayfs ignores
//! `noatime` of the upper mount (`ovl_get_upper`), so only the overlay itself could have it.
//!
//! # Options of ext4
//!
//! - `discard`: the blocks of deleted files return to the host. With a journal the kernel merges
//!   them at each commit. Without one, each extent of a deleted file is a request.
//! - `noinit_itable`: the kernel does not write zeros to the inode tables in the background. A
//!   sparse file reads as zeros already, and would grow.
//! - `errors=remount-ro`: after an error of the file system, further writes could destroy more.
//! - `noauto_da_alloc`, only with `volatile`: `rename(2)` over a file does not start to write its
//!   data. The kernel does that so that a crash leaves no empty file, and nothing reads the disk
//!   after a crash.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use a3s_box_proto::control::{BlockRoot, Root, block_root, root};
use nix::errno::Errno;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chdir, pivot_root};

mod upper;

/// The directory of the initial root on which everything is mounted.
const STAGE: &str = "/dev";
const NODES: &str = "/dev/nodes";
const SETTINGS: &str = "/dev/settings";
const LOWER: &str = "/dev/lower";
const UPPER: &str = "/dev/upper";
const ROOT: &str = "/dev/root";

/// Mode of the directories of the stage. Nothing but this program ever sees them.
const STAGE_MODE: u32 = 0o700;

/// Readahead of a disk in KiB, unless it is set (`VM_READAHEAD_PAGES`, Linux 6.12
/// include/linux/pagemap.h).
const DEFAULT_READ_AHEAD_KIB: u32 = 128;

/// Longest name of a disk, in bytes: `DISK_NAME_LEN` (Linux 6.12 include/linux/blkdev.h) less the
/// final NUL.
const MAX_DEVICE_BYTES: usize = 31;

/// The reason why the root cannot be entered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RootError {
    /// The message has no kind, or one that this version does not implement.
    #[error("root: found no kind, expected block")]
    NoKind,
    /// The message has no upper, or one of a kind that this version does not implement.
    #[error("root: found no place for the writes, expected a disk or memory")]
    NoUpper,
    /// A name cannot be one of a disk.
    #[error("root: found disk name `{found}`, expected one such as `vda`")]
    BadDevice {
        /// The name as the config has it.
        found: String,
    },
    /// One disk is named twice.
    #[error("root: found `{device}` as both disks, expected two")]
    SameDevice {
        /// The disk.
        device: String,
    },
    /// The initial root cannot be opened.
    #[error("cannot open the initial root")]
    Initial(#[source] io::Error),
    /// `mount(2)` failed.
    #[error("cannot mount {what}: {advice}")]
    Mount {
        /// The file system, with its disks if it has any.
        what: String,
        /// The likely cause, and what helps.
        advice: &'static str,
        /// Error of the kernel.
        source: Errno,
    },
    /// A directory of the stage cannot be created.
    #[error("cannot make mount target `{path}`", path = path.display())]
    MakeTarget {
        /// The directory.
        path: PathBuf,
        /// Error of the kernel.
        source: io::Error,
    },
    /// The directories for the writes cannot be created.
    #[error("cannot prepare {what} for the writes of the box; it may be full or damaged")]
    Upper {
        /// The file system, with its disks if it has any.
        what: String,
        /// Error of the kernel.
        source: io::Error,
    },
    /// The readahead cannot be set.
    #[error("cannot set the readahead of disk `{device}` to {kib} KiB; the VM may lack this disk")]
    ReadAhead {
        /// The disk.
        device: String,
        /// The value.
        kib: u32,
        /// Error of the kernel.
        source: io::Error,
    },
    /// The beginning of a disk cannot be read in advance.
    #[error("cannot prefetch {bytes} bytes of disk `{device}`")]
    Prefetch {
        /// The disk.
        device: String,
        /// Number of bytes.
        bytes: u64,
        /// Error of the kernel.
        source: io::Error,
    },
    /// A call of the change of the root failed.
    #[error("cannot enter the new root: {call} failed")]
    Enter {
        /// The call.
        call: &'static str,
        /// Error of the kernel.
        source: Errno,
    },
}

/// A file system that is mounted on the stage, or the stage itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Stage,
    Nodes,
    Settings,
    Lower,
    /// The upper file system on a disk.
    UpperDisk,
    /// The upper file system in memory.
    UpperMemory,
    Overlay,
}

impl Part {
    /// Returns the type for `mount(2)`.
    fn kind(self) -> &'static str {
        match self {
            Self::Stage | Self::UpperMemory => "tmpfs",
            Self::Nodes => "devtmpfs",
            Self::Settings => "sysfs",
            Self::Lower => "erofs",
            Self::UpperDisk => "ext4",
            Self::Overlay => "overlay",
        }
    }

    /// Returns the mount point.
    fn target(self) -> &'static str {
        match self {
            Self::Stage => STAGE,
            Self::Nodes => NODES,
            Self::Settings => SETTINGS,
            Self::Lower => LOWER,
            Self::UpperDisk | Self::UpperMemory => UPPER,
            Self::Overlay => ROOT,
        }
    }

    /// Returns the flags for `mount(2)`. The overlay has none, because set-user-id programs of the
    /// image work in a box, and a workload can make device nodes. The other mounts have no path
    /// once a process of the box runs, so restrictions would have no effect.
    fn flags(self) -> MsFlags {
        match self {
            // The kernel opens a disk for writing unless this flag is set, and refuses that for a
            // read-only one with EACCES.
            Self::Lower => MsFlags::MS_RDONLY,
            _ => MsFlags::empty(),
        }
    }

    /// Returns the likely cause of an error of `mount(2)`, and what helps.
    fn advice(self, errno: Errno) -> &'static str {
        match (self, errno) {
            // mount(2) reports ENODEV if the kernel does not have the type of file system.
            (Self::Lower | Self::UpperDisk | Self::Overlay, Errno::ENODEV) => {
                "the guest kernel lacks this file system; use one of libkrunfw 5.4 or later, or \
                 set `root.kind` to `shared`"
            }
            (Self::Stage, Errno::ENOENT) => "the initial root has no directory `/dev`",
            (Self::Lower | Self::UpperDisk, Errno::ENOENT | Errno::ENXIO | Errno::ENOTBLK) => {
                "the VM has no such disk"
            }
            (Self::Lower, Errno::EINVAL | Errno::EUCLEAN | Errno::EIO | Errno::EOPNOTSUPP) => {
                "the disk holds no usable image; remove damaged ones from the cache with \
                 `a3s-box-shim --verify`"
            }
            (Self::UpperDisk, Errno::EINVAL | Errno::EUCLEAN | Errno::EIO) => {
                "the disk holds no usable file system; remove the disk of this box, with which its \
                 writes are lost"
            }
            (Self::UpperDisk, Errno::EACCES | Errno::EROFS) => {
                "the disk is read-only; the VM must be able to write to it"
            }
            (Self::Lower | Self::UpperDisk | Self::Overlay, Errno::EBUSY) => {
                "the disk is in use already; two disks of the VM may have the same name"
            }
            (Self::Overlay, Errno::ESTALE) => {
                "the disk for the writes was used with another image; use that image, or remove \
                 the disk of this box, with which its writes are lost"
            }
            (Self::Overlay, Errno::EINVAL) => {
                "the disk for the writes was used by a box whose writes end with it, or the guest \
                 kernel lacks an option; remove the disk of this box"
            }
            _ => "the log of the guest kernel may have more",
        }
    }
}

/// A call of `mount(2)`, and the directory that is made for it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct MountStep {
    part: Part,
    /// Names of the disks that it is on. A file system that is no overlay has at most one.
    disks: Vec<String>,
    /// Options of the file system.
    data: String,
}

/// A step on the way to the root. The order of a plan matters.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// Mount a file system.
    Mount(MountStep),
    /// Write the readahead of a disk to sysfs, in KiB.
    SetReadAhead { disk: String, kib: u32 },
    /// Let the kernel read the beginning of a disk in the background, this many KiB a call.
    Prefetch { disk: String, bytes: u64, step_kib: u32 },
    /// Make the directories for overlayfs in the file system that `mount` has mounted.
    PrepareUpper { mount: MountStep },
    /// Make the overlay the root of every process, and unmount everything else.
    Enter,
}

/// Mounts the root that the config describes, and enters it. Returns the directory of the initial
/// root, which no path leads to any more.
///
/// Stops at the first error. The mounts that were made until then stay, because the box ends.
///
/// Must be called before another file system is mounted that the box needs, because all of them
/// leave with the initial root.
pub(crate) fn enter(root: &Root) -> Result<File, RootError> {
    let steps = plan(root)?;
    let initial = File::open("/").map_err(RootError::Initial)?;
    for step in &steps {
        step.run()?;
    }
    Ok(initial)
}

/// Returns the steps to the root that the config describes. Makes no system call.
fn plan(root: &Root) -> Result<Vec<Step>, RootError> {
    let Some(root::Kind::Block(block)) = &root.kind else { return Err(RootError::NoKind) };
    let lower = device(&block.lower_device)?;
    let upper = upper_mount(block)?;
    if upper.disks.contains(&lower) {
        return Err(RootError::SameDevice { device: lower });
    }
    let both = [vec![lower.clone()], upper.disks.clone()].concat();
    let simple = |part, data: &str| {
        Step::Mount(MountStep { part, disks: Vec::new(), data: data.to_owned() })
    };
    let mut steps = vec![simple(Part::Stage, "mode=700"), simple(Part::Nodes, "")];
    if block.read_ahead_kib > 0 {
        steps.push(simple(Part::Settings, ""));
        // Before the mount: a file takes the readahead of its disk when it is opened.
        steps.push(Step::SetReadAhead { disk: lower.clone(), kib: block.read_ahead_kib });
    }
    let image = MountStep { part: Part::Lower, disks: vec![lower.clone()], data: String::new() };
    let data = overlay_data(block.volatile);
    let overlay = MountStep { part: Part::Overlay, disks: both, data };
    steps.push(Step::Mount(image));
    if block.prefetch_bytes > 0 {
        // After the mount: the kernel drops the pages of a disk when a mount sets its block size.
        let step_kib = match block.read_ahead_kib {
            0 => DEFAULT_READ_AHEAD_KIB,
            kib => kib,
        };
        steps.push(Step::Prefetch { disk: lower, bytes: block.prefetch_bytes, step_kib });
    }
    steps.extend([
        Step::Mount(upper.clone()),
        Step::PrepareUpper { mount: upper },
        Step::Mount(overlay),
        Step::Enter,
    ]);
    Ok(steps)
}

/// Returns the name of a disk if the kernel can have one of that name. It becomes a part of paths.
fn device(name: &str) -> Result<String, RootError> {
    let is_valid = (1..=MAX_DEVICE_BYTES).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    if is_valid {
        Ok(name.to_owned())
    } else {
        Err(RootError::BadDevice { found: name.to_owned() })
    }
}

/// Returns the mount of the file system that receives the writes.
fn upper_mount(block: &BlockRoot) -> Result<MountStep, RootError> {
    match block.upper.as_ref().ok_or(RootError::NoUpper)? {
        block_root::Upper::UpperDevice(name) => {
            let mut data = "discard,noinit_itable,errors=remount-ro".to_owned();
            if block.volatile {
                data.push_str(",noauto_da_alloc");
            }
            Ok(MountStep { part: Part::UpperDisk, disks: vec![device(name)?], data })
        }
        block_root::Upper::UpperInMemoryMib(mib) => {
            let mut data = "mode=700".to_owned();
            // Without a size, the kernel limits a tmpfs to half of the memory (tmpfs(5)).
            if *mib > 0 {
                data.push_str(&format!(",size={mib}m"));
            }
            Ok(MountStep { part: Part::UpperMemory, disks: Vec::new(), data })
        }
    }
}

/// Returns the options of the overlay, which the documentation of this module explains.
fn overlay_data(volatile: bool) -> String {
    let (upper, work) = (upper::UPPER, upper::WORK);
    format!(
        "lowerdir={LOWER},upperdir={UPPER}/{upper},workdir={UPPER}/{work},\
         redirect_dir=on,index=on,metacopy=on,xino=on{}",
        if volatile { ",volatile" } else { "" }
    )
}

impl MountStep {
    fn run(&self) -> Result<(), RootError> {
        let target = Path::new(self.part.target());
        // The stage is a directory of the initial root, which cannot make any.
        if self.part != Part::Stage {
            DirBuilder::new()
                .mode(STAGE_MODE)
                .create(target)
                .map_err(|source| RootError::MakeTarget { path: target.to_path_buf(), source })?;
        }
        let kind = self.part.kind();
        let source = match (self.part, self.disks.first()) {
            (Part::Lower | Part::UpperDisk, Some(disk)) => Path::new(NODES).join(disk),
            // The kernel uses no source, and shows this one in `/proc/self/mountinfo`.
            _ => PathBuf::from(kind),
        };
        let (flags, data) = (self.part.flags(), self.data.as_str());
        mount(Some(&source), target, Some(kind), flags, Some(data)).map_err(|source| {
            RootError::Mount { what: self.what(), advice: self.part.advice(source), source }
        })
    }

    /// Returns the file system and its disks as text for an error.
    fn what(&self) -> String {
        let kind = self.part.kind();
        match self.disks.as_slice() {
            [] => kind.to_owned(),
            disks => format!("{kind} of disk `{}`", disks.join("` and `")),
        }
    }
}

impl Step {
    fn run(&self) -> Result<(), RootError> {
        match self {
            Self::Mount(mount) => mount.run(),
            Self::SetReadAhead { disk, kib } => {
                let file = Path::new(SETTINGS).join("block").join(disk).join("queue/read_ahead_kb");
                // The file exists for each disk, and a write to it does not create it.
                fs::OpenOptions::new()
                    .write(true)
                    .open(file)
                    .and_then(|mut file| {
                        io::Write::write_all(&mut file, kib.to_string().as_bytes())
                    })
                    .map_err(|source| RootError::ReadAhead {
                        device: disk.clone(),
                        kib: *kib,
                        source,
                    })
            }
            Self::Prefetch { disk, bytes, step_kib } => {
                let file = Path::new(NODES).join(disk);
                prefetch(&file, *bytes, u64::from(*step_kib) << 10).map_err(|source| {
                    RootError::Prefetch { device: disk.clone(), bytes: *bytes, source }
                })
            }
            Self::PrepareUpper { mount } => upper::prepare(Path::new(LOWER), Path::new(UPPER))
                .map_err(|source| RootError::Upper { what: mount.what(), source }),
            Self::Enter => enter_overlay(),
        }
    }
}

/// Starts to read the beginning of a disk into the page cache, and does not wait for the data.
///
/// A call of `posix_fadvise(2)` reads no more than the readahead of the disk
/// (`force_page_cache_ra`, Linux 6.12 mm/readahead.c), hence the steps.
fn prefetch(disk: &Path, bytes: u64, step_bytes: u64) -> io::Result<()> {
    let disk = File::open(disk)?;
    let mut start = 0;
    while start < bytes {
        let length = step_bytes.min(bytes - start);
        let advice = PosixFadviseAdvice::POSIX_FADV_WILLNEED;
        posix_fadvise(&disk, start.cast_signed(), length.cast_signed(), advice)?;
        start += length;
    }
    Ok(())
}

/// Makes the overlay the root of every process of the guest, and unmounts the initial root with
/// everything below it.
///
/// `pivot_root(2)` works because the initial root is not the kernel's rootfs. It is a mount that
/// the kernel has moved over it. The mounts in the initial root leave with it. Its executable,
/// which is the one of this process, stays readable, because it is open.
fn enter_overlay() -> Result<(), RootError> {
    let failed = |call| move |source| RootError::Enter { call, source };
    let here = OsStr::new(".");
    chdir(ROOT).map_err(failed("chdir"))?;
    // With one path for both arguments, the old root is mounted over the new one for a moment, and
    // needs no directory there. Both root and working directory are the new root (pivot_root(2)).
    pivot_root(here, here).map_err(failed("pivot_root"))?;
    // The kernel resolves `.` to the topmost mount there, which is the old root. The executable of
    // this process keeps it busy, hence MNT_DETACH.
    umount2(here, MntFlags::MNT_DETACH).map_err(failed("umount2"))
}

#[cfg(test)]
mod tests;
