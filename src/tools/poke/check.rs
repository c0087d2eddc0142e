//! Compares the transcript of a test case with what the case expects and allows, and describes both in words. A server
//! may send more than a case expects: Pings, unsolicited Pongs (RFC 6455 §5.5.3) and, if the case needs no echo,
//! messages. A server may also ignore the client's final Ping and Close, because an unfinished server may not support
//! those frames yet.

use super::case::{Case, End, Reply, Requirement, letters};
use super::connection::TcpState;
use super::play::{ClosingResult, Flood, Transcript, has_probe_pong, is_probe_reply, why_inapplicable};
use crate::tools::inbox::{IncomingClose, IncomingPayload, NO_STATUS_RECEIVED, Response};
use crate::tools::notation;
use crate::tools::screen::{escape, quote, shorten};

/// Maximum number of received messages and Pongs that the report of a test case describes.
const MAX_DESCRIBED_REPLIES: usize = 4;
/// Longest payload, in bytes, that a report shows in full. For longer payloads, a report shows only the length.
const MAX_SHOWN_BYTES: usize = 60;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Expected,
    /// The server's behavior is not what the test case expects, but an RFC permits it. The text cites the section.
    Allowed(&'static str),
    /// The steps were not run: the server did not agree to an optional feature that the case needs. The text says why.
    Inapplicable(&'static str),
    /// The test case neither expects nor permits the server's behavior. The text describes a violation, possibly of a
    /// rule that the case does not test; `None` if the server's bytes violate no rule.
    Unexpected(Option<String>),
}

pub fn check(case: &Case, transcript: &Transcript) -> Verdict {
    if let Some(violation) = &transcript.inbox.violation {
        return Verdict::Unexpected(Some(violation.clone()));
    }
    if let Some(reason) = why_inapplicable(case, &transcript.inbox) {
        return Verdict::Inapplicable(reason);
    }
    if end_matches(case.end, transcript) && replies_match(case, transcript, true) {
        return Verdict::Expected;
    }
    // If the server ended the connection early, the last expected messages may be missing.
    let fits = |end: End| end_matches(end, transcript) && replies_match(case, transcript, end == End::Open);
    match case.allowed.iter().find(|(end, _)| fits(*end)) {
        Some((_, sentence)) => Verdict::Allowed(sentence),
        None => Verdict::Unexpected(None),
    }
}

fn end_matches(end: End, transcript: &Transcript) -> bool {
    let inbox = &transcript.inbox;
    let status = inbox.response.as_ref().map_or(0, |response| response.status);
    let is_over = transcript.tcp != TcpState::Open;
    let code = inbox.close.as_ref().map(|close| close.code).filter(|_| is_over);
    match end {
        End::Open => status == 101 && inbox.close.is_none() && !is_over && transcript.is_probed,
        End::Waits => {
            let is_quiet = inbox.close.is_none() && inbox.received.is_empty();
            (status == 101 || inbox.is_empty()) && is_quiet && !is_over
        }
        End::Closes(codes) => code.is_some_and(|code| codes.contains(&code)),
        End::ClosesWithAnyCode => code.is_some(),
        End::Disconnects => inbox.close.is_none() && is_over && (status == 101 || inbox.is_empty()),
        End::Status(expected) => status == expected,
        End::HttpError => status >= 400,
        End::ListsVersion => status >= 400 && inbox.response.as_ref().is_some_and(Response::lists_version_13),
        End::NoUpgrade => status >= 200,
        End::StopsReading => transcript.flood.is_some_and(|flood| flood.has_stalled),
    }
}

/// Whether the expected messages and Pongs arrived. If `all` is false, Pongs and the last messages may be missing.
fn replies_match(case: &Case, transcript: &Transcript, all: bool) -> bool {
    let is_message =
        |incoming: &&IncomingPayload| !matches!(incoming, IncomingPayload::Pong(_)) && !is_probe_reply(incoming);
    let replies: Vec<IncomingPayload> = case.replies.iter().map(to_payload).collect();
    let expected: Vec<&IncomingPayload> = replies.iter().filter(is_message).collect();
    let received: Vec<&IncomingPayload> = transcript.inbox.received.iter().filter(is_message).collect();
    // Ignore messages if the test case neither needs an echo nor expects messages. Ignore them too if it tests
    // backpressure, because its client stops reading.
    let is_relevant = (case.needs == Requirement::Echo || !expected.is_empty()) && case.end != End::StopsReading;
    let fits = if all { received == expected } else { expected.starts_with(&received) };
    (fits || !is_relevant) && (!all || pongs_match(case, &transcript.inbox.received))
}

/// Whether all required Pongs arrived, in order. Extra Pongs are permitted.
fn pongs_match(case: &Case, received: &[IncomingPayload]) -> bool {
    let mut received = received.iter();
    let required = case.replies.iter().filter(|reply| matches!(reply, Reply::Pong(_)));
    required.map(to_payload).all(|pong| received.any(|incoming| *incoming == pong))
}

fn to_payload(reply: &Reply) -> IncomingPayload {
    match *reply {
        Reply::Text(bytes) => IncomingPayload::Text(notation::read_case_bytes(bytes)),
        Reply::Binary(bytes) => IncomingPayload::Binary(notation::read_case_bytes(bytes)),
        Reply::Letters(1, len) => IncomingPayload::Text(letters(len)),
        Reply::Letters(_, len) => IncomingPayload::Binary(letters(len)),
        Reply::Pong(bytes) | Reply::OptionalPong(bytes) => IncomingPayload::Pong(notation::read_case_bytes(bytes)),
    }
}

pub fn describe_expected(case: &Case) -> String {
    let replies: Vec<IncomingPayload> = case.replies.iter().map(to_payload).collect();
    join_replies(&replies, describe_end(case.end))
}

fn describe_end(end: End) -> String {
    match end {
        End::Open => "the connection stays open".into(),
        End::Waits => "nothing; the server waits".into(),
        End::Closes(codes) => {
            let codes: Vec<String> = codes.iter().map(|code| describe_close(*code)).collect();
            format!("{}, then the end of TCP", codes.join(" or "))
        }
        End::ClosesWithAnyCode => "a Close, then the end of TCP".into(),
        End::Disconnects => "the end of TCP".into(),
        End::Status(status) => format!("HTTP {status}"),
        End::HttpError => "an HTTP error".into(),
        End::ListsVersion => "an HTTP error, such as 426, with Sec-WebSocket-Version: 13".into(),
        End::NoUpgrade => "an HTTP response without an upgrade".into(),
        End::StopsReading => "the server stops reading, or closes".into(),
    }
}

fn describe_close(code: u16) -> String {
    if code == NO_STATUS_RECEIVED { "an empty Close".into() } else { format!("Close {code}") }
}

pub fn describe_received(transcript: &Transcript) -> String {
    let inbox = &transcript.inbox;
    let replies: Vec<IncomingPayload> =
        inbox.received.iter().filter(|incoming| !is_probe_reply(incoming)).cloned().collect();
    if inbox.violation.is_some() {
        // Do not describe the violation here: `Verdict::Unexpected` already does.
        return join_replies(&replies, "something that breaks a rule; nothing after it was read".into());
    }
    let end = describe_actual_end(transcript);
    if let Some(Flood { accepted, has_stalled }) = transcript.flood {
        let then = match (has_stalled, transcript.tcp) {
            (true, _) => ", then no more".to_owned(),
            (false, TcpState::Open) => ", and would have accepted more".to_owned(),
            (false, _) => format!("; {end}"),
        };
        return format!("the server accepted {} MiB while its echo was not read{then}", accepted >> 20);
    }
    if let Some(response) = inbox.response.as_ref().filter(|response| response.status != 101) {
        let body = String::from_utf8_lossy(&response.body);
        let versions = response.versions.as_ref().map(|versions| format!(" with Sec-WebSocket-Version: {versions}"));
        let line = quote_with_leading_space(body.lines().next().unwrap_or_default());
        return format!("HTTP {}{}{line}", response.status, escape(&versions.unwrap_or_default()));
    }
    join_replies(&replies, end)
}

fn describe_actual_end(transcript: &Transcript) -> String {
    let inbox = &transcript.inbox;
    if inbox.response.is_none() {
        let begun = if inbox.is_empty() {
            "nothing".into()
        } else {
            format!("the start of a response, {}", shorten(inbox.unread()))
        };
        return match transcript.tcp {
            TcpState::Open => format!("{begun}; the server waits"),
            TcpState::Ended => format!("{begun}, then the end of TCP"),
            TcpState::Reset => format!("{begun}, then a reset of TCP"),
        };
    }
    match (&inbox.close, transcript.tcp) {
        (None, TcpState::Open) => format!("the connection stays open{}", describe_silence(transcript)),
        (None, TcpState::Ended) => "the end of TCP".into(),
        (None, TcpState::Reset) => "a reset of TCP".into(),
        (Some(IncomingClose { code, reason }), tcp) => {
            let then = match tcp {
                TcpState::Open => "but TCP does not end",
                TcpState::Ended => "then the end of TCP",
                TcpState::Reset => "then a reset of TCP",
            };
            format!("{}{}, {then}", describe_close(*code), quote_with_leading_space(reason))
        }
    }
}

fn describe_silence(transcript: &Transcript) -> &'static str {
    let is_ping_ignored = transcript.is_probed && !has_probe_pong(&transcript.inbox);
    let is_close_ignored = transcript.closing == Some(ClosingResult::Unanswered);
    match (is_ping_ignored, is_close_ignored) {
        (false, false) => "",
        (true, false) => ", but a Ping gets no Pong",
        (false, true) => ", but a Close gets no Close",
        (true, true) => ", but a Ping gets no Pong, and a Close no Close",
    }
}

fn quote_with_leading_space(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(" {}", quote(text)) }
}

fn join_replies(replies: &[IncomingPayload], end: String) -> String {
    let mut parts: Vec<String> = replies.iter().take(MAX_DESCRIBED_REPLIES).map(describe_reply).collect();
    if replies.len() > MAX_DESCRIBED_REPLIES {
        parts.push(format!("{} more", replies.len() - MAX_DESCRIBED_REPLIES));
    }
    parts.push(end);
    parts.join(", ")
}

fn describe_reply(incoming: &IncomingPayload) -> String {
    let (kind, empty, payload) = match incoming {
        IncomingPayload::Text(text) => ("text", "an empty text message", text),
        IncomingPayload::Binary(bytes) => ("binary", "an empty binary message", bytes),
        IncomingPayload::Pong(payload) => ("Pong", "an empty Pong", payload),
    };
    match payload.len() {
        0 => empty.into(),
        len if len > MAX_SHOWN_BYTES => format!("{kind} of {len} bytes"),
        _ => format!("{kind} {}", shorten(payload)),
    }
}
