//! A hostile guest and the directories that it gets: root in the guest, which may do there what it likes,
//! reaches no file of the host outside of them, and changes none in those that are read-only.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use a3s_box_vm_tests::Shim;

/// What must never be seen by a guest.
const SECRET: &str = "secret of the host";

/// All that says whether a file was changed, but the time of its last reading.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    mode: u32,
    owner: (u32, u32),
    links: u64,
    device: u64,
    changed: [(i64, i64); 2],
    /// Of a file its content, of a link its target.
    content: Vec<u8>,
    xattrs: String,
}

/// All below `directory`, and itself.
fn snapshot(directory: &Path) -> BTreeMap<PathBuf, Found> {
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
        let changed =
            [(metadata.mtime(), metadata.mtime_nsec()), (metadata.ctime(), metadata.ctime_nsec())];
        let entry = Found {
            mode: metadata.mode(),
            owner: (metadata.uid(), metadata.gid()),
            links: metadata.nlink(),
            device: metadata.rdev(),
            changed,
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

/// A directory to share, with what the workload expects in it.
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

/// A share in a config.
fn share(directory: &Path, target: &str, read_only: bool) -> Value {
    json!({"type": "virtiofs", "source": directory, "target": target, "read_only": read_only})
}

/// Directories to share, with a file beside them that is not shared.
fn host() -> (TempDir, PathBuf) {
    let host = tempfile::Builder::new().prefix("h").tempdir().unwrap();
    for name in ["own", "other"] {
        fill(&host.path().join(name));
    }
    let canary = host.path().join("canary");
    fs::write(&canary, SECRET).unwrap();
    (host, canary)
}

/// What the workload has reached, of how many attempts.
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
fn a_read_only_share_is_unchanged_whatever_root_of_the_guest_tries() {
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
fn a_share_leads_nowhere_and_leaves_nothing_that_is_the_hosts() {
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

/// What is left on the host: files of the guest's own, and no device but the one that is nothing.
fn check_odd_files(directory: &Path) {
    let found = snapshot(directory);
    for (path, entry) in &found {
        let kind = path.symlink_metadata().unwrap().file_type();
        assert!(!kind.is_block_device(), "{path:?}");
        assert!(!kind.is_char_device() || entry.device == 0, "{path:?}");
    }
    let kind = |name: &str| directory.join(name).symlink_metadata().unwrap().file_type();
    assert!(kind("fifo").is_fifo() && kind("socket").is_socket());
    // What the guest's root owns is root's on the host, and its setuid bit is one: such a directory belongs
    // where no other user of the host can reach it, or on a file system without setuid.
    let setuid = &found[&directory.join("setuid")];
    assert_eq!((setuid.mode & 0o7777, setuid.owner), (0o6755, (0, 0)));
    assert!(found.keys().any(|path| path.ends_with("deep/deep/deepest")));
}

#[test]
fn requests_that_no_honest_kernel_sends_reach_nothing_outside_of_a_share() {
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
