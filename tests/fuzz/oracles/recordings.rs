//! Tests recordings. A recording must not change when it is written and parsed again. A replay must show the same
//! records however the recorded bytes are split into reads and writes.

use std::time::{Duration, SystemTime};

use wirechat::inspect::frame::{Frame, Parts};
use wirechat::inspect::recording::{Entry, FirstLine, Recording, Step};
use wirechat::inspect::{Record, RecordKind};
use wirechat::ws::frame::FrameHeader;
use wirechat::ws::protocol::Limits;

use super::cuts;

const REQUEST: &[u8] = b"GET /echo HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const RESPONSE: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                          Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

pub fn check(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        check_text(text);
    }
    check_read_splits(data);
}

fn check_text(text: &str) {
    match Recording::parse(text) {
        Ok(mut recording) => {
            // A recording file stores times in whole microseconds.
            recording.entries.iter_mut().for_each(|entry| entry.at = in_whole_microseconds(entry.at));
            let again = Recording::parse(&write(&recording)).expect("a written recording");
            assert_eq!(again, recording);
            recording.replay(|_| {});
        }
        Err(error) => assert!(error.starts_with("line ") && !error.contains(char::is_control), "{error:?}"),
    }
}

fn in_whole_microseconds(time: SystemTime) -> SystemTime {
    let nanos = time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.subsec_nanos() % 1000);
    time - Duration::from_nanos(nanos.into())
}

fn write(recording: &Recording) -> String {
    let first = FirstLine { connection: recording.connection, wirechat: "0.1.0".to_owned() };
    let lines = recording.entries.iter().map(|entry| serde_json::to_string(entry).expect("JSON"));
    let first = serde_json::to_string(&first).expect("JSON");
    std::iter::once(first).chain(lines).map(|line| line + "\n").collect()
}

/// A client and a server take turns sending parts of the input. A replay must not depend on how a turn is split into
/// reads or writes.
fn check_read_splits(data: &[u8]) {
    let &[turns, read_cuts, ref bytes @ ..] = data else { return };
    let record = |read_cuts| {
        let mut steps = vec![Step::Client(REQUEST.to_vec()), Step::Server(RESPONSE.to_vec())];
        let limits = Limits { message: 1000, fragments: 8, accepts_binary: true, deflates: false };
        steps.push(Step::Upgraded { limits, user: None });
        let mut start = 0;
        for (index, len) in cuts(turns.max(2), bytes.len()).into_iter().enumerate() {
            let turn = &bytes[start..start + len];
            start += len;
            let mut at = 0;
            for len in cuts(read_cuts, turn.len()) {
                let piece = turn[at..at + len].to_vec();
                at += len;
                steps.push(if index % 2 == 0 { Step::Client(piece) } else { Step::Server(piece) });
            }
        }
        steps.push(Step::End("the test ends".to_owned()));
        let at = SystemTime::UNIX_EPOCH + Duration::from_micros(1_700_000_000_123_456);
        Recording { connection: 7, entries: steps.into_iter().map(|step| Entry { at, step }).collect() }
    };
    let whole = record(0);
    let expected = replay(&whole);
    assert_eq!(Recording::parse(&write(&whole)).expect("a written recording"), whole);
    for cuts in [1, read_cuts] {
        let again = replay(&record(cuts));
        let differs = again.iter().zip(&expected).find(|(one, other)| !are_same(one, other));
        assert!(differs.is_none() && again.len() == expected.len(), "cut by {cuts}: {differs:?}");
    }
}

/// Whether two records are the same. For an invalid or incomplete frame, compares only the sender and the frame's
/// number, because the bytes in the record depend on the size of the reads.
fn are_same(one: &Record, other: &Record) -> bool {
    let is_partial = |frame: &Frame| {
        let is_wrong = FrameHeader::parse(frame.from, frame.header.bytes()).is_err();
        is_wrong || frame.header.bytes().len() < frame.header.size() || frame.received < frame.payload_len
    };
    match (&one.kind, &other.kind) {
        (RecordKind::Frame(one), RecordKind::Frame(other)) if is_partial(one) || is_partial(other) => {
            (one.from, one.number) == (other.from, other.number)
        }
        // Ignore the failure's explanation: it quotes the bytes that have arrived, which depend on the size of the
        // reads.
        (RecordKind::Failure(one), RecordKind::Failure(other)) => {
            (one.by, one.frame_number, one.code) == (other.by, other.frame_number, other.code)
        }
        _ => one == other,
    }
}

/// Replays a recording and returns its records, but clears their `parts`. That field lists the reads and writes that
/// carried a record's bytes, so it would differ between recordings that split the same bytes differently.
fn replay(recording: &Recording) -> Vec<Record> {
    let mut records = Vec::new();
    recording.replay(|record| {
        let mut record = record.clone();
        match &mut record.kind {
            RecordKind::Frame(frame) => frame.parts = Parts::default(),
            RecordKind::Request(head) => head.parts = Parts::default(),
            RecordKind::Response(response) => response.head.parts = Parts::default(),
            _ => {}
        }
        records.push(record);
    });
    records
}
