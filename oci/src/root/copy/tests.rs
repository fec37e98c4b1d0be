use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, FileTimes, Permissions};
use std::hash::{DefaultHasher, Hasher};
use std::os::unix::fs::{
    DirBuilderExt, FileExt, MetadataExt, PermissionsExt, chown, lchown, symlink,
};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::mknod;
use rustix::fs::{XattrFlags, lgetxattr, llistxattr, setxattr};

use super::*;
use crate::host::overlay_mount::{attach, overlay};
use crate::host::scratch_dir::ScratchDir;

impl ScratchDir {
    /// Mounts a new file system at the directory `name`.
    fn file_system(&self, name: &str, kind: &str) -> PathBuf {
        let target = self.path(name);
        fs::create_dir(&target).unwrap();
        let package = match kind {
            "tmpfs" => {
                mount(None::<&str>, &target, Some("tmpfs"), MsFlags::empty(), None::<&str>)
                    .unwrap();
                return target;
            }
            "ext4" => "e2fsprogs",
            "xfs" => "xfsprogs",
            _ => "btrfs-progs",
        };
        let image = self.path(&format!("{name}.img"));
        // `mkfs.xfs` refuses less than 300 MB. The file is sparse and takes less.
        File::create_new(&image).unwrap().set_len(400 << 20).unwrap();
        let program = format!("mkfs.{kind}");
        let made = Command::new(&program).arg("-q").arg(&image).output().unwrap_or_else(|error| {
            panic!("this test needs {program} ({error}): install the package `{package}`")
        });
        assert!(made.status.success(), "{made:?}");
        let mut command = Command::new("mount");
        command.args(["-t", kind, "-o", "loop"]).args([&image, &target]);
        let mounted = command.output().unwrap();
        assert!(mounted.status.success(), "{mounted:?}");
        target
    }
}

/// A pseudorandom number generator. Its seed makes failures repeatable. It is a linear congruential
/// generator with the constants of Knuth's MMIX.
struct Dice(u64);

impl Dice {
    /// Returns a number below `sides`.
    fn roll(&mut self, sides: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % sides
    }
}

/// Creates entries of each type in the tree of a layer.
///
/// There are only a few names, so that the layers have entries at the same paths.
fn grow_layer(root: &Path, dice: &mut Dice) {
    fs::create_dir(root).unwrap();
    let mut files: Vec<PathBuf> = Vec::new();
    for step in 0..60 {
        let mut path = root.to_owned();
        for _ in 0..dice.roll(4) {
            let parent = path.join(["a", "b", "c"][dice.roll(3)]);
            if parent.symlink_metadata().is_ok_and(|found| !found.is_dir()) {
                break;
            }
            DirBuilder::new().recursive(true).mode(0o755).create(&parent).unwrap();
            path = parent;
        }
        path.push(["a", "b", "c", "d", "e", "f", "g", "h"][dice.roll(8)]);
        if path.symlink_metadata().is_ok() {
            // Some of the existing directories become opaque.
            if path.is_dir() && dice.roll(3) == 0 {
                setxattr(&path, "trusted.overlay.opaque", b"y", XattrFlags::empty()).unwrap();
            }
            continue;
        }
        match dice.roll(8) {
            0 => {
                let modes = [0o700, 0o1777, 0o2755];
                DirBuilder::new().create(&path).unwrap();
                fs::set_permissions(&path, Permissions::from_mode(modes[dice.roll(3)])).unwrap();
                setxattr(&path, "user.dir", b"d", XattrFlags::empty()).unwrap();
            }
            1 => symlink("../a//nowhere", &path).unwrap(),
            2 => mknod(&path, SFlag::S_IFIFO, Mode::from_bits_truncate(0o640), 0).unwrap(),
            3 => mknod(&path, SFlag::S_IFCHR, Mode::empty(), 0).unwrap(),
            // A sparse file, with a hole before and after its data.
            4 => {
                let file = File::create_new(&path).unwrap();
                file.write_all_at(b"in the middle", 1 << 18).unwrap();
                file.set_len(1 << 20).unwrap();
            }
            5 if !files.is_empty() => {
                fs::hard_link(&files[dice.roll(files.len())], &path).unwrap();
                continue;
            }
            kind => {
                fs::write(&path, vec![b'x'; if kind == 6 { 0 } else { 100_000 + step }]).unwrap();
                let mode = [0o644, 0o4755, 0o000][dice.roll(3)];
                let owner = u32::try_from(dice.roll(5)).unwrap();
                chown(&path, Some(owner), Some(owner + 1)).unwrap();
                fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
                let value = vec![b'v'; dice.roll(600)];
                setxattr(&path, "user.one", &value, XattrFlags::empty()).unwrap();
                setxattr(&path, "user.two", b"", XattrFlags::empty()).unwrap();
                files.push(path.clone());
            }
        }
        if path.symlink_metadata().unwrap().is_symlink() {
            lchown(&path, Some(7), Some(8)).unwrap();
        }
    }
    set_times(root, dice);
}

