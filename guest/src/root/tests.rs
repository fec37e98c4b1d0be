//! Tests of the plan, and of its steps with disks on loop devices. The latter need root, `losetup`,
//! `mkfs.ext4`, `mkfs.erofs`, and a host kernel with the file systems of the guest kernel.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::io::IoSliceMut;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, lchown, symlink};
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{OFlag, openat};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use nix::unistd::gettid;
use rustix::fs::{XattrFlags, getxattr, setxattr};
use rustix::io::{ReadWriteFlags, preadv2};
use tempfile::TempDir;

use super::*;
use crate::{kmsg, mounts};

/// Returns the message for a root with the given upper.
fn root(lower: &str, upper: block_root::Upper) -> BlockRoot {
    BlockRoot { lower_device: lower.into(), upper: Some(upper), ..BlockRoot::default() }
}

fn disk(name: &str) -> block_root::Upper {
    block_root::Upper::UpperDevice(name.into())
}

fn block(block: BlockRoot) -> Root {
    Root { kind: Some(root::Kind::Block(block)) }
}

/// Returns the steps as lines that a reader can compare.
fn lines(steps: &[Step]) -> Vec<String> {
    steps
        .iter()
        .map(|step| match step {
            Step::Mount(MountStep { part, disks, data }) => {
                let disk = if disks.is_empty() { "-" } else { &disks.join("+") };
                format!("{} {} {disk} {data}", part.kind(), part.target()).trim_end().to_owned()
            }
            Step::SetReadAhead { disk, kib } => format!("readahead {disk} {kib}"),
            Step::Prefetch { disk, bytes, step_kib } => {
                format!("prefetch {disk} {bytes} by {step_kib} KiB")
            }
            Step::PrepareUpper { mount } => format!("prepare {}", mount.what()),
            Step::Enter => "enter".to_owned(),
        })
        .collect()
}

#[test]
fn a_root_of_two_disks_is_planned_with_the_readahead_before_the_image() {
    let steps = plan(&block(BlockRoot {
        read_ahead_kib: 1024,
        prefetch_bytes: 5000,
        ..root("vda", disk("vdb"))
    }));
    assert_eq!(
        lines(&steps.unwrap()),
        [
            "tmpfs /dev - mode=700",
            "devtmpfs /dev/nodes -",
            "sysfs /dev/settings -",
            "readahead vda 1024",
            "erofs /dev/lower vda",
            "prefetch vda 5000 by 1024 KiB",
            "ext4 /dev/upper vdb discard,noinit_itable,errors=remount-ro",
            "prepare ext4 of disk `vdb`",
            "overlay /dev/root vda+vdb lowerdir=/dev/lower,upperdir=/dev/upper/upper,\
             workdir=/dev/upper/work,redirect_dir=on,index=on,metacopy=on,xino=on",
            "enter",
        ]
    );
}

#[test]
fn a_volatile_root_has_the_options_that_need_no_crash_safety() {
    let steps = plan(&block(BlockRoot { volatile: true, ..root("vda", disk("vdb")) })).unwrap();
    let lines = lines(&steps);
    assert!(lines[3].ends_with(",errors=remount-ro,noauto_da_alloc"), "{lines:#?}");
    assert!(lines[5].ends_with(",xino=on,volatile"), "{lines:#?}");
    assert!(!lines.iter().any(|line| line.contains("sysfs")), "{lines:#?}");
}

#[test]
fn an_upper_in_memory_has_a_size_option_only_if_the_config_has_a_size() {
    for (mib, expected) in [(0, "tmpfs /dev/upper - mode=700"), (64, "mode=700,size=64m")] {
        let upper = block_root::Upper::UpperInMemoryMib(mib);
        let lines = lines(&plan(&block(root("vda", upper))).unwrap());
        assert!(lines[3].ends_with(expected), "{lines:#?}");
    }
}

