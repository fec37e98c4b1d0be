//! Damage in cached trees is found, reported with path and kind, and repaired unless a box uses
//! the layer.

use std::fs::{self, File, Permissions};
use std::ops::ControlFlow;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::time::SystemTime;

use a3s_box_oci::{Image, Verified};

use crate::archive::Tar;
use crate::bench::{Bench, tree};

fn image(bench: &Bench) -> Image {
    let pax = |tar: Tar| tar.pax(&[("SCHILY.xattr.user.a", b"1")]);
    let lower = pax(Tar::new().dir("d").file("d/f", "content").symlink("d/l", "f")).file("x", "x");
    // The second layer has a file below a link of the first, so it is unpacked on top of the first.
    bench.resolved(&[lower.dir("target").symlink("link", "target"), Tar::new().file("link/y", "y")])
}

fn verify(bench: &Bench, image: &Image) -> Verified {
    let progress = &mut |_, _| ControlFlow::Continue(());
    bench.cache().verify(&bench.layout(), &image.layers, progress).unwrap()
}

/// Changes a file below the root of a tree.
type Damage = fn(&Path);

/// Path, kind in the report, and function of each damage.
const DAMAGES: [(&str, &str, Damage); 10] = [
    ("", "type or mode", |root| {
        fs::set_permissions(root, Permissions::from_mode(0o700)).unwrap();
    }),
    ("d/f", "content", |root| {
        // The file keeps its size and time, so that only its content differs.
        let time = fs::metadata(root.join("d/f")).unwrap().modified().unwrap();
        fs::write(root.join("d/f"), "CONTENT").unwrap();
        File::options().write(true).open(root.join("d/f")).unwrap().set_modified(time).unwrap();
    }),
    ("d/f", "type or mode", |root| {
        fs::set_permissions(root.join("d/f"), Permissions::from_mode(0o600)).unwrap();
    }),
    ("d/f", "owner", |root| chown(root.join("d/f"), Some(5), None).unwrap()),
    ("d/f", "time", |root| {
        let file = File::options().write(true).open(root.join("d/f")).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    }),
    ("d", "names in the directory", |root| fs::remove_file(root.join("d/f")).unwrap()),
    ("d", "names in the directory", |root| fs::write(root.join("d/new"), "").unwrap()),
    ("d/f", "number of hard links", |root| {
        fs::hard_link(root.join("d/f"), root.join("../f")).unwrap();
    }),
    ("x", "extended attributes", |root| {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(root.join("x"), "user.a", b"2", flags).unwrap();
    }),
    ("d/l", "target of the symbolic link", |root| {
        // The new link has owner and time of the old one, so that only its target differs.
        let time = fs::symlink_metadata(root.join("d/l")).unwrap();
        fs::remove_file(root.join("d/l")).unwrap();
        symlink("x", root.join("d/l")).unwrap();
        std::os::unix::fs::lchown(root.join("d/l"), Some(time.uid()), Some(time.gid())).unwrap();
        let time = nix::sys::time::TimeSpec::new(time.mtime(), 0);
        let flag = nix::sys::stat::UtimensatFlags::NoFollowSymlink;
        nix::sys::stat::utimensat(nix::fcntl::AT_FDCWD, &root.join("d/l"), &time, &time, flag)
            .unwrap();
    }),
];

#[test]
fn damage_of_each_kind_is_found_and_repaired() {
    for (path, what, damage) in DAMAGES {
        let bench = Bench::new();
        let image = image(&bench);
        let layer = bench.unpack(&image.layers[0]).unwrap().path;
        let expected = tree(&layer);
        // A change in a directory also changes the directory's time, and only the first difference
        // is reported. The times are therefore restored.
        let modified = |name: &str| fs::metadata(layer.join(name)).unwrap().modified().unwrap();
        let times = [("d", modified("d")), ("", modified(""))];
        damage(&layer);
        for (name, time) in times {
            File::open(layer.join(name)).unwrap().set_modified(time).unwrap();
        }
        let verified = verify(&bench, &image);
        let [found] = &verified.rebuilt[..] else { panic!("{what}: {verified:?}") };
        assert_eq!((found.path.to_str().unwrap(), found.what), (path, what));
        assert_eq!(found.layer, image.layers[0].diff_id.to_string());
        assert_eq!(tree(&layer), expected, "{what}");
        let again = verify(&bench, &image);
        assert_eq!((again.intact, again.rebuilt.len(), again.in_use.len()), (2, 0, 0), "{what}");
        let staging = fs::read_dir(bench.path("cache/layers-v5/staging")).unwrap();
        assert_eq!(staging.count(), 0);
    }
}

#[test]
fn intact_layer_is_kept_and_damaged_layer_in_use_is_reported_and_kept() {
    let bench = Bench::new();
    let image = image(&bench);
    let stack = bench.compose(&image).unwrap();
    let layer = stack.trees().next().unwrap().to_owned();
    let inode = fs::metadata(&layer).unwrap().ino();
    assert_eq!(verify(&bench, &image).intact, 2);
    assert_eq!(fs::metadata(&layer).unwrap().ino(), inode);
    fs::set_permissions(layer.join("x"), Permissions::from_mode(0o777)).unwrap();
    let verified = verify(&bench, &image);
    assert_eq!((verified.intact, verified.rebuilt.len(), verified.in_use.len()), (1, 0, 1));
    assert_eq!(fs::metadata(layer.join("x")).unwrap().mode() & 0o777, 0o777);
    drop(stack);
    assert_eq!(verify(&bench, &image).rebuilt.len(), 1);
    assert_eq!(fs::metadata(layer.join("x")).unwrap().mode() & 0o777, 0o644);
}

#[test]
fn whiteouts_of_an_intact_layer_are_intact() {
    let bench = Bench::new();
    let upper = Tar::new().file("d/.wh.f", "").file(".wh.x", "");
    let image = bench.resolved(&[Tar::new().dir("d").file("d/f", "f").file("x", "x"), upper]);
    drop(bench.compose(&image).unwrap());
    let verified = verify(&bench, &image);
    assert_eq!((verified.intact, verified.rebuilt, verified.in_use), (2, vec![], vec![]));
    // A file in the place of a whiteout is a difference.
    let layer = bench.unpack(&image.layers[1]).unwrap().path;
    fs::remove_file(layer.join("x")).unwrap();
    fs::write(layer.join("x"), "").unwrap();
    let time = std::time::UNIX_EPOCH;
    File::open(&layer).unwrap().set_modified(time).unwrap();
    let verified = verify(&bench, &image);
    let [found] = &verified.rebuilt[..] else { panic!("{verified:?}") };
    assert_eq!((found.path.to_str().unwrap(), found.what), ("x", "type or mode"));
}
