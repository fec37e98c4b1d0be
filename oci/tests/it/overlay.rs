//! Mounts the layers of images as a root file system.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use a3s_box_oci::{MountError, OverlaySpec, RootMethod, Stack};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use tar::EntryType;

use crate::archive::{TIME, Tar};
use crate::bench::{Bench, chain, names, tree};

/// Moves the thread into a new mount namespace, from which mounts do not propagate to the host.
pub(crate) fn private_mounts() {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .unwrap();
}

/// Mounts a stack, and returns the path of the root.
fn mounted(bench: &Bench, stack: &Stack) -> PathBuf {
    let spec = spec(bench, stack);
    spec.mount().unwrap_or_else(|error| panic!("{}", chain(&error)));
    spec.target
}

/// Returns the mount of a stack at `root`, with upper and work directory in one state directory.
fn spec<'a>(bench: &Bench, stack: &'a Stack) -> OverlaySpec<'a> {
    let target = bench.path("root");
    fs::create_dir_all(&target).unwrap();
    // Colon, comma and backslash need escapes in the option string of mount(2).
    let state = bench.path("box:1,2\\3");
    fs::create_dir_all(&state).unwrap();
    OverlaySpec { stack, upper: state.join("upper"), work: state.join("work"), target }
}

/// Returns the options of the topmost mount at `target` in the thread's mount namespace.
fn mount_options(target: &Path) -> String {
    let mounts = fs::read_to_string("/proc/thread-self/mounts").unwrap();
    let mut found =
        mounts.lines().filter_map(|line| line.split_once(&format!(" {} ", target.display())));
    found.next_back().unwrap().1.to_owned()
}

/// Unpacks an image whose layers are given bottom first.
fn unpacked(bench: &Bench, layers: &[Tar]) -> Stack {
    let image = bench.resolved(layers);
    bench.compose(&image).unwrap_or_else(|error| panic!("{}", chain(&error)))
}

#[test]
fn mounted_layers_equal_the_layers_applied_in_order() {
    private_mounts();
    let bench = Bench::new();
    let layers = unpacked(
        &bench,
        &[
            Tar::new()
                .dir("a")
                .file("a/x", "1")
                .file("a/y", "1")
                .dir("o")
                .file("o/old", "1")
                .dir("r")
                .file("r/old", "1"),
            Tar::new()
                .dir("a")
                .file("a/.wh.x", "")
                .dir("o")
                .file("o/.wh..wh..opq", "")
                .file("o/new", "2"),
            Tar::new()
                .entry(EntryType::Directory, "./", 0o751, b"")
                .file("a/z", "3")
                .file(".wh.r", "")
                .dir("r")
                .file("r/new", "3"),
        ],
    );
    let root = mounted(&bench, &layers);
    assert_eq!(names(&root), ["a", "a/y", "a/z", "o", "o/new", "r", "r/new"]);
    let found = fs::metadata(&root).unwrap();
    assert_eq!((found.mode() & 0o7777, found.uid(), found.gid()), (0o755, 0, 0));
    // Writes to the root go to the upper directory and do not change the layers.
    fs::write(root.join("a/y"), "changed").unwrap();
    fs::remove_file(root.join("o/new")).unwrap();
    let trees: Vec<&Path> = layers.trees().collect();
    assert_eq!(fs::read_to_string(trees[0].join("a/y")).unwrap(), "1");
    assert_eq!(names(trees[1]), ["a", "a/x", "o", "o/new"]);
    let options = mount_options(&root);
    for option in ["nosuid", "nodev", "volatile"] {
        assert!(options.contains(option), "{option}: {options}");
    }
}

#[test]
fn layers_below_an_opaque_root_and_lower_copies_of_a_layer_are_not_mounted() {
    private_mounts();
    let bench = Bench::new();
    let layers = unpacked(
        &bench,
        &[
            Tar::new().file("hidden", ""),
            Tar::new().file(".wh..wh..opq", "").file("a", ""),
            Tar::new(),
            Tar::new().file("b", "lower"),
            Tar::new().file("b", "middle"),
            Tar::new(),
            Tar::new().file("b", "lower"),
        ],
    );
    let root = mounted(&bench, &layers);
    assert_eq!(names(&root), ["a", "b"]);
    assert_eq!(fs::read_to_string(root.join("b")).unwrap(), "lower");
}

#[test]
fn root_of_an_image_without_layers_is_its_upper_directory() {
    private_mounts();
    let bench = Bench::new();
    let root = mounted(&bench, &Stack::empty());
    fs::write(root.join("a"), "").unwrap();
    assert_eq!(names(&bench.path("box:1,2\\3/upper")), ["a"]);
    let options = mount_options(&root);
    assert!(options.contains("nosuid") && options.contains("nodev"), "{options}");
}