/// Sets the times of files and directories to random values.
///
/// A directory comes after its content, whose creation changes the time of the directory.
fn set_times(directory: &Path, dice: &mut Dice) {
    for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            set_times(&entry.path(), dice);
        } else if entry.file_type().unwrap().is_file() {
            set_time(&entry.path(), dice);
        }
    }
    set_time(directory, dice);
}

fn set_time(path: &Path, dice: &mut Dice) {
    let time = UNIX_EPOCH + Duration::new(dice.roll(1_000_000_000) as u64, 123_456_789);
    let times = FileTimes::new().set_modified(time).set_accessed(time);
    File::open(path).unwrap().set_times(times).unwrap();
}

/// Opens a directory, and creates it if it is missing.
fn directory(path: &Path) -> OwnedFd {
    fs::create_dir_all(path).unwrap();
    File::open(path).unwrap().into()
}

/// Describes each path below `root`. The description of a file has the first name of its inode, so
/// that hard links are compared too.
fn described(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut pending = vec![root.to_owned()];
    let mut found = BTreeMap::new();
    while let Some(directory) = pending.pop() {
        for path in fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
            // In a directory that is not merged, overlayfs lists a whiteout whose lookup fails.
            let Ok(metadata) = path.symlink_metadata() else { continue };
            if metadata.is_dir() {
                pending.push(path.clone());
            }
            found.insert(path.clone(), metadata);
        }
    }
    let mut first: BTreeMap<u64, PathBuf> = BTreeMap::new();
    let describe = |(path, metadata): (PathBuf, fs::Metadata)| {
        let name = path.strip_prefix(root).unwrap().to_owned();
        let same = first.entry(metadata.ino()).or_insert_with(|| name.clone()).clone();
        let content = if metadata.is_file() {
            let sparse = metadata.blocks() * 512 < metadata.len();
            let mut hasher = DefaultHasher::new();
            hasher.write(&fs::read(&path).unwrap());
            let digest = hasher.finish();
            format!("{} bytes, sparse: {sparse}, {digest}, {:?}", metadata.len(), same)
        } else if metadata.is_symlink() {
            fs::read_link(&path).unwrap().display().to_string()
        } else {
            format!("device {}", metadata.rdev())
        };
        // Reading a directory or a symbolic link changes its access time, so it is not compared.
        let atime = if metadata.is_file() { metadata.atime_nsec() } else { 0 };
        let text = format!(
            "{:o} {}:{} {}.{} {atime} {:?} {content}",
            metadata.mode(),
            metadata.uid(),
            metadata.gid(),
            metadata.mtime(),
            metadata.mtime_nsec(),
            xattrs(&path),
        );
        (name, text)
    };
    found.into_iter().map(describe).collect()
}

