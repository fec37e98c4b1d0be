//! Disks, checked by `e2fsck` and by mounts of the host's kernel.

use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::process::Command;
use std::time::Instant;

use a3s_box_core::BoxConfig;
use a3s_box_core::box_dir::{DISK_IMAGE, KEPT_DISK, KEPT_DISK_DRAFT};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::{Value, json};

use super::*;

/// Variable that tells the test of an ordinary user that it is the child, and its directory.
const AS_USER: &str = "A3S_TEST_BLOCK_DISK_AS_USER";

/// A state directory `s` with the directory of the box `demo`, and a cache directory `c`.
struct Host {
    root: PathBuf,
    _dir: Option<tempfile::TempDir>,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { root: dir.path().canonicalize().unwrap(), _dir: Some(dir) }
    }

    /// Returns a host whose state directory is in a new file system, which only this thread sees.
    fn with_state_on(kind: &str, options: &str) -> Self {
        let host = Self::new();
        enter_mount_namespace();
        fs::create_dir(host.root.join("s")).unwrap();
        let flags = MsFlags::empty();
        mount(Some(kind), &host.root.join("s"), Some(kind), flags, Some(options)).unwrap();
        host
    }

    fn spec(&self, resources: &Value) -> VmSpec {
        let paths = json!({"state_dir": self.root.join("s"), "cache_dir": self.root.join("c")});
        let config = json!({"id": "demo", "resources": resources, "paths": paths}).to_string();
        BoxConfig::from_json(config.as_bytes()).unwrap().try_into().unwrap()
    }

    fn make(&self, resources: &Value) -> Result<BlockDisk, DiskError> {
        let spec = self.spec(resources);
        let directory = BoxDir::new(&spec.paths.state_dir, &spec.id);
        fs::create_dir_all(directory.path()).unwrap();
        BlockDisk::make_in(&spec, &directory)
    }

    fn in_box(&self, name: &str) -> PathBuf {
        self.root.join("s/demo").join(name)
    }
}

fn enter_mount_namespace() {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let private = MsFlags::MS_PRIVATE | MsFlags::MS_REC;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
}