#[test]
fn a_message_that_names_no_possible_disks_is_refused() {
    assert!(matches!(plan(&Root { kind: None }), Err(RootError::NoKind)));
    let no_upper = BlockRoot { upper: None, ..root("vda", disk("vdb")) };
    assert!(matches!(plan(&block(no_upper)), Err(RootError::NoUpper)));
    let same = plan(&block(root("vda", disk("vda"))));
    assert!(matches!(same, Err(RootError::SameDevice { .. })));
    for name in ["", ".", "../sda", "vd a", "vda,ro", "VDA", &"v".repeat(MAX_DEVICE_BYTES + 1)] {
        for root in [root(name, disk("vdb")), root("vda", disk(name))] {
            let error = plan(&block(root)).unwrap_err();
            assert!(matches!(error, RootError::BadDevice { .. }), "{name}: {error}");
        }
    }
    let longest = "v".repeat(MAX_DEVICE_BYTES);
    plan(&block(root(&longest, disk("vdb")))).unwrap();
}

/// A loop device on a file. The kernel detaches it when the last mount of it is gone.
struct Loop {
    name: String,
}

impl Loop {
    fn attach(image: &Path, read_only: bool) -> Self {
        let mut losetup = Command::new("losetup");
        losetup.args(["--find", "--show"]).args(read_only.then_some("--read-only")).arg(image);
        let path = run(&mut losetup);
        Self { name: path.trim().strip_prefix("/dev/").expect("a path in /dev").to_owned() }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        run(Command::new("losetup").arg("--detach").arg(format!("/dev/{}", self.name)));
    }
}

/// Runs a program and returns its output.
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The two disks of a box.
struct Disks {
    directory: TempDir,
    lower: Loop,
    upper: Loop,
}

impl Disks {
    fn make() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let lower = image(directory.path(), "lower");
        let upper = directory.path().join("upper.img");
        File::create(&upper).unwrap().set_len(256 << 20).unwrap();
        run(Command::new("mkfs.ext4").args(["-q", "-O", "^has_journal"]).arg(&upper));
        let upper = Loop::attach(&upper, false);
        Self { directory, lower, upper }
    }

    fn root(&self) -> BlockRoot {
        root(&self.lower.name, disk(&self.upper.name))
    }
}

/// Makes an EROFS of a tree with the kinds of files that an image can have.
fn image(directory: &Path, name: &str) -> Loop {
    let tree = directory.join(name);
    fs::create_dir_all(tree.join("etc/empty")).unwrap();
    // More data than one block, so that a copy of it takes up space.
    fs::write(tree.join("etc/data"), vec![7; 300_000]).unwrap();
    fs::write(tree.join("etc/first"), "first").unwrap();
    fs::hard_link(tree.join("etc/first"), tree.join("etc/second")).unwrap();
    symlink("data", tree.join("etc/link")).unwrap();
    fs::write(tree.join("etc/setuid"), "").unwrap();
    fs::set_permissions(tree.join("etc/setuid"), Permissions::from_mode(0o4755)).unwrap();
    nix::unistd::mkfifo(&tree.join("etc/fifo"), Mode::from_bits_truncate(0o622)).unwrap();
    lchown(tree.join("etc/data"), Some(1000), Some(70_000)).unwrap();
    lchown(&tree, Some(5), Some(6)).unwrap();
    setxattr(&tree, "user.of", b"the root", XattrFlags::empty()).unwrap();
    fs::set_permissions(&tree, Permissions::from_mode(0o1751)).unwrap();
    let image = directory.join(format!("{name}.img"));
    run(Command::new("mkfs.erofs").arg(&image).arg(&tree));
    Loop::attach(&image, true)
}

