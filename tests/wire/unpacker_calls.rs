//! The lists of the system calls of unpackers, compared with a trace of the calls that they make.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::harness::{config, wrapped_shim};
use crate::image::image;
use crate::traced_calls::assert_calls_are_made;

/// Source of the filter. Its lists name the calls that unpackers may make.
const FILTER: &str = include_str!("../../src/rootfs/unpacker/calls.rs");

/// Calls that the filter allows and this test does not see, with the case in which they are made.
const UNSEEN_CALLS: [(&str, &str); 16] = [
    ("brk", "made by malloc(3) of glibc for small blocks"),
    ("clock_gettime", "needed on a host whose vDSO has no clock"),
    ("clock_nanosleep", "made by the decoder's threads on a busy host"),
    ("copy_file_range", "made for the index of a layer of some hundred thousand entries"),
    ("fchmodat", "needed on aarch64, which has no chmod(2)"),
    ("fstat", "made by glibc instead of statx(2) if it is old"),
    ("getpid", "made by abort(3)"),
    ("getrandom", "made for the keys of hash tables, unless the process has made them before"),
    ("gettid", "made by abort(3)"),
    ("lsetxattr", "made for a symbolic link or a named pipe with a file capability"),
    ("mremap", "made by realloc(3) of glibc for a large block"),
    ("restart_syscall", "made by the kernel after SIGSTOP and SIGCONT"),
    ("rt_sigreturn", "made after a signal handler, which Rust has for SIGSEGV"),
    ("sched_yield", "made by Rust's channels on a busy host"),
    ("tgkill", "made by abort(3)"),
    ("writev", "made by Rust when it prints a panic"),
];

/// Layers with each kind of entry. The third one is unpacked on top of the others, because it has a
/// file below a symbolic link of the first one and removes files of lower layers.
const LAYERS: &str = r#"
    base() {
        mkdir -p d/e target many; echo f >d/f; ln d/f d/g; ln -s target link; mkfifo pipe
        ln -s f d/l; truncate -s 1M sparse; head -c 3M /dev/urandom >large
        setfattr -n user.a -v 1 d/f; setfattr -n user.a -v 1 d; chown 5:6 d/f pipe; chown -h 7:8 d/l
        chmod 4755 d/g; setcap cap_net_raw+ep large; for i in {1..300}; do echo $i >many/$i; done
    }
    second() { mkdir d; touch .wh.pipe d/.wh..wh..opq; echo n >d/n; }
    third() { mkdir -p link d; echo y >link/y; echo x >d/x; touch .wh.large .wh.missing; }
"#;

/// Makes an image of these layers in `directory`, and returns the `image` of a config for it.
fn image_of_all_kinds(directory: &Path) -> serde_json::Value {
    let made = image(directory, &format!("{LAYERS}\nbase"));
    let script = format!(
        "{LAYERS}
        mkdir second third; (cd second; second; tar -cf ../second.tar .)
        # Without an entry for `link`, its file goes behind the link of the lower layer.
        (cd third; third; find . -type f | tar -cf ../third.tar -T -)
        for layer in second third; do umoci raw add-layer --image image:t $layer.tar; done
        # Entries replace others of the same layer, a file is behind a link, a directory comes after
        # its files, and loses an attribute.
        mkdir fourth; cd fourth; mkdir -p a dir/of/files to; echo 1 >a/b; ln -s nowhere c; ln -s to s
        setfattr -n user.a -v 1 a
        tar --xattrs -cf ../fourth.tar a/b a c dir to s
        rm -r c s dir; echo 2 >c; echo 3 >dir; mkdir s; echo 4 >s/file; setfattr -x user.a a
        tar --xattrs --no-recursion -rf ../fourth.tar c a dir s/file; cd ..
        umoci raw add-layer --image image:t fourth.tar"
    );
    let output =
        Command::new("bash").args(["-euc", &script]).current_dir(directory).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    made
}

/// Prepares the image for a root of `kind`, and then verifies it. Returns the names of the system
/// calls that the unpackers make under their filters.
fn trace(directory: &Path, image: &serde_json::Value, kind: &str) -> BTreeSet<String> {
    let mut config = config(directory, &["hang"]);
    config["image"] = image.clone();
    config["root"] = json!({"kind": kind});
    let path = directory.join("config.json");
    fs::write(&path, config.to_string()).unwrap();
    let mut made = BTreeSet::new();
    for mode in ["--prepare", "--verify"] {
        let traces = directory.join(format!("{kind}{mode}"));
        fs::create_dir(&traces).unwrap();
        let mut strace = Command::new("strace");
        // With -ff each thread has a file of its own.
        strace.args(["-ff", "-e", "signal=none", "-o"]).arg(traces.join("t"));
        let mut command = wrapped_shim(strace);
        let output = command.arg(mode).arg("--config").arg(&path).output().unwrap();
        assert!(output.status.success(), "{output:?}\n{:?}", forbidden_calls(&traces));
        made.extend(calls_of_unpackers(&traces));
    }
    made
}

/// Returns the last call of each process that seccomp has ended, for the message of a failure.
fn forbidden_calls(traces: &Path) -> Vec<String> {
    let read = |path| String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned();
    let all = fs::read_dir(traces).unwrap().map(|entry| read(entry.unwrap().path()));
    let killed = all.filter(|text| text.contains("killed by SIGSYS"));
    killed.filter_map(|text| Some(text.lines().rev().nth(1)?.to_owned())).collect()
}

/// Returns the names of the calls that unpackers make under their filters, from the traces in a
/// directory.
fn calls_of_unpackers(traces: &Path) -> BTreeSet<String> {
    let all = fs::read_dir(traces).unwrap().map(|entry| entry.unwrap().path());
    let read = |path: &Path| String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned();
    let of_thread = |thread: &str| read(&traces.join(format!("t.{thread}")));
    let name = |line: &str| {
        let name = line.split('(').next().unwrap();
        let is_name = !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        is_name.then(|| name.to_owned())
    };
    let mut made = BTreeSet::new();
    for main in all.map(|path| read(&path)).filter(|text| text.contains("\"a3s-box-unpack\"")) {
        // Only the calls after the last seccomp(2) are subject to the filter.
        let (_, confined) = main.rsplit_once("\nseccomp(").unwrap();
        made.extend(confined.lines().skip(1).filter_map(name));
        let threads = confined.lines().filter(|line| line.starts_with("clone("));
        for thread in threads.filter_map(|line| line.rsplit_once("= ")) {
            let text = of_thread(thread.1.split(' ').next().unwrap());
            made.extend(text.lines().filter_map(name));
        }
    }
    assert!(made.len() > 10, "the calls are: {made:?}");
    made
}

#[test]
fn unpackers_make_each_allowed_system_call_or_the_reason_is_known() {
    let directory = tempfile::tempdir().unwrap();
    let image = image_of_all_kinds(directory.path());
    let mut made = BTreeSet::new();
    for kind in ["block", "shared"] {
        made.extend(trace(directory.path(), &image, kind));
    }
    // The imports above the first list name the same calls, and the tests below name some.
    let (_, lists) = FILTER.split_once("\nconst OF_EACH").unwrap();
    let (lists, _) = lists.split_once("#[cfg(test)]").unwrap();
    assert_calls_are_made(lists, &UNSEEN_CALLS, &made);
    let stack = fs::read_dir(directory.path().join("c/layers-v5/ready")).unwrap();
    let is_on_top = |name: &str| name.starts_with("on-");
    let mut names = stack.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert!(names.any(|name| is_on_top(&name)), "no layer was unpacked on top of others");
}
