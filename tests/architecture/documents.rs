//! Links and code blocks of the Markdown files.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use pulldown_cmark::{CodeBlockKind, Event, Parser, Tag, TagEnd};

/// A fenced block of code: its info string, its text, and its file.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) file: PathBuf,
    pub(crate) info: String,
    pub(crate) text: String,
}

/// Returns the Markdown files in the directories that contain documents.
pub(crate) fn markdown_files(root: &Path) -> Vec<PathBuf> {
    let directories = ["", "docs", "docs/decisions", "tests", "benches", "fuzz", "systemd"];
    let mut found = Vec::new();
    for directory in directories {
        for entry in fs::read_dir(root.join(directory)).unwrap().map(Result::unwrap) {
            if entry.path().extension().is_some_and(|extension| extension == "md") {
                found.push(entry.path());
            }
        }
    }
    found
}

/// Returns the links of `file` whose file or heading does not exist. Web addresses are not checked.
pub(crate) fn dead_links(file: &Path) -> Vec<String> {
    let text = fs::read_to_string(file).unwrap();
    let links = Parser::new(&text).filter_map(|event| match event {
        Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
            Some(dest_url.into_string())
        }
        _ => None,
    });
    links.filter(|link| !is_alive(file, link)).collect()
}

fn is_alive(file: &Path, link: &str) -> bool {
    if link.starts_with("https://") || link.starts_with("mailto:") {
        return true;
    }
    let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
    let target = match path {
        "" => file.to_owned(),
        _ => file.parent().unwrap().join(path),
    };
    if anchor.is_empty() || !target.exists() {
        return target.exists();
    }
    anchors(&fs::read_to_string(target).unwrap()).contains(anchor)
}

/// Anchors of the headings, as GitHub makes them: lower case, without punctuation, `-` for a space.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut heading: Option<String> = None;
    let mut found = BTreeSet::new();
    for event in Parser::new(text) {
        match event {
            Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
            Event::Text(text) | Event::Code(text) => {
                if let Some(heading) = &mut heading {
                    heading.push_str(&text);
                }
            }
            Event::End(TagEnd::Heading(_)) => found.extend(heading.take().map(|text| slug(&text))),
            _ => {}
        }
    }
    found
}

fn slug(heading: &str) -> String {
    let is_kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
    heading.to_lowercase().chars().filter(is_kept).map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// Returns the fenced blocks of `file`.
pub(crate) fn blocks(file: &Path) -> Vec<Block> {
    let text = fs::read_to_string(file).unwrap();
    let mut found = Vec::new();
    let mut open: Option<Block> = None;
    for event in Parser::new(&text) {
        match event {
            Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(info))) => {
                let (file, info) = (file.to_owned(), info.into_string());
                open = Some(Block { file, info, text: String::new() });
            }
            Event::Text(text) => {
                if let Some(block) = &mut open {
                    block.text.push_str(&text);
                }
            }
            Event::End(TagEnd::CodeBlock) => found.extend(open.take()),
            _ => {}
        }
    }
    found
}

#[test]
fn links_to_missing_files_and_headings_are_found() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("a.md");
    let text = "# The `a` of b\n[1](#the-a-of-b) [2](#nowhere) [3](b.md) [4](a.md#nowhere)\n\
                [5](a.md) [6](https://example.org/x) ![7](c.png)\n";
    fs::write(&file, text).unwrap();
    assert_eq!(dead_links(&file), ["#nowhere", "b.md", "a.md#nowhere", "c.png"]);
}