/// Runs a test as if it was PID 1 of a guest: in a thread with mounts of its own and a root that
/// contains a file and an empty directory `/dev`. Returns when the mounts are gone.
fn in_guest(test: impl FnOnce() + Send) {
    let initial = tempfile::tempdir().unwrap();
    let test = || {
        // The working directory and the root of this thread become its own, too (unshare(2)).
        unshare(CloneFlags::CLONE_NEWNS).expect("this test needs root");
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        let none = MsFlags::empty();
        mount(Some("initial"), initial.path(), Some("tmpfs"), none, None::<&str>).unwrap();
        fs::create_dir(initial.path().join("dev")).unwrap();
        fs::write(initial.path().join("init.krun"), "program").unwrap();
        chdir(initial.path()).unwrap();
        pivot_root(".", ".").unwrap();
        umount2(".", MntFlags::MNT_DETACH).unwrap();
        test();
    };
    let (send, receive) = mpsc::channel();
    let joined = thread::scope(|scope| {
        let thread = move || {
            send.send(gettid()).unwrap();
            test();
        };
        scope.spawn(thread).join()
    });
    if let Err(panic) = joined {
        std::panic::resume_unwind(panic);
    }
    // A join waits for the thread's memory only. The kernel unmounts its file systems before it
    // removes the thread from `/proc`, and a disk cannot be mounted in another overlay until then.
    let task = format!("/proc/self/task/{}", receive.recv().unwrap());
    let deadline = Instant::now() + Duration::from_secs(10);
    while Path::new(&task).exists() {
        assert!(Instant::now() < deadline, "the thread still exists");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Returns the lines of this thread's mounts, from the mount point on: mount point, options of the
/// mount, `-`, type, source, options of the file system (`proc(5)`).
fn mountinfo() -> Vec<String> {
    fs::create_dir_all("/proc").unwrap();
    mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), None::<&str>).unwrap();
    let text = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    umount2("/proc", MntFlags::empty()).unwrap();
    text.lines()
        .filter(|line| !line.contains(" - proc "))
        .map(|line| line.split(' ').skip(4).collect::<Vec<_>>().join(" "))
        .collect()
}

/// The metadata and content of a file, without what a copy has of its own.
type Facts = (u32, u32, u32, i64, u64, Vec<u8>);

/// Returns the facts of all files below `top` by their paths.
fn facts(top: &Path) -> BTreeMap<PathBuf, Facts> {
    let mut found = BTreeMap::new();
    let mut open = vec![top.to_path_buf()];
    while let Some(path) = open.pop() {
        let file = path.symlink_metadata().unwrap();
        let kind = file.file_type();
        // The link count and size of a directory depend on the file system.
        let (links, content) = if kind.is_dir() {
            open.extend(path.read_dir().unwrap().map(|entry| entry.unwrap().path()));
            (0, Vec::new())
        } else if kind.is_symlink() {
            (file.nlink(), path.read_link().unwrap().into_os_string().into_encoded_bytes())
        } else if kind.is_fifo() {
            (file.nlink(), Vec::new())
        } else {
            (file.nlink(), fs::read(&path).unwrap())
        };
        let facts = (file.mode(), file.uid(), file.gid(), file.mtime(), links, content);
        found.insert(path.strip_prefix(top).unwrap().to_path_buf(), facts);
    }
    found
}

#[test]
fn enters_an_overlay_that_equals_the_image_and_leaves_nothing_of_the_initial_root() {
    let disks = Disks::make();
    let expected = facts(&disks.directory.path().join("lower"));
    in_guest(|| {
        let initial = enter(&block(disks.root())).unwrap();
        assert_eq!(std::env::current_dir().unwrap(), Path::new("/"));
        assert_eq!(facts(Path::new("/")), expected);
        let mut value = [0; 16];
        let length = getxattr("/", "user.of", &mut value).unwrap();
        assert_eq!(&value[..length], b"the root");
        let mounts = mountinfo();
        let [overlay] = mounts.as_slice() else { panic!("{mounts:#?}") };
        // Some kernels show further options, which are their defaults.
        let start = "/ rw,relatime - overlay overlay rw,lowerdir=/dev/lower,\
                     upperdir=/dev/upper/upper,workdir=/dev/upper/work,redirect_dir=on,index=on,";
        assert!(overlay.starts_with(start), "{overlay}");
        for (option, is_set) in [("xino=on", true), ("metacopy=on", true), ("volatile", false)] {
            assert_eq!(overlay.contains(option), is_set, "{option}: {overlay}");
        }
        // The descriptor still leads to the initial root, but to none of the mounts in it.
        openat(&initial, "init.krun", OFlag::O_RDONLY, Mode::empty()).unwrap();
        let nodes = openat(&initial, "dev/nodes", OFlag::O_RDONLY, Mode::empty());
        assert_eq!(nodes.unwrap_err(), Errno::ENOENT);
    });
}

