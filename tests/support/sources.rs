//! The sources of this repository as text, for the tests that hold its documentation against them.

use std::fs;
use std::path::Path;

/// Every Rust file under `folder` of the repository: its path there, and what it says.
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

/// The module doc of a source: what stands behind its `//!`.
pub fn module_doc(source: &str) -> String {
    let lines = source.lines().map_while(|line| line.strip_prefix("//!"));
    lines.map(|line| format!("{}\n", line.strip_prefix(' ').unwrap_or(line))).collect()
}

/// The cells of each row of the tables in some Markdown, without the heads.
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

/// What stands between backticks.
pub fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}
