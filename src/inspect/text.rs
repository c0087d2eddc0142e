//! Formats a record as one line of text. [`Detail::Full`] adds the HTTP head, or a diagram of the frame (§5.2).
//!
//! ```text
//! 2026-11-22T12:00:01.204Z  #7 → TEXT  fin mask=37fa213d len=5 (7-bit)  "Hello"                       §5.2 §5.3
//!   81          85             37 fa 21 3d   7f 9f 4d 51 58
//!   FIN opcode  MASK length=5  masking key   payload, masked
//!                                            48 65 6c 6c 6f   unmasked  "Hello"
//! ```
//!
//! `#7` is the connection; `→` marks bytes from the client, `←` bytes from the server, `!` a broken rule, `=` a state
//! change or the end of TCP, `·` missing records. Most lines end with the relevant sections of RFC 6455. The formatter
//! escapes text from a peer, so that a peer can neither forge a trace line nor send escape sequences to the terminal.

use std::fmt::Write;
use std::time::SystemTime;

use anstyle::{AnsiColor, Style as Ansi};

use super::escape::{Paint, escape, first_chars, plain_hex, quote, spaced_hex};
use super::lifecycle::role_name;
use super::{End, Failure, Frame, Head, LengthForm, Position, Record, RecordKind, Response, State, StateChange};
use crate::ws::frame::Role;

/// The column where the RFC section numbers start in a trace line, with and without a timestamp.
const SECTIONS_COLUMN: usize = 100;
const SECTIONS_COLUMN_WITHOUT_TIME: usize = 71;
/// Maximum number of characters to show of a request line or status line. The limit for a response body is twice as
/// high on a record's first line, and three times as high on the separate line for the body in [`Detail::Full`].
const MAX_HEAD_EXCERPT: usize = 120;
const INDENT: &str = "  ";
const ROW_BYTES: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    pub detail: Detail,
    pub uses_colour: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// Exactly one line per record, even for a large payload.
    Line,
    /// One line per record. For an HTTP head or a frame, the bytes follow on further lines.
    Full,
}

impl Style {
    /// Enables colors on a terminal, unless `NO_COLOR` is set and not empty (<https://no-color.org>).
    pub fn new(detail: Detail, is_terminal: bool) -> Style {
        let declined = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Style { detail, uses_colour: is_terminal && !declined }
    }
}

/// Appends a record to `out` as one or more newline-terminated lines.
pub fn write(record: &Record, style: Style, out: &mut String) {
    let prefix = format!("{}  #{} ", format_time(record.time), record.connection);
    write_with_prefix(&prefix, SECTIONS_COLUMN, record, style, out);
}

/// Appends a record without a timestamp or connection number, for bytes that do not come from a live connection.
pub fn write_without_time(record: &Record, style: Style, out: &mut String) {
    write_with_prefix("", SECTIONS_COLUMN_WITHOUT_TIME, record, style, out);
}

fn write_with_prefix(prefix: &str, sections_at: usize, record: &Record, style: Style, out: &mut String) {
    let paint = Paint(style.uses_colour);
    let (sign, text, sections) = match &record.kind {
        RecordKind::Request(head) => ('→', format_head(head) + &format_parts(head.parts.count, "reads"), vec!["4.1"]),
        RecordKind::Response(response) => ('←', format_response(response), vec!["4.2.2"]),
        RecordKind::Frame(frame) => (arrow(frame.from), format_frame(frame), frame.sections()),
        RecordKind::State(change) => ('=', format_state(change), vec![state_section(change.to)]),
        // Do not append a section number: `format_failure` already includes the section of the broken rule.
        RecordKind::Failure(failure) => ('!', format_failure(failure), Vec::new()),
        RecordKind::End(end) => ('=', format_end(end), Vec::new()),
        RecordKind::Missed(count) => ('·', format!("{} not shown", format_count(*count, "record")), Vec::new()),
        RecordKind::Earlier(count) => ('·', format!("{} not shown", format_count(*count, "earlier frame")), Vec::new()),
    };
    let start = format!("{prefix}{sign} {text}");
    let sections: Vec<_> = sections.iter().map(|section| format!("§{section}")).collect();
    // If a trace line is long, move the section numbers to the right instead of truncating the line.
    let gap = if sections.is_empty() { 0 } else { sections_at.saturating_sub(start.chars().count()).max(2) };
    let (start, sections) = (paint.apply(color(sign), &start), paint.apply(Ansi::new().dimmed(), &sections.join(" ")));
    // invariant: writing to a String cannot fail, so no `let _` in this file hides an error.
    let _ = writeln!(out, "{start}{:gap$}{sections}", "");
    if style.detail == Detail::Full {
        match &record.kind {
            RecordKind::Request(head) => write_head(head, out),
            RecordKind::Response(response) => write_response(response, paint, out),
            RecordKind::Frame(frame) => write_diagram(frame, paint, out),
            _ => {}
        }
    }
}

