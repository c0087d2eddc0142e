//! The sources of this repository as text, for tests that compare the documentation with the code.
#![allow(dead_code)] // each test binary uses only part of this module

use std::fs;
use std::path::Path;

/// The path and the text of every Rust file under a folder of the repository.
pub fn read_all(folder: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)).expect("a folder of sources") {
        let entry = entry.expect("an entry");
        let path = format!("{folder}/{}", entry.file_name().to_string_lossy());
        if entry.path().is_dir() {
            found.extend(read_all(&path));
        } else if path.ends_with(".rs") {
            found.push((path, fs::read_to_string(entry.path()).expect("a source file")));
        }
    }
    found.sort();
    found
}

/// The module doc of a source file, without the `//!` markers.
pub fn module_doc(source: &str) -> String {
    let lines = source.lines().map_while(|line| line.strip_prefix("//!"));
    lines.map(|line| format!("{}\n", line.strip_prefix(' ').unwrap_or(line))).collect()
}

/// Returns the cells of all table rows in a Markdown document, without the header rows.
pub fn table_rows(markdown: &str) -> Vec<Vec<&str>> {
    let mut rows = Vec::new();
    let mut is_body = false;
    for line in markdown.lines() {
        let cells = line.trim().strip_prefix('|').and_then(|line| line.strip_suffix('|'));
        is_body &= cells.is_some();
        if is_body {
            rows.extend(cells.map(|cells| cells.split('|').map(str::trim).collect()));
        }
        is_body |= cells.is_some_and(|cells| cells.starts_with("---"));
    }
    rows
}

/// Returns the text between each pair of backticks.
pub fn code_spans(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// Returns the fenced code blocks in a Markdown document: the word after the opening fence, and the block's lines.
pub fn fences(markdown: &str) -> Vec<(&str, &str)> {
    let mut found = Vec::new();
    let mut rest = markdown;
    while let Some((_, after)) = rest.split_once("\n```") {
        let (kind, after) = after.split_once('\n').expect("a line after an opening fence");
        let (text, after) = after.split_at(after.find("```").expect("a closing fence"));
        found.push((kind, text));
        rest = &after[3..];
    }
    found
}
