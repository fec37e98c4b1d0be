//! Devices of an image are skipped, and so are hard links to them, in the same layer and in others.

use a3s_box_oci::{CacheError, EntryError, LayerError, OverlaySpec, Stack};
use nix::mount::umount;
use tar::EntryType;

use crate::archive::Tar;
use crate::bench::{Bench, chain, names};
use crate::overlay::private_mounts;

/// Appends a character device.
fn device(tar: Tar, name: &str) -> Tar {
    tar.entry(EntryType::Char, name, 0o666, b"")
}

/// Composes an image of these layers, the bottom first.
fn composed(bench: &Bench, layers: &[Tar]) -> Result<Stack, CacheError> {
    let image = bench.resolved(layers);
    bench.compose(&image)
}

/// Mounts a stack and returns the sorted paths in it.
fn mounted_names(bench: &Bench, stack: &Stack) -> Vec<String> {
    let (target, upper, work) = (bench.path("root"), bench.path("upper"), bench.path("work"));
    std::fs::create_dir_all(&target).unwrap();
    let spec = OverlaySpec { stack, upper, work, target };
    spec.mount().unwrap_or_else(|error| panic!("{}", chain(&error)));
    let found = names(&spec.target);
    umount(&spec.target).unwrap();
    found
}

#[test]
fn hard_links_to_a_device_are_skipped_and_counted() {
    let links = |tar: Tar| tar.hard_link("b", "a").hard_link("c", "./b");
    // The links come behind the device, before it, and on both sides of it.
    for tar in [
        links(device(Tar::new(), "a")),
        device(links(Tar::new()), "a"),
        device(Tar::new().hard_link("b", "a"), "a").hard_link("c", "b"),
        links(device(Tar::new().file("b", "old").dir("c").file("c/old", ""), "a")),
    ] {
        let bench = Bench::new();
        let layer = bench.unpack_tar(tar.file("x", "")).unwrap();
        assert_eq!(layer.facts.skipped_devices, 3);
        assert_eq!(names(&layer.path), ["x"]);
    }
}

#[test]
fn hard_links_to_a_device_of_a_lower_layer_are_skipped() {
    private_mounts();
    let base = || device(device(Tar::new().dir("dev").symlink("s", "dev"), "dev/a"), "dev/b");
    let file = Tar::new().file("c", "old").file("dev/old", "");
    let link = || Tar::new().hard_link("c", "s/a").hard_link("dev/d", "dev/b");
    let chained = || Tar::new().hard_link("e", "c").hard_link("f", "dev/d");
    for (layers, expected) in [
        (vec![base(), link()], &["dev", "s"][..]),
        (vec![base(), file, link()], &["dev", "dev/old", "s"]),
        (vec![base(), link(), chained()], &["dev", "s"]),
        (vec![base(), Tar::new().file("x", ""), link(), chained()], &["dev", "s", "x"]),
        // The repeated layer makes the devices again, after a whiteout hid them.
        (vec![base(), Tar::new().file("dev/.wh..wh..opq", ""), base(), link()], &["dev", "s"]),
    ] {
        let bench = Bench::new();
        let stack = composed(&bench, &layers).unwrap_or_else(|error| panic!("{}", chain(&error)));
        assert_eq!(mounted_names(&bench, &stack), expected);
        // A second start finds the same stack in the cache.
        assert_eq!(composed(&bench, &layers).unwrap().hits, layers.len());
    }
}

#[test]
fn hard_link_to_a_device_that_is_gone_is_refused() {
    let base = || device(Tar::new().dir("dev"), "dev/a");
    let link = |tar: Tar| tar.hard_link("h", "dev/a");
    let file = |name| Tar::new().file(name, "");
    // The link makes the first of these layers depend on lower ones, so that it is unpacked on top.
    let on_top = |tar: Tar| tar.hard_link("x2", "x");
    for layers in [
        vec![base(), file("dev/.wh.a"), link(Tar::new())],
        vec![base(), link(file(".wh.dev"))],
        vec![base(), file("dev/.wh..wh..opq"), link(Tar::new())],
        vec![base(), file(".wh..wh..opq"), link(Tar::new())],
        vec![base(), file("dev"), Tar::new().dir("dev"), link(Tar::new())],
        vec![base().file("x", ""), on_top(file("dev/.wh.a")), link(Tar::new())],
        vec![base().file("x", ""), on_top(Tar::new().file("dev", "")), link(Tar::new().dir("dev"))],
        vec![link(base().file("dev", "").dir("dev"))],
        vec![base().hard_link("dev", "dev/a")],
    ] {
        let bench = Bench::new();
        let outcome = composed(&bench, &layers).map(drop);
        let Err(CacheError::Layer { source: LayerError::Entry { source, .. }, .. }) = outcome
        else {
            panic!("{outcome:?}");
        };
        assert!(matches!(source, EntryError::HardLinkTarget { .. }), "{source:?}");
    }
}

#[test]
fn file_in_the_place_of_a_device_is_linked() {
    private_mounts();
    let bench = Bench::new();
    let layers = [
        device(Tar::new(), "a"),
        Tar::new().file("a", "1"),
        device(Tar::new().hard_link("b", "a"), "a"),
        Tar::new().hard_link("c", "a").hard_link("d", "b"),
    ];
    let stack = composed(&bench, &layers).unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(mounted_names(&bench, &stack), ["b", "d"]);
}
