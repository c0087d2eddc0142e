//! The walls of the house, kept by reading the sources: which folder may name which, what may not be named in `ws/` and
//! `chat/`, how long a function and a file may be, and where `unwrap` may stand.
//!
//! No parser of Rust: comments, strings and `#[cfg(test)]` items are blanked out, and what is left is read as words,
//! paths and braces. That is exact for the code that a person would write here, `use` groups and `super::` included; it
//! is no defence against somebody who wants to be misunderstood. The checks are checked themselves, at the end.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const MAX_FUNCTION: usize = 70;
const MAX_FILE: usize = 300;

/// Who may name whom. `lib.rs` is left out: it is the map, and has to name them all.
const ARROWS: [(&str, &[&str]); 7] = [
    ("main", &["server", "tools"]),
    ("server", &["ws", "chat", "config", "inspect"]),
    ("tools", &["ws", "inspect"]),
    ("inspect", &["ws"]),
    ("chat", &["config"]),
    ("config", &[]),
    ("ws", &[]),
];

/// What stands at the top of the repository, besides dotfiles and the ignored `target`.
const TOP_LEVEL: [&str; 7] = ["Cargo.toml", "Cargo.lock", "src", "client.html", "tests", "README.md", "LICENSE"];

#[test]
fn the_sources_keep_the_walls() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    collect(&root.join("src"), &mut files);
    assert!(!files.is_empty(), "there are sources to read");
    let mut faults = Vec::new();
    for path in without_test_modules(&files) {
        let name = path.strip_prefix(root.join("src")).expect("under src").to_string_lossy().replace('\\', "/");
        let text = fs::read_to_string(&path).expect("a source file");
        faults.extend(faults_of(&name, &text).into_iter().map(|fault| format!("src/{name}{fault}")));
    }
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn the_top_level_is_short() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let entries = fs::read_dir(root).expect("the repository");
    let names = entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned());
    assert_eq!(strangers(names), Vec::<String>::new(), "not at the top level, please");
    let ignored = fs::read_to_string(root.join(".gitignore")).expect(".gitignore");
    assert!(ignored.lines().any(|line| line.trim_matches('/') == "target"), "git ignores target");
}

fn strangers(names: impl Iterator<Item = String>) -> Vec<String> {
    names.filter(|name| !name.starts_with('.') && name != "target" && !TOP_LEVEL.contains(&name.as_str())).collect()
}

/// All faults of one file, each with its line. `name` is the path below `src`.
fn faults_of(name: &str, text: &str) -> Vec<String> {
    let code = without_tests(&blank(text));
    let paths = paths(&code, &module_of(name));
    let mut faults = wall_faults(name, &paths);
    faults.extend(function_faults(&code));
    faults.extend(unwrap_faults(&code, text));
    let lines = code.is_test.iter().filter(|test| !**test).count();
    if lines > MAX_FILE {
        faults.push(format!(": {lines} lines without its tests; at most {MAX_FILE}"));
    }
    // An empty root has nothing to forbid yet.
    let is_empty = !paths.iter().any(|path| path.segments.len() > 1 || path.segments == ["mod"]);
    let squeezed: String = code.text.split_whitespace().collect();
    if ["lib.rs", "main.rs"].contains(&name) && !is_empty && !squeezed.contains("#![forbid(unsafe_code)]") {
        faults.push(": lacks #![forbid(unsafe_code)]".to_owned());
    }
    faults
}

// ---- What is named ----

/// A path as the code names it, made absolute: `["crate", "ws", "Limits"]`, `["std", "io"]`, `["Instant"]`.
#[derive(Debug, PartialEq)]
struct Named {
    line: usize,
    segments: Vec<String>,
}

