//! Judges what came of a case, and says in words what was expected and what came.
//!
//! The subtle thing: a server may send more than a case asks for. Its own Pings, Pongs that nobody asked for (§5.5.3)
//! and, where no echo is needed, messages of its own are no fault. And a server that is not finished, and does not know
//! Ping yet, is not blamed for it in every case: a connection that stays open is open, answered or not.

use super::case::{Back, Case, End, Needs, letters};
use super::play::{Flood, Outcome, is_answered, is_probe};
use super::wire::Ended;
use crate::tools::inbox::{Came, Close};
use crate::tools::notation;
use crate::tools::response::Response;
use crate::tools::screen::{escaped, quoted, start};

/// How many messages and Pongs are named one by one.
const NAMED: usize = 4;

/// What is to be said of an outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is what was expected.
    Expected,
    /// It is something else that the RFC allows: the sentence that does.
    Allowed(&'static str),
    /// It is wrong; where that is known, how.
    Wrong(Option<String>),
}

/// Judges an outcome.
pub fn judge(case: &Case, outcome: &Outcome) -> Verdict {
    if let Some(fault) = &outcome.inbox.fault {
        return Verdict::Wrong(Some(fault.clone()));
    }
    if matches(case.end, outcome) && messages_match(case, outcome, true) {
        return Verdict::Expected;
    }
    let fits = |end: End| matches(end, outcome) && messages_match(case, outcome, end == End::Open);
    match case.allowed.iter().find(|(end, _)| fits(*end)) {
        Some((_, why)) => Verdict::Allowed(why),
        None => Verdict::Wrong(None),
    }
}

fn matches(end: End, outcome: &Outcome) -> bool {
    let inbox = &outcome.inbox;
    let status = inbox.answer.as_ref().map_or(0, |answer| answer.status);
    let is_over = outcome.ended != Ended::No;
    let code = inbox.close.as_ref().map(|close| close.code).filter(|_| is_over);
    match end {
        End::Open => status == 101 && inbox.close.is_none() && !is_over && outcome.is_probed,
        End::Waits => (status == 101 || inbox.is_empty()) && inbox.close.is_none() && !is_over && inbox.back.is_empty(),
        End::Closes(codes) => code.is_some_and(|code| codes.contains(&code)),
        End::ClosesAnyhow => code.is_some(),
        End::Cut => inbox.close.is_none() && is_over && (status == 101 || inbox.is_empty()),
        End::Status(expected) => status == expected,
        End::Refused => status >= 400,
        End::NamesVersion => status >= 400 && inbox.answer.as_ref().is_some_and(Response::names_version),
        End::NoUpgrade => status >= 200,
        End::Stalls => outcome.flood.is_some_and(|flood| flood.has_stalled),
    }
}

/// Whether the messages that came are those of the case; all of them, or the first of them.
fn messages_match(case: &Case, outcome: &Outcome, is_whole: bool) -> bool {
    let is_message = |came: &&Came| !matches!(came, Came::Pong(_)) && !is_probe(came);
    let meant: Vec<Came> = case.back.iter().map(meant).collect();
    let expected: Vec<&Came> = meant.iter().filter(is_message).collect();
    let came: Vec<&Came> = outcome.inbox.back.iter().filter(is_message).collect();
    // Where no echo is asked for, a server may say what it likes; of a flood, nobody has read the echo.
    let is_judged = (case.needs == Needs::Echo || !expected.is_empty()) && case.end != End::Stalls;
    let are_right = if is_whole { came == expected } else { expected.starts_with(&came) };
    (are_right || !is_judged) && (!is_whole || pongs_match(case, &outcome.inbox.back))
}

/// Whether the Pongs that must come came, in order. Others may be among them.
fn pongs_match(case: &Case, came: &[Came]) -> bool {
    let mut came = came.iter();
    let needed = case.back.iter().filter(|back| matches!(back, Back::Pong(_)));
    needed.map(meant).all(|pong| came.any(|came| *came == pong))
}

fn meant(back: &Back) -> Came {
    match *back {
        Back::Text(bytes) => Came::Text(notation::bytes(bytes)),
        Back::Binary(bytes) => Came::Binary(notation::bytes(bytes)),
        Back::Letters(1, len) => Came::Text(letters(len)),
        Back::Letters(_, len) => Came::Binary(letters(len)),
        Back::Pong(bytes) | Back::MaybePong(bytes) => Came::Pong(notation::bytes(bytes)),
    }
}

/// What a case expects, for a person.
pub fn expected(case: &Case) -> String {
    let messages: Vec<Came> = case.back.iter().map(meant).collect();
    with_messages(&messages, said(case.end))
}

