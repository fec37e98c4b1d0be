//! Keeps what ARCHITECTURE.md says about the code true.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails here")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Longest file without its tests.
const MAX_LINES: usize = 600;

/// Crates of the workspace that each crate may depend on, in every kind of dependency.
const ALLOWED: [(&str, &[&str]); 9] = [
    (".", &["a3s-box-core", "a3s-box-krun", "a3s-box-oci", "a3s-box-proto", "a3s-box-sys"]),
    ("cli", &["a3s-box-core", "a3s-box-runtime"]),
    ("guest", &["a3s-box-proto"]),
    ("krun", &["a3s-box-sys"]),
    ("oci", &["a3s-box-sys"]),
    ("proto", &[]),
    ("runtime", &["a3s-box-core", "a3s-box-oci", "a3s-box-proto", "a3s-box-sys"]),
    ("sys", &[]),
    // For its own tests, with its schemas.
    ("shim-protocol", &["a3s-box-core", "a3s-box-sys"]),
];

/// What only the tests of a crate may depend on: those of the shim drive it as a supervisor does.
const ALLOWED_IN_TESTS: [(&str, &str); 1] = [(".", "a3s-box-runtime")];

/// Crates whose libraries are ours to keep without `unsafe`.
const WITHOUT_UNSAFE: [&str; 6] =
    ["src", "shim-protocol/src", "proto/src", "oci/src", "runtime/src", "cli/src"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() && !path.ends_with("target") {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn all_rust_files() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let directories = [
        "src",
        "tests",
        "shim-protocol",
        "proto",
        "oci",
        "krun",
        "guest",
        "runtime",
        "cli",
        "sys",
        "fuzz",
    ];
    for directory in directories {
        rust_files(&root().join(directory), &mut found);
    }
    assert!(found.len() > 40, "the walk finds the code");
    found
}

#[test]
fn dependencies_point_one_way() {
    for (directory, allowed) in ALLOWED {
        let manifest = fs::read_to_string(root().join(directory).join("Cargo.toml")).unwrap();
        let package = manifest.split("[workspace.dependencies]").next().unwrap();
        let rest = manifest.split("[package]").nth(1).unwrap();
        assert!(!package.is_empty());
        let used: BTreeSet<&str> = rest
            .lines()
            .filter_map(|line| line.split(['=', '.', ' ']).next())
            .filter(|name| name.starts_with("a3s-box-"))
            .collect();
        let tests =
            rest.split("[dev-dependencies]").nth(1).and_then(|rest| rest.split("\n[").next());
        for name in used {
            let in_tests = |line: &str| line.split(['.', ' ']).next() == Some(name);
            let is_of_tests = ALLOWED_IN_TESTS.contains(&(directory, name))
                && tests.is_some_and(|tests| tests.lines().any(in_tests))
                && rest.lines().filter(|line| in_tests(line)).count() == 1;
            let is_allowed = allowed.contains(&name) || is_of_tests;
            assert!(is_allowed, "{directory}/Cargo.toml may not depend on {name}");
        }
    }
}

#[test]
fn every_file_says_what_it_owns() {
    for path in all_rust_files() {
        // A module's tests say it in their names.
        if path.ends_with("tests.rs") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("//! "), "{} does not begin with `//! `", path.display());
    }
}

#[test]
fn no_file_is_longer_than_one_can_read() {
    for path in all_rust_files() {
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap().lines().count();
        assert!(code <= MAX_LINES, "{}: {code} lines, at most {MAX_LINES}", path.display());
    }
}

#[test]
fn unsafe_stays_where_it_belongs() {
    let mut found = Vec::new();
    for directory in WITHOUT_UNSAFE {
        rust_files(&root().join(directory), &mut found);
    }
    for path in found {
        let text = fs::read_to_string(&path).unwrap();
        assert!(!text.contains("unsafe {") && !text.contains("unsafe fn"), "{}", path.display());
    }
}

#[test]
fn modules_are_nouns_that_own_something() {
    for path in all_rust_files() {
        let name = path.file_stem().unwrap().to_str().unwrap();
        let drawers = ["utils", "util", "helpers", "helper", "common", "misc", "types"];
        assert!(!drawers.contains(&name), "{} is a junk drawer", path.display());
    }
}