fn wall_faults(name: &str, paths: &[Named]) -> Vec<String> {
    let room = name.split(['/', '.']).next().unwrap_or(name);
    if room == "lib" {
        return Vec::new();
    }
    let Some((_, allowed)) = ARROWS.iter().find(|(from, _)| *from == room) else {
        return vec![format!(": {room} is no room of the house")];
    };
    let mut faults = BTreeSet::new();
    for Named { line, segments } in paths {
        let path: Vec<&str> = segments.iter().map(String::as_str).collect();
        let said = path.join("::");
        if room_named(&path).is_some_and(|other| other != room && !allowed.contains(&other)) {
            faults.insert((line, format!(":{line}: {room} may not name {said}")));
        }
        if is_forbidden_in(room, &path) || is_other_tool(name, &path) {
            faults.insert((line, format!(":{line}: {said} has no place in {room}")));
        }
    }
    faults.into_iter().map(|(_, fault)| fault).collect()
}

/// The room that an absolute path leads to: of this crate, by either of its names.
fn room_named<'a>(path: &[&'a str]) -> Option<&'a str> {
    match path {
        ["crate" | "wirechat", room, ..] => ARROWS.iter().map(|(name, _)| *name).find(|name| name == room),
        _ => None,
    }
}

fn is_forbidden_in(room: &str, path: &[&str]) -> bool {
    let clock = path.contains(&"Instant");
    match room {
        "ws" => clock || matches!(path, ["mio", ..] | ["std" | "core", "net" | "io" | "*", ..]),
        // One connection, and time to wait for it: a tool needs no poll loop.
        "tools" => path[0] == "mio",
        // Tables are keyed by `mio::Token`: the one leak.
        "chat" => clock || matches!(path, ["ws", _, ..]) || (path[0] == "mio" && path.get(1) != Some(&"Token")),
        _ => false,
    }
}

/// Whether a tool names another one. Only their parent, and the program, know all of them.
fn is_other_tool(name: &str, path: &[&str]) -> bool {
    const TOOLS: [&str; 3] = ["explain", "poke", "replay"];
    let tool = name.strip_prefix("tools/").and_then(|rest| rest.split(['/', '.']).next());
    let named = match path {
        ["crate", "tools", named, ..] => named,
        _ => return false,
    };
    tool.is_some_and(|tool| TOOLS.contains(&tool) && TOOLS.contains(named) && tool != *named)
}

/// The module that a file is: `ws/mod.rs` is `ws`, `ws/frame.rs` is `ws::frame`.
fn module_of(name: &str) -> Vec<String> {
    let stem = name.trim_end_matches(".rs");
    let mut module: Vec<String> = stem.split('/').map(str::to_owned).collect();
    if ["mod", "lib", "main"].contains(&module[module.len() - 1].as_str()) {
        module.pop();
    }
    module
}

/// Every path in the code, single names too, with the groups of a `use` multiplied out.
fn paths(code: &Code, module: &[String]) -> Vec<Named> {
    let tokens = tokens(&code.text);
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        if tokens[at].is_word() && !follows_a_path(&tokens, at) {
            at = read_path(&tokens, at, &[], module, &mut found);
        } else {
            at += 1;
        }
    }
    found
}

fn follows_a_path(tokens: &[Token], at: usize) -> bool {
    at > 1 && tokens[at - 1].text == "::" && (tokens[at - 2].is_word() || tokens[at - 2].text == "*")
}

/// Reads one path, or one branch of a group under `prefix`, and returns where to go on.
fn read_path(tokens: &[Token], mut at: usize, prefix: &[String], module: &[String], found: &mut Vec<Named>) -> usize {
    let line = tokens[at].line;
    let mut segments = prefix.to_vec();
    while let Some(token) = tokens.get(at).filter(|token| token.is_word() || token.text == "*") {
        segments.push(token.text.to_owned());
        at += 1;
        if tokens.get(at).is_none_or(|next| next.text != "::") {
            found.push(Named { line, segments: absolute(segments, module) });
            return at;
        }
        at += 1;
    }
    if tokens.get(at).is_some_and(|token| token.text == "{") {
        at += 1;
        while tokens.get(at).is_some_and(|token| token.text != "}") {
            let word = tokens[at].is_word() || ["*", "{"].contains(&tokens[at].text);
            at = if word { read_path(tokens, at, &segments, module, found) } else { at + 1 };
        }
        return at + 1;
    }
    // A turbofish, `Vec::<u8>`: what came before it is the path.
    found.push(Named { line, segments: absolute(segments, module) });
    at
}

