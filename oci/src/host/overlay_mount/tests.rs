use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::{SFlag, mknod};
use rustix::fs::{XattrFlags, setxattr};

use super::*;
use crate::host::scratch_dir::ScratchDir;

/// Returns the methods that the version of the host kernel guarantees. With backports it can
/// support more.
fn supported_methods() -> &'static [Method] {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map(|number| number.parse::<u32>().unwrap());
    match (numbers.next().unwrap(), numbers.next().unwrap()) {
        version if version >= (6, 13) => &[Method::Fds, Method::Paths, Method::Classic],
        version if version >= (6, 8) => &[Method::Paths, Method::Classic],
        _ => &[Method::Classic],
    }
}

impl ScratchDir {
    /// Opens a directory, and creates it if it is missing.
    fn directory(&self, name: &str) -> OwnedFd {
        fs::create_dir_all(self.path(name)).unwrap();
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        open(&self.path(name), flags, Mode::empty()).unwrap()
    }

    /// Writes a file, and creates its parents if they are missing.
    fn write(&self, name: &str, text: &str) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), text).unwrap();
    }

    fn set_xattr(&self, name: &str, attribute: &str, value: &str) {
        setxattr(self.path(name), attribute, value.as_bytes(), XattrFlags::empty()).unwrap();
    }

    /// Creates `count` layers. Each has a file of its own and one that all layers have.
    fn layers(&self, count: usize) -> Vec<OwnedFd> {
        let layer = |number: usize| {
            self.write(&format!("layer{number}/of-{number}"), "");
            self.write(&format!("layer{number}/of-all"), &number.to_string());
            self.directory(&format!("layer{number}"))
        };
        (0..count).map(layer).collect()
    }
}

/// Returns the options of each overlay mount in the mount namespace of this thread.
fn visible_overlays() -> Vec<String> {
    let mounts = fs::read_to_string("/proc/thread-self/mounts").unwrap();
    mounts.lines().filter(|line| line.starts_with("overlay ")).map(str::to_owned).collect()
}

/// Returns the path of each entry below the directory of an fd, with its content, its link target,
/// or `dir`.
fn tree(root: &OwnedFd) -> BTreeMap<PathBuf, String> {
    let root = PathBuf::from(format!("/proc/thread-self/fd/{}/", root.as_raw_fd()));
    let mut found = BTreeMap::new();
    let mut pending = vec![root.clone()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
            let kind = entry.file_type().unwrap();
            let text = if kind.is_dir() {
                pending.push(entry.path());
                "dir".to_owned()
            } else if kind.is_symlink() {
                fs::read_link(entry.path()).unwrap().display().to_string()
            } else {
                fs::read_to_string(entry.path()).unwrap()
            };
            found.insert(entry.path().strip_prefix(&root).unwrap().to_owned(), text);
        }
    }
    found
}

#[test]
fn mount_by_each_method_shows_the_same_tree_and_leaves_no_mount_point() {
    let scratch = ScratchDir::new();
    let before = visible_overlays();
    for overlay_xattrs in [OverlayXattrs::Trusted, OverlayXattrs::User] {
        for method in supported_methods().iter().copied() {
            let at = |name: &str| format!("{overlay_xattrs:?} {method:?}/{name}");
            scratch.write(&at("bottom/gone"), "1");
            scratch.write(&at("bottom/below/hidden"), "1");
            scratch.write(&at("bottom/both/one"), "1");
            scratch.write(&at("top/below/shown"), "2");
            scratch.write(&at("top/both/two"), "2");
            scratch.set_xattr(&at("top/below"), overlay_xattrs.opaque_xattr(), "y");
            mknod(&scratch.path(&at("top/gone")), SFlag::S_IFCHR, Mode::empty(), 0).unwrap();
            symlink("both", scratch.path(&at("top/link"))).unwrap();
            let lower = [scratch.directory(&at("top")), scratch.directory(&at("bottom"))];
            let (upper, work) = (scratch.directory(&at("upper")), scratch.directory(&at("work")));
            let overlay = Overlay {
                lower: &lower,
                upper: &upper,
                work: &work,
                overlay_xattrs,
                volatile: true,
            };
            let root = overlay.mount_by(method).unwrap();
            let expected = [
                ("below", "dir"),
                ("below/shown", "2"),
                ("both", "dir"),
                ("both/one", "1"),
                ("both/two", "2"),
                ("link", "both"),
            ];
            let expected = expected.map(|(name, text)| (PathBuf::from(name), text.to_owned()));
            assert_eq!(tree(&root), BTreeMap::from(expected), "{overlay_xattrs:?} {method:?}");
            // The fd of a detached mount can be used without a path.
            let how = OpenHow::new()
                .flags(OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_CLOEXEC)
                .mode(Mode::S_IRWXU)
                .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_XDEV);
            let made = openat2(&root, "/link/../new", how).unwrap();
            nix::unistd::write(&made, b"3").unwrap();
            assert_eq!(fs::read_to_string(scratch.path(&at("upper/new"))).unwrap(), "3");
            assert_eq!(visible_overlays(), before, "{overlay_xattrs:?} {method:?}");
            assert!(!scratch.path(&at("work/mount")).exists());
            let options = {
                let target = scratch.path(&at("target"));
                fs::create_dir(&target).unwrap();
                attach(&root, &target).unwrap();
                visible_overlays().pop().unwrap()
            };
            let has_userxattr = options.contains(",userxattr");
            assert_eq!(has_userxattr, overlay_xattrs == OverlayXattrs::User, "{options}");
            for option in ["nosuid", "nodev", "volatile"] {
                assert!(options.contains(option), "{option}: {options}");
            }
            umount2(&scratch.path(&at("target")), MntFlags::MNT_DETACH).unwrap();
        }
    }
}

