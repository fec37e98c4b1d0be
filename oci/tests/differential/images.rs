//! Real images. The script `build` makes them once, outside of the checkout.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::case::{Case, check};
use crate::verdict::Verdict::{self, Differs, Refuses};

/// Builds the images if they are missing or outdated, and returns their directory.
///
/// The build downloads packages, and takes longer than a test may. `tests/run` therefore runs it
/// before the tests.
fn built() -> PathBuf {
    let cache = env::var_os("XDG_CACHE_HOME").filter(|cache| !cache.is_empty()).map(PathBuf::from);
    let cache = cache.unwrap_or_else(|| PathBuf::from(env::var_os("HOME").unwrap()).join(".cache"));
    let directory = cache.join("a3s-box/differential");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/differential/build");
    let output = Command::new(script).arg(&directory).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    directory
}

/// Returns the cases of some images of a layout.
fn images<const COUNT: usize>(layout: &str, references: [&'static str; COUNT]) -> [Case; COUNT] {
    let layout = built().join(layout);
    references.map(|reference| Case::in_layout(layout.clone(), reference))
}

/// Differences of the overlayfs snapshotter for the image `changed`. It gives the time of unpacking
/// to the directories for which the layer has no entry.
const CHANGED: Verdict =
    Differs(&[("bin", "mtime now"), ("home", "mtime now"), ("usr", "mtime now")]);

/// The same differences with the opaque directory that `umoci insert` adds in another layer.
const OPAQUE: Verdict = Differs(&[
    ("bin", "mtime now"),
    ("home", "mtime now"),
    ("srv", "mtime now"),
    ("usr", "mtime now"),
]);

#[test]
fn unpacks_images_of_umoci() {
    let [busybox, libraries, changed, tzdata, privileges] =
        images("umoci", ["busybox", "libraries", "changed", "tzdata", "privileges"]);
    let changed = changed.overlayfs(CHANGED);
    check("umoci", &[busybox, libraries, changed, tzdata, privileges]);
}

#[test]
fn unpacks_images_of_umoci_with_inserted_layers() {
    const IN_ETC: Verdict = Differs(&[
        ("bin", "mtime now"),
        ("etc", "mtime now"),
        ("home", "mtime now"),
        ("srv", "mtime now"),
        ("usr", "mtime now"),
    ]);
    let [opaque, whiteout, unpadded] = images("umoci", ["opaque", "whiteout", "unpadded"]);
    check(
        "inserted",
        &[opaque.overlayfs(OPAQUE), whiteout.overlayfs(IN_ETC), unpadded.overlayfs(IN_ETC)],
    );
}

#[test]
fn unpacks_trees_of_pypi_and_npm() {
    const UMOCI: Verdict = Differs(&[
        ("usr", "mtime now"),
        ("usr/lib", "mtime now"),
        ("usr/lib/python3", "mtime now"),
    ]);
    const OVERLAYFS: Verdict = Differs(&[
        ("usr", "mtime now"),
        ("usr/lib", "mtime now"),
        ("usr/lib/python3", "mtime now"),
    ]);
    const REPLACED: Verdict = Differs(&[
        ("usr", "mtime now"),
        ("usr/lib", "mtime now"),
        ("usr/lib/python3", "mtime now"),
        ("usr/lib/python3/site-packages", "mtime now"),
    ]);
    let [pypi, npm, replaced] =
        images("wheels", ["pypi", "npm", "replaced"]).map(|case| case.umoci(UMOCI));
    check(
        "tree",
        &[pypi.overlayfs(OVERLAYFS), npm.overlayfs(OVERLAYFS), replaced.overlayfs(REPLACED)],
    );
}

#[test]
fn unpacks_images_of_buildah() {
    check("buildah", &images("buildah", ["perl", "more", "less", "squashed"]));
}

#[test]
fn unpacks_images_of_a_containerfile() {
    check("containerfile", &images("bud", ["many", "one"]));
}

#[test]
fn unpacks_images_copied_by_skopeo() {
    let [zstd, gzip, by_docker_archive, by_oci_archive] =
        images("skopeo", ["zstd", "gzip", "by-docker-archive", "by-oci-archive"]);
    let zstd = zstd
        .because("umoci 0.4.7 does not support zstd")
        .umoci(Refuses("blob is not correct mediatype"))
        .overlayfs(CHANGED);
    let [gzip, by_docker_archive] = [gzip, by_docker_archive].map(|case| case.overlayfs(OPAQUE));
    check("skopeo", &[zstd, gzip, by_docker_archive, by_oci_archive]);
}

#[test]
fn unpacks_images_of_other_forms() {
    let [plain] = images("plain", ["opaque"]);
    let [docker] = images("docker", ["more"]);
    let [index] = images("index", ["both"]);
    let plain = plain.overlayfs(OPAQUE);
    let docker = docker
        .because("umoci does not support the media types of Docker")
        .umoci(Refuses("application/vnd.docker.distribution.manifest.v2+json"));
    let index = index
        .because("umoci counts each image of a nested index as an image of the same name")
        .umoci(Refuses("tag is ambiguous"));
    check("form", &[plain, docker, index]);
}