fn absolute(segments: Vec<String>, module: &[String]) -> Vec<String> {
    let ups = segments.iter().take_while(|s| *s == "super" || *s == "self").count();
    if ups == 0 || segments.len() == ups {
        return segments;
    }
    let supers = segments[..ups].iter().filter(|s| *s == "super").count();
    let base = &module[..module.len().saturating_sub(supers)];
    ["crate".to_owned()].into_iter().chain(base.iter().cloned()).chain(segments[ups..].iter().cloned()).collect()
}

// ---- Functions, files, unwrap ----

fn function_faults(code: &Code) -> Vec<String> {
    let tokens = tokens(&code.text);
    let mut faults = Vec::new();
    for (at, pair) in tokens.windows(2).enumerate() {
        if pair[0].text != "fn" || !pair[1].is_word() {
            continue; // `fn(u8)` is a type
        }
        if let Some(end) = end_of_item(&tokens, at).filter(|end| tokens[*end].text == "}") {
            let lines = tokens[end].line - pair[0].line + 1;
            if lines > MAX_FUNCTION {
                let (line, name) = (pair[0].line, pair[1].text);
                faults.push(format!(":{line}: fn {name} has {lines} lines; at most {MAX_FUNCTION}"));
            }
        }
    }
    faults
}

fn unwrap_faults(code: &Code, text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let excused = |line: usize| {
        let above = lines[..line - 1].iter().rev().take_while(|line| line.trim_start().starts_with("//"));
        [&lines[line - 1]].into_iter().chain(above).any(|line| line.contains("// invariant:"))
    };
    let called = |pair: &[Token]| [".", "::"].contains(&pair[0].text) && ["unwrap", "expect"].contains(&pair[1].text);
    tokens(&code.text)
        .windows(2)
        .filter(|pair| called(pair) && !excused(pair[1].line))
        .map(|pair| format!(":{}: {} without an `// invariant:` comment", pair[1].line, pair[1].text))
        .collect()
}

// ---- Reading Rust ----

/// Source text with comments, literals and tests blanked out, line for line.
struct Code {
    text: String,
    /// For each line: whether it belongs to a test.
    is_test: Vec<bool>,
}

struct Token<'a> {
    line: usize,
    text: &'a str,
}

impl Token<'_> {
    fn is_word(&self) -> bool {
        self.text.starts_with(|c: char| c.is_alphabetic() || c == '_')
    }
}

/// Words, `::`, and every other character by itself.
fn tokens(code: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    for (index, line) in code.lines().enumerate() {
        let mut rest = line.trim_start();
        while let Some(first) = rest.chars().next() {
            let word = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            let len = if word > 0 {
                word
            } else if rest.starts_with("::") {
                2
            } else {
                first.len_utf8()
            };
            tokens.push(Token { line: index + 1, text: &rest[..len] });
            rest = rest[len..].trim_start();
        }
    }
    tokens
}

/// The last token of the item that starts at `at`: the brace that closes its body, or the semicolon without one.
fn end_of_item(tokens: &[Token], at: usize) -> Option<usize> {
    let mut depth = 0;
    let mut in_body = false;
    for (index, token) in tokens.iter().enumerate().skip(at) {
        match token.text {
            "(" | "[" => depth += 1,
            ")" | "]" => depth -= 1,
            "{" => {
                in_body |= depth == 0;
                depth += 1;
            }
            "}" => {
                depth -= 1;
                if depth < 0 || (depth == 0 && in_body) {
                    return Some(index);
                }
            }
            ";" if depth == 0 => return Some(index),
            _ => {}
        }
    }
    None
}

/// Blanks out comments and the insides of literals; line breaks stay.
fn blank(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let starts_word = !out.ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let skip = comment_len(rest).or_else(|| literal_len(rest, starts_word));
        match skip {
            Some(len) => {
                out.extend(rest[..len].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
                rest = &rest[len..];
            }
            None => {
                let first = rest.chars().next().expect("not empty");
                out.push(first);
                rest = &rest[first.len_utf8()..];
            }
        }
    }
    out
}

