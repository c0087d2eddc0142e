//! Bytes become drawn frames, and what is wrong or missing is said below them.
//!
//! The tracer does the drawing and names broken rules; here stands what only somebody who explains has to say: what is
//! still missing, that the other side would have sent it so, that this is no frame at all.
//!
//! The subtle thing: the tracer stands beside a server, and judges of a server's own frames no more than their headers.
//! So these are read by the [`Inbox`] of a client as well.

use std::time::SystemTime;

use crate::inspect::{Failure, Frame, Record, Records, Tap, What};
use crate::tools::NO_LIMITS;
use crate::tools::inbox::Inbox;
use crate::ws::frame::Role;

/// How HTTP begins, from either side.
const HTTP: [&[u8]; 9] =
    [b"HTTP/1.", b"GET ", b"POST ", b"HEAD ", b"PUT ", b"OPTIONS ", b"CONNECT ", b"DELETE ", b"PATCH "];

/// What is to be said of some bytes.
#[derive(Debug)]
pub struct Explained {
    /// What is said before the frames.
    pub before: Vec<String>,
    /// The frames, and what is wrong with them.
    pub records: Vec<Record>,
    /// What is said below the frames.
    pub notes: Vec<String>,
    /// The frames are whole, and nothing is wrong with them.
    pub is_right: bool,
}

/// Whether these bytes are the start of HTTP.
pub fn is_http(bytes: &[u8]) -> bool {
    HTTP.iter().any(|start| bytes.starts_with(start))
}

/// Explains the bytes that `sender` sent, from the start of a frame on.
pub fn explain(bytes: &[u8], sender: Role) -> Explained {
    if matches!(bytes, [0x14..=0x17, 3, 0..=4, ..]) {
        let note = "This is TLS, as wss:// speaks it. The frames are inside, and only its two ends can read them.";
        return Explained { before: vec![], records: vec![], notes: vec![note.into()], is_right: false };
    }
    let (before, frames) = without_head(bytes);
    let Some(frames) = frames.filter(|frames| !frames.is_empty()) else {
        return Explained { before, records: vec![], notes: vec![], is_right: frames.is_some() };
    };
    let records = Records::default();
    let mut tap = Tap::open(1, records.clone());
    tap.set_limits(NO_LIMITS);
    tap.see(sender, frames, SystemTime::UNIX_EPOCH);
    tap.end("", SystemTime::UNIX_EPOCH);
    let mut records = records.take();
    // Of states there is nothing to say: nobody knows what the other side sent.
    records.retain(|record| matches!(record.what, What::Frame(_) | What::Failure(_) | What::Missed(_)));
    let (mut notes, mut is_right) = notes(&records, frames.len(), sender);
    if sender == Role::Server && is_right {
        let mut client = Inbox::open();
        client.receive(frames);
        if let Some(fault) = client.fault {
            (notes, is_right) = (vec![format!("Wrong: {fault}.")], false);
        }
    }
    Explained { before, records, notes, is_right }
}

/// A line about an HTTP head, if there is one, and the bytes behind it; `None` if it does not end.
fn without_head(bytes: &[u8]) -> (Vec<String>, Option<&[u8]>) {
    if !is_http(bytes) {
        return (vec![], Some(bytes));
    }
    let what = if bytes.starts_with(b"HTTP/1.") { "answer" } else { "request" };
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
        let line =
            format!("This is an HTTP {what}, not a frame: the opening handshake (§4). Its blank line is missing.");
        return (vec![line], None);
    };
    let rest = &bytes[end + 4..];
    let behind = if rest.is_empty() { "Frames would begin here." } else { "Frames begin behind it:" };
    let head = end + 4;
    let line = format!("The first {head} bytes are an HTTP {what}: the opening handshake (§4). {behind}");
    (vec![line], Some(rest))
}

