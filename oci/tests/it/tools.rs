//! Compares the root of a whole image with the tree that umoci unpacks.

use std::fs;
use std::process::Command;

use a3s_box_oci::{Layout, OverlaySpec, Platform};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::bench::{Bench, ROOT, chain, tree};

/// Shell script that builds an image of three layers with umoci, and unpacks it with umoci into
/// `expected`. The layers add, replace and remove files of each type.
const SCRIPT: &str = r#"
umoci init --layout image && umoci new --image image:t && umoci unpack --image image:t one
(cd one/rootfs && mkdir -p a/b o r usr/lib && echo 1 >a/x && echo 1 >a/y && echo 1 >o/old && echo 1 >r/f &&
    ln -s usr/lib lib && ln a/x a/hard && mkfifo pipe && chmod 1777 o && chmod 4755 a/y && chown 7:8 r && touch 'é "\')
umoci repack --image image:t one
umoci unpack --image image:t two
(cd two/rootfs && rm a/x && rm -r r && echo 2 >r && echo 2 >usr/lib/lib && rm lib && mkdir lib && echo 2 >lib/own)
umoci repack --image image:t two
umoci unpack --image image:t three
(cd three/rootfs && rm r && mkdir r && echo 3 >r/again && rm -r o && mkdir -p "$(printf 'n%.0s' $(seq 200))/deep")
umoci repack --image image:t three
umoci unpack --image image:t expected
"#;

#[test]
fn mounted_image_equals_the_tree_that_umoci_unpacks() {
    assert!(
        Command::new("umoci").arg("--version").output().is_ok_and(|output| output.status.success()),
        "this test needs umoci: install the package `umoci`"
    );
    let bench = Bench::new();
    let output =
        Command::new("bash").args(["-euc", SCRIPT]).current_dir(&bench.root).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let layout = Layout::open(&bench.path("image")).unwrap();
    let image = layout.resolve(Some("t"), &Platform::host()).unwrap();
    assert_eq!(image.layers.len(), 3);
    let mut progress = |_, _| std::ops::ControlFlow::Continue(());
    let stack = bench.cache().compose(&layout, &image.layers, &mut progress).unwrap();

    // The mounts must not spread to the host's mount namespace.
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .unwrap();
    let target = bench.path("root");
    fs::create_dir(&target).unwrap();
    let (upper, work) = (bench.path("upper"), bench.path("work"));
    let spec = OverlaySpec { stack: &stack, upper, work, target };
    spec.mount().unwrap_or_else(|error| panic!("{}", chain(&error)));
    let mut expected = tree(&bench.path("expected/rootfs"));
    // umoci applies the entry for the root.
    expected.insert(String::new(), ROOT.to_owned());
    assert_eq!(tree(&spec.target), expected);
}