fn comment_len(text: &str) -> Option<usize> {
    if text.starts_with("//") {
        return Some(text.find('\n').unwrap_or(text.len()));
    }
    if !text.starts_with("/*") {
        return None;
    }
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        match text.as_bytes()[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return Some(at);
        }
    }
    Some(text.len())
}

fn literal_len(text: &str, starts_word: bool) -> Option<usize> {
    let prefix = ["br", "cr", "r", "b", "c", ""].into_iter().find(|p| {
        let after = text.strip_prefix(p).unwrap_or("");
        (p.is_empty() || starts_word) && (after.starts_with('"') || (p.ends_with('r') && is_raw(after)))
    });
    if let Some(prefix) = prefix {
        let after = &text[prefix.len()..];
        if prefix.ends_with('r') {
            let hashes = after.len() - after.trim_start_matches('#').len();
            let end = format!("\"{}", "#".repeat(hashes));
            let body = after[hashes + 1..].find(&end).unwrap_or(after.len() - hashes - 1 - end.len());
            return Some(prefix.len() + hashes + 1 + body + end.len());
        }
        return Some(prefix.len() + quoted_len(after, '"')?);
    }
    let quote = if starts_word && text.starts_with("b'") { 1 } else { 0 };
    let after = &text[quote..];
    let mut chars = after.strip_prefix('\'')?.chars();
    // `'a'` and `'\n'` are characters, `'a` alone is a lifetime.
    let (first, second) = (chars.next()?, chars.next()?);
    (first == '\\' || second == '\'').then(|| quoted_len(after, '\'').map(|len| quote + len))?
}

fn is_raw(after: &str) -> bool {
    after.starts_with('#') && after.trim_start_matches('#').starts_with('"')
}

/// The length of a literal that begins with `quote`, up to the same one without a backslash before it.
fn quoted_len(text: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        if escaped {
            escaped = false;
        } else if c == '\\' {
            escaped = true;
        } else if c == quote {
            return Some(at + 1);
        }
    }
    None
}

/// Blanks out each item under `#[cfg(test)]`, wherever it stands.
fn without_tests(code: &str) -> Code {
    let tokens = tokens(code);
    let mut is_test = vec![false; code.lines().count()];
    for at in 0..tokens.len() {
        if let Some(item) = after_cfg_test(&tokens, at) {
            let end = end_of_item(&tokens, item).map_or(is_test.len(), |end| tokens[end].line);
            is_test[tokens[at].line - 1..end].fill(true);
        }
    }
    let kept = code.lines().zip(&is_test).map(|(line, test)| if *test { "" } else { line });
    Code { text: kept.collect::<Vec<_>>().join("\n"), is_test }
}

