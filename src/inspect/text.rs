//! A record as text: one line, or all of it.
//!
//! ```text
//! 12:00:01.204  #7 → TEXT  fin mask=37fa213d len=5 (7-bit)  "Hello"                       §5.2 §5.3
//! ```
//!
//! The time is UTC; `#7` is the connection; `→` is what the client sent, `←` what the server sent, `!` a broken rule, `=`
//! the state; at the end stands where RFC 6455 says so. Whatever a peer sent is quoted and escaped, so that no line of it
//! can pass for one of ours, or do something to a terminal.

use std::fmt::Write;
use std::time::SystemTime;

use anstyle::{AnsiColor, Style as Ansi};

use super::figure::{self, INDENT};
use super::visible::{Paint, digits, escaped, hex, quoted, start_of};
use super::{End, Failure, Frame, Head, Place, Record, Response, State, StateChange, What};
use crate::ws::frame::Role;

/// Where the sections stand, if what is before them leaves room.
const SECTIONS_AT: usize = 88;
/// How much stands in a line of what a request or a refusal says, in characters.
const EXCERPT: usize = 120;

/// How a record is to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    /// How much of it.
    pub detail: Detail,
    /// With the colours of a terminal.
    pub colour: bool,
}

/// How much of a record is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// One line.
    Line,
    /// The line, and below it everything that is known.
    Full,
}

impl Style {
    /// Colours only for a terminal, and there only if `NO_COLOR` is not set (<https://no-color.org>).
    pub fn new(detail: Detail, is_terminal: bool) -> Style {
        let declined = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Style { detail, colour: is_terminal && !declined }
    }
}

/// Writes a record to the end of `out`: a line, or several, each with its end.
pub fn write(record: &Record, style: Style, out: &mut String) {
    let paint = Paint(style.colour);
    let (sign, text, sections) = match &record.what {
        What::Request(head) => ('→', self::head(head) + &in_parts(head.parts.count, "reads"), vec!["4.1"]),
        What::Response(answer) => ('←', self::answer(answer), vec!["4.2.2"]),
        What::Frame(frame) => (arrow(frame.sender), self::frame(frame), frame.sections()),
        What::State(change) => ('=', state(change), vec![section(change.to)]),
        What::Failure(refusal) => ('!', self::refusal(refusal), Vec::new()),
        What::End(end) => ('=', self::end(end), Vec::new()),
        What::Missed(count) => ('·', format!("{count} records are not shown"), Vec::new()),
    };
    let start = format!("{}  #{} {sign} {text}", clock(record.time), record.connection);
    let sections: Vec<_> = sections.iter().map(|section| format!("§{section}")).collect();
    let gap = if sections.is_empty() { 0 } else { SECTIONS_AT.saturating_sub(start.chars().count()).max(2) };
    let (start, sections) = (paint.with(colour(sign), &start), paint.with(Ansi::new().dimmed(), &sections.join(" ")));
    // invariant: writing to a String cannot fail, here and below.
    let _ = writeln!(out, "{start}{:gap$}{sections}", "");
    if style.detail == Detail::Full {
        match &record.what {
            What::Request(head) => write_head(head, out),
            What::Response(answer) => write_answer(answer, paint, out),
            What::Frame(frame) => figure::write(frame, paint, out),
            _ => {}
        }
    }
}

fn arrow(sender: Role) -> char {
    match sender {
        Role::Client => '→',
        Role::Server => '←',
    }
}

fn colour(sign: char) -> Ansi {
    match sign {
        '→' => AnsiColor::Green.on_default(),
        '←' => AnsiColor::Cyan.on_default(),
        '!' => AnsiColor::Red.on_default().bold(),
        _ => Ansi::new().dimmed(),
    }
}

/// The section that names a state.
fn section(state: State) -> &'static str {
    match state {
        State::Connecting | State::Open => "4.1",
        State::Closing => "7.1.3",
        State::Closed => "7.1.4",
    }
}

/// The time of day in UTC, in milliseconds.
fn clock(time: SystemTime) -> String {
    let stamp = humantime::format_rfc3339_millis(time).to_string();
    stamp.get(11..23).unwrap_or_default().to_owned()
}

/// The first line of a head, and its size.
fn head(head: &Head) -> String {
    let line = head.first_line();
    let end = if head.is_complete { "" } else { ", without its blank line" };
    format!("{}  {} bytes{end}", escaped(start_of(&line, EXCERPT)), head.bytes.len())
}

