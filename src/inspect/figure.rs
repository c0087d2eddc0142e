//! A frame drawn field by field over its bytes (§5.2).
//!
//! ```text
//! 81          85             37 fa 21 3d   7f 9f 4d 51 58
//! FIN opcode  MASK length=5  masking key   payload, masked
//!                                          48 65 6c 6c 6f   unmasked  "Hello"
//! ```
//!
//! Each field has its bytes above and its name below. A payload goes on below in rows of sixteen bytes.

use std::fmt::Write;

use anstyle::AnsiColor;

use super::visible::{Paint, hex, quoted};
use super::{Frame, LengthForm};
use crate::ws::frame::Role;

/// How many bytes of a payload stand in a row.
const ROW: usize = 16;
/// What is drawn below a line begins here, under its `#`.
pub(super) const INDENT: &str = "              ";

/// A field of the header: its bytes, its name, and how it looks.
struct Field {
    bytes: String,
    name: String,
    colour: AnsiColor,
}

fn fields(frame: &Frame) -> Vec<Field> {
    let header = &frame.header;
    let bytes = header.bytes();
    let set = |is_set: bool, name: &str| if is_set { format!("{name} ") } else { String::new() };
    let rsv: String =
        [(4, "RSV1"), (2, "RSV2"), (1, "RSV3")].map(|(bit, name)| set(header.rsv() & bit != 0, name)).concat();
    let first = format!("{}{rsv}opcode", set(header.fin(), "FIN"));
    let second = format!("{}length={}", set(header.is_masked(), "MASK"), header.short_length());
    let long = header.long_length();
    let length = match header.payload_len() {
        Some(len) if header.length_form() != LengthForm::Bits7 => {
            format!("{}-bit length={len}", header.length_form().bits())
        }
        _ => format!("{}-bit length, not all of it", header.length_form().bits()),
    };
    let key = bytes.get(2 + long.len()..).unwrap_or_default();
    let key_name = if key.len() == 4 { "masking key" } else { "masking key, not all of it" };
    let field = |bytes: &[u8], name: &str, colour| Field { bytes: hex(bytes), name: name.into(), colour };
    let fields = [
        field(&bytes[..bytes.len().min(1)], &first, AnsiColor::Yellow),
        field(bytes.get(1..bytes.len().min(2)).unwrap_or_default(), &second, AnsiColor::Blue),
        field(long, &length, AnsiColor::Blue),
        field(key, key_name, AnsiColor::Magenta),
    ];
    fields.into_iter().filter(|field| !field.bytes.is_empty()).collect()
}

/// Draws a frame to the end of `out`.
pub(super) fn write(frame: &Frame, paint: Paint, out: &mut String) {
    let fields = fields(frame);
    let (mut bytes, mut names, mut column) = (String::new(), String::new(), 0);
    for field in &fields {
        let width = field.bytes.chars().count().max(field.name.chars().count()) + 2;
        let padding = |text: &str| " ".repeat(width - text.chars().count());
        bytes += &(paint.with(field.colour.on_default(), &field.bytes) + &padding(&field.bytes));
        names += &(paint.with(field.colour.on_default(), &field.name) + &padding(&field.name));
        column += width;
    }
    let unmasked = frame.unmasked();
    let rows: Vec<(&[u8], &[u8])> = frame.wire.chunks(ROW).zip(unmasked.chunks(ROW)).collect();
    if let Some((wire, plain)) = rows.first() {
        let is_masked = frame.header.masking_key().is_some();
        // One column more, since what stands here is no part of the header.
        (bytes, names, column) = (bytes + " " + &hex(wire), names + " ", column + 1);
        match (is_masked, rows.len()) {
            (true, _) => names.push_str("payload, masked"),
            (false, 1) => names += &format!("payload  {}", meaning(frame)),
            (false, _) => names += &format!("payload  {}", row_text(frame, plain)),
        }
    }
    write_line(&bytes, out);
    write_line(&names, out);
    write_rows(frame, &rows, column, out);
    write_parts(frame, out);
}

fn write_line(line: &str, out: &mut String) {
    let _ = writeln!(out, "{INDENT}{}", line.trim_end());
}

/// The rest of the payload: what was masked stands twice.
fn write_rows(frame: &Frame, rows: &[(&[u8], &[u8])], column: usize, out: &mut String) {
    let blank = " ".repeat(column);
    let is_masked = frame.header.masking_key().is_some();
    for (index, (wire, plain)) in rows.iter().enumerate() {
        let text = if rows.len() == 1 { meaning(frame) } else { row_text(frame, plain) };
        match (is_masked, index) {
            (false, 0) => {}
            (false, _) => write_line(&format!("{blank}{}   {text}", hex(wire)), out),
            (true, _) => {
                if index > 0 {
                    write_line(&format!("{blank}{}", hex(wire)), out);
                }
                write_line(&format!("{blank}{}   unmasked  {text}", hex(plain)), out);
            }
        }
    }
    let shown = frame.wire.len() as u64;
    if shown < frame.received {
        write_line(&format!("{blank}… and {} bytes more", frame.received - shown), out);
    }
}

/// What a payload says, if it says anything beside its bytes.
fn meaning(frame: &Frame) -> String {
    let excerpt = frame.excerpt();
    if excerpt == hex(&frame.unmasked()) { String::new() } else { excerpt }
}

/// A row of a payload as text, as far as it is: a character that is cut is a dot, and so is what cannot be seen.
fn row_text(frame: &Frame, row: &[u8]) -> String {
    if frame.text(&frame.unmasked()).is_none() {
        return String::new();
    }
    let visible = |c: char| if c == char::REPLACEMENT_CHARACTER || c.is_control() { '.' } else { c };
    quoted(&String::from_utf8_lossy(row).chars().map(visible).collect::<String>())
}

/// The reads or writes it came in, if there were several.
fn write_parts(frame: &Frame, out: &mut String) {
    if frame.parts.count > 1 {
        let sizes: Vec<_> = frame.parts.listed.iter().map(|(_, bytes)| bytes.to_string()).collect();
        let more = if frame.parts.count > frame.parts.listed.len() as u64 { " + …" } else { "" };
        let what = if frame.sender == Role::Client { "reads" } else { "writes" };
        write_line(&format!("in {} {what}: {}{more} bytes", frame.parts.count, sizes.join(" + ")), out);
    }
}