#[test]
fn standard_mounts_follow_in_the_new_root_as_in_any_other() {
    let disks = Disks::make();
    in_guest(|| {
        enter(&block(disks.root())).unwrap();
        mounts::mount_standard().unwrap();
        let text = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let kinds: Vec<_> = text
            .lines()
            .map(|line| {
                let fields: Vec<_> = line.split(' ').collect();
                let dash = fields.iter().position(|field| *field == "-").unwrap();
                format!("{} {}", fields[4], fields[dash + 1])
            })
            .collect();
        assert_eq!(
            kinds,
            [
                "/ overlay",
                "/dev devtmpfs",
                "/proc proc",
                "/sys sysfs",
                "/sys/fs/cgroup cgroup2",
                "/dev/pts devpts",
                "/dev/shm tmpfs",
                "/run tmpfs",
                "/tmp tmpfs",
            ]
        );
        assert!(
            Path::new("/dev")
                .join(&disks.lower.name)
                .metadata()
                .unwrap()
                .file_type()
                .is_block_device()
        );
    });
}

#[test]
fn the_mounts_under_the_overlay_have_the_planned_options() {
    let disks = Disks::make();
    in_guest(|| {
        let root = block(BlockRoot { volatile: true, ..disks.root() });
        for step in plan(&root).unwrap() {
            if step == Step::Enter {
                let mounts = mountinfo();
                let of = |part: Part| {
                    let target = format!("{} ", part.target());
                    mounts.iter().find(|line| line.starts_with(&target)).unwrap()
                };
                let (lower, upper) = (of(Part::Lower), of(Part::UpperDisk));
                assert!(lower.starts_with("/dev/lower ro,relatime - erofs /dev/nodes/"), "{lower}");
                assert!(upper.starts_with("/dev/upper rw,relatime - ext4 /dev/nodes/"), "{upper}");
                for option in ["discard", "noauto_da_alloc", "noinit_itable", "errors=remount-ro"] {
                    assert!(upper.contains(option), "{upper}");
                }
                let overlay = of(Part::Overlay);
                // Linux 6.18 shows the option by its newer name.
                assert!(overlay.contains("volatile"), "{overlay}");
            } else {
                step.run().unwrap();
            }
        }
    });
}

#[test]
fn sets_the_readahead_of_the_image_alone() {
    let disks = Disks::make();
    let file = |name: &str| format!("/sys/block/{name}/queue/read_ahead_kb");
    let read = |device: &Loop| fs::read_to_string(file(&device.name)).unwrap().trim().to_owned();
    let (before, upper) = (read(&disks.lower), read(&disks.upper));
    in_guest(|| {
        enter(&block(BlockRoot { read_ahead_kib: 1024, ..disks.root() })).unwrap();
        assert!(!mountinfo().iter().any(|line| line.contains("sysfs")));
    });
    assert_eq!((read(&disks.lower).as_str(), read(&disks.upper)), ("1024", upper));
    // The number of the device is used again by others.
    fs::write(file(&disks.lower.name), before).unwrap();
}

/// Returns whether a byte of a disk is in the page cache, which a read that must not wait tells
/// (`RWF_NOWAIT`, preadv2(2)).
fn is_cached(disk: &File, offset: u64) -> bool {
    let mut byte = [0];
    match preadv2(disk, &mut [IoSliceMut::new(&mut byte)], offset, ReadWriteFlags::NOWAIT) {
        Ok(count) => count == 1,
        Err(errno) => {
            assert_eq!(errno, rustix::io::Errno::AGAIN);
            false
        }
    }
}