/// The same of an answer, and of a refusal why.
fn answer(Response { head, status, body, .. }: &Response) -> String {
    let line = self::head(head) + &in_parts(head.parts.count, "writes");
    let is_refusal = *status >= 400;
    let why = String::from_utf8_lossy(body);
    if is_refusal { format!("{line}  {}", quoted(start_of(why.trim_end(), EXCERPT * 2))) } else { line }
}

fn frame(frame: &Frame) -> String {
    let header = &frame.header;
    let mut text = format!("{} ", header.name());
    if header.name() == "RESERVED" {
        let _ = write!(text, " opcode={:x}", header.opcode());
    }
    if header.fin() {
        text.push_str(" fin");
    }
    for (bit, name) in [(4, " rsv1"), (2, " rsv2"), (1, " rsv3")] {
        text.push_str(if header.rsv() & bit != 0 { name } else { "" });
    }
    match header.masking_key() {
        Some(key) => {
            let _ = write!(text, " mask={}", digits(&key));
        }
        None if header.is_masked() => text.push_str(" mask=…"),
        None => {}
    }
    match header.payload_len() {
        Some(len) => {
            let _ = write!(text, " len={len} ({}-bit)", header.length_form().bits());
        }
        None => text.push_str(" len=…"),
    }
    if let Some(Place { message, fragment, is_last }) = frame.place
        && (fragment > 1 || !is_last)
    {
        let last = if is_last { ", the last" } else { "" };
        let _ = write!(text, "  message {message}, fragment {fragment}{last}");
    }
    let excerpt = frame.excerpt();
    if !excerpt.is_empty() {
        let _ = write!(text, "  {excerpt}");
    }
    if !frame.is_complete() && header.payload_len().is_some() {
        let _ = write!(text, "  {} of {} bytes came", frame.received, frame.payload_len);
    }
    let parts = if frame.sender == Role::Client { "reads" } else { "writes" };
    text + &in_parts(frame.parts.count, parts)
}

fn in_parts(count: u64, name: &str) -> String {
    if count > 1 { format!("  in {count} {name}") } else { String::new() }
}

fn state(change: &StateChange) -> String {
    format!("{} ⇒ {}  {}", change.from.name(), change.to.name(), change.because)
}

fn refusal(refusal: &Failure) -> String {
    format!("{} §{} {}", refusal.code, refusal.section, refusal.because)
}

fn end(end: &End) -> String {
    let began = match (end.began, end.code) {
        (None, _) => "no Close was sent".into(),
        (Some(by), code) => {
            let who = if by == Role::Client { "the client" } else { "the server" };
            let code = code.map_or("with no code".into(), |code| format!("with {code}"));
            let reason = if end.reason.is_empty() { String::new() } else { format!(" {}", quoted(&end.reason)) };
            let clean = if end.is_clean { "cleanly" } else { "not cleanly" };
            format!("{who} began to close it {code}{reason}, {clean}")
        }
    };
    let how = if end.how.is_empty() { String::new() } else { format!("; {}", quoted(&end.how)) };
    format!("over: {began}{how}")
}

/// The lines of a head, their ends visible.
fn write_head(head: &Head, out: &mut String) {
    for line in head.bytes.split_inclusive(|byte| *byte == b'\n') {
        let shown = String::from_utf8_lossy(line).replace('\r', "␍").replace('\n', "␊");
        let _ = writeln!(out, "{INDENT}{}", escaped(&shown));
    }
}

fn write_answer(answer: &Response, paint: Paint, out: &mut String) {
    write_head(&answer.head, out);
    if !answer.body.is_empty() {
        let body = String::from_utf8_lossy(&answer.body);
        let _ = writeln!(out, "{INDENT}{}", quoted(start_of(&body, EXCERPT * 3)));
    }
    let Some(steps) = &answer.accept else { return };
    let accept = &steps.accept[..];
    let verdict = match steps.answered.as_deref() {
        None => String::new(),
        Some(answered) if answered == accept => "  as the answer has it".into(),
        Some(answered) => format!("  but the answer has {}", quoted(answered)),
    };
    for (name, value) in [
        ("key", escaped(&steps.key)),
        ("key + GUID", escaped(&steps.joined)),
        ("its SHA-1", hex(&steps.sha1)),
        ("in base64", format!("{accept}{verdict}")),
    ] {
        let name = paint.with(Ansi::new().dimmed(), &format!("{name:<12}"));
        let _ = writeln!(out, "{INDENT}{name}{value}");
    }
}