fn run(program: &str, arguments: &[&str], path: &Path) -> String {
    let output = Command::new(program).args(arguments).arg(path).output();
    let output = output.unwrap_or_else(|error| panic!("this test needs {program}: {error}"));
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Fails the test if `e2fsck` finds anything.
fn check(disk: &Path) {
    run("e2fsck", &["-fn"], disk);
}

/// Mounts a disk with its defaults while `with` runs, as a guest would.
fn mounted(disk: &Path, with: impl FnOnce(&Path)) {
    let target = tempfile::tempdir().unwrap();
    run("mount", &["-t", "ext4", "-o", "loop", disk.to_str().unwrap()], target.path());
    with(target.path());
    umount2(target.path(), MntFlags::empty()).unwrap();
}

/// Returns the space that a file takes on its disk.
fn allocated_kib(path: &Path) -> u64 {
    File::open(path).unwrap().sync_all().unwrap();
    fs::metadata(path).unwrap().blocks() / 2
}

#[test]
fn disk_of_each_size_is_clean_and_takes_little_space() {
    // Of 8 TiB, the group descriptors alone take 4 MiB.
    for (mib, limit_kib) in [(16, 256), (127, 256), (512, 256), (10240, 256), (8_388_608, 8192)] {
        let host = Host::new();
        host.make(&json!({"disk_mib": mib})).unwrap();
        fs::remove_file(host.in_box(DISK_IMAGE)).unwrap();
        let start = Instant::now();
        let disk = host.make(&json!({"disk_mib": mib})).unwrap();
        let taken = start.elapsed();
        assert_eq!((&disk.file, disk.is_kept, disk.mib), (&host.in_box(DISK_IMAGE), false, mib));
        let found = fs::metadata(&disk.file).unwrap();
        assert_eq!((found.len(), found.mode() & 0o7777), (u64::from(mib) << 20, 0o600));
        let kib = allocated_kib(&disk.file);
        eprintln!("{mib} MiB: {kib} KiB, {taken:?}");
        assert!((1..=limit_kib).contains(&kib), "{mib} MiB: {kib} KiB");
        check(&disk.file);
        // The guest writes zeros to each inode table without this flag.
        let groups = run("dumpe2fs", &[], &disk.file);
        let with_flag = groups.matches("ITABLE_ZEROED").count();
        assert_eq!(with_flag, groups.matches(": (Blocks ").count(), "{mib} MiB");
    }
}

#[test]
fn disk_without_a_size_has_10_gib() {
    let host = Host::new();
    let disk = host.make(&json!({})).unwrap();
    assert_eq!((disk.mib, fs::metadata(disk.file).unwrap().len()), (10240, 10 << 30));
}

#[test]
fn disk_without_a_size_takes_at_most_half_of_a_small_file_system() {
    for (free_mib, expected) in [
        (u64::MAX, 10240),
        (20480, 10240),
        (20479, 8192),
        (16384, 8192),
        (1900, 512),
        (128, 64),
        (0, 64),
    ] {
        assert_eq!(default_mib(free_mib), expected, "{free_mib} MiB");
    }
    let host = Host::with_state_on("tmpfs", "mode=0700,size=1500m");
    // 1244 MiB are left beyond the reserve of 256 MiB.
    assert_eq!(host.make(&json!({})).unwrap().mib, 512);
    fs::remove_file(host.in_box(DISK_IMAGE)).unwrap();
    assert_eq!(host.make(&json!({"disk_reserve_mib": 1000})).unwrap().mib, 128);
    assert_eq!(host.make(&json!({"disk_keep": true})).unwrap().mib, 512);
    // Less space than at the first start does not change the size of a kept disk.
    fs::write(host.root.join("s/large"), vec![1; 900 << 20]).unwrap();
    assert_eq!(host.make(&json!({"disk_keep": true})).unwrap().mib, 512);
}

#[test]
fn disk_is_mounted_and_written_by_the_kernel_and_stays_clean_and_sparse() {
    enter_mount_namespace();
    for mib in [16, 128, 10240] {
        let host = Host::new();
        let disk = host.make(&json!({"disk_mib": mib})).unwrap();
        mounted(&disk.file, |root| {
            assert_eq!(fs::metadata(root).unwrap().uid(), 0);
            for i in 0..500 {
                let directory = root.join(format!("d{}", i % 7));
                fs::create_dir_all(&directory).unwrap();
                fs::write(directory.join(i.to_string()), vec![1; 5000]).unwrap();
            }
            fs::remove_dir_all(root.join("d3")).unwrap();
        });
        check(&disk.file);
        // 500 files of two blocks, and the journal with them.
        let kib = allocated_kib(&disk.file);
        assert!((3400..12_000).contains(&kib), "{mib} MiB: {kib} KiB");
        mounted(&disk.file, |root| {
            assert_eq!(fs::read(root.join("d1/1")).unwrap(), vec![1; 5000]);
        });
    }
}

#[test]
fn start_with_less_free_space_than_the_reserve_is_refused() {
    let host = Host::with_state_on("tmpfs", "mode=0700,size=8m");
    let error = host.make(&json!({"disk_mib": 16})).unwrap_err().to_string();
    let expected = format!(
        "the file system of `{}` has 8 MiB of free space, expected at least 256 MiB: make space there, \
         choose another `paths.state_dir`, or lower `resources.disk_reserve_mib`",
        host.in_box("").display()
    );
    assert_eq!(error, expected.replace("demo/`", "demo`"));
    assert!(!host.in_box(DISK_IMAGE).exists());
    host.make(&json!({"disk_mib": 16, "disk_reserve_mib": 9})).unwrap_err();
    host.make(&json!({"disk_mib": 16, "disk_reserve_mib": 8})).unwrap();
    fs::remove_file(host.in_box(DISK_IMAGE)).unwrap();
    host.make(&json!({"disk_mib": 16, "disk_reserve_mib": 0})).unwrap();
}

#[test]
fn file_system_without_a_limit_has_enough_space() {
    let host = Host::with_state_on("tmpfs", "mode=0700,size=0");
    host.make(&json!({"disk_mib": 16, "disk_reserve_mib": u32::MAX})).unwrap();
}

#[test]
fn full_state_directory_is_an_error_and_leaves_no_kept_disk() {
    let host = Host::with_state_on("tmpfs", "mode=0700,size=24k");
    for keep in [false, true] {
        let resources = json!({"disk_mib": 16, "disk_reserve_mib": 0, "disk_keep": keep});
        let error = host.make(&resources).unwrap_err();
        let DiskError::Host(HostError { action: "write", source, path }) = &error else {
            panic!("{error:?}")
        };
        assert_eq!(source.kind(), io::ErrorKind::StorageFull);
        let name = if keep { KEPT_DISK_DRAFT } else { DISK_IMAGE };
        assert_eq!(path.as_ref().unwrap(), &host.in_box(name));
        fs::remove_file(host.in_box(name)).unwrap();
    }
    assert!(!host.in_box(KEPT_DISK).exists());
}

#[test]
fn kept_disk_is_used_again_by_starts_that_keep_it_only() {
    let host = Host::new();
    enter_mount_namespace();
    let kept = json!({"disk_mib": 16, "disk_keep": true});
    let disk = host.make(&kept).unwrap();
    assert_eq!((&disk.file, disk.is_kept), (&host.in_box(KEPT_DISK), true));
    assert!(!host.in_box(KEPT_DISK_DRAFT).exists());
    mounted(&disk.file, |root| fs::write(root.join("precious"), "x").unwrap());
    let other = host.make(&json!({"disk_mib": 32})).unwrap();
    assert_eq!((&other.file, other.is_kept), (&host.in_box(DISK_IMAGE), false));
    mounted(&other.file, |root| assert!(!root.join("precious").exists()));
    let again = host.make(&kept).unwrap();
    assert_eq!((&again.file, again.is_kept, again.mib), (&disk.file, true, 16));
    mounted(&again.file, |root| assert_eq!(fs::read(root.join("precious")).unwrap(), b"x"));
    check(&again.file);
}

#[test]
fn kept_disk_of_another_size_is_refused_and_not_changed() {
    let host = Host::new();
    let kept = |mib: Option<u32>| host.make(&json!({"disk_mib": mib, "disk_keep": true}));
    let file = kept(Some(16)).unwrap().file;
    let error = kept(Some(17)).unwrap_err().to_string();
    let expected = format!(
        "the kept disk `{}` has 16 MiB, expected 17 MiB: set `resources.disk_mib` to its size, or \
         destroy the box, with which the disk is lost",
        file.display()
    );
    assert_eq!(error, expected);
    kept(Some(16)).unwrap();
    assert_eq!(kept(None).unwrap().mib, 16);
    OpenOptions::new().write(true).open(&file).unwrap().set_len(5).unwrap();
    let error = kept(Some(16)).unwrap_err().to_string();
    assert!(error.contains("has 5 bytes, expected 16 MiB"), "{error}");
    kept(None).unwrap_err();
}

#[test]
fn kept_disk_that_is_no_regular_file_is_refused() {
    let host = Host::new();
    let kept = json!({"disk_mib": 16, "disk_keep": true});
    let file = host.make(&kept).unwrap().file;
    let moved = host.root.join("moved");
    fs::rename(&file, &moved).unwrap();
    symlink(&moved, &file).unwrap();
    let error = host.make(&kept).unwrap_err();
    let DiskError::Host(HostError { source, .. }) = &error else { panic!("{error:?}") };
    assert_eq!(source.raw_os_error(), Some(libc::ELOOP));
    fs::remove_file(&file).unwrap();
    mkfifo(&file, Mode::S_IRWXU).unwrap();
    let error = host.make(&kept).unwrap_err();
    assert!(matches!(error, DiskError::NotAFile { .. }), "{error:?}");
}

/// A killed shim leaves a draft, and perhaps a part of a disk that was not kept.
#[test]
fn start_after_a_killed_shim_removes_its_files_and_makes_a_complete_disk() {
    let host = Host::new();
    enter_mount_namespace();
    host.make(&json!({"disk_mib": 16})).unwrap();
    fs::set_permissions(host.root.join("s"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::set_permissions(host.in_box(""), fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(host.in_box(KEPT_DISK_DRAFT), "half").unwrap();
    let spec = host.spec(&json!({"disk_mib": 16, "disk_keep": true}));
    let state = StateDir::acquire(&spec).unwrap();
    assert!(!host.in_box(DISK_IMAGE).exists());
    let disk = BlockDisk::make(&spec, &state).unwrap();
    assert_eq!(disk.file, host.in_box(KEPT_DISK));
    check(&disk.file);
    state.cleanup().remove_transient();
    assert!(disk.file.exists());
}

/// The file system of the host commits only every 300 seconds, so that the copy of its device has
/// only what was synced.
#[test]
fn kept_disk_survives_a_crash_of_the_host_before_the_guest_starts() {
    let host = Host::new();
    enter_mount_namespace();
    let (device, state) = (host.root.join("device"), host.root.join("s"));
    File::create_new(&device).unwrap().set_len(64 << 20).unwrap();
    run("mkfs.ext4", &["-q"], &device);
    fs::create_dir(&state).unwrap();
    run("mount", &["-o", "loop,commit=300", device.to_str().unwrap()], &state);
    host.make(&json!({"disk_mib": 16, "disk_keep": true, "disk_reserve_mib": 0})).unwrap();
    fs::write(host.in_box("not-synced"), "x").unwrap();
    let crashed = host.root.join("crashed");
    fs::copy(&device, &crashed).unwrap();
    mounted(&crashed, |root| {
        assert!(!root.join("demo/not-synced").exists(), "the test does not simulate a crash");
        check(&root.join("demo").join(KEPT_DISK));
    });
}

#[test]
fn ordinary_user_in_a_user_namespace_makes_a_disk() {
    if let Some(root) = std::env::var_os(AS_USER) {
        let host = Host { root: root.into(), _dir: None };
        for keep in [false, true] {
            check(&host.make(&json!({"disk_mib": 64, "disk_keep": keep})).unwrap().file);
        }
        return;
    }
    let host = Host::new();
    chown(&host.root, Some(65533), Some(65533)).unwrap();
    // The executable may be in a directory that the user cannot enter, so it is opened here.
    let executable = File::open(std::env::current_exe().unwrap()).unwrap();
    let (_, name) = module_path!().split_once("::").unwrap();
    let test = format!("{name}::ordinary_user_in_a_user_namespace_makes_a_disk");
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65533", "--regid=65533", "--clear-groups", "--"]);
    command.args(["unshare", "--map-root-user", "--mount", "/proc/self/fd/0", "--exact", &test]);
    let output = command.env(AS_USER, &host.root).stdin(executable).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{output:?}");
    // Root of the guest owns the root directory, and not the user who made the disk.
    enter_mount_namespace();
    for name in [DISK_IMAGE, KEPT_DISK] {
        assert_eq!(fs::metadata(host.in_box(name)).unwrap().uid(), 65533);
        mounted(&host.in_box(name), |root| assert_eq!(fs::metadata(root).unwrap().uid(), 0));
    }
}
