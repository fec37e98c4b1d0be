//! The examples in README.md and in `docs/`, run as far as that needs no VM.
//!
//! | block | check |
//! |---|---|
//! | `json` that is an event, `ndjson` | parsed as [`Event`], written again and compared: no field may be unknown |
//! | other `json` | a `BoxConfig`, which `a3s-box-shim --check` must accept |
//! | `rust` of README.md | equal to the doc test of `a3s-box-runtime` |
//! | `sh` | targets of `make` must be in the Makefile, options in the `--help` of the command |

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use a3s_box_core::Event;
use serde_json::Value;

use crate::documents::{self, Block};
use crate::root;

fn blocks() -> Vec<Block> {
    let is_run = |file: &PathBuf| !file.starts_with(root().join("docs/decisions"));
    let files = documents::markdown_files(root()).into_iter().filter(is_run);
    files.flat_map(|file| documents::blocks(&file)).collect()
}

/// Fails the test with the place of the example.
fn refuse(block: &Block, reason: &str) -> ! {
    panic!("{}: {reason}:\n{}", block.file.display(), block.text)
}

fn check_event(block: &Block, text: &str) {
    let written: Value =
        serde_json::from_str(text).unwrap_or_else(|error| refuse(block, &error.to_string()));
    let event: Event = serde_json::from_value(written.clone())
        .unwrap_or_else(|error| refuse(block, &error.to_string()));
    let read = serde_json::to_value(event).unwrap();
    if read != written {
        refuse(block, &format!("an event that is read as {read}"));
    }
}

fn check_config(block: &Block) {
    let mut shim = Command::new(env!("CARGO_BIN_EXE_a3s-box-shim"))
        .arg("--check")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    shim.stdin.take().unwrap().write_all(block.text.as_bytes()).unwrap();
    let output = shim.wait_with_output().unwrap();
    if !output.status.success() {
        refuse(block, &String::from_utf8_lossy(&output.stdout));
    }
}

#[test]
fn examples_of_configs_and_events_are_accepted() {
    let (mut configs, mut events) = (0, 0);
    for block in blocks() {
        let is_event = block.text.contains("\"type\"") && block.text.contains("\"v\"");
        match block.info.as_str() {
            "json" if !is_event => {
                check_config(&block);
                configs += 1;
            }
            "json" => {
                check_event(&block, &block.text);
                events += 1;
            }
            "ndjson" => {
                for line in block.text.lines() {
                    check_event(&block, line);
                    events += 1;
                }
            }
            _ => {}
        }
    }
    assert!(configs >= 3 && events >= 5, "found {configs} configs and {events} events");
}

#[test]
fn example_for_rust_is_the_doc_test_of_the_runtime() {
    let library = fs::read_to_string(root().join("runtime/src/lib.rs")).unwrap();
    let documented: Vec<&str> = library
        .lines()
        .filter_map(|line| line.strip_prefix("//!"))
        .map(|line| line.strip_prefix(' ').unwrap_or(line))
        .collect();
    let readme = documents::blocks(&root().join("README.md"));
    let mut examples = readme.iter().filter(|block| block.info == "rust").peekable();
    assert!(examples.peek().is_some(), "README.md has an example for Rust");
    for block in examples {
        let lines: Vec<&str> = block.text.lines().collect();
        let is_tested = documented.windows(lines.len()).any(|window| window == lines);
        assert!(is_tested, "not in the doc test of runtime/src/lib.rs:\n{}", block.text);
    }
}

fn help_of(program: &str) -> String {
    let output = Command::new(program).arg("--help").output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn commands_of_examples_exist() {
    let makefile = fs::read_to_string(root().join("Makefile")).unwrap();
    let targets: BTreeSet<&str> =
        makefile.lines().filter_map(|line| Some(line.split_once(':')?.0)).collect();
    let help = help_of(env!("CARGO_BIN_EXE_a3s-box-shim"));
    let mut checked = 0;
    for block in blocks().into_iter().filter(|block| block.info == "sh") {
        for line in block.text.lines() {
            let command = line.split('#').next().unwrap_or_default();
            let words: Vec<&str> = command.split_whitespace().collect();
            match words.as_slice() {
                ["make", target, ..] if !targets.contains(target) => {
                    refuse(&block, &format!("no target `{target}` in the Makefile"));
                }
                [program, options @ ..] if program.ends_with("a3s-box-shim") => {
                    let options = options.iter().take_while(|word| !word.contains(['|', '<', '>']));
                    for option in options.filter(|word| word.starts_with("--")) {
                        let is_known =
                            help.split([' ', '\n', ',', '[', ']', '|']).any(|word| word == *option);
                        if !is_known {
                            refuse(&block, &format!("`--help` has no option `{option}`"));
                        }
                    }
                }
                _ => continue,
            }
            checked += 1;
        }
    }
    assert!(checked >= 3, "checked {checked} commands");
}