/// Returns the extended attributes of a file, without following a symbolic link.
fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut list = vec![0; 4096];
    let length = llistxattr(path, &mut list).unwrap_or_default();
    let names = list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let value = |name: &[u8]| {
        let mut value = vec![0; 4096];
        let length = lgetxattr(path, name, &mut value).unwrap();
        (String::from_utf8(name.to_vec()).unwrap(), value[..length].to_vec())
    };
    names.map(value).collect()
}

/// Creates a stack of layers, flattens it, and compares the copy with an overlay mount of the
/// layers.
fn check_random_stack(layers: &Path, target: &Path, seed: u64) -> Method {
    let name = |number: usize| layers.join(format!("{seed}-{number}"));
    let mut dice = Dice(seed);
    for number in 0..4 {
        grow_layer(&name(number), &mut dice);
    }
    let trees: Vec<OwnedFd> = (0..4).map(|number| directory(&name(number))).collect();
    let clone = target.join(format!("clone{seed}"));
    let method = flatten(&trees, &directory(&clone), OverlayXattrs::Trusted).unwrap();
    let upper = directory(&layers.join(format!("upper{seed}")));
    let work = directory(&layers.join(format!("work{seed}")));
    let view = layers.join(format!("view{seed}"));
    fs::create_dir(&view).unwrap();
    attach(&overlay(&trees, &upper, &work, OverlayXattrs::Trusted).unwrap(), &view).unwrap();
    let (expected, found) = (described(&view), described(&clone));
    for (name, expected) in &expected {
        assert_eq!(found.get(name), Some(expected), "{} of seed {seed}", name.display());
    }
    assert_eq!(found.len(), expected.len(), "seed {seed}");
    assert!(found.len() > 10, "seed {seed} gives too few paths to compare: {}", found.len());
    umount2(&view, MntFlags::MNT_DETACH).unwrap();
    // A write to a shared inode would change the layer in the cache. Inode numbers can be compared
    // only within one file system.
    let top = fs::metadata(name(0)).unwrap().dev();
    let inodes = |root: &Path| -> Vec<u64> {
        let paths = described(root).into_keys().map(|path| root.join(path));
        paths.map(|path| path.symlink_metadata().unwrap().ino()).collect()
    };
    if fs::metadata(&clone).unwrap().dev() == top {
        let of_layers: Vec<u64> = (0..4).flat_map(|number| inodes(&name(number))).collect();
        assert!(inodes(&clone).iter().all(|inode| !of_layers.contains(inode)));
    }
    method
}

#[test]
fn stack_flattened_by_copies_equals_the_overlay_mount() {
    let scratch = ScratchDir::new();
    let ext4 = scratch.file_system("ext4", "ext4");
    let tmpfs = scratch.file_system("tmpfs", "tmpfs");
    for seed in 0..12 {
        assert_eq!(check_random_stack(&ext4, &ext4, seed), Method::Copy);
    }
    assert_eq!(check_random_stack(&tmpfs, &tmpfs, 100), Method::Copy);
    // `copy_file_range(2)` refuses to copy between these file systems (`EXDEV`).
    assert_eq!(check_random_stack(&ext4, &tmpfs, 101), Method::Copy);
}

#[test]
fn stack_flattened_by_reflinks_equals_the_overlay_mount() {
    let scratch = ScratchDir::new();
    for kind in ["xfs", "btrfs"] {
        let own = scratch.file_system(kind, kind);
        for seed in 0..3 {
            assert_eq!(check_random_stack(&own, &own, seed), Method::Reflink, "{kind}");
        }
    }
}

