//! Parses the sources to enforce the architecture: which modules may use which other modules, which system interfaces
//! the pure modules must not use, and which words must not occur in names.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/sources.rs"]
mod sources;

use std::collections::BTreeSet;
use std::{fs, iter};

use proc_macro2::TokenTree;
use sources::read_all;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

/// Each module with the modules that it may use. `lib.rs` is exempt, because it declares all modules.
const ALLOWED_DEPENDENCIES: [(&str, &[&str]); 16] = [
    ("main", &["net", "tools", "config", "config_file", "http", "systemd"]),
    ("net", &["server", "inspect", "config", "broker", "chat", "http", "operator", "systemd", "proxy_protocol"]),
    ("server", &["ws", "http", "chat", "broker", "config", "maps"]),
    ("http", &["ws", "chat", "config"]),
    ("chat", &["broker", "config", "maps", "operator"]),
    ("broker", &["maps"]),
    ("inspect", &["ws", "server", "maps"]),
    ("tools", &["ws", "inspect", "broker"]),
    ("config", &["features"]),
    ("features", &["config"]),
    ("config_file", &["config"]),
    ("maps", &[]),
    ("systemd", &[]),
    ("proxy_protocol", &[]),
    ("operator", &["maps"]),
    ("ws", &[]),
];

/// Files whose code runs in a tool, at startup or on a separate thread, so it may use blocking I/O and clocks.
const BLOCKING_FILES: [&str; 5] = [
    "broker/redis/link.rs",
    "broker/sqlite/database.rs",
    "broker/sqlite/file.rs",
    "broker/sqlite/reader.rs",
    "broker/sqlite/writer.rs",
];

/// The files and directories at the top level of the repository, except dotfiles and `target`.
const TOP_LEVEL: [&str; 7] = ["Cargo.toml", "Cargo.lock", "src", "client.html", "tests", "README.md", "LICENSE"];

/// Words that names must not contain, and the standard terms to use instead. Words that the RFC, `std` or the wire
/// format uses are allowed: `end`, `leave`, `enter`, `move`, `mark`, `welcome`, `see`.
const OLD_WORDS: &[(&str, &str)] = &[
    ("answer answers answered", "response, reply"),
    ("refuse refused refusal", "reject, fail"),
    ("judge judged", "check, validate"),
    ("complaint complain fault", "error"),
    ("notice", "event"),
    ("tell tells told say says saying said hear heard", "send, publish, report"),
    ("audience", "recipients"),
    ("whisper posted draft", "message, private message"),
    ("past recall", "history, backlog"),
    ("speech", "publishing"),
    ("who someone somebody nobody bearer bearers newcomer", "user, client, member, peer"),
    ("come comes coming go goes gone exit", "join, leave, switch"),
    ("door", "join request"),
    ("grant welcomes", "allow, identity"),
    ("pace", "rate limiter"),
    ("due", "expired, deadline"),
    ("wanted", "interest, readiness"),
    ("journal", "log"),
    ("watch watched look looks", "observe, inspect"),
    ("side", "role"),
    ("steady", "monotonic"),
    ("noted taken", "a verb"),
];

struct Source {
    /// The path relative to `src`.
    name: String,
    file: syn::File,
}

fn sources() -> Vec<Source> {
    let parse = |(path, text): (String, String)| Source {
        file: syn::parse_file(&text).expect(&path),
        name: path.trim_start_matches("src/").to_owned(),
    };
    read_all("src").into_iter().map(parse).collect()
}

/// Collects the Rust paths that a source file uses and the names of the items that it declares. Skips the file's tests.
struct Names {
    /// The path of the file's module, without the leading `crate`.
    module: Vec<String>,
    /// Each path in the code and its line number. Paths with `self` or `super` are made absolute.
    paths: Vec<(usize, Vec<String>)>,
    items: Vec<(usize, String)>,
}

