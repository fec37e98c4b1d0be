//! Private directories: no other user may read them, or replace them by way of a parent directory.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};

use a3s_box_oci::{StoreError, check_parents, private_directory};
use a3s_box_sys::HostError;
use nix::unistd::{Uid, seteuid};

/// A user id that is neither root nor the owner of the private directory.
const STRANGER: u32 = 1;

/// Creates a directory with the directory `parent` in it, and returns it with a function that
/// returns paths in it.
fn directories() -> (tempfile::TempDir, impl Fn(&str) -> PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    fs::create_dir(root.join("parent")).unwrap();
    (dir, move |path: &str| root.join(path))
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// Returns the exposed path of an error, and its description of the path.
fn exposed<T: std::fmt::Debug>(result: Result<T, StoreError>) -> (PathBuf, String) {
    match result {
        Err(StoreError::Exposed { path, found, .. }) => (path, found),
        other => panic!("{other:?}"),
    }
}

#[test]
fn private_directory_is_created_with_mode_0700_and_any_other_is_refused() {
    let (_dir, at) = directories();
    let path = at("store");
    private_directory(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o700);
    private_directory(&path).unwrap();
    for mode in [0o755, 0o750, 0o701, 0o740, 0o720, 0o702, 0o1777] {
        chmod(&path, mode);
        let found = format!("a directory of user 0 with mode {mode:04o}");
        assert_eq!(exposed(private_directory(&path)), (path.clone(), found));
    }
    chmod(&path, 0o700);
    chown(&path, Some(STRANGER), None).unwrap();
    let found = format!("a directory of user {STRANGER} with mode 0700");
    assert_eq!(exposed(private_directory(&path)), (path, found));
    symlink(at("parent"), at("link")).unwrap();
    symlink(at("nowhere"), at("dangling")).unwrap();
    fs::write(at("file"), "").unwrap();
    chmod(&at("parent"), 0o700);
    for name in ["link", "dangling", "file"] {
        let found = "a symbolic link or a file".to_owned();
        assert_eq!(exposed(private_directory(&at(name))), (at(name), found));
    }
    assert!(!at("nowhere").exists());
    let error = private_directory(&at("missing/store")).unwrap_err();
    assert!(matches!(error, StoreError::Host(HostError { action: "make", .. })), "{error}");
}

#[test]
fn parent_that_others_can_write_to_is_refused_unless_it_is_sticky() {
    let (_dir, at) = directories();
    fs::create_dir_all(at("parent/a/store")).unwrap();
    for path in [
        "parent/a/store",
        "parent/a",
        "parent/missing",
        "parent/missing/store",
        "parent/a/../a/store",
    ] {
        for mode in [0o777, 0o775, 0o702, 0o2770] {
            chmod(&at("parent"), mode);
            let found = format!("a parent directory of user 0 with mode {mode:04o}");
            assert_eq!(exposed(check_parents(&at(path))), (at("parent"), found), "{path}");
        }
        for mode in [0o755, 0o1777, 0o700] {
            chmod(&at("parent"), mode);
            check_parents(&at(path)).unwrap();
        }
    }
    // `check_parents` checks only the parents. `private_directory` checks the directory itself.
    chmod(&at("parent"), 0o777);
    check_parents(&at("parent")).unwrap();
    check_parents(Path::new("/")).unwrap();
}

#[test]
fn parent_of_another_user_is_refused_and_a_parent_of_root_is_accepted() {
    let (_dir, at) = directories();
    fs::create_dir(at("parent/store")).unwrap();
    chown(at("parent"), Some(STRANGER), None).unwrap();
    for mode in [0o755, 0o1777] {
        chmod(&at("parent"), mode);
        let found = format!("a parent directory of user {STRANGER} with mode {mode:04o}");
        assert_eq!(exposed(check_parents(&at("parent/store"))), (at("parent"), found));
    }
    // That user is accepted: the directory is the user's own, and its parents belong to root.
    chmod(&at(""), 0o755);
    chmod(&at("parent"), 0o755);
    seteuid(Uid::from_raw(STRANGER)).unwrap();
    let for_stranger = check_parents(&at("parent/store"));
    seteuid(Uid::from_raw(0)).unwrap();
    for_stranger.unwrap();
    // A third user is refused: the directory belongs neither to root nor to this user.
    seteuid(Uid::from_raw(STRANGER + 1)).unwrap();
    let for_another = check_parents(&at("parent/store"));
    seteuid(Uid::from_raw(0)).unwrap();
    assert_eq!(exposed(for_another).0, at("parent"));
}

#[test]
fn symlink_of_root_is_followed_and_each_directory_behind_it_is_checked() {
    let (_dir, at) = directories();
    for directory in ["real/store", "open/store"] {
        fs::create_dir_all(at(directory)).unwrap();
    }
    symlink(at("real"), at("parent/absolute")).unwrap();
    symlink("../real/.", at("parent/relative")).unwrap();
    symlink("relative/store", at("parent/to-store")).unwrap();
    symlink(at("open/store"), at("parent/to-open")).unwrap();
    symlink("loop", at("parent/loop")).unwrap();
    chmod(&at("open"), 0o777);
    for path in
        ["parent/absolute/store", "parent/relative/store", "parent/to-store", "parent/relative/new"]
    {
        check_parents(&at(path)).unwrap();
    }
    for path in ["parent/to-open", "parent/to-open/new", "parent/absolute/../open/store"] {
        assert_eq!(
            exposed(check_parents(&at(path))).1,
            "a parent directory of user 0 with mode 0777"
        );
    }
    let error = check_parents(&at("parent/loop/store")).unwrap_err();
    assert!(matches!(error, StoreError::Host(HostError { action: "follow", .. })), "{error}");
    // In a sticky directory such as `/tmp` each user can create symbolic links.
    chmod(&at("parent"), 0o1777);
    lchown(at("parent/relative"), Some(STRANGER), None).unwrap();
    for path in ["parent/relative/store", "parent/to-store"] {
        let found = format!("a symbolic link of user {STRANGER}");
        assert_eq!(exposed(check_parents(&at(path))), (at("parent/relative"), found), "{path}");
    }
}
