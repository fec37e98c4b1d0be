//! Checks the code and the documents against the rules of ARCHITECTURE.md.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails here")]

#[path = "architecture/documents.rs"]
mod documents;
#[path = "architecture/examples.rs"]
mod examples;
#[path = "architecture/imports.rs"]
mod imports;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use syn::visit::{self, Visit};

use crate::imports::{Crate, circles, is_for_tests};

/// Maximum number of lines of a file without its tests.
const MAX_LINES: usize = 600;

/// Maximum number of lines of code of `src/main.rs`, which only chooses a mode.
const MAX_MAIN_LINES: usize = 100;

/// Maximum number of fields of the control loop, and of lines of its file. More would be work that
/// belongs to its parts.
const MAX_MONITOR_FIELDS: usize = 12;
const MAX_MONITOR_LINES: usize = 300;

/// Maximum number of lines and columns of the README.
const MAX_README_LINES: usize = 130;
const MAX_README_COLUMNS: usize = 120;

/// Crates of the workspace that each crate may depend on, in every kind of dependency.
const ALLOWED: [(&str, &[&str]); 10] = [
    // The guest program is part of the fake guest, which only tests build.
    (
        ".",
        &[
            "a3s-box-core",
            "a3s-box-guest",
            "a3s-box-krun",
            "a3s-box-oci",
            "a3s-box-proto",
            "a3s-box-sys",
        ],
    ),
    ("cli", &["a3s-box-core", "a3s-box-runtime"]),
    ("erofs", &[]),
    ("guest", &["a3s-box-proto"]),
    ("krun", &["a3s-box-sys"]),
    ("oci", &["a3s-box-erofs", "a3s-box-sys"]),
    ("proto", &[]),
    ("runtime", &["a3s-box-core", "a3s-box-oci", "a3s-box-proto", "a3s-box-sys"]),
    ("sys", &[]),
    // The crate depends on itself for its tests, with the feature that derives JSON Schemas.
    ("shim-protocol", &["a3s-box-core", "a3s-box-sys"]),
];

/// Crates that are allowed as dev-dependencies only. The tests of the shim drive it as a supervisor,
/// and clients of a guest are tested with its program.
const ALLOWED_IN_TESTS: [(&str, &str); 3] =
    [(".", "a3s-box-runtime"), ("cli", "a3s-box-guest"), ("runtime", "a3s-box-guest")];

/// Root files of all crates.
const ROOTS: [&str; 10] = [
    "src/main.rs",
    "cli/src/main.rs",
    "erofs/src/lib.rs",
    "guest/src/lib.rs",
    "krun/src/lib.rs",
    "oci/src/lib.rs",
    "proto/src/lib.rs",
    "runtime/src/lib.rs",
    "shim-protocol/src/lib.rs",
    "sys/src/lib.rs",
];

/// Files and directories with `unsafe` code.
const UNSAFE: [&str; 3] = ["krun/src/", "sys/src/", "guest/src/syscall.rs"];

/// The one file that contains the names in the box directory.
const BOX_DIR: &str = "shim-protocol/src/box_dir.rs";

/// Names in the box directory that occur for no other purpose.
const NAMES_OF_BOX_DIR: [&str; 9] = [
    "run.json",
    "exit.json",
    "exit.json.new",
    "agent.sock",
    "control.sock",
    "exec.sock",
    "console.log",
    "disk.img",
    "kept-disk.img",
];

/// Words that the glossary of ARCHITECTURE.md replaces, each with the word to use.
const REPLACED: [(&str, &str); 6] = [
    ("folder", "directory"),
    ("Flavour", "OverlayXattrs"),
    ("Seams", "CrossLayerDependencies"),
    ("BoxEnd", "BoxCleanup"),
    ("StopOrder", "Termination"),
    ("Cutter", "AbortHandle"),
];

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
    let directories = [
        "src",
        "tests",
        "benches",
        "shim-protocol",
        "proto",
        "erofs",
        "oci",
        "krun",
        "guest",
        "runtime",
        "cli",
        "sys",
        "fuzz",
    ];
    let mut found = Vec::new();
    for directory in directories {
        rust_files(&root().join(directory), &mut found);
    }
    assert!(found.len() > 40, "the walk found {} files only", found.len());
    found
}

/// Returns the source files of all crates, without the files of tests.
fn sources() -> impl Iterator<Item = PathBuf> {
    let directories = ROOTS.iter().map(|file| root().join(file).parent().unwrap().to_owned());
    let mut found = Vec::new();
    directories.for_each(|directory| rust_files(&directory, &mut found));
    found.into_iter().filter(|path| !path.ends_with("tests.rs") && !has_part(path, "tests"))
}

