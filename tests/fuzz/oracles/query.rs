//! Compares the server's reading of a request target, that is, of the path and the query, with a simple implementation
//! of PROTOCOL.md, which decodes one byte at a time. All requests ask for an upgrade to WebSocket.

use std::net::Ipv4Addr;
use std::time::SystemTime;

use serde_json::{Value, json};
use wirechat::chat::dialect::Dialect;
use wirechat::chat::names::{parse_room_name, parse_username};
use wirechat::http::access::AccessControl;
use wirechat::http::{Client, Outcome, Rejection, Route, format_check, format_rejection, route_request};
use wirechat::ws::request::Request;

const HEADERS: &str = "Host: a.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nAuthorization: Bearer dev-token\r\n\r\n";
const BOUND_USERNAME: &str = "Zo\u{eb}"; // in NFC
const TOKENS: &str = "dev-token\nbound-token Zo\u{eb}\n";

thread_local! {
    static ACCESS: AccessControl = super::access(Some(TOKENS)); // created only once, because creation is slow
}

#[derive(Debug, PartialEq)]
enum Endpoint {
    Health,
    Check(Result<Box<Endpoint>, u16>), // the result of the trial handshake, or its HTTP status if it is rejected
    Echo { bound: Option<&'static str> },
    Inspect { ticket: String },
    Chat(Join),
}

#[derive(Debug, PartialEq)]
struct Join {
    dialect: Dialect,
    bound: Option<&'static str>, // the username that the token is bound to
    username: String,
    room: String,
    client_id: Option<String>,
    resume: Option<(String, u64)>,
    session: Option<String>,
}

/// Checks the reading of `data`, a request target that starts with a slash.
pub fn check(data: &[u8]) {
    let Ok(target) = std::str::from_utf8(data) else { return };
    if !target.starts_with('/') || !target.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#') {
        return;
    }
    let head = format!("GET {target} HTTP/1.1\r\n{HEADERS}");
    let request = Request::parse(head.as_bytes(), 64).expect("a request");
    let client =
        Client { address: Ipv4Addr::LOCALHOST.into(), is_proxied: false, may_try_token: true, needs_token: true };
    let outcome = ACCESS.with(|access| route_request(&request, access, client, super::NOW));
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    // At `/`, a request that does not ask for an upgrade would get the page. This request asks for one.
    let expected = match path {
        "/health" => Ok(Endpoint::Health),
        "/check" => Ok(Endpoint::Check(expect_check(query).map(Box::new))),
        _ => expect_handshake(path, query),
    };
    assert_eq!(describe(outcome), expected, "{target}");
}

/// Decodes percent escapes. Returns `None` if an escape is malformed or the result is not UTF-8.
fn decode(text: &str) -> Option<String> {
    let (mut decoded, mut bytes) = (Vec::new(), text.bytes());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
                (digit(bytes.next())? * 16 + digit(bytes.next())?) as u8
            }
            byte => byte,
        });
    }
    String::from_utf8(decoded).ok()
}

/// Returns the first parameter called `name`, or `None` if there is none. Returns `Some(None)` if its value is
/// malformed.
fn parameter(query: &str, name: &str) -> Option<Option<String>> {
    let decode = |text: &str| decode(&text.replace('+', " ")); // in a query, a plus is a space
    let mut pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.find(|pair| decode(pair.0).as_deref() == Some(name)).map(|pair| decode(pair.1))
}

/// Returns the expected result of the handshake that `/check` tries. `endpoint` is a path, so the room in it is
/// percent-encoded twice: once as part of a path, and once as part of a query.
fn expect_check(query: &str) -> Result<Endpoint, u16> {
    let path = parameter(query, "endpoint").unwrap_or(Some("/".into())).ok_or(400_u16)?;
    if matches!(&*path, "/echo" | "/inspect") { Err(404) } else { expect_handshake(&path, query) }
}

/// Checks the path, then the token, then the parameters, as PROTOCOL.md specifies. An error is an HTTP status.
fn expect_handshake(path: &str, query: &str) -> Result<Endpoint, u16> {
    let dialect = match path.split('/').collect::<Vec<_>>()[..] {
        ["", ""] => Some(Dialect::Events),
        ["", "ws"] => Some(Dialect::Presence),
        ["", "ws", _] => Some(Dialect::Rooms),
        ["", "echo" | "inspect"] => None,
        _ => return Err(404),
    };
    let bound = match parameter(query, "token").map(Option::unwrap_or_default).as_deref() {
        _ if path == "/inspect" => None,  // the ticket replaces the token
        None | Some("dev-token") => None, // without the parameter, the token is in the header `Authorization`
        Some("bound-token") => Some(BOUND_USERNAME),
        Some(_) => return Err(401),
    };
    decode(query).ok_or(400_u16)?;
    let value = |name: &str| parameter(query, name).flatten();
    match dialect {
        Some(dialect) => expect_join(dialect, path, bound, value).map(Endpoint::Chat),
        None if path == "/echo" => Ok(Endpoint::Echo { bound }),
        None => Ok(Endpoint::Inspect { ticket: value("ticket").ok_or(400_u16)? }),
    }
}