#[test]
fn directory_without_an_entry_has_the_metadata_of_the_lower_layers() {
    private_mounts();
    let bench = Bench::new();
    let described = |name: &str, mode| Tar::new().entry(EntryType::Directory, name, mode, b"");
    let layers = unpacked(
        &bench,
        &[
            described("./", 0o711)
                .entry(EntryType::Directory, "tmp", 0o1777, b"")
                .entry(EntryType::Directory, "tmp/in", 0o700, b"")
                .entry(EntryType::Directory, "hidden", 0o700, b"")
                .entry(EntryType::Directory, "again", 0o700, b"")
                .symlink("link", "tmp"),
            Tar::new().file("tmp/in/file", "").file(".wh.hidden", "").file("tmp/.wh.gone", ""),
            Tar::new().file("tmp/other", "").file("hidden/file", "").file("new/file", ""),
            Tar::new().file("again/file", "").entry(EntryType::Directory, "again", 0o750, b""),
        ],
    );
    let root = mounted(&bench, &layers);
    let described = [("tmp", 0o1777), ("tmp/in", 0o700), ("again", 0o750)];
    // No layer describes these: the entry of the root is ignored, and a whiteout hides that of
    // `hidden`.
    let undescribed = [("", 0o755), ("hidden", 0o755), ("new", 0o755)];
    for (name, mode, (owner, time)) in described
        .map(|(name, mode)| (name, mode, ((11, 22), i64::try_from(TIME).unwrap())))
        .into_iter()
        .chain(undescribed.map(|(name, mode)| (name, mode, ((0, 0), 0))))
    {
        let found = fs::metadata(root.join(name)).unwrap();
        let found = (found.mode() & 0o7777, (found.uid(), found.gid()), found.mtime());
        assert_eq!(found, (mode, owner, time), "{name}");
    }
    // A second mount with the same upper directory keeps the changes of the first.
    fs::set_permissions(root.join("tmp"), Permissions::from_mode(0o700)).unwrap();
    nix::mount::umount(&root).unwrap();
    mounted(&bench, &layers);
    assert_eq!(fs::metadata(root.join("tmp")).unwrap().mode() & 0o7777, 0o700);
}

/// Mounts an image, and returns the description of each path of its root (see [`tree`]).
fn mounted_tree(bench: &Bench, layers: &[Tar]) -> Vec<(String, String)> {
    let stack = unpacked(bench, layers);
    let root = mounted(bench, &stack);
    let tree = tree(&root);
    nix::mount::umount(&root).unwrap();
    fs::remove_dir_all(bench.path("box:1,2\\3")).unwrap();
    tree.into_iter().collect()
}

#[test]
fn layer_that_depends_on_lower_ones_is_unpacked_on_top_of_them() {
    private_mounts();
    let bench = Bench::new();
    let base = Tar::new()
        .dir("usr")
        .dir("usr/lib")
        .file("usr/lib/a", "lower")
        .symlink("lib", "usr/lib")
        .symlink("back", "/usr");
    // Each entry leads through a link of the lowest layer.
    let through_links = Tar::new()
        .file("lib/b", "through a link")
        .file("back/lib/c", "through another")
        .file("lib/.wh.a", "")
        .hard_link("usr/hard", "lib/b");
    // Hard links to a file of a lower layer, and to a file that comes later in this layer.
    let linked =
        Tar::new().hard_link("usr/a", "usr/lib/a").hard_link("early", "late").file("late", "");
    // Whiteouts of missing files. Overlayfs would list them in a directory that is not merged.
    let ghosts = Tar::new().dir("new").file("new/.wh.gone", "").file("lib/.wh.nothing", "");
    let top = Tar::new().file("usr/lib/.wh.b", "");
    let found = mounted_tree(&bench, &[base, linked, through_links, ghosts, top]);
    let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
    let expected = [
        "",
        "back",
        "early",
        "late",
        "lib",
        "new",
        "usr",
        "usr/a",
        "usr/hard",
        "usr/lib",
        "usr/lib/c",
    ];
    assert_eq!(names, expected);
    let of = |name: &str| &found.iter().find(|(found, _)| found == name).unwrap().1;
    assert!(
        of("lib").ends_with("link usr/lib") && of("usr/a").ends_with("file lower"),
        "{found:?}"
    );
    assert!(of("usr/hard").ends_with("file through a link"), "{found:?}");
    // A directory without an entry keeps the metadata of the lower layer, with its time.
    let time = TIME.to_string();
    assert!(of("usr/lib").starts_with(&format!("755 11:22 {time}.000000000 dir")), "{found:?}");
    // The layer has a file of no bytes, so a count above 0 would be from other layers.
    let once = unpacked(&bench, &[Tar::new().file("x", "")]);
    assert_eq!(once.unpacked_bytes, 0);
}