impl Names {
    fn of(source: &Source) -> Names {
        let stem = source.name.trim_end_matches(".rs");
        let mut module: Vec<String> = stem.split('/').map(str::to_owned).collect();
        if module.last().is_some_and(|last| ["mod", "lib", "main"].contains(&last.as_str())) {
            module.pop();
        }
        let mut names = Names { module, paths: Vec::new(), items: Vec::new() };
        names.visit_file(&source.file);
        names
    }

    /// Resolves `super` and `self` against the module of the file.
    fn absolute(&self, segments: Vec<String>) -> Vec<String> {
        let ups = segments.iter().take_while(|segment| ["super", "self"].contains(&segment.as_str())).count();
        if ups == 0 || ups == segments.len() {
            return segments;
        }
        let supers = segments[..ups].iter().filter(|segment| *segment == "super").count();
        let base = &self.module[..self.module.len().saturating_sub(supers)];
        iter::once("crate".to_owned()).chain(base.iter().cloned()).chain(segments[ups..].iter().cloned()).collect()
    }

    fn add_use(&mut self, prefix: &[String], tree: &syn::UseTree) {
        let with = |name: &syn::Ident| prefix.iter().cloned().chain([name.to_string()]).collect::<Vec<_>>();
        let (line, segments) = match tree {
            syn::UseTree::Path(path) => return self.add_use(&with(&path.ident), &path.tree),
            syn::UseTree::Group(group) => return group.items.iter().for_each(|tree| self.add_use(prefix, tree)),
            syn::UseTree::Name(name) => (name.span().start().line, with(&name.ident)),
            syn::UseTree::Rename(rename) => (rename.span().start().line, with(&rename.ident)),
            syn::UseTree::Glob(glob) => (glob.span().start().line, prefix.to_vec()),
        };
        let path = self.absolute(segments);
        self.paths.push((line, path));
    }

    fn add_item(&mut self, ident: &syn::Ident) {
        self.items.push((ident.span().start().line, ident.to_string()));
    }

    /// Collects the paths in the arguments of a macro, which `syn` leaves as tokens.
    fn add_tokens(&mut self, tokens: proc_macro2::TokenStream) {
        let (mut path, mut line) = (Vec::new(), 0);
        for token in tokens {
            match token {
                TokenTree::Group(group) => self.add_tokens(group.stream()),
                TokenTree::Ident(ident) => {
                    line = ident.span().start().line;
                    path.push(ident.to_string());
                    continue;
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' => continue,
                TokenTree::Punct(_) | TokenTree::Literal(_) => {}
            }
            self.paths.push((line, self.absolute(std::mem::take(&mut path))));
        }
        self.paths.push((line, self.absolute(path)));
    }
}

fn is_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let tokens = attribute.meta.require_list().map(|list| list.tokens.to_string()).unwrap_or_default();
        attribute.path().is_ident("test") || attribute.path().is_ident("cfg") && tokens.contains("test")
    })
}

impl<'ast> Visit<'ast> for Names {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        let (attributes, ident) = match item {
            syn::Item::Mod(item) => (&item.attrs, Some(&item.ident)),
            syn::Item::Fn(item) => (&item.attrs, Some(&item.sig.ident)),
            syn::Item::Struct(item) => (&item.attrs, Some(&item.ident)),
            syn::Item::Enum(item) => (&item.attrs, Some(&item.ident)),
            syn::Item::Trait(item) => (&item.attrs, Some(&item.ident)),
            syn::Item::Type(item) => (&item.attrs, Some(&item.ident)),
            syn::Item::Const(item) => (&item.attrs, Some(&item.ident)),
            syn::Item::Static(item) => (&item.attrs, Some(&item.ident)),
            syn::Item::Impl(item) => (&item.attrs, None),
            syn::Item::Use(item) => {
                self.add_use(&[], &item.tree);
                return;
            }
            _ => return visit::visit_item(self, item),
        };
        if !is_test(attributes) {
            ident.into_iter().for_each(|ident| self.add_item(ident));
            visit::visit_item(self, item);
        }
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        self.add_item(&function.sig.ident);
        visit::visit_impl_item_fn(self, function);
    }

    fn visit_trait_item_fn(&mut self, function: &'ast syn::TraitItemFn) {
        self.add_item(&function.sig.ident);
        visit::visit_trait_item_fn(self, function);
    }

    fn visit_field(&mut self, field: &'ast syn::Field) {
        field.ident.iter().for_each(|ident| self.add_item(ident));
        visit::visit_field(self, field);
    }

    fn visit_variant(&mut self, variant: &'ast syn::Variant) {
        self.add_item(&variant.ident);
        visit::visit_variant(self, variant);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        let absolute = self.absolute(segments);
        self.paths.push((path.span().start().line, absolute));
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.add_tokens(call.tokens.clone());
    }
}

