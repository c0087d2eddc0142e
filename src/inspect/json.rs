//! Converts a record to a JSON object for the page's inspector. The `record` field names the kind of record. Frame
//! bytes are hexadecimal strings; request and response heads are text.

use serde_json::{Value, json};

use super::escape::plain_hex;
use super::lifecycle::role_name;
use super::{End, Failure, Frame, Head, Parts, Record, RecordKind, Response, StateChange};

pub fn record_to_json(record: &Record) -> Value {
    let mut value = match &record.kind {
        RecordKind::Request(head) => request_to_json(head),
        RecordKind::Response(response) => response_to_json(response),
        RecordKind::Frame(frame) => frame_to_json(frame),
        RecordKind::State(change) => state_to_json(change),
        RecordKind::Failure(failure) => failure_to_json(failure),
        RecordKind::End(end) => end_to_json(end),
        RecordKind::Missed(count) => json!({ "record": "missed", "count": count }),
        // Older versions of the page do not know `earlier`. They know the name "missed", and so still show that frames
        // are missing.
        RecordKind::Earlier(count) => json!({ "record": "missed", "count": count, "earlier": true }),
    };
    value["connection"] = json!(record.connection);
    value["time"] = json!(humantime::format_rfc3339_millis(record.time).to_string());
    value
}

fn request_to_json(head: &Head) -> Value {
    json!({
        "record": "request",
        // Replace bytes that are not UTF-8: an HTTP header value may contain obs-text (RFC 9110 §5.5).
        "head": String::from_utf8_lossy(&head.bytes),
        "complete": head.is_complete,
        "parts": parts_to_json(&head.parts),
    })
}

fn response_to_json(response: &Response) -> Value {
    let accept = response.accept.as_ref().map(|steps| {
        json!({
            "key": steps.key,
            "joined": steps.key_and_guid,
            "sha1": plain_hex(&steps.sha1),
            "accept": steps.accept,
            "answered": steps.response_accept,
        })
    });
    // Do not rename `answer`, `answered` and `refusal` in the JSON: existing pages depend on the names.
    json!({
        "record": "answer",
        "head": String::from_utf8_lossy(&response.head.bytes),
        "complete": response.head.is_complete,
        "status": response.status,
        "body": String::from_utf8_lossy(&response.body),
        "accept": accept,
        "parts": parts_to_json(&response.head.parts),
    })
}

fn frame_to_json(frame: &Frame) -> Value {
    let header = &frame.header;
    let position = frame.position.map(
        |position| json!({ "message": position.message, "fragment": position.fragment, "last": position.is_last }),
    );
    let mut json = json!({
        "record": "frame",
        "from": role_name(frame.from),
        "number": frame.number,
        "header": plain_hex(header.bytes()),
        "fin": header.fin(),
        "rsv": header.rsv(),
        "opcode": header.opcode(),
        "name": header.name(),
        "masked": header.is_masked(),
        "key": header.masking_key().map(|key| plain_hex(&key)),
        "length_bits": header.length_form().bits(),
        // JavaScript rounds numbers above 2^53, which is harmless: a frame that long is invalid or over the limit.
        "length": frame.payload_len,
        "wire": plain_hex(&frame.wire),
        "payload": plain_hex(&frame.unmasked_payload()),
        "received": frame.received,
        "complete": frame.is_complete(),
        "place": position,
        "parts": parts_to_json(&frame.parts),
        "sections": frame.sections(),
    });
    if let Some(inflated) = frame.inflated.as_ref().filter(|inflated| !inflated.is_broken) {
        json["inflated"] = json!({ "length": inflated.len, "payload": plain_hex(&inflated.prefix) });
    }
    json
}

fn state_to_json(change: &StateChange) -> Value {
    json!({ "record": "state", "from": change.from.name(), "to": change.to.name(), "because": change.reason })
}

fn failure_to_json(failure: &Failure) -> Value {
    json!({
        "record": "refusal",
        "by": role_name(failure.by),
        "frame": failure.frame_number,
        "code": failure.code,
        "section": failure.section,
        "because": failure.reason,
    })
}

fn end_to_json(end: &End) -> Value {
    json!({
        "record": "end",
        // Without a Close frame, `code` is `null`, not 1006: 1006 (§7.1.5) is never on the wire.
        "began": end.first_close.map(role_name),
        "code": end.code,
        "reason": end.reason,
        "clean": end.is_clean,
        "how": end.cause,
    })
}

fn parts_to_json(parts: &Parts) -> Value {
    json!({ "count": parts.count, "listed": parts.listed })
}