#[test]
fn write_to_a_reflinked_file_does_not_change_the_layer() {
    let scratch = ScratchDir::new();
    for kind in ["xfs", "btrfs"] {
        let own = scratch.file_system(kind, kind);
        let layer = directory(&own.join("layer"));
        fs::write(own.join("layer/big"), vec![b'x'; 64 << 20]).unwrap();
        // Data that is still in memory could change the number of free blocks later.
        rustix::fs::syncfs(&layer).unwrap();
        let free = || rustix::fs::statvfs(&own).map(|found| found.f_bfree * found.f_bsize).unwrap();
        let before = free();
        let method =
            flatten(&[layer], &directory(&own.join("clone")), OverlayXattrs::Trusted).unwrap();
        let clone = File::options().write(true).open(own.join("clone/big")).unwrap();
        rustix::fs::syncfs(&clone).unwrap();
        assert_eq!(method, Method::Reflink);
        // A copy would take 64 MiB. A reflink takes only metadata.
        assert!(before - free() < 8 << 20, "{kind}: {}", before - free());
        clone.write_all_at(b"changed", 0).unwrap();
        assert_eq!(fs::read(own.join("layer/big")).unwrap()[..7], *b"xxxxxxx");
    }
}

#[test]
fn tree_deeper_than_path_max_is_copied() {
    let scratch = ScratchDir::new();
    let layer = directory(&scratch.path("layer"));
    let name = "n".repeat(200);
    let mut deep = openat(&layer, ".", OPEN_DIR, Mode::empty()).unwrap();
    for _ in 0..60 {
        mkdirat(&deep, name.as_str(), Mode::S_IRWXU).unwrap();
        deep = openat(&deep, name.as_str(), OPEN_DIR, Mode::empty()).unwrap();
    }
    let flags = OFlag::O_CREAT | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
    drop(openat(&deep, "one", flags, Mode::S_IRWXU).unwrap());
    linkat(&deep, "one", &deep, "two", AtFlags::empty()).unwrap();
    let target = directory(&scratch.path("target"));
    flatten(&[layer], &target, OverlayXattrs::Trusted).unwrap();
    let path = vec![name.as_bytes(); 60].join(&b'/');
    assert_eq!(
        fstatat(
            open_below(&target, Path::new(OsStr::from_bytes(&path))).unwrap(),
            "two",
            AtFlags::empty()
        )
        .unwrap()
        .st_nlink,
        2
    );
}

#[test]
fn error_names_the_path() {
    let scratch = ScratchDir::new();
    let layer = directory(&scratch.path("layer"));
    fs::create_dir(scratch.path("layer/d")).unwrap();
    mknod(&scratch.path("layer/d/n\u{1b}"), SFlag::S_IFCHR, Mode::empty(), 0x103).unwrap();
    let error =
        flatten(&[layer], &directory(&scratch.path("target")), OverlayXattrs::Trusted).unwrap_err();
    assert_eq!(error.to_string(), r"cannot copy `/d/n\x1b`");
    // An existing file in the target is an error and is not overwritten.
    let layer = directory(&scratch.path("layer2"));
    fs::write(scratch.path("layer2/file"), "new").unwrap();
    fs::write(scratch.path("target/file"), "old").unwrap();
    let target = directory(&scratch.path("target"));
    let error = flatten(&[layer], &target, OverlayXattrs::Trusted).unwrap_err();
    assert_eq!(error.to_string(), "cannot copy `/file`");
    assert_eq!(fs::read_to_string(scratch.path("target/file")).unwrap(), "old");
}

#[test]
fn opaque_mark_is_read_from_the_chosen_xattrs_and_not_copied() {
    let scratch = ScratchDir::new();
    let trees = [directory(&scratch.path("top")), directory(&scratch.path("bottom"))];
    fs::create_dir(scratch.path("top/d")).unwrap();
    setxattr(scratch.path("top/d"), "user.overlay.opaque", b"y", XattrFlags::empty()).unwrap();
    fs::create_dir(scratch.path("bottom/d")).unwrap();
    fs::write(scratch.path("bottom/d/hidden"), "").unwrap();
    for (overlay_xattrs, hidden) in [(OverlayXattrs::User, true), (OverlayXattrs::Trusted, false)] {
        let target = scratch.path(&format!("{overlay_xattrs:?}"));
        flatten(&trees, &directory(&target), overlay_xattrs).unwrap();
        assert_eq!(!target.join("d/hidden").exists(), hidden, "{overlay_xattrs:?}");
        assert_eq!(xattrs(&target.join("d")), BTreeMap::new());
    }
}
