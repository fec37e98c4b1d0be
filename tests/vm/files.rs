//! Files of a running box, in a real guest.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};

use a3s_box_runtime::exec::ProcessEnd;
use a3s_box_runtime::files::{CopyLimits, FileFailure, WriteOptions};
use tokio::io::{AsyncReadExt, AsyncWrite, repeat};

use crate::running_box::{RunningBox, shell};

/// Returns the standard output of a script in the guest, which must succeed.
fn run(guest: &RunningBox, script: &str) -> String {
    let output = guest.run(script);
    assert_eq!(output.exit.end, ProcessEnd::Code(0), "{script}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_file_is_the_same_for_the_host_and_for_a_process_of_the_box() {
    let guest = RunningBox::start();
    let content = b"a\0b\n".repeat(50_000);
    let options = WriteOptions { mode: Some(0o640), owner: Some((1000, 7)), keep_existing: false };
    guest.wait_for(guest.files.write("/tmp/file", content.as_slice(), options)).unwrap();
    assert_eq!(run(&guest, "stat -c '%a %u %g %s' /tmp/file"), "640 1000 7 200000\n");
    run(&guest, "cat /tmp/file /tmp/file > /tmp/twice");
    let found = guest.wait_for(guest.files.read("/tmp/twice", 1 << 20)).unwrap();
    assert!(found == content.repeat(2));
    let other = guest.files.clone().user("4321");
    let refused = guest.wait_for(other.read("/tmp/file", 1)).unwrap_err();
    assert_eq!(refused.failure(), Some(FileFailure::PermissionDenied));
    guest.stop();
}

#[test]
fn large_files_go_in_and_out() {
    const MIB: u64 = 1 << 20;
    let guest = RunningBox::start();
    let content = repeat(b'7').take(32 * MIB);
    let written = guest.wait_for(guest.files.write("/tmp/large", content, WriteOptions::default()));
    assert_eq!(written.unwrap(), 32 * MIB);
    assert_eq!(run(&guest, "tr -d 7 < /tmp/large | wc -c; rm /tmp/large").trim(), "0");
    run(&guest, "dd if=/dev/zero of=/tmp/sparse bs=1 count=0 seek=100663296 2>/dev/null");
    let mut counted = Counted(0);
    guest.wait_for(guest.files.read_to("/tmp/sparse", 0, None, &mut counted)).unwrap();
    assert_eq!(counted.0, 96 * MIB);
    guest.stop();
}

/// A writer that counts bytes.
struct Counted(u64);

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0 += bytes.len() as u64;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[test]
fn a_tree_goes_into_the_box_and_comes_back() {
    let guest = RunningBox::start();
    let host = tempfile::tempdir().unwrap();
    fs::create_dir_all(host.path().join("tree/below")).unwrap();
    fs::write(host.path().join("tree/below/file"), "content").unwrap();
    let tree = host.path().join("tree");
    guest.wait_for(guest.files.copy_in(&tree, "/tmp/tree")).unwrap();
    assert_eq!(run(&guest, "cat /tmp/tree/below/file"), "content");
    run(
        &guest,
        "cd /tmp/tree; ln -s /etc/passwd link; ln below/file hard; mkfifo pipe; chmod 4755 hard",
    );
    let back = host.path().join("back");
    let copied = guest.wait_for(guest.files.copy_out("/tmp/tree", &back, &CopyLimits::default()));
    assert_eq!(copied.unwrap().skipped, 1);
    assert_eq!(fs::read_link(back.join("link")).unwrap(), Path::new("/etc/passwd"));
    let found = fs::metadata(back.join("hard")).unwrap();
    assert_eq!((found.mode() & 0o7777, found.nlink()), (0o755, 2));
    guest.stop();
}

#[test]
fn a_process_of_the_box_that_kills_the_child_of_a_call_gets_an_error_to_the_host() {
    let guest = RunningBox::start();
    let (mut input, reader) = tokio::io::duplex(1000);
    let files = guest.files.clone();
    let failure = guest.wait_for(async {
        let write = files.write("/tmp/file", reader, WriteOptions::default());
        let kill = async {
            tokio::io::AsyncWriteExt::write_all(&mut input, b"part").await.unwrap();
            let script = "until f=$(ls -A /tmp | grep a3s-box-write); do :; done; \
                          f=${f#*write-}; kill -9 ${f%-*}";
            let process = guest.processes.run(&shell(script)).await.unwrap();
            process.wait_with_output().await.unwrap()
        };
        tokio::join!(write, kill).0.unwrap_err()
    });
    assert_eq!(failure.failure(), Some(FileFailure::Killed));
    guest.stop();
}