/// What is said below the frames, and whether they are right.
fn notes(records: &[Record], len: usize, sender: Role) -> (Vec<String>, bool) {
    let frames: Vec<&Frame> = records.iter().filter_map(frame).collect();
    let refusals: Vec<&Failure> = records.iter().filter_map(refusal).collect();
    let mut notes = Vec::new();
    if refusals.iter().any(|refusal| refusal.section == "5.1") {
        notes.push(other_side(sender).to_owned());
    }
    let last_is_refused = matches!(records.last(), Some(Record { what: What::Failure(_), .. }));
    let missing = frames.last().filter(|_| !last_is_refused).and_then(|frame| missing(frame));
    let unread = unread(records, &frames, len).map(|count| match refusals[..] {
        [] => format!("{count} not read: behind a Close there are no frames (§5.5.1)."),
        _ => format!("{count} not read: the connection is failed (§7.1.7)."),
    });
    let is_right = refusals.is_empty() && missing.is_none() && unread.is_none();
    notes.extend(missing.into_iter().chain(unread));
    if is_right {
        notes.push(match frames.len() {
            1 => "A whole frame, and nothing is wrong with it.".into(),
            count => format!("{count} whole frames, and nothing is wrong with them."),
        });
        if frames.iter().rev().find_map(|frame| frame.place).is_some_and(|place| !place.is_last) {
            notes.push(
                "Its message is not finished: continuations follow, opcode 0, the last of them with FIN (§5.4).".into(),
            );
        }
    }
    (notes, is_right)
}

/// Of a mask that is missing, or too much: who would have sent the frame so.
fn other_side(sender: Role) -> &'static str {
    match sender {
        Role::Client => {
            "Only a client masks: a server sends its frames like this one. If one did, ask again with --from-server."
        }
        Role::Server => "Only a client masks: if a client sent this frame, ask again without --from-server.",
    }
}

/// How many bytes are behind the last frame that was read, in words.
fn unread(records: &[Record], frames: &[&Frame], len: usize) -> Option<String> {
    // Of frames that are not shown nobody knows how long they were.
    let is_known = !records.iter().any(|record| matches!(record.what, What::Missed(_)));
    let read: u64 = frames.iter().map(|frame| frame.header.bytes().len() as u64 + frame.received).sum();
    let count = (len as u64).saturating_sub(read);
    (is_known && count > 0).then(|| bytes_more(count, "is", "are"))
}

fn frame(record: &Record) -> Option<&Frame> {
    match &record.what {
        What::Frame(frame) => Some(frame),
        _ => None,
    }
}

fn refusal(record: &Record) -> Option<&Failure> {
    match &record.what {
        What::Failure(refusal) => Some(refusal),
        _ => None,
    }
}

/// What of a frame has not come.
fn missing(frame: &Frame) -> Option<String> {
    let header = &frame.header;
    let (have, form) = (header.bytes().len(), header.length_form());
    let length_end = 2 + form.size();
    let header_end = length_end + if header.is_masked() { 4 } else { 0 };
    let (count, what) = match have {
        1 => return Some("The second byte is missing: the mask bit, and the length.".into()),
        _ if have < length_end => (length_end - have, format!("the {}-bit length", form.bits())),
        _ if have < header_end => (header_end - have, "the masking key".into()),
        _ => {
            let left = frame.payload_len.saturating_sub(frame.received);
            return (left > 0).then(|| format!("{} missing of the payload.", bytes_more(left, "is", "are")));
        }
    };
    Some(format!("{} missing of {what}.", bytes_more(count as u64, "is", "are")))
}

fn bytes_more(count: u64, is: &str, are: &str) -> String {
    if count == 1 { format!("1 more byte {is}") } else { format!("{count} more bytes {are}") }
}

/// What the tracer has drawn, without the time and the connection: here there is neither.
pub fn without_clock(drawn: &str) -> String {
    const START: &str = "00:00:00.000  #1 ";
    const INDENT: &str = "              ";
    let mut lines = drawn.lines();
    let first = lines.next().unwrap_or_default().replacen(START, "", 1);
    let rest = lines.map(|line| format!("\n  {}", line.strip_prefix(INDENT).unwrap_or(line)));
    first + &rest.collect::<String>()
}
