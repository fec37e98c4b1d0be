//! Owners and modes of the files in shares; and a hostile guest and its shares: root of the guest must
//! reach no file of the host outside of them, and must change no file in a read-only share.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use a3s_box_vm_tests::Shim;

/// Content of a file that no guest may read.
const SECRET: &str = "secret of the host";

/// Content and metadata of a file, except for the access time, which a reader changes.
#[derive(Debug, PartialEq, Eq)]
struct FileState {
    mode: u32,
    owner: (u32, u32),
    links: u64,
    device: u64,
    /// Modification time and change time, each in seconds and nanoseconds.
    times: [(i64, i64); 2],
    /// Content of a regular file, or target of a symbolic link.
    content: Vec<u8>,
    xattrs: String,
}

/// Returns the state of `directory` and of every file below it.
fn snapshot(directory: &Path) -> BTreeMap<PathBuf, FileState> {
    let mut found = BTreeMap::new();
    let mut left = vec![directory.to_path_buf()];
    while let Some(path) = left.pop() {
        let metadata = path.symlink_metadata().unwrap();
        let kind = metadata.file_type();
        let content = if kind.is_file() {
            fs::read(&path).unwrap()
        } else if kind.is_symlink() {
            fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
        } else {
            Vec::new()
        };
        if kind.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        let times =
            [(metadata.mtime(), metadata.mtime_nsec()), (metadata.ctime(), metadata.ctime_nsec())];
        let entry = FileState {
            mode: metadata.mode(),
            owner: (metadata.uid(), metadata.gid()),
            links: metadata.nlink(),
            device: metadata.rdev(),
            times,
            content,
            xattrs: xattrs(&path),
        };
        found.insert(path, entry);
    }
    found
}

fn xattrs(path: &Path) -> String {
    let dump = Command::new("getfattr").args(["-hd", "-m", "-"]).arg(path).output().unwrap();
    String::from_utf8(dump.stdout).unwrap()
}

/// Makes a directory to share, with the files that the steps of the workload expect.
fn fill(directory: &Path) {
    fs::create_dir_all(directory.join("empty")).unwrap();
    fs::write(directory.join("file"), "of the host\n").unwrap();
    fs::write(directory.join("other"), "of the host, too\n").unwrap();
    fs::write(directory.join("inside"), "inside of the share\n").unwrap();
    symlink("file", directory.join("link")).unwrap();
    for (name, value) in [("user.kept", "file"), ("trusted.kept", "link")] {
        let mut setfattr = Command::new("setfattr");
        setfattr.args(["-h", "-n", name, "-v", "1", value]).current_dir(directory);
        assert!(setfattr.status().unwrap().success(), "this test needs the package `attr`");
    }
}

/// Returns a share for the field `mounts` of a config.
fn share(directory: &Path, target: &str, read_only: bool) -> Value {
    json!({"type": "virtiofs", "source": directory, "target": target, "read_only": read_only})
}

/// Makes two directories to share and, beside them, a file with [`SECRET`] that is not shared.
/// Returns the directory of all three and the path of the file.
fn host() -> (TempDir, PathBuf) {
    let host = tempfile::Builder::new().prefix("h").tempdir().unwrap();
    for name in ["own", "other"] {
        fill(&host.path().join(name));
    }
    let canary = host.path().join("canary");
    fs::write(&canary, SECRET).unwrap();
    (host, canary)
}

/// Returns the names of the attempts that succeeded, and the number of all attempts. Panics if the
/// secret is in the output of the guest.
fn reached(shim: &Shim) -> (Vec<String>, usize) {
    let console = String::from_utf8_lossy(&shim.console()).into_owned();
    assert!(!console.contains(SECRET), "the guest has read the canary\n{console}");
    let attempts =
        console.lines().filter(|line| line.starts_with("refused ") || line.starts_with("REACHED "));
    let attempts: Vec<&str> = attempts.collect();
    let reached = attempts.iter().filter_map(|line| line.strip_prefix("REACHED "));
    (reached.map(str::to_owned).collect(), attempts.len())
}

#[test]
fn owners_and_modes_of_a_share_are_exact_in_both_directions() {
    let script = "stat -c '%u %g %a' /w/given && touch /w/made && chown 1000:2000 /w/made && \
                  chmod 4711 /w/made && stat -c '%u %g %a' /w/made";
    for cache in ["none", "auto"] {
        let host = tempfile::Builder::new().prefix("h").tempdir().unwrap();
        let given = host.path().join("given");
        fs::write(&given, "").unwrap();
        lchown(&given, Some(1234), Some(567)).unwrap();
        fs::set_permissions(&given, fs::Permissions::from_mode(0o640)).unwrap();
        let mut shim = Shim::start_with(&json!({"args": ["/bin/sh", "-c", script]}), |config| {
            config["mounts"] = json!([share(host.path(), "/w", false)]);
            config["mounts"][0]["cache"] = json!(cache);
        });
        shim.ends_with(0, "exited", None);
        let console = String::from_utf8(shim.console()).unwrap();
        assert_eq!(console, "1234 567 640\n1000 2000 4711\n", "{cache}: {shim}");
        let made = host.path().join("made").metadata().unwrap();
        assert_eq!((made.uid(), made.gid(), made.mode() & 0o7777), (1000, 2000, 0o4711), "{cache}");
    }
}