fn has_part(path: &Path, name: &str) -> bool {
    path.strip_prefix(root()).unwrap().components().any(|part| part.as_os_str() == name)
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned()
}

/// Counts the lines that are neither blank nor comments.
fn lines_of_code(text: &str) -> usize {
    let is_code = |line: &&str| !line.trim().is_empty() && !line.trim_start().starts_with("//");
    text.lines().filter(is_code).count()
}

/// Returns the part of a file before its module of tests, which is the last item by convention. A
/// single item with `#[cfg(test)]` does not end that part.
fn without_tests(text: &str) -> &str {
    let starts = ["\n#[cfg(test)]\nmod tests", "\n#[cfg(test)]\npub(crate) mod tests"];
    let end = starts.iter().filter_map(|start| text.find(start)).min();
    text.get(..end.unwrap_or(text.len())).unwrap()
}

#[test]
fn dependencies_point_one_way() {
    for (directory, allowed) in ALLOWED {
        let manifest = fs::read_to_string(root().join(directory).join("Cargo.toml")).unwrap();
        let rest = manifest.split("[package]").nth(1).unwrap();
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
fn imports_make_no_circle() {
    let found: String = ROOTS.into_iter().map(circles_in).collect();
    assert!(found.is_empty(), "{found}");
}

/// Describes the circles of the crate whose root file is `file`, each with its arrows.
fn circles_in(file: &str) -> String {
    let arrows = Crate::read(&root().join(file)).arrows();
    let mut text = String::new();
    for circle in circles(&arrows) {
        text.push_str(&format!("\n{file}: a circle of imports between {} files\n", circle.len()));
        for from in &circle {
            for to in arrows[from].intersection(&circle) {
                text.push_str(&format!("  {} -> {}\n", from.display(), to.display()));
            }
        }
    }
    text
}

#[test]
fn circles_of_imports_are_found() {
    let fixture = root().join("tests/architecture/fixtures/circles/lib.rs");
    let found = circles(&Crate::read(&fixture).arrows());
    let circle = |files: [&str; 2]| files.map(PathBuf::from).into_iter().collect();
    assert_eq!(
        found,
        [circle(["area.rs", "volume.rs"]), circle(["shapes.rs", "shapes/square.rs"])]
    );
}

#[test]
fn only_boot_knows_the_error_of_the_shim() {
    let arrows = Crate::read(&root().join("src/main.rs")).arrows();
    for (from, targets) in arrows {
        let is_above =
            ["main.rs", "boot.rs", "error.rs"].iter().any(|name| from == Path::new(name));
        for upper in ["error.rs", "boot.rs", "main.rs"] {
            let is_allowed = is_above || !targets.contains(Path::new(upper));
            assert!(is_allowed, "src/{} imports from src/{upper}", from.display());
        }
    }
}

#[test]
fn main_only_chooses_a_mode() {
    let lines = lines_of_code(&fs::read_to_string(root().join("src/main.rs")).unwrap());
    assert!(
        lines <= MAX_MAIN_LINES,
        "src/main.rs: {lines} lines of code, at most {MAX_MAIN_LINES}"
    );
}

#[test]
fn control_loop_leaves_the_work_to_its_parts() {
    let text = fs::read_to_string(root().join("src/control/monitor.rs")).unwrap();
    let lines = without_tests(&text).lines().count();
    assert!(lines <= MAX_MONITOR_LINES, "{lines} lines, at most {MAX_MONITOR_LINES}");
    let monitor = syn::parse_file(&text).unwrap().items.into_iter().find_map(|item| match item {
        syn::Item::Struct(item) if item.ident == "Monitor" => Some(item.fields.len()),
        _ => None,
    });
    let fields = monitor.expect("a struct Monitor");
    assert!(fields <= MAX_MONITOR_FIELDS, "{fields} fields, at most {MAX_MONITOR_FIELDS}");
}

/// The names of the types and the string literals of a file, without its tests.
#[derive(Default)]
struct Declared {
    types: Vec<String>,
    texts: Vec<String>,
}

impl Declared {
    fn of(path: &Path) -> Self {
        let text = fs::read_to_string(path).unwrap();
        let mut declared = Self::default();
        declared.visit_file(&syn::parse_file(&text).unwrap());
        declared
    }
}

impl<'ast> Visit<'ast> for Declared {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if !is_for_tests(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_struct(&mut self, item: &'ast syn::ItemStruct) {
        self.types.push(item.ident.to_string());
        visit::visit_item_struct(self, item);
    }

    fn visit_item_enum(&mut self, item: &'ast syn::ItemEnum) {
        self.types.push(item.ident.to_string());
        visit::visit_item_enum(self, item);
    }

    fn visit_lit_str(&mut self, text: &'ast syn::LitStr) {
        self.texts.push(text.value());
    }
}

#[test]
fn ending_of_a_box_is_one_type() {
    let declares = |path: &PathBuf| Declared::of(path).types.iter().any(|name| name == "Ending");
    let found: Vec<String> = sources().filter(declares).map(|path| relative(&path)).collect();
    assert_eq!(found, ["src/ending.rs"]);
}

#[test]
fn directory_of_a_box_has_one_owner() {
    let mut owned = BTreeSet::new();
    for path in sources() {
        let texts = Declared::of(&path).texts;
        for name in NAMES_OF_BOX_DIR.iter().filter(|name| texts.iter().any(|text| text == *name)) {
            assert_eq!(relative(&path), BOX_DIR, "`{name}` belongs to {BOX_DIR}");
            owned.insert(*name);
        }
    }
    assert_eq!(owned, BTreeSet::from(NAMES_OF_BOX_DIR));
}

#[test]
fn each_file_begins_with_its_documentation() {
    for path in all_rust_files() {
        // A module of tests needs none: the names of its tests describe them.
        if path.ends_with("tests.rs") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("//! "), "{} does not begin with `//! `", path.display());
    }
}

#[test]
fn files_are_not_too_long() {
    for path in all_rust_files() {
        let text = fs::read_to_string(&path).unwrap();
        let lines = without_tests(&text).lines().count();
        assert!(lines <= MAX_LINES, "{}: {lines} lines, at most {MAX_LINES}", path.display());
    }
}

#[test]
fn unsafe_code_is_only_in_its_modules() {
    let mut holders = BTreeSet::new();
    for path in sources() {
        let text = fs::read_to_string(&path).unwrap();
        if !text.contains("unsafe {") && !text.contains("unsafe fn") {
            continue;
        }
        let name = relative(&path);
        let holder = UNSAFE.into_iter().find(|holder| name.starts_with(holder));
        assert!(holder.is_some(), "{name} has unsafe code");
        holders.extend(holder);
    }
    assert_eq!(holders, BTreeSet::from(UNSAFE), "each of these has unsafe code");
}

#[test]
fn names_of_modules_say_more_than_utils() {
    for path in all_rust_files() {
        let name = path.file_stem().unwrap().to_str().unwrap();
        let vague = ["utils", "util", "helpers", "helper", "common", "misc", "types"];
        assert!(!vague.contains(&name), "{}: the name describes no subject", path.display());
    }
}

#[test]
fn words_that_the_glossary_replaces_do_not_occur() {
    let documents = documents::markdown_files(root());
    for path in all_rust_files().into_iter().chain(documents) {
        // This file and the glossary list the words.
        let name = relative(&path);
        if name == "tests/architecture.rs" || name == "ARCHITECTURE.md" {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        for (word, instead) in REPLACED {
            assert!(!text.contains(word), "{name}: `{instead}` instead of `{word}`");
        }
    }
}

#[test]
fn links_of_documents_lead_somewhere() {
    for file in documents::markdown_files(root()) {
        let dead = documents::dead_links(&file);
        assert!(dead.is_empty(), "{}: dead links {dead:?}", file.display());
    }
}

#[test]
fn readme_is_short() {
    let text = fs::read_to_string(root().join("README.md")).unwrap();
    let lines = text.lines().count();
    assert!(lines <= MAX_README_LINES, "{lines} lines, at most {MAX_README_LINES}");
    for (number, line) in (1..).zip(text.lines()) {
        let columns = line.chars().count();
        assert!(columns <= MAX_README_COLUMNS, "line {number} has {columns} columns");
    }
}

#[test]
fn code_map_lists_each_module() {
    let map = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    for directory in ["src", "oci/src"] {
        for entry in fs::read_dir(root().join(directory)).unwrap().map(Result::unwrap) {
            let name = entry.path().file_stem().unwrap().to_str().unwrap().to_owned();
            // The root file of a library is its list of modules.
            let is_listed = name == "lib" || map.contains(&format!("`{name}`"));
            assert!(is_listed, "the code map of ARCHITECTURE.md has no `{name}` of {directory}");
        }
    }
}

#[test]
fn decisions_are_listed() {
    let directory = root().join("docs/decisions");
    let index = fs::read_to_string(directory.join("README.md")).unwrap();
    for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        assert!(name == "README.md" || index.contains(&name), "the index has no {name}");
    }
}