#[test]
fn layer_on_top_is_cached_only_for_images_with_the_same_lower_layers() {
    private_mounts();
    let bench = Bench::new();
    let link = || Tar::new().file("lib/f", "x");
    let through = |target: &str| [Tar::new().dir(target).symlink("lib", target), link()];
    let first = bench.resolved(&through("one"));
    assert_eq!((bench.compose(&first).unwrap().hits, bench.compose(&first).unwrap().hits), (0, 2));
    assert_eq!(mounted_tree(&bench, &through("one")).len(), 4);
    let second = mounted_tree(&bench, &through("two"));
    let names: Vec<&str> = second.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["", "lib", "two", "two/f"]);
}

/// Mounts an overlay at the directory `name`, as the root of most containers is one. Overlayfs
/// refuses an upper directory on an overlay.
fn overlay_at(bench: &Bench, name: &str) -> PathBuf {
    let directory = |part: &str| {
        let path = bench.path(&format!("{name}-{part}"));
        fs::create_dir(&path).unwrap();
        path
    };
    let (lower, upper, work) = (directory("lower"), directory("upper"), directory("work"));
    let options = [("lowerdir", lower), ("upperdir", upper), ("workdir", work)]
        .map(|(option, path)| format!("{option}={}", path.display()))
        .join(",");
    let target = bench.path(name);
    fs::create_dir(&target).unwrap();
    let flags = MsFlags::empty();
    mount(Some("overlay"), &target, Some("overlay"), flags, Some(options.as_str())).unwrap();
    target
}

#[test]
fn root_is_a_copy_with_the_same_tree_where_overlayfs_is_refused() {
    private_mounts();
    let bench = Bench::new();
    let described = |name: &str, mode| Tar::new().entry(EntryType::Directory, name, mode, b"");
    let layers = unpacked(
        &bench,
        &[
            described("./", 0o711)
                .entry(EntryType::Directory, "tmp", 0o1777, b"")
                .file("tmp/gone", "")
                .dir("o")
                .file("o/old", "1")
                .symlink("link", "tmp"),
            Tar::new()
                .file("tmp/file", "")
                .file("tmp/.wh.gone", "")
                .file("o/.wh..wh..opq", "")
                .file("o/new", "2"),
        ],
    );
    let expected = {
        let spec = spec(&bench, &layers);
        assert_eq!(spec.mount().unwrap(), RootMethod::Overlay);
        let found = tree(&spec.target);
        nix::mount::umount(&spec.target).unwrap();
        found
    };
    let state = overlay_at(&bench, "state");
    let copied = OverlaySpec {
        upper: state.join("upper"),
        work: state.join("work"),
        ..spec(&bench, &layers)
    };
    assert_eq!(copied.mount().unwrap(), RootMethod::Copy);
    assert_eq!(tree(&copied.target), expected);
    let options = mount_options(&copied.target);
    assert!(options.contains("nosuid") && options.contains("nodev"), "{options}");
    // The upper directory has the files of the first copy. Nothing is copied over them, and the
    // error of the overlay mount is returned.
    nix::mount::umount(&copied.target).unwrap();
    let text = chain(&copied.mount().unwrap_err());
    assert!(text.contains("the kernel refused to make") || text.contains("upperdir"), "{text}");
    nix::mount::umount(&state).unwrap();
}

/// Unpacks an image of `count` layers that have one file each.
fn layers_of_one_file(bench: &Bench, count: usize) -> Stack {
    let layer = |number| Tar::new().file(&format!("file{number}"), "");
    unpacked(bench, &(0..count).map(layer).collect::<Vec<Tar>>())
}

#[test]
fn five_hundred_layers_are_mounted_and_one_more_is_refused() {
    private_mounts();
    let bench = Bench::new();
    let layers = layers_of_one_file(&bench, 501);
    let error = spec(&bench, &layers).mount().unwrap_err();
    let expected = "the image has 501 layers: one overlay mount can have at most 500";
    assert_eq!(error.to_string(), expected);
    assert_eq!(names(&mounted(&bench, &layers_of_one_file(&bench, 500))).len(), 500);
}

#[test]
fn error_names_the_missing_directory() {
    private_mounts();
    let bench = Bench::new();
    let layers = unpacked(&bench, &[Tar::new().dir("a")]);
    let target = OverlaySpec { target: bench.path("nowhere"), ..spec(&bench, &layers) };
    assert!(matches!(target.mount().unwrap_err(), MountError::Mount { .. }));
    let upper = OverlaySpec { upper: bench.path("no/where"), ..spec(&bench, &layers) };
    assert!(chain(&upper.mount().unwrap_err()).contains("where`: No such file or directory"));
    fs::remove_dir_all(layers.trees().next().unwrap()).unwrap();
    let text = chain(&spec(&bench, &layers).mount().unwrap_err());
    assert!(
        text.starts_with("cannot open directory `") && text.ends_with("(os error 2)"),
        "{text}"
    );
}