#[test]
fn extended_attributes_of_a_share_are_exact_in_both_directions() {
    for cache in ["none", "auto"] {
        let host = tempfile::Builder::new().prefix("h").tempdir().unwrap();
        let file = host.path().join("file");
        fs::write(&file, "").unwrap();
        let mut setfattr = Command::new("setfattr");
        setfattr.args(["-n", "user.given", "-v", "of the host"]).arg(&file);
        assert!(setfattr.status().unwrap().success(), "this test needs the package `attr`");
        let mut shim = Shim::start_workload(&["exchange-xattrs=/own/file"], |config| {
            let mut own = share(host.path(), "/own", false);
            own["cache"] = json!(cache);
            config["mounts"].as_array_mut().unwrap().push(own);
        });
        shim.ends_with(0, "exited", None);
        let console = String::from_utf8(shim.console()).unwrap();
        assert_eq!(console, "xattr user.given of the host\n", "{cache}: {shim}");
        let found = xattrs(&file);
        let found: Vec<&str> = found.lines().filter(|line| line.starts_with("user.")).collect();
        assert_eq!(found, ["user.given=\"changed\"", "user.made=\"made\""], "{cache}");
    }
}

#[test]
fn root_of_the_guest_cannot_change_a_read_only_share() {
    let (host, _) = host();
    let directory = host.path().join("own");
    let before = snapshot(&directory);
    let mut shim = Shim::start_workload(&["change-read-only=/ro,mount1"], |config| {
        config["mounts"].as_array_mut().unwrap().push(share(&directory, "/ro", true));
    });
    shim.ends_with(0, "exited", None);
    let (reached, attempts) = reached(&shim);
    assert_eq!(reached, [""; 0], "{shim}");
    println!("{attempts} attempts");
    assert!(attempts >= 90, "{attempts} attempts\n{shim}");
    assert_eq!(snapshot(&directory), before);
}

#[test]
fn root_of_the_guest_reaches_nothing_outside_a_writable_share_and_makes_no_device() {
    let (host, canary) = host();
    let before = snapshot(&canary);
    let escape = format!("escape=/own,/other,{}", canary.display());
    let mut shim = Shim::start_workload(&[&escape], |config| {
        let mounts = config["mounts"].as_array_mut().unwrap();
        mounts.push(share(&host.path().join("own"), "/own", false));
        mounts.push(share(&host.path().join("other"), "/other", false));
    });
    shim.ends_with(0, "exited", None);
    let (reached, attempts) = reached(&shim);
    assert_eq!(reached, [""; 0], "{shim}");
    println!("{attempts} attempts");
    assert!(attempts >= 22, "{attempts} attempts\n{shim}");
    assert!(String::from_utf8_lossy(&shim.console()).contains("odd files are made"), "{shim}");
    assert_eq!(snapshot(&canary), before);
    let names = |directory: &Path| {
        let entries = fs::read_dir(directory).unwrap();
        let mut names: Vec<OsString> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(host.path()), ["canary", "other", "own"]);
    assert_eq!(names(&host.path().join("other")), ["empty", "file", "inside", "link", "other"]);
    check_odd_files(&host.path().join("own"));
}

/// Panics if the guest left a device on the host, except for character device 0:0, which is an
/// overlayfs whiteout and has no driver.
fn check_odd_files(directory: &Path) {
    let found = snapshot(directory);
    for (path, entry) in &found {
        let kind = path.symlink_metadata().unwrap().file_type();
        assert!(!kind.is_block_device(), "{path:?}");
        assert!(!kind.is_char_device() || entry.device == 0, "{path:?}");
    }
    let kind = |name: &str| directory.join(name).symlink_metadata().unwrap().file_type();
    assert!(kind("fifo").is_fifo() && kind("socket").is_socket());
    // A file of the guest's root belongs to root on the host, and its setuid bit is valid there. A
    // writable share must therefore be out of reach of other users, or on a nosuid mount.
    let setuid = &found[&directory.join("setuid")];
    assert_eq!((setuid.mode & 0o7777, setuid.owner), (0o6755, (0, 0)));
    assert!(found.keys().any(|path| path.ends_with("deep/deep/deepest")));
}

#[test]
fn malformed_fuse_requests_reach_nothing_outside_a_share() {
    let (host, canary) = host();
    let before = snapshot(host.path());
    let steps = [
        "unmount=/own".to_owned(),
        "unmount=/other".to_owned(),
        format!("raw-fuse=mount1,{}", canary.display()),
        format!("raw-fuse=mount2,{}", canary.display()),
    ];
    let steps: Vec<&str> = steps.iter().map(String::as_str).collect();
    let mut shim = Shim::start_workload(&steps, |config| {
        let mounts = config["mounts"].as_array_mut().unwrap();
        mounts.push(share(&host.path().join("own"), "/own", false));
        mounts.push(share(&host.path().join("other"), "/other", true));
    });
    shim.ends_with(0, "exited", None);
    let (reached, attempts) = reached(&shim);
    assert_eq!(reached, [""; 0], "{shim}");
    println!("{attempts} attempts");
    assert!(attempts >= 20, "{attempts} attempts\n{shim}");
    assert_eq!(snapshot(host.path()), before);
}
