//! Explains captured bytes: an optional handshake, the frames, and any missing or invalid bytes. A [`Tracer`] decodes
//! the frames and reports violations, but it checks only the headers of frames from a server. This module therefore
//! also passes those frames to an [`Inbox`], which checks them completely, as a client would (RFC 6455 §5, §7).

use std::time::SystemTime;

use super::handshake;
use crate::inspect::failure::is_tls;
use crate::inspect::{Failure, Frame, Record, RecordKind};
use crate::tools::Tracer;
use crate::tools::inbox::Inbox;
use crate::ws::frame::Role;

#[derive(Debug, Default)]
pub struct Explanation {
    pub handshake: Vec<String>,
    pub records: Vec<Record>,
    pub notes: Vec<String>,
    /// Whether the bytes are complete and break no rule. The exit code of `explain` depends on this result.
    pub is_valid: bool,
}

/// Explains bytes sent by one endpoint, or a request followed by its response. To check a response without its request,
/// pass the request's `Sec-WebSocket-Key` as `key`.
pub fn explain(bytes: &[u8], role: Role, key: Option<&str>) -> Explanation {
    if is_tls(bytes) {
        let note =
            "This is TLS, as wss:// uses it. The frames are encrypted: capture them inside the client or the server.";
        return Explanation { notes: vec![note.into()], ..Explanation::default() };
    }
    let handshake = handshake::explain(bytes, key);
    let frames = handshake.rest;
    if handshake.role.is_some() && frames.is_empty() {
        return Explanation { handshake: handshake.lines, is_valid: handshake.is_valid, ..Explanation::default() };
    }
    let role = handshake.role.unwrap_or(role);
    let mut tracer = Tracer::open();
    let mut records = tracer.trace(role, frames, SystemTime::UNIX_EPOCH);
    records.extend(tracer.end("", SystemTime::UNIX_EPOCH));
    // Drop the records about connection states: a state also depends on the other endpoint's bytes, which are unknown.
    records
        .retain(|record| matches!(record.kind, RecordKind::Frame(_) | RecordKind::Failure(_) | RecordKind::Missed(_)));
    let (mut notes, mut is_valid) = summarize(&records, frames.len(), role);
    notes.extend(describe_compression(&records, frames, role));
    if role == Role::Server && is_valid {
        let mut client = Inbox::open();
        client.receive(frames);
        if let Some(violation) = client.violation {
            (notes, is_valid) = (vec![format!("Wrong: {violation}.")], false);
        }
    }
    Explanation { handshake: handshake.lines, records, notes, is_valid: is_valid && handshake.is_valid }
}

/// Returns a note for each frame that may be compressed. The frames do not show whether the endpoints negotiated
/// permessage-deflate.
fn describe_compression(records: &[Record], bytes: &[u8], role: Role) -> Vec<String> {
    let has_rsv1 = |frame: &Frame| frame.header.rsv() == 4 && matches!(frame.header.opcode(), 1 | 2);
    if !cfg!(feature = "deflate") || !records.iter().filter_map(as_frame).any(has_rsv1) {
        return Vec::new();
    }
    let mut tracer = Tracer::open_with_deflate();
    let mut records = tracer.trace(role, bytes, SystemTime::UNIX_EPOCH);
    records.extend(tracer.end("", SystemTime::UNIX_EPOCH));
    let describe = |frame: &Frame| {
        let inflated = frame.inflated.as_ref()?;
        let (number, len) = (frame.number, frame.payload_len);
        Some(if !inflated.is_broken {
            let excerpt = frame.excerpt();
            format!(
                "If permessage-deflate was negotiated, the {len} bytes of frame {number} inflate to {}: {excerpt}",
                inflated.len
            )
        } else if role == Role::Server {
            format!(
                "Frame {number} does not inflate alone: it is invalid, or refers to earlier messages (RFC 7692 §7.2)."
            )
        } else {
            format!("The payload of frame {number} does not inflate (RFC 7692 §7.2.2).")
        })
    };
    records.iter().filter_map(as_frame).filter_map(describe).collect()
}

