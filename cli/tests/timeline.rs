//! Runs `a3s-box timeline` and compares its output with golden files.
//!
//! The expected texts and pictures of `samples/*.ndjson` are in the same directory.
//! `UPDATE_GOLDEN=1` overwrites them. A person then reviews the difference.

#![expect(clippy::unwrap_used, reason = "a panic fails the test, as intended")]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const SAMPLES: [&str; 3] = ["boot", "life", "restarts"];

fn sample(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/samples").join(name)
}

fn timeline(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_a3s-box"));
    command.arg("timeline").args(arguments).env_remove("COLUMNS");
    command
}

fn text_of(output: &Output) -> (&str, &str, Option<i32>) {
    let text = |bytes| std::str::from_utf8(bytes).unwrap();
    (text(&output.stdout), text(&output.stderr), output.status.code())
}

/// Compares `found` with a golden file. Overwrites the file first if `UPDATE_GOLDEN` is set.
fn golden(name: &str, found: &str) {
    let path = sample(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, found).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert!(found == expected, "{name} differs from the output, which is:\n{found}");
}

#[test]
fn texts_match_the_golden_files() {
    for name in SAMPLES {
        let file = sample(&format!("{name}.ndjson"));
        let output = timeline(&[file.to_str().unwrap()]).output().unwrap();
        let (stdout, stderr, status) = text_of(&output);
        assert_eq!((stderr, status), ("", Some(0)));
        assert!(stdout.lines().all(|line| line.chars().count() <= 100), "{stdout}");
        golden(&format!("{name}.txt"), stdout);
    }
}

#[test]
fn pictures_match_the_golden_files() {
    let directory = tempfile::tempdir().unwrap();
    for name in SAMPLES {
        let (file, svg) = (sample(&format!("{name}.ndjson")), directory.path().join(name));
        let arguments = [file.to_str().unwrap(), "--svg", svg.to_str().unwrap()];
        let output = timeline(&arguments).output().unwrap();
        assert_eq!(text_of(&output), ("", "", Some(0)));
        let picture = fs::read_to_string(svg).unwrap();
        roxmltree::Document::parse(&picture).unwrap();
        golden(&format!("{name}.svg"), &picture);
    }
}

#[test]
fn draws_the_chosen_run_or_the_last_one() {
    let file = sample("restarts.ndjson");
    let file = file.to_str().unwrap();
    let expected = [
        (&["--run", "1"][..], "run 1 of 3", "layer_invalid"),
        (&["--run", "2"], "run 2 of 3", "no last event"),
        (&["--run", "3"], "run 3 of 3", "boot_timeout"),
        (&[], "run 3 of 3", "boot_timeout"),
    ];
    for (options, number, ending) in expected {
        let output = timeline(&[&[file], options].concat()).output().unwrap();
        let (stdout, _, status) = text_of(&output);
        assert_eq!(status, Some(0));
        assert!(stdout.contains(number) && stdout.contains(ending), "{stdout}");
    }
    let output = timeline(&[file, "--run", "4"]).output().unwrap();
    let (stdout, stderr, status) = text_of(&output);
    assert_eq!((stdout, status), ("", Some(1)));
    assert!(stderr.ends_with("there is no run 4; it holds 3\n"), "{stderr}");
}

/// Runs the command with `input` on its standard input.
fn with_input(input: &[u8]) -> Output {
    let mut command = timeline(&["-"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // The program stops reading at the first invalid line. Then writing the rest fails with EPIPE.
    let _written = stdin.write_all(input);
    drop(stdin);
    child.wait_with_output().unwrap()
}

#[test]
fn reads_standard_input_like_a_file() {
    let file = sample("boot.ndjson");
    let output = with_input(&fs::read(&file).unwrap());
    let (stdout, stderr, status) = text_of(&output);
    assert_eq!((stderr, status), ("", Some(0)));
    let named = timeline(&[file.to_str().unwrap()]).output().unwrap();
    assert_eq!(stdout, text_of(&named).0);
}

#[test]
fn reports_an_invalid_file_in_one_line() {
    let event = fs::read_to_string(sample("boot.ndjson")).unwrap();
    let first = event.lines().next().unwrap();
    let cases = [
        (String::new(), "a3s-box: `-`: there is no event in it\n"),
        ("\n\n".to_owned(), "a3s-box: `-`: there is no event in it\n"),
        (
            format!("{first}\n\u{1b}[31mpanic\u{1b}[0m\n"),
            "a3s-box: `-`: line 2: expected an event, found `\\u{1b}[31mpanic\\u{1b}[0m` \
             (expected value at column 1)\n",
        ),
        (
            format!("{first}\n{}", "x".repeat(1_048_577)),
            "a3s-box: `-`: line 2: longer than 1048576 bytes\n",
        ),
    ];
    for (input, message) in cases {
        assert_eq!(text_of(&with_input(input.as_bytes())), ("", message, Some(1)));
    }
}

#[test]
fn a_closed_pipe_is_no_error() {
    let file = sample("life.ndjson");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = timeline(&[file.to_str().unwrap()]).stdout(writer).output().unwrap();
    assert_eq!(text_of(&output), ("", "", Some(0)));
}

#[test]
fn a_full_disk_is_an_error() {
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let file = sample("boot.ndjson");
    let output = timeline(&[file.to_str().unwrap()]).stdout(full).output().unwrap();
    let (_, stderr, status) = text_of(&output);
    assert_eq!(status, Some(1));
    assert!(stderr.starts_with("a3s-box: cannot write to standard output: "), "{stderr}");
    let output = timeline(&[file.to_str().unwrap(), "--svg", "/dev/full"]).output().unwrap();
    let (_, stderr, status) = text_of(&output);
    assert_eq!(status, Some(1));
    assert!(stderr.starts_with("a3s-box: cannot write `/dev/full`: "), "{stderr}");
}

#[test]
fn an_invalid_command_line_has_exit_status_2() {
    for arguments in [&[][..], &["a", "b"], &["a", "--run", "0"], &["a", "--color"]] {
        let output = timeline(arguments).output().unwrap();
        let (stdout, stderr, status) = text_of(&output);
        assert_eq!((stdout, status), ("", Some(2)));
        assert!(stderr.starts_with("error: "), "{stderr}");
    }
    let output = timeline(&["--help"]).output().unwrap();
    let (stdout, stderr, status) = text_of(&output);
    assert_eq!((stderr, status), ("", Some(0)));
    assert!(stdout.contains("--svg <OUT.svg>"), "{stdout}");
}

#[test]
fn takes_the_width_from_the_environment() {
    let file = sample("boot.ndjson");
    for (columns, most) in [("72", 72), ("160", 160), ("1", 70), ("x", 100), ("99999", 400)] {
        let mut command = timeline(&[file.to_str().unwrap()]);
        let output = command.env("COLUMNS", columns).output().unwrap();
        let (stdout, _, status) = text_of(&output);
        assert_eq!(status, Some(0));
        let widest = stdout.lines().map(|line| line.chars().count()).max().unwrap();
        assert!(widest <= most && widest * 10 > most * 9, "{columns}: {widest}\n{stdout}");
    }
}