fn format_count(count: u64, name: &str) -> String {
    if count == 1 { format!("1 {name} is") } else { format!("{count} {name}s are") }
}

fn arrow(from: Role) -> char {
    match from {
        Role::Client => '→',
        Role::Server => '←',
    }
}

fn color(sign: char) -> Ansi {
    match sign {
        '→' => AnsiColor::Green.on_default(),
        '←' => AnsiColor::Cyan.on_default(),
        '!' => AnsiColor::Red.on_default().bold(),
        _ => Ansi::new().dimmed(),
    }
}

fn state_section(state: State) -> &'static str {
    match state {
        State::Connecting | State::Open => "4.1",
        State::Closing => "7.1.3",
        State::Closed => "7.1.4",
    }
}

/// Formats a time in the same way as the log and the inspector's JSON, so that readers can compare times.
fn format_time(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}

fn format_head(head: &Head) -> String {
    let line = head.first_line();
    let end = if head.is_complete { "" } else { ", the blank line is missing" };
    // Truncate before escaping, to avoid cutting an escape sequence such as `\u{1b}` in half.
    format!("{}  {} bytes{end}", escape(first_chars(&line, MAX_HEAD_EXCERPT)), head.bytes.len())
}

/// Formats a response on one line. For an error status, includes an excerpt of the body, which explains the error.
fn format_response(Response { head, status, body, .. }: &Response) -> String {
    let line = format_head(head) + &format_parts(head.parts.count, "writes");
    let body = String::from_utf8_lossy(body);
    if *status >= 400 { format!("{line}  {}", quote(first_chars(body.trim_end(), MAX_HEAD_EXCERPT * 2))) } else { line }
}

fn format_frame(frame: &Frame) -> String {
    let header = &frame.header;
    let mut text = format!("{} ", header.name());
    // Reserved opcodes have no name, so print the opcode as a number.
    if header.name() == "RESERVED" {
        let _ = write!(text, " opcode={:x}", header.opcode());
    }
    if header.fin() {
        text.push_str(" fin");
    }
    for name in header.rsv_names() {
        let _ = write!(text, " {}", name.to_ascii_lowercase());
    }
    match header.masking_key() {
        Some(key) => {
            let _ = write!(text, " mask={}", plain_hex(&key));
        }
        // Do not print part of a key. The key is incomplete if the header broke a rule or the connection closed early.
        None if header.is_masked() => text.push_str(" mask=…"),
        None => {}
    }
    match header.payload_len() {
        Some(len) => {
            let _ = write!(text, " len={len} ({}-bit)", header.length_form().bits());
        }
        None => text.push_str(" len=…"),
    }
    if let Some(Position { message, fragment, is_last }) = frame.position
        && (fragment > 1 || !is_last)
    {
        // Show message and fragment numbers only for fragmented messages, to keep most lines short.
        let last = if is_last { ", the last" } else { "" };
        let _ = write!(text, "  message {message}, fragment {fragment}{last}");
    }
    match &frame.inflated {
        Some(inflated) if inflated.is_broken => text.push_str(" (does not inflate, or needs earlier messages)"),
        Some(inflated) => {
            let _ = write!(text, " inflated={}", inflated.len);
        }
        None => {}
    }
    let excerpt = frame.excerpt();
    if !excerpt.is_empty() {
        let _ = write!(text, "  {excerpt}");
    }
    if !frame.is_complete() && header.payload_len().is_some() {
        let _ = write!(text, "  incomplete: {} of {} bytes", frame.received, frame.payload_len);
    }
    text + &format_parts(frame.parts.count, part_noun(frame))
}

fn part_noun(frame: &Frame) -> &'static str {
    if frame.from == Role::Client { "reads" } else { "writes" }
}

fn format_parts(count: u64, name: &str) -> String {
    // Mention a split, because beginners may not expect TCP to split a frame or an HTTP head.
    if count > 1 { format!("  in {count} {name}") } else { String::new() }
}