/// Describes each place where a source file breaks the rules on dependencies between modules.
fn find_forbidden_dependencies(source: &Source) -> Vec<String> {
    let module = source.name.split(['/', '.']).next().unwrap_or_default();
    // Skip `lib.rs`, which declares all modules, and `pictures.rs`, which only unit tests use.
    if ["lib", "pictures"].contains(&module) {
        return Vec::new();
    }
    let Some((_, allowed)) = ALLOWED_DEPENDENCIES.iter().find(|(from, _)| *from == module) else {
        return vec![format!("src/{}: no arrow leads from or to {module}", source.name)];
    };
    let mut faults = BTreeSet::new();
    for (line, path) in Names::of(source).paths {
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        let named = match path[..] {
            ["crate" | "wirechat", other, ..] => {
                ALLOWED_DEPENDENCIES.iter().map(|(name, _)| *name).find(|name| *name == other)
            }
            _ => None,
        };
        let is_walled = named.is_some_and(|other| other != module && !allowed.contains(&other));
        let is_blocking = BLOCKING_FILES.contains(&source.name.as_str());
        // `inspect` may use `server::observer`, but no other part of `server`.
        let is_past_the_seam =
            module == "inspect" && path.starts_with(&["crate", "server"]) && !path.contains(&"observer");
        if is_walled || is_past_the_seam || !is_blocking && is_forbidden_in(module, &path) {
            faults.insert(format!("src/{}:{line}: {module} may not name {}", source.name, path.join("::")));
        }
    }
    faults.into_iter().collect()
}

/// Whether `module` is forbidden to use the item at `path`, such as `std::net::TcpStream`. Some modules must not use
/// sockets, clocks or random numbers. Their callers pass in the bytes, the time and the random numbers.
fn is_forbidden_in(module: &str, path: &[&str]) -> bool {
    let is_clock = path.contains(&"Instant") || path.ends_with(&["SystemTime", "now"]);
    let is_random = path.contains(&"RandomState") || path.first() == Some(&"getrandom");
    let is_system = matches!(
        path,
        ["std", "fs" | "process" | "thread" | "env", ..]
            | ["std", "net", "TcpStream" | "TcpListener" | "UdpSocket", ..]
    );
    let is_mio = matches!(path, ["mio", other, ..] if *other != "Token");
    match module {
        "ws" => is_clock || is_random || is_system || path.first() == Some(&"mio"),
        // `http` may use `std::fs`, to read the token file.
        "http" => is_clock || is_random || is_mio,
        "chat" | "broker" | "server" | "maps" | "operator" => is_clock || is_random || is_system || is_mio,
        // A tool may block while it waits for a connection, so it does not need mio's poll loop.
        "tools" => path.first() == Some(&"mio"),
        _ => false,
    }
}

/// Splits a name into lowercase words: both `TokenMap` and `token_map` contain `token` and `map`.
fn words(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    for character in name.chars() {
        if character == '_' || character.is_uppercase() {
            words.push(String::new());
        }
        if let Some(word) = words.last_mut().filter(|_| character != '_') {
            word.extend(character.to_lowercase());
        }
    }
    words
}