#[test]
fn a_prefetch_reads_the_beginning_of_a_disk_and_no_more() {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image");
    fs::write(&image, vec![7; 1 << 20]).unwrap();
    let device = Loop::attach(&image, true);
    let path = Path::new("/dev").join(&device.name);
    let disk = File::open(&path).unwrap();
    // Others look at a new disk, which reads a part of it.
    posix_fadvise(&disk, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
    prefetch(&path, 300_000, 64 << 10).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    for offset in [0, 150_000, 299_999] {
        while !is_cached(&disk, offset) {
            assert!(Instant::now() < deadline, "byte {offset} is not in the page cache");
            thread::sleep(Duration::from_millis(1));
        }
    }
    assert!(!is_cached(&disk, 400_000));
}

#[test]
fn the_root_behaves_as_one_file_system() {
    let disks = Disks::make();
    in_guest(|| {
        enter(&block(disks.root())).unwrap();
        let device = Path::new("/").metadata().unwrap().dev();
        for path in ["/etc", "/etc/data", "/etc/link"] {
            assert_eq!(Path::new(path).symlink_metadata().unwrap().dev(), device, "{path}");
        }
        let before = Path::new("/etc/first").metadata().unwrap().ino();
        fs::write("/etc/first", "written").unwrap();
        assert_eq!(fs::read_to_string("/etc/second").unwrap(), "written");
        for name in ["/etc/first", "/etc/second"] {
            let file = Path::new(name).metadata().unwrap();
            assert_eq!((file.nlink(), file.ino()), (2, before), "{name}");
        }
        fs::rename("/etc/empty", "/moved").unwrap();
        fs::rename("/etc", "/usr").unwrap();
        assert!(!Path::new("/etc").exists());
        assert_eq!(fs::read_to_string("/usr/second").unwrap(), "written");
    });
}

#[test]
fn a_change_of_the_owner_copies_no_data() {
    let disks = Disks::make();
    in_guest(|| {
        let steps = plan(&block(disks.root())).unwrap();
        for step in steps.iter().filter(|step| **step != Step::Enter) {
            step.run().unwrap();
        }
        lchown("/dev/root/etc/data", Some(42), Some(43)).unwrap();
        let upper = Path::new("/dev/upper/upper/etc/data").metadata().unwrap();
        assert_eq!(upper.uid(), 42);
        assert!(upper.blocks() < 64, "{} blocks", upper.blocks());
        assert_eq!(fs::read("/dev/root/etc/data").unwrap(), vec![7; 300_000]);
    });
}

#[test]
fn a_disk_that_is_used_again_has_the_writes_and_the_metadata_of_its_root() {
    let disks = Disks::make();
    in_guest(|| {
        enter(&block(disks.root())).unwrap();
        fs::write("/etc/new", "kept").unwrap();
        fs::remove_file("/etc/link").unwrap();
        fs::set_permissions("/", Permissions::from_mode(0o700)).unwrap();
    });
    in_guest(|| {
        enter(&block(disks.root())).unwrap();
        assert_eq!(fs::read_to_string("/etc/new").unwrap(), "kept");
        assert!(!Path::new("/etc/link").is_symlink());
        assert_eq!(Path::new("/").metadata().unwrap().mode() & 0o7777, 0o700);
    });
}

#[test]
fn an_upper_directory_that_was_left_half_made_is_completed() {
    let disks = Disks::make();
    in_guest(|| {
        for step in plan(&block(disks.root())).unwrap() {
            if matches!(step, Step::PrepareUpper { .. }) {
                fs::create_dir("/dev/upper/upper.new").unwrap();
            }
            step.run().unwrap();
        }
        let root = Path::new("/").metadata().unwrap();
        assert_eq!((root.mode() & 0o7777, root.uid()), (0o1751, 5));
    });
}

#[test]
fn writes_to_memory_end_at_its_size() {
    let disks = Disks::make();
    in_guest(|| {
        let upper = block_root::Upper::UpperInMemoryMib(4);
        enter(&block(root(&disks.lower.name, upper))).unwrap();
        let root = Path::new("/").metadata().unwrap();
        assert_eq!((root.mode() & 0o7777, root.uid(), root.gid()), (0o1751, 5, 6));
        fs::write("/fits", vec![1; 3 << 20]).unwrap();
        let error = fs::write("/more", vec![1; 3 << 20]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        // A file of the image that is removed takes no space.
        fs::remove_file("/more").unwrap();
        fs::write("/etc/first", "written").unwrap();
        assert_eq!(fs::read_to_string("/etc/second").unwrap(), "written");
    });
}

#[test]
fn a_deleted_file_gives_its_space_back_to_the_host() {
    let disks = Disks::make();
    // Opened before, because the guest has no path to it.
    let file = File::open(disks.directory.path().join("upper.img")).unwrap();
    let kib = || file.metadata().unwrap().blocks() / 2;
    in_guest(|| {
        enter(&block(disks.root())).unwrap();
        fs::write("/large", vec![1; 32 << 20]).unwrap();
        File::open("/large").unwrap().sync_all().unwrap();
        let full = kib();
        fs::remove_file("/large").unwrap();
        nix::unistd::sync();
        let empty = kib();
        assert!(full > 32 << 10 && empty + (30 << 10) < full, "{full} KiB, then {empty} KiB");
    });
}

/// Returns the error of `enter` as the shim gets it.
fn refusal(root: BlockRoot) -> String {
    let mut text = String::new();
    in_guest(|| text = kmsg::chain(&enter(&block(root)).unwrap_err()));
    text
}

#[test]
fn each_refused_mount_names_the_disk_the_file_system_and_what_helps() {
    let disks = Disks::make();
    let (lower, upper) = (&disks.lower.name, &disks.upper.name);
    let cases = [
        (
            root("nodisk", disk(upper)),
            "cannot mount erofs of disk `nodisk`: the VM has no such disk: ENOENT".to_owned(),
        ),
        (
            root(upper, disk(lower)),
            format!("cannot mount erofs of disk `{upper}`: the disk holds no usable image; "),
        ),
        (
            root(lower, disk("nodisk")),
            "cannot mount ext4 of disk `nodisk`: the VM has no such disk: ENOENT".to_owned(),
        ),
        (
            BlockRoot { read_ahead_kib: 1, ..root("nodisk", disk(upper)) },
            "cannot set the readahead of disk `nodisk` to 1 KiB; ".to_owned(),
        ),
    ];
    for (root, expected) in cases {
        let text = refusal(root);
        assert!(text.starts_with(&expected), "{text}");
    }
    let blank = disks.directory.path().join("blank.img");
    File::create(&blank).unwrap().set_len(1 << 20).unwrap();
    let blank = Loop::attach(&blank, false);
    let text = refusal(root(lower, disk(&blank.name)));
    assert!(text.contains("ext4 of disk") && text.contains("no usable file system"), "{text}");
    let read_only = Loop::attach(&disks.directory.path().join("upper.img"), true);
    let text = refusal(root(lower, disk(&read_only.name)));
    assert!(text.contains("the disk is read-only"), "{text}");
}

#[test]
fn a_disk_that_was_volatile_or_had_another_image_is_refused_with_what_helps() {
    let disks = Disks::make();
    in_guest(|| drop(enter(&block(disks.root())).unwrap()));
    let other = image(disks.directory.path(), "other");
    let text = refusal(root(&other.name, disk(&disks.upper.name)));
    let (other, upper) = (&other.name, &disks.upper.name);
    let start = format!("cannot mount overlay of disk `{other}` and `{upper}`: the disk for ");
    assert!(text.starts_with(&start), "{text}");
    assert!(text.contains("was used with another image; ") && text.contains("ESTALE"), "{text}");
    in_guest(|| {
        drop(enter(&block(BlockRoot { volatile: true, ..disks.root() })).unwrap());
    });
    let text = refusal(disks.root());
    assert!(text.contains("a box whose writes end with it") && text.contains("EINVAL"), "{text}");
}

#[test]
fn an_initial_root_without_the_directory_for_mounts_is_named() {
    let disks = Disks::make();
    in_guest(|| {
        fs::remove_dir("/dev").unwrap();
        let text = kmsg::chain(&enter(&block(disks.root())).unwrap_err());
        assert!(
            text.starts_with("cannot mount tmpfs: the initial root has no directory"),
            "{text}"
        );
    });
}