fn format_state(change: &StateChange) -> String {
    format!("{} ⇒ {}  {}", change.from.name(), change.to.name(), change.reason)
}

fn format_failure(failure: &Failure) -> String {
    format!("{} §{} {}", failure.code, failure.section, failure.reason)
}

fn format_end(end: &End) -> String {
    let first_close = match end.first_close {
        None => "no Close was sent".into(),
        Some(by) => {
            let code = end.code.map_or("no code".into(), |code| code.to_string());
            let reason = if end.reason.is_empty() { String::new() } else { format!(" {}", quote(&end.reason)) };
            format!("the {} sent the first Close ({code}{reason})", role_name(by))
        }
    };
    let cleanly = if end.is_clean { "cleanly" } else { "not cleanly" };
    // Omit an empty cause: old recordings have none for a clean close. Escape the cause: it may contain a peer's text.
    let cause = if end.cause.is_empty() { String::new() } else { format!("; {}", escape(&end.cause)) };
    format!("over, {cleanly}: {first_close}{cause}")
}

fn write_head(head: &Head, out: &mut String) {
    for line in head.bytes.split_inclusive(|byte| *byte == b'\n') {
        // Show line endings, because hand-written clients often send a bare LF instead of CR LF.
        let shown = String::from_utf8_lossy(line).replace('\r', "␍").replace('\n', "␊");
        let _ = writeln!(out, "{INDENT}{}", escape(&shown));
    }
}

fn write_response(response: &Response, paint: Paint, out: &mut String) {
    write_head(&response.head, out);
    if !response.body.is_empty() {
        let body = String::from_utf8_lossy(&response.body);
        let _ = writeln!(out, "{INDENT}{}", quote(first_chars(&body, MAX_HEAD_EXCERPT * 3)));
    }
    let Some(steps) = &response.accept else { return };
    let accept = &steps.accept[..];
    let comparison = match steps.response_accept.as_deref() {
        None => String::new(),
        Some(value) if value == accept => "  equals Sec-WebSocket-Accept".into(),
        Some(value) => format!("  but Sec-WebSocket-Accept is {}", quote(value)),
    };
    // Show how the server computes the accept value from the key (§4.2.2, item 5.4), one step per line.
    for (name, value) in [
        ("key", escape(&steps.key)),
        ("key + GUID", escape(&steps.key_and_guid)),
        ("its SHA-1", spaced_hex(&steps.sha1)),
        ("in base64", format!("{accept}{comparison}")),
    ] {
        let name = paint.apply(Ansi::new().dimmed(), &format!("{name:<12}"));
        let _ = writeln!(out, "{INDENT}{name}{value}");
    }
}

/// One header field in the frame diagram: its bytes, with its name below.
struct Field {
    bytes: String,
    name: String,
    color: AnsiColor,
}

fn header_fields(frame: &Frame) -> Vec<Field> {
    let header = &frame.header;
    let bytes = header.bytes();
    let set = |is_set: bool, name: &str| if is_set { format!("{name} ") } else { String::new() };
    let rsv: String = header.rsv_names().map(|name| format!("{name} ")).collect();
    let first = format!("{}{rsv}opcode", set(header.fin(), "FIN"));
    let second = format!("{}length={}", set(header.is_masked(), "MASK"), header.length_7());
    let extended = header.extended_length();
    let length = match header.payload_len() {
        Some(len) if header.length_form() != LengthForm::Bits7 => {
            format!("{}-bit length={len}", header.length_form().bits())
        }
        _ => format!("{}-bit length, incomplete", header.length_form().bits()),
    };
    // §5.2: the masking key is the last header field, so it consists of all bytes after the length.
    let key = bytes.get(2 + extended.len()..).unwrap_or_default();
    let key_name = if key.len() == 4 { "masking key" } else { "masking key, incomplete" };
    let field = |bytes: &[u8], name: &str, color| Field { bytes: spaced_hex(bytes), name: name.into(), color };
    let fields = [
        field(&bytes[..bytes.len().min(1)], &first, AnsiColor::Yellow),
        field(bytes.get(1..bytes.len().min(2)).unwrap_or_default(), &second, AnsiColor::Blue),
        field(extended, &length, AnsiColor::Blue),
        field(key, key_name, AnsiColor::Magenta),
    ];
    fields.into_iter().filter(|field| !field.bytes.is_empty()).collect()
}