#[test]
fn five_hundred_layers_are_mounted_by_each_method_and_one_more_is_refused() {
    let scratch = ScratchDir::new();
    let layers = scratch.layers(501);
    for (number, method) in supported_methods().iter().copied().enumerate() {
        for count in [128, 499, 500] {
            let at = |name: &str| scratch.directory(&format!("{name}{number}-{count}"));
            let (upper, work) = (at("upper"), at("work"));
            let lower = layers.get(..count).unwrap();
            let overlay_xattrs = OverlayXattrs::Trusted;
            let overlay =
                Overlay { lower, upper: &upper, work: &work, overlay_xattrs, volatile: false };
            let found = tree(&overlay.mount_by(method).unwrap());
            assert_eq!(found.len(), count + 1, "{method:?}");
            assert_eq!(found[&PathBuf::from("of-all")], "0");
        }
    }
    let (upper, work) = (scratch.directory("upper"), scratch.directory("work"));
    let error = overlay(&layers, &upper, &work, OverlayXattrs::Trusted).unwrap_err();
    let expected = "501 layers are too many for one overlay mount: expected at most 500";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn error_of_a_refused_mount_has_the_messages_of_the_kernel() {
    let scratch = ScratchDir::new();
    let (upper, work) = (scratch.directory("upper"), scratch.directory("work"));
    let lower = [scratch.directory("layer")];
    let read_only = MsFlags::MS_RDONLY;
    mount(None::<&str>, &scratch.path("work"), Some("tmpfs"), read_only, None::<&str>).unwrap();
    let error =
        overlay(&lower, &upper, &scratch.directory("work"), OverlayXattrs::Trusted).unwrap_err();
    // Kernels that support only mount(2) for overlays return no messages.
    let explains = supported_methods().contains(&Method::Paths);
    assert_eq!(errno(&error), Some(if explains { Errno::EINVAL } else { Errno::EROFS }));
    let text = error.to_string();
    let (begin, end) = ("(kernel message: overlay: filesystem on ", " is read-only)");
    assert_eq!(text.contains(begin) && text.ends_with(end), explains, "{text}");
    // If a directory occurs twice, the kernel returns an errno and no message.
    let twice = [scratch.directory("layer"), scratch.directory("layer")];
    let error = overlay(&twice, &upper, &work, OverlayXattrs::Trusted).unwrap_err();
    assert_eq!(errno(&error), Some(Errno::ELOOP));
    assert_eq!(error.to_string(), "the kernel refused to make the overlay");
}

#[test]
fn redirect_xattr_of_a_layer_is_not_followed() {
    let scratch = ScratchDir::new();
    scratch.write("bottom/secret/file", "");
    scratch.write("top/shown/own", "");
    scratch.set_xattr("top/shown", "trusted.overlay.redirect", "/secret");
    let lower = [scratch.directory("top"), scratch.directory("bottom")];
    let (upper, work) = (scratch.directory("upper"), scratch.directory("work"));
    for method in supported_methods().iter().copied() {
        let overlay_xattrs = OverlayXattrs::Trusted;
        let overlay =
            Overlay { lower: &lower, upper: &upper, work: &work, overlay_xattrs, volatile: false };
        let root = overlay.mount_by(method).unwrap();
        let shown = format!("/proc/thread-self/fd/{}/shown", root.as_raw_fd());
        let names: Vec<_> = match fs::read_dir(shown) {
            Ok(entries) => entries.map(|entry| entry.unwrap().file_name()).collect(),
            // The kernel refuses to list such a directory.
            Err(error) if errno(&error) == Some(Errno::EPERM) => Vec::new(),
            Err(error) => panic!("{error}"),
        };
        assert!(!names.iter().any(|name| name == OsStr::new("file")), "{names:?}");
    }
}

#[test]
fn methods_are_tried_until_one_is_supported_and_the_error_with_a_reason_is_returned() {
    let refusal = |errno: Errno, explanation: Option<&str>| {
        let explanation = explanation.map(str::to_owned);
        Err(Refusal { step: Step::Create, explanation, source: errno.into() })
    };
    let bad_value = || refusal(Errno::EINVAL, Some("overlay: Bad value for 'upperdir'"));
    let unsupported = || refusal(Errno::EOPNOTSUPP, None);
    let not_supported = || refusal(Errno::EINVAL, Some("overlay: filesystem on a not supported"));
    let silent = || refusal(Errno::EINVAL, None);
    // Results of the three methods; the expected result; the methods that are tried.
    type Case<'a> = ([Result<u8, Refusal>; 3], Result<u8, (Errno, Option<&'a str>)>, &'a str);
    let bad_fd = || refusal(Errno::EBADF, None);
    let cases: [Case<'_>; 10] = [
        // The first method succeeds; then Linux 6.12; then Linux 6.1.
        ([Ok(1), Ok(2), Ok(3)], Ok(1), "Fds"),
        ([bad_fd(), Ok(2), Ok(3)], Ok(2), "Fds Paths"),
        ([bad_value(), Ok(2), Ok(3)], Ok(2), "Fds Paths"),
        ([bad_fd(), silent(), silent()], Err((Errno::EINVAL, None)), "Fds Paths Classic"),
        ([unsupported(), Ok(2), Ok(3)], Ok(3), "Fds Classic"),
        // A kernel without the new mount API.
        ([refusal(Errno::ENOSYS, None), Ok(2), Ok(3)], Ok(3), "Fds Classic"),
        // Directories that overlayfs refuses, on a kernel of each kind.
        (
            [not_supported(), not_supported(), silent()],
            Err((Errno::EINVAL, Some("not supported"))),
            "Fds Paths Classic",
        ),
        (
            [bad_value(), not_supported(), silent()],
            Err((Errno::EINVAL, Some("not supported"))),
            "Fds Paths Classic",
        ),
        ([unsupported(), Ok(2), silent()], Err((Errno::EINVAL, None)), "Fds Classic"),
        // An error that does not depend on the method.
        ([refusal(Errno::EACCES, None), Ok(2), Ok(3)], Err((Errno::EACCES, None)), "Fds"),
    ];
    for (number, (results, expected, expected_tried)) in cases.into_iter().enumerate() {
        let mut tried = Vec::new();
        let mut results = results.map(Some);
        let found = try_methods(|method| {
            tried.push(format!("{method:?}"));
            results[method as usize].take().unwrap()
        });
        assert_eq!(tried.join(" "), expected_tried, "case {number}");
        match (found, expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, expected, "case {number}"),
            (Err(found), Err((errno, text))) => {
                assert_eq!(found.source.raw_os_error(), Some(errno as i32), "case {number}");
                let explanation = found.explanation.unwrap_or_default();
                assert!(explanation.ends_with(text.unwrap_or_default()), "case {number}");
                assert_eq!(explanation.is_empty(), text.is_none(), "case {number}");
            }
            (found, _) => panic!("case {number}: {found:?}"),
        }
    }
}

#[test]
fn overlay_xattrs_are_found_by_concurrent_threads() {
    let directory = tempfile::tempdir().unwrap();
    let find = || {
        let directory = fs::File::open(directory.path()).unwrap();
        for _ in 0..500 {
            OverlayXattrs::of_process(&directory).unwrap();
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(find);
        }
    });
}