fn said(end: End) -> String {
    match end {
        End::Open => "the connection stays open".into(),
        End::Waits => "nothing; the server waits".into(),
        End::Closes(codes) => {
            let codes: Vec<String> = codes.iter().map(|code| close(*code)).collect();
            format!("{}, then the end of the connection", codes.join(" or "))
        }
        End::ClosesAnyhow => "a Close, then the end of the connection".into(),
        End::Cut => "the end of the connection".into(),
        End::Status(status) => format!("HTTP {status}"),
        End::Refused => "an HTTP error".into(),
        End::NamesVersion => "an HTTP error, such as 426, with Sec-WebSocket-Version: 13".into(),
        End::NoUpgrade => "an HTTP answer without an upgrade".into(),
        End::Stalls => "the server stops reading, or closes".into(),
    }
}

fn close(code: u16) -> String {
    if code == 1005 { "an empty Close".into() } else { format!("Close {code}") }
}

/// What came, for a person.
pub fn came(outcome: &Outcome) -> String {
    let inbox = &outcome.inbox;
    let messages: Vec<Came> = inbox.back.iter().filter(|came| !is_probe(came)).cloned().collect();
    if inbox.fault.is_some() {
        // What it is, the verdict says.
        return with_messages(&messages, "something that breaks a rule, and nothing behind it was read".into());
    }
    let end = ending(outcome);
    if let Some(Flood { taken, has_stalled }) = outcome.flood {
        let then = match (has_stalled, outcome.ended) {
            (true, _) => ", and then no more".to_owned(),
            (false, Ended::No) => ", and would have taken more".to_owned(),
            (false, _) => format!("; {end}"),
        };
        return format!("the server took {} MiB, its echo unread{then}", taken >> 20);
    }
    if let Some(answer) = inbox.answer.as_ref().filter(|answer| answer.status != 101) {
        let body = String::from_utf8_lossy(&answer.body);
        let versions = answer.versions.as_ref().map(|versions| format!(" with Sec-WebSocket-Version: {versions}"));
        let line = blank_and_quoted(body.lines().next().unwrap_or_default());
        return format!("HTTP {}{}{line}", answer.status, escaped(&versions.unwrap_or_default()));
    }
    with_messages(&messages, end)
}

/// What became of the connection.
fn ending(outcome: &Outcome) -> String {
    const NOT_ENDED: &str = "and the connection is not ended";
    let inbox = &outcome.inbox;
    if inbox.answer.is_none() {
        let begun = if inbox.is_empty() {
            "nothing".into()
        } else {
            format!("the start of an answer, {}", start(inbox.unread()))
        };
        return match outcome.ended {
            Ended::No => format!("{begun}; the server waits"),
            Ended::Orderly => format!("{begun}, and the end of the connection"),
            Ended::Reset => format!("{begun}, and a reset of the connection"),
        };
    }
    let is_silent = outcome.is_probed && !is_answered(inbox);
    let (end, after_close) = match outcome.ended {
        Ended::No if is_silent => ("the connection stays open, though a Ping is not answered", NOT_ENDED),
        Ended::No => ("the connection stays open", NOT_ENDED),
        Ended::Orderly => ("the end of the connection", "then the end of the connection"),
        Ended::Reset => ("a reset of the connection", "then a reset of the connection"),
    };
    match &inbox.close {
        None => end.into(),
        Some(Close { code, reason }) => format!("{}{}, {after_close}", close(*code), blank_and_quoted(reason)),
    }
}

fn blank_and_quoted(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(" {}", quoted(text)) }
}

fn with_messages(messages: &[Came], end: String) -> String {
    let mut said: Vec<String> = messages.iter().take(NAMED).map(message).collect();
    if messages.len() > NAMED {
        said.push(format!("{} more", messages.len() - NAMED));
    }
    said.push(end);
    said.join(", ")
}

fn message(came: &Came) -> String {
    match came {
        Came::Text(text) if text.is_empty() => "an empty text".into(),
        Came::Binary(bytes) if bytes.is_empty() => "an empty binary message".into(),
        Came::Pong(payload) if payload.is_empty() => "an empty Pong".into(),
        Came::Text(text) => format!("text {}", sized(text)),
        Came::Binary(bytes) => format!("binary {}", sized(bytes)),
        Came::Pong(payload) => format!("Pong {}", sized(payload)),
    }
}

/// The bytes as text, as pairs of digits, or by their number.
fn sized(bytes: &[u8]) -> String {
    if bytes.len() > 60 { format!("of {} bytes", bytes.len()) } else { start(bytes) }
}