/// If a `#[cfg(test)]`, or a `#[cfg(all(test, …))]`, begins here: where the item behind all its attributes begins.
fn after_cfg_test(tokens: &[Token], at: usize) -> Option<usize> {
    let starts = |words: &[&str]| {
        words.len() <= tokens.len() - at && tokens[at..].iter().zip(words).all(|(token, word)| token.text == *word)
    };
    if !starts(&["#", "[", "cfg", "(", "test"]) && !starts(&["#", "[", "cfg", "(", "all", "(", "test"]) {
        return None;
    }
    let mut at = at;
    while tokens.get(at).is_some_and(|token| token.text == "#") {
        at += tokens[at..].iter().position(|token| token.text == "]")? + 1;
    }
    Some(at)
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("a folder of sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
}

/// Leaves out the files that are themselves a `#[cfg(test)] mod name;` of another.
fn without_test_modules(files: &[PathBuf]) -> Vec<PathBuf> {
    let tests: Vec<PathBuf> = files.iter().flat_map(|file| test_modules(file)).collect();
    files
        .iter()
        .filter(|file| !tests.iter().any(|test| file.starts_with(test.with_extension("")) || *file == test))
        .cloned()
        .collect()
}

fn test_modules(file: &Path) -> Vec<PathBuf> {
    let code = blank(&fs::read_to_string(file).expect("a source file"));
    let tokens = tokens(&code);
    let items = (0..tokens.len()).filter_map(|at| after_cfg_test(&tokens, at));
    let dir = match file.file_stem().and_then(|stem| stem.to_str()) {
        Some("mod" | "lib" | "main") | None => file.with_file_name(""),
        Some(_) => file.with_extension(""),
    };
    items
        .filter_map(|at| match tokens.get(at..at + 3)? {
            [module, name, end] if module.text == "mod" && end.text == ";" => {
                Some(dir.join(format!("{}.rs", name.text)))
            }
            _ => None,
        })
        .collect()
}

// ---- The checks, checked ----

/// The faults of `text` as the file `name`, which must come in this order and hold these words.
#[track_caller]
fn expect_faults(name: &str, text: &str, words: &[&str]) {
    let faults = faults_of(name, text);
    assert_eq!(faults.len(), words.len(), "{faults:#?}");
    for (fault, word) in faults.iter().zip(words) {
        assert!(fault.contains(word), "{word:?} is not in {fault:?}");
    }
}

#[test]
fn rooms_are_told_apart() {
    expect_faults("server/mod.rs", "use crate::{chat::Chat, ws::{self, Limits}, config::Config, trace::Tap};", &[]);
    expect_faults("server/mod.rs", "use crate::tools::poke;", &[":1: server may not name crate::tools::poke"]);
    expect_faults(
        "chat/mod.rs",
        "use crate::config::Config;\nfn f() { crate::ws::mask(); }",
        &[":2: chat may not name"],
    );
    expect_faults("chat/dialect/events.rs", "use super::super::super::ws::Frame;", &["crate::ws::Frame"]);
    expect_faults("ws/mod.rs", "use super::{chat, ws::frame};", &["ws may not name crate::chat"]);
    expect_faults("ws/frame.rs", "use super::close::CloseCode; use self::inner::X; use crate::ws::Limits;", &[]);
    expect_faults(
        "inspect/mod.rs",
        "use crate::{\n    ws::Opcode,\n    server::Server,\n};",
        &[":3: inspect may not name"],
    );
    expect_faults("tools/poke.rs", "use crate::{ws, trace}; use crate::config::Config;", &["tools may not name"]);
    expect_faults("config.rs", "use crate::ws::Limits;", &["config may not name"]);
    expect_faults("cellar.rs", "", &["cellar is no room"]);
    let root = "#![forbid(unsafe_code)]\nuse wirechat::{server, tools};\n";
    expect_faults("main.rs", root, &[]);
    expect_faults("main.rs", &format!("{root}use wirechat::chat::Chat;"), &[":3: main may not name"]);
}

#[test]
fn some_names_have_no_place_in_some_rooms() {
    expect_faults(
        "ws/frame.rs",
        "use std::{collections::VecDeque, io::{self, Read}};",
        &["std::io::Read", "std::io::self"],
    );
    expect_faults("ws/frame.rs", "fn f(a: std::net::SocketAddr, b: mio::Token) {}", &["mio::Token", "std::net"]);
    expect_faults("ws/frame.rs", "use std::time::{Duration, Instant};", &["std::time::Instant"]);
    expect_faults("ws/frame.rs", "use std::fmt; fn io(mio_like: u8) {} // std::io, Instant", &[]);
    expect_faults("chat/mod.rs", "use mio::Token; use std::time::SystemTime; fn f(ws: u8) {}", &[]);
    expect_faults("chat/mod.rs", "use mio::{Token, net::TcpStream};", &["mio::net::TcpStream"]);
    expect_faults("chat/mod.rs", "fn f() { ws::mask(Instant::now()) }", &["Instant::now", "ws::mask"]);
    expect_faults("server/mod.rs", "use std::{io, net, time::Instant}; use mio::net::TcpListener;", &[]);
    expect_faults("tools/explain/mod.rs", "use super::poke::case;", &["crate::tools::poke::case has no place"]);
    expect_faults("tools/poke.rs", "use super::{explain, inbox};", &["crate::tools::explain has no place"]);
    expect_faults("tools/mod.rs", "use crate::tools::{explain, poke};", &[]);
    expect_faults("tools/poke.rs", "use std::{io, net::TcpStream, time::Instant};", &[]);
    expect_faults("tools/poke.rs", "use mio::net::TcpStream;", &["mio::net::TcpStream"]);
}

#[test]
fn lengths_are_counted_without_tests() {
    let function = |lines: usize| format!("fn long(x: [u8; 2]) {{\n{}}}\n", "    let c = '}';\n".repeat(lines - 2));
    expect_faults("ws/a.rs", &function(MAX_FUNCTION), &[]);
    expect_faults("ws/a.rs", &function(MAX_FUNCTION + 1), &["fn long has 71 lines"]);
    expect_faults("ws/a.rs", &format!("impl X {{\n{}}}", function(80)), &[":2: fn long has 80 lines"]);
    expect_faults("ws/a.rs", &format!("trait T {{ fn short(); }}\n{}", "\n".repeat(100)), &[]);
    expect_faults("ws/a.rs", &"\n".repeat(MAX_FILE), &[]);
    expect_faults("ws/a.rs", &"// why\n".repeat(MAX_FILE + 1), &["301 lines"]);
    let tests = format!("#[cfg(test)]\nmod tests {{\n{}}}\n", function(400));
    expect_faults("ws/a.rs", &format!("{}{tests}", "\n".repeat(MAX_FILE)), &[]);
    expect_faults("ws/a.rs", &format!("{}{tests}\n", "\n".repeat(MAX_FILE)), &["301 lines"]);
}

#[test]
fn unwraps_need_their_invariant() {
    expect_faults(
        "ws/a.rs",
        "fn f() {\n    a.unwrap();\n    b\n        .expect(\"c\");\n}",
        &[":2: unwrap", ":4: expect"],
    );
    expect_faults("ws/a.rs", "fn f() { a.map(Option::unwrap); }", &["unwrap"]);
    expect_faults("ws/a.rs", "fn f() {\n    a.unwrap(); // invariant: always there\n}", &[]);
    expect_faults("ws/a.rs", "fn f() {\n    // invariant: it is\n    // always there\n    a.unwrap();\n}", &[]);
    expect_faults("ws/a.rs", "// invariant: of something else\n\nfn f() { a.unwrap(); }", &["unwrap"]);
    expect_faults("ws/a.rs", "#[expect(dead_code)]\nfn f() { a.unwrap_or(\".unwrap()\"); } /* .unwrap() */", &[]);
    expect_faults("ws/a.rs", "#[cfg(test)]\nuse x::Y;\nfn f() { a.unwrap(); }\n", &[":3: unwrap"]);
    expect_faults("ws/a.rs", "#[cfg(test)]\n#[allow(x)]\nmod t { fn f() { a.unwrap(); } }\nfn g() {}", &[]);
}

#[test]
fn unsafe_code_must_be_forbidden() {
    expect_faults("lib.rs", "//! The map.\n#![forbid(unsafe_code)]\npub mod ws;", &[]);
    expect_faults("lib.rs", "//! #![forbid(unsafe_code)]\npub mod ws;", &["lacks"]);
    expect_faults("main.rs", "fn main() { wirechat::server::run(); }", &["lacks"]);
}

#[test]
fn comments_and_literals_are_blanked() {
    let blanked = |text: &str| blank(text).split_whitespace().collect::<String>();
    assert_eq!(blanked(r##"a("x\"}", 'y', '\'', b'{', b"z", r#"w"w"#, br"v\")"##), "a(,,,,,,)");
    assert_eq!(blanked("fn f<'a>(x: &'a str) { /* /* } */ */ } // }"), "fnf<'a>(x:&'astr){}");
    assert_eq!(blanked("r#type; number; \"two\nlines\""), "r#type;number;");
    assert_eq!(blank("\"a\nb\"c").lines().count(), 2);
}

#[test]
fn the_top_level_knows_its_own() {
    let names = ["src", ".ci", "target", "Cargo.toml", "notes.txt", "docs"];
    assert_eq!(strangers(names.map(str::to_owned).into_iter()), ["notes.txt", "docs"]);
}