/// Draws a frame: the header bytes with field names below, then the payload in rows.
fn write_diagram(frame: &Frame, paint: Paint, out: &mut String) {
    let (mut bytes, mut names, mut column) = (String::new(), String::new(), 0);
    for field in header_fields(frame) {
        let width = field.bytes.chars().count().max(field.name.chars().count()) + 2;
        // Pad by hand: `{:width$}` would count color escape sequences as visible characters.
        let padding = |text: &str| " ".repeat(width - text.chars().count());
        bytes += &(paint.apply(field.color.on_default(), &field.bytes) + &padding(&field.bytes));
        names += &(paint.apply(field.color.on_default(), &field.name) + &padding(&field.name));
        column += width;
    }
    let unmasked = frame.unmasked_payload();
    // Check the shown payload as a whole, not row by row: a single row of binary data may happen to be valid UTF-8.
    let is_text = frame.text(&unmasked).is_some();
    let rows: Vec<(&[u8], &[u8])> = frame.wire.chunks(ROW_BYTES).zip(unmasked.chunks(ROW_BYTES)).collect();
    if let Some((wire, plain)) = rows.first() {
        let is_masked = frame.header.masking_key().is_some();
        (bytes, names, column) = (bytes + " " + &spaced_hex(wire), names + " ", column + 1);
        match (is_masked, rows.len()) {
            (true, _) => names.push_str("payload, masked"),
            (false, 1) => names += &format!("payload  {}", format_excerpt(frame)),
            (false, _) => names += &format!("payload  {}", format_row(is_text, plain)),
        }
    }
    write_line(&bytes, out);
    write_line(&names, out);
    write_payload_rows(frame, &rows, is_text, column, out);
    write_parts(frame, out);
}

fn write_line(line: &str, out: &mut String) {
    let _ = writeln!(out, "{INDENT}{}", line.trim_end());
}

/// Writes the payload in rows. The caller has already written the first row's bytes, as received, next to the header.
/// If the payload is masked, each row, including the first, is followed by a line with its unmasked bytes.
fn write_payload_rows(frame: &Frame, rows: &[(&[u8], &[u8])], is_text: bool, column: usize, out: &mut String) {
    let blank = " ".repeat(column);
    let is_masked = frame.header.masking_key().is_some();
    for (index, (wire, plain)) in rows.iter().enumerate() {
        let text = if rows.len() == 1 { format_excerpt(frame) } else { format_row(is_text, plain) };
        match (is_masked, index) {
            (false, 0) => {} // an unmasked frame: the caller has already written its first row, next to the header
            (false, _) => write_line(&format!("{blank}{}   {text}", spaced_hex(wire)), out),
            (true, _) => {
                if index > 0 {
                    write_line(&format!("{blank}{}", spaced_hex(wire)), out);
                }
                write_line(&format!("{blank}{}   unmasked  {text}", spaced_hex(plain)), out);
            }
        }
    }
    let shown = frame.wire.len() as u64;
    if shown < frame.received {
        write_line(&format!("{blank}… and {} more bytes", frame.received - shown), out);
    }
}

/// Formats a payload excerpt. Returns "" if the excerpt would only repeat the hex bytes of the payload.
fn format_excerpt(frame: &Frame) -> String {
    let excerpt = frame.excerpt();
    if excerpt == spaced_hex(&frame.unmasked_payload()) { String::new() } else { excerpt }
}

/// Formats a row of payload bytes as quoted text, or as "" if the payload is not text. Dots replace control characters
/// and any characters that are cut off at either end of the row.
fn format_row(is_text: bool, row: &[u8]) -> String {
    if !is_text {
        return String::new();
    }
    let visible = |c: char| if c == char::REPLACEMENT_CHARACTER || c.is_control() { '.' } else { c };
    quote(&String::from_utf8_lossy(row).chars().map(visible).collect::<String>())
}

/// If several reads or writes carried the frame, lists how many of its bytes each carried, up to `MAX_PARTS` entries.
fn write_parts(frame: &Frame, out: &mut String) {
    if frame.parts.count > 1 {
        let sizes: Vec<_> = frame.parts.listed.iter().map(|(_, bytes)| bytes.to_string()).collect();
        let more = if frame.parts.count > frame.parts.listed.len() as u64 { " + …" } else { "" };
        let line = format!("in {} {}: {}{more} bytes", frame.parts.count, part_noun(frame), sizes.join(" + "));
        write_line(&line, out);
    }
}
