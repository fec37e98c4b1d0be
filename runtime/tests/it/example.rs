//! Compares the example in the crate docs with the example program and the README.

const PROGRAM: &str = include_str!("../../examples/boot.rs");
const README: &str = include_str!("../../../README.md");
const DOCUMENTATION: &str = include_str!("../../src/lib.rs");

#[test]
fn example_is_equal_in_the_docs_the_program_and_the_readme() {
    let shown: Vec<&str> = DOCUMENTATION
        .lines()
        .skip_while(|line| !line.starts_with("//! ```no_run"))
        .skip(1)
        .take_while(|line| !line.starts_with("//! ```"))
        .filter(|line| !line.starts_with("//! # "))
        .map(|line| line.trim_start_matches("//!").trim())
        .collect();
    let program: Vec<&str> = PROGRAM.lines().map(str::trim).collect();
    assert_eq!(shown.len(), 9, "{shown:?}");
    assert!(program.windows(shown.len()).any(|lines| lines == shown), "{shown:#?}");
    let readme: Vec<&str> = README
        .lines()
        .skip_while(|line| *line != "```rust")
        .skip(1)
        .take_while(|line| *line != "```")
        .map(str::trim)
        .collect();
    assert_eq!(readme, shown);
}