fn find_forbidden_words(source: &Source) -> Vec<String> {
    let stem = source.name.trim_end_matches(".rs").replace('/', "_");
    let names = Names::of(source).items.into_iter().chain([(0, stem)]);
    let mut faults = Vec::new();
    for (line, name) in names {
        for word in words(&name) {
            let rule = OLD_WORDS.iter().find(|(old, _)| old.split(' ').any(|old| old == word));
            faults.extend(rule.map(|(_, new)| format!("src/{}:{line}: {name}: not {word:?} but {new}", source.name)));
        }
    }
    faults
}

#[track_caller]
fn assert_no_violations(faults: Vec<String>) {
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn modules_have_only_allowed_dependencies() {
    assert_no_violations(sources().iter().flat_map(find_forbidden_dependencies).collect());
}

#[test]
fn names_use_the_words_of_the_field() {
    assert_no_violations(sources().iter().flat_map(find_forbidden_words).collect());
}

#[test]
fn unsafe_code_is_forbidden() {
    for root in [include_str!("../src/lib.rs"), include_str!("../src/main.rs")] {
        assert!(root.contains("#![forbid(unsafe_code)]"));
    }
}

#[test]
fn the_top_level_is_short() {
    let entries = fs::read_dir(env!("CARGO_MANIFEST_DIR")).expect("the repository");
    let names = entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned());
    let others = names.filter(|name| !name.starts_with('.') && name != "target" && !TOP_LEVEL.contains(&name.as_str()));
    assert_eq!(others.collect::<Vec<_>>(), Vec::<String>::new(), "these belong below tests/ or .dist/");
    let ignored = include_str!("../.gitignore");
    assert!(ignored.lines().any(|line| line.trim_matches('/') == "target"), "git ignores target");
}

/// Tests the checks themselves. Each case has the name and the text of a source file, and a substring of each expected
/// error.
#[test]
fn each_check_can_fail() {
    let cases: &[(&str, &str, &[&str])] = &[
        ("server/mod.rs", "use crate::{chat::Chat, ws::{self, Limits}, config::Config};", &[]),
        ("server/mod.rs", "use crate::tools::poke;", &[":1: server may not name crate::tools::poke"]),
        ("server/mod.rs", "fn f() { std::time::Instant::now(); }", &["Instant"]),
        ("server/mod.rs", "fn f() { log!(SystemTime::now()); }", &["SystemTime::now"]),
        ("chat/mod.rs", "\nfn f() { crate::ws::mask(); }", &[":2: chat may not name"]),
        ("chat/dialect/events.rs", "use super::super::super::ws::Frame;", &["crate::ws::Frame"]),
        ("chat/mod.rs", "use mio::{Token, Poll};", &["mio::Poll"]),
        ("ws/mod.rs", "use super::{chat, ws::frame};", &["crate::chat"]),
        ("ws/frame.rs", "use super::close::CloseCode; use self::inner::X; use crate::ws::Limits;", &[]),
        ("ws/frame.rs", "fn f(s: std::net::TcpStream) {}", &["TcpStream"]),
        ("inspect/mod.rs", "use crate::server::observer::Observer; use crate::server::Server;", &["server::Server"]),
        ("config.rs", "#[cfg(test)] mod tests { use crate::ws::Limits; }", &[]),
        ("broker/mod.rs", "fn f() { assert!(crate::chat::X); }", &["crate::chat::X"]),
        ("cellar.rs", "", &["cellar"]),
    ];
    for (name, text, expected) in cases {
        let source = Source { name: (*name).to_owned(), file: syn::parse_file(text).unwrap() };
        let faults = find_forbidden_dependencies(&source);
        assert_eq!(faults.len(), expected.len(), "{text}: {faults:#?}");
        assert!(faults.iter().zip(*expected).all(|(fault, part)| fault.contains(part)), "{faults:#?}");
    }
    let named =
        |text: &str| find_forbidden_words(&Source { name: "a.rs".into(), file: syn::parse_file(text).unwrap() }).len();
    assert_eq!(named("struct PaceMaker { told: u8 } fn f() {}"), 2);
    assert_eq!(named("struct Space; fn tellurium() {} #[cfg(test)] mod tests { fn tell() {} }"), 0);
}