/// Returns the summary lines to print after the frames, and whether the frames are complete and valid.
fn summarize(records: &[Record], len: usize, role: Role) -> (Vec<String>, bool) {
    let frames: Vec<&Frame> = records.iter().filter_map(as_frame).collect();
    let failures: Vec<&Failure> = records.iter().filter_map(as_failure).collect();
    let mut notes = Vec::new();
    if failures.iter().any(|failure| failure.section == "5.1") {
        notes.push(wrong_role_hint(role).to_owned());
    }
    let fails_last = matches!(records.last(), Some(Record { kind: RecordKind::Failure(_), .. }));
    let missing = frames.last().filter(|_| !fails_last).and_then(|frame| describe_missing_bytes(frame));
    let unread = describe_unread_bytes(records, &frames, len).map(|count| match failures[..] {
        [] => format!("{count} not read: no frame may follow a Close (§5.5.1)."),
        _ => format!("{count} not read: the connection has failed (§7.1.7)."),
    });
    let is_valid = failures.is_empty() && missing.is_none() && unread.is_none();
    notes.extend(missing.into_iter().chain(unread));
    if is_valid {
        notes.push(match frames.len() {
            1 => "One complete and valid frame.".into(),
            count => format!("{count} complete and valid frames."),
        });
        if frames.iter().rev().find_map(|frame| frame.position).is_some_and(|position| !position.is_last) {
            notes.push(
                "The message is unfinished: more fragments follow, with opcode 0, the last one with FIN (§5.4).".into(),
            );
        }
    }
    (notes, is_valid)
}

/// Returns a hint for a frame whose mask bit is wrong for `role`: the other endpoint probably sent the frame.
fn wrong_role_hint(role: Role) -> &'static str {
    match role {
        Role::Client => "A server sends its frames like this, without a mask. If a server sent it, add --from-server.",
        Role::Server => "A client sends its frames like this, masked. If a client sent it, leave out --from-server.",
    }
}

/// Describes the bytes after the last frame. Returns `None` if their number is zero or unknown.
fn describe_unread_bytes(records: &[Record], frames: &[&Frame], len: usize) -> Option<String> {
    // If the tracer dropped records (`Missed`), the total length of the frames is unknown.
    let is_known = !records.iter().any(|record| matches!(record.kind, RecordKind::Missed(_)));
    let read: u64 = frames.iter().map(|frame| frame.header.bytes().len() as u64 + frame.received).sum();
    let count = (len as u64).saturating_sub(read);
    (is_known && count > 0).then(|| format_more_bytes(count))
}

fn as_frame(record: &Record) -> Option<&Frame> {
    match &record.kind {
        RecordKind::Frame(frame) => Some(frame),
        _ => None,
    }
}

fn as_failure(record: &Record) -> Option<&Failure> {
    match &record.kind {
        RecordKind::Failure(failure) => Some(failure),
        _ => None,
    }
}

/// Describes the missing part of a frame. Returns `None` if the frame is complete.
fn describe_missing_bytes(frame: &Frame) -> Option<String> {
    let header = &frame.header;
    let (have, form) = (header.bytes().len(), header.length_form());
    // §5.2: a header is two bytes, then any extended length, then any masking key.
    let length_end = 2 + form.size();
    let (count, part) = match have {
        1 => return Some("The second byte is missing: the mask bit and the length.".into()),
        _ if have < length_end => (length_end - have, format!("the {}-bit length", form.bits())),
        _ if have < header.size() => (header.size() - have, "the masking key".into()),
        _ => {
            let left = frame.payload_len.saturating_sub(frame.received);
            return (left > 0).then(|| format!("{} missing from the payload.", format_more_bytes(left)));
        }
    };
    Some(format!("{} missing from {part}.", format_more_bytes(count as u64)))
}

fn format_more_bytes(count: u64) -> String {
    if count == 1 { "1 more byte is".into() } else { format!("{count} more bytes are") }
}