/// `value` returns the decoded value of a query parameter.
fn expect_join(
    dialect: Dialect,
    path: &str,
    bound: Option<&'static str>,
    value: impl Fn(&str) -> Option<String>,
) -> Result<Join, u16> {
    let room = match path.strip_prefix("/ws/") {
        Some(room) => decode(room).ok_or(400_u16)?,
        None => value("room").unwrap_or("general".into()),
    };
    let room = parse_room_name(&room).map_err(|_| 400_u16)?.into();
    let (default, client_id) = match dialect {
        Dialect::Events => (Some("anonymous"), None),
        Dialect::Rooms => (Some("Anonymous"), None),
        Dialect::Presence => (None, Some(value("client_id").ok_or(400_u16)?.trim().to_owned())),
    };
    if client_id.as_ref().is_some_and(|id| !(1..=64).contains(&id.chars().count())) {
        return Err(400);
    }
    // Each message in the `rooms` dialect has its own username, so the query has none.
    let given = if dialect == Dialect::Rooms { None } else { value("username") };
    let given = given.map(|name| parse_username(&name).map(String::from)).transpose().map_err(|_| 400_u16)?;
    if bound.is_some() && given.is_some() && given.as_deref() != bound {
        return Err(403);
    }
    let username = given.or(bound.or(default).map(String::from)).ok_or(400_u16)?;
    let can_resume = dialect == Dialect::Events;
    let resume = value("epoch").zip(value("since").and_then(|since| since.parse().ok())).filter(|_| can_resume);
    let is_hex = |hex: &String| hex.len() == 32 && hex.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f'));
    let session = value("session").filter(is_hex).filter(|_| can_resume);
    Ok(Join { dialect, bound, username, room, client_id, resume, session })
}

fn describe(outcome: Result<Outcome, Rejection>) -> Result<Endpoint, u16> {
    match outcome.map_err(|rejection| rejection.status)? {
        Outcome::Response(response) => {
            assert!(response.starts_with(b"HTTP/1.1 200 ") && body(&response).starts_with('{'));
            Ok(Endpoint::Health)
        }
        Outcome::Upgrade { response, route, .. } => {
            assert!(response.starts_with(b"HTTP/1.1 101 "));
            Ok(describe_route(route))
        }
        Outcome::Check { route, origin } => {
            assert_eq!(origin, None, "the request has no origin");
            check_report(route.as_ref().err());
            Ok(Endpoint::Check(route.map(|route| describe_route(route).into()).map_err(|rejection| rejection.status)))
        }
    }
}

/// Checks the JSON that `/check` returns, which contains the status and the body of the response to the handshake.
fn check_report(rejection: Option<&Rejection>) {
    let status = rejection.map_or(101, |rejection| rejection.status);
    let formatted = rejection.map(|rejection| format_rejection(rejection, false, SystemTime::UNIX_EPOCH));
    let message = formatted.as_deref().map_or("", body);
    let response = format_check(rejection.cloned().map_or(Ok(()), Err), None, false, SystemTime::UNIX_EPOCH);
    let report: Value = serde_json::from_str(body(&response)).expect("JSON");
    assert_eq!(report, json!({"status": status, "message": message}));
    assert_eq!(message == "Unauthorized", status == 401);
}

fn body(response: &[u8]) -> &str {
    std::str::from_utf8(response).expect("UTF-8").split_once("\r\n\r\n").expect("a response").1
}

fn describe_route(route: Route) -> Endpoint {
    let bound_username = |username: Option<&str>| {
        assert!(username.is_none_or(|username| username == BOUND_USERNAME));
        username.map(|_| BOUND_USERNAME)
    };
    match route {
        Route::Echo(identity) => Endpoint::Echo { bound: bound_username(identity.username.as_deref()) },
        Route::Inspect { ticket } => Endpoint::Inspect { ticket },
        Route::Chat(request) => {
            let (join, bound) = (request.join, bound_username(request.identity.username.as_deref()));
            assert_eq!(join.is_bound, bound.is_some());
            Endpoint::Chat(Join {
                dialect: request.dialect,
                bound,
                username: join.username.to_string(),
                room: join.room.to_string(),
                client_id: join.client_id.map(|id| id.to_string()),
                resume: join.resume.map(|resume| (resume.epoch, resume.since)),
                session: join.session.map(|session| session.0.map(|byte| format!("{byte:02x}")).concat()),
            })
        }
    }
}
