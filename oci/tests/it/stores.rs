//! Directories that no other user may reach or replace, and the ways to them.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};

use a3s_box_oci::{StoreError, check_parents, private_directory};
use a3s_box_sys::HostError;
use nix::unistd::{Uid, seteuid};

/// Some other user.
const STRANGER: u32 = 1;

/// A directory with the directory `way` in it, and a function that makes paths in the first.
fn way() -> (tempfile::TempDir, impl Fn(&str) -> PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    fs::create_dir(root.join("way")).unwrap();
    (dir, move |path: &str| root.join(path))
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// What is exposed, and how it was found.
fn exposed<T: std::fmt::Debug>(result: Result<T, StoreError>) -> (PathBuf, String) {
    match result {
        Err(StoreError::Exposed { path, found, .. }) => (path, found),
        other => panic!("{other:?}"),
    }
}

#[test]
fn private_directory_is_made_for_its_owner_only_and_nothing_else_counts_as_one() {
    let (_dir, at) = way();
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
    symlink(at("way"), at("link")).unwrap();
    symlink(at("nowhere"), at("dangling")).unwrap();
    fs::write(at("file"), "").unwrap();
    chmod(&at("way"), 0o700);
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
    let (_dir, at) = way();
    fs::create_dir_all(at("way/a/store")).unwrap();
    for path in ["way/a/store", "way/a", "way/missing", "way/missing/store", "way/a/../a/store"] {
        for mode in [0o777, 0o775, 0o702, 0o2770] {
            chmod(&at("way"), mode);
            let found = format!("a parent directory of user 0 with mode {mode:04o}");
            assert_eq!(exposed(check_parents(&at(path))), (at("way"), found), "{path}");
        }
        for mode in [0o755, 0o1777, 0o700] {
            chmod(&at("way"), mode);
            check_parents(&at(path)).unwrap();
        }
    }
    // What is said of the directory itself is for `private_directory`.
    chmod(&at("way"), 0o777);
    check_parents(&at("way")).unwrap();
    check_parents(Path::new("/")).unwrap();
}

#[test]
fn parent_of_another_user_is_refused_and_one_of_root_is_not() {
    let (_dir, at) = way();
    fs::create_dir(at("way/store")).unwrap();
    chown(at("way"), Some(STRANGER), None).unwrap();
    for mode in [0o755, 0o1777] {
        chmod(&at("way"), mode);
        let found = format!("a parent directory of user {STRANGER} with mode {mode:04o}");
        assert_eq!(exposed(check_parents(&at("way/store"))), (at("way"), found));
    }
    // For that user it is the own one, in directories of root.
    chmod(&at(""), 0o755);
    chmod(&at("way"), 0o755);
    seteuid(Uid::from_raw(STRANGER)).unwrap();
    let for_stranger = check_parents(&at("way/store"));
    seteuid(Uid::from_raw(0)).unwrap();
    for_stranger.unwrap();
    // To everybody else it is neither root's nor their own.
    seteuid(Uid::from_raw(STRANGER + 1)).unwrap();
    let for_another = check_parents(&at("way/store"));
    seteuid(Uid::from_raw(0)).unwrap();
    assert_eq!(exposed(for_another).0, at("way"));
}

#[test]
fn symlinks_on_the_way_are_followed_if_nobody_else_made_them_and_all_they_lead_through_counts() {
    let (_dir, at) = way();
    for directory in ["real/store", "open/store"] {
        fs::create_dir_all(at(directory)).unwrap();
    }
    symlink(at("real"), at("way/absolute")).unwrap();
    symlink("../real/.", at("way/relative")).unwrap();
    symlink("relative/store", at("way/to-store")).unwrap();
    symlink(at("open/store"), at("way/to-open")).unwrap();
    symlink("loop", at("way/loop")).unwrap();
    chmod(&at("open"), 0o777);
    for path in ["way/absolute/store", "way/relative/store", "way/to-store", "way/relative/new"] {
        check_parents(&at(path)).unwrap();
    }
    for path in ["way/to-open", "way/to-open/new", "way/absolute/../open/store"] {
        assert_eq!(
            exposed(check_parents(&at(path))).1,
            "a parent directory of user 0 with mode 0777"
        );
    }
    let error = check_parents(&at("way/loop/store")).unwrap_err();
    assert!(matches!(error, StoreError::Host(HostError { action: "follow", .. })), "{error}");
    // As in `/tmp`, where anybody can make one.
    chmod(&at("way"), 0o1777);
    lchown(at("way/relative"), Some(STRANGER), None).unwrap();
    for path in ["way/relative/store", "way/to-store"] {
        let found = format!("a symbolic link of user {STRANGER}");
        assert_eq!(exposed(check_parents(&at(path))), (at("way/relative"), found), "{path}");
    }
}
