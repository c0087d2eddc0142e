//! A record as JSON: what the page's inspector is fed with.
//!
//! Bytes are in hexadecimal, and heads are text, since HTTP is. One object a record; `record` says which kind it is.

use serde_json::{Value, json};

use super::visible::digits;
use super::{End, Failure, Frame, Head, Parts, Record, Response, StateChange, What};
use crate::ws::frame::Role;

/// A record as one JSON object.
pub fn value(record: &Record) -> Value {
    let mut value = match &record.what {
        What::Request(head) => request(head),
        What::Response(answer) => self::answer(answer),
        What::Frame(frame) => self::frame(frame),
        What::State(change) => state(change),
        What::Failure(refusal) => self::refusal(refusal),
        What::End(end) => self::end(end),
        What::Missed(count) => json!({ "record": "missed", "count": count }),
    };
    value["connection"] = json!(record.connection);
    value["time"] = json!(humantime::format_rfc3339_millis(record.time).to_string());
    value
}

fn request(head: &Head) -> Value {
    json!({
        "record": "request",
        "head": String::from_utf8_lossy(&head.bytes),
        "complete": head.is_complete,
        "parts": parts(&head.parts),
    })
}

fn answer(answer: &Response) -> Value {
    let accept = answer.accept.as_ref().map(|steps| {
        json!({
            "key": steps.key,
            "joined": steps.joined,
            "sha1": digits(&steps.sha1),
            "accept": steps.accept,
            "answered": steps.answered,
        })
    });
    json!({
        "record": "answer",
        "head": String::from_utf8_lossy(&answer.head.bytes),
        "complete": answer.head.is_complete,
        "status": answer.status,
        "body": String::from_utf8_lossy(&answer.body),
        "accept": accept,
        "parts": parts(&answer.head.parts),
    })
}

fn frame(frame: &Frame) -> Value {
    let header = &frame.header;
    let place =
        frame.place.map(|place| json!({ "message": place.message, "fragment": place.fragment, "last": place.is_last }));
    json!({
        "record": "frame",
        "from": side(frame.sender),
        "number": frame.number,
        "header": digits(header.bytes()),
        "fin": header.fin(),
        "rsv": header.rsv(),
        "opcode": header.opcode(),
        "name": header.name(),
        "masked": header.is_masked(),
        "key": header.masking_key().map(|key| digits(&key)),
        "length_bits": header.length_form().bits(),
        "length": frame.payload_len,
        "wire": digits(&frame.wire),
        "payload": digits(&frame.unmasked()),
        "received": frame.received,
        "complete": frame.is_complete(),
        "place": place,
        "parts": parts(&frame.parts),
        "sections": frame.sections(),
    })
}

fn state(change: &StateChange) -> Value {
    json!({ "record": "state", "from": change.from.name(), "to": change.to.name(), "because": change.because })
}

fn refusal(refusal: &Failure) -> Value {
    json!({
        "record": "refusal",
        "by": side(refusal.by),
        "frame": refusal.frame,
        "code": refusal.code,
        "section": refusal.section,
        "because": refusal.because,
    })
}

fn end(end: &End) -> Value {
    json!({
        "record": "end",
        "began": end.began.map(side),
        "code": end.code,
        "reason": end.reason,
        "clean": end.is_clean,
        "how": end.how,
    })
}

fn side(sender: Role) -> &'static str {
    match sender {
        Role::Client => "client",
        Role::Server => "server",
    }
}

fn parts(parts: &Parts) -> Value {
    json!({ "count": parts.count, "listed": parts.listed })
}
