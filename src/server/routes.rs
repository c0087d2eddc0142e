//! From a request head to what happens: the page, the health answer, a refusal, or the upgrade to an endpoint.
//!
//! The checks run in the order of the protocol page, and the first that fails answers. Those of RFC 6455 itself are in
//! `ws::handshake`, those of who may come in are in `chat::access`; here they are lined up, and a no gets its status.
//! This file knows no sockets and changes nothing.
//!
//! The subtle thing: a path is split before it is percent-decoded, so that `%2f` cannot make a path of two segments;
//! and every plain answer ends the connection, so that what follows a refused request is never read as another one.

use std::borrow::Cow;
use std::rc::Rc;
use std::time::SystemTime;

use super::answer::plain;
use super::query::{Query, decode};
use crate::chat::access::{self, Access, Grant};
use crate::chat::dialect::Dialect;
use crate::chat::history::Resume;
use crate::chat::{DEFAULT_ROOM, Newcomer};
use crate::ws::handshake::{Upgrade, upgrade_required};
use crate::ws::request::{Rejection, Request, is_authority, shown};

/// The page, as it is in the repository.
const PAGE: &str = include_str!("../../client.html");

/// An `Origin` is a scheme, a host of 255 characters at most, and a port.
const MAX_ORIGIN: usize = 300;

/// What becomes of a request.
#[derive(Debug)]
pub enum Answer {
    /// A plain HTTP answer, whole; the connection ends behind it.
    Plain(Vec<u8>),
    /// The 101, and what the connection is from then on.
    Upgraded(Vec<u8>, Entrance),
}

/// What an upgraded connection is for.
#[derive(Debug)]
pub enum Entrance {
    /// `/echo`
    Echo,
    /// The chat.
    Chat(Newcomer),
    /// A look at another connection, by the ticket for it.
    Inspect(String),
}

/// The paths that exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Path<'a> {
    /// `/`: the page, or the native dialect.
    Root,
    Health,
    Echo,
    Inspect,
    /// `/ws/{room}`, still encoded: the dialect `rooms`.
    Rooms(&'a str),
    /// `/ws`: the dialect `presence`.
    Presence,
}

impl<'a> Path<'a> {
    fn find(path: &'a str) -> Option<Path<'a>> {
        match path {
            "/" => Some(Path::Root),
            "/health" => Some(Path::Health),
            "/echo" => Some(Path::Echo),
            "/inspect" => Some(Path::Inspect),
            "/ws" => Some(Path::Presence),
            _ => path.strip_prefix("/ws/").filter(|room| !room.contains('/')).map(Path::Rooms),
        }
    }

    /// The methods of a path: pages have a head that can be asked for alone. Unknown paths have none of their own.
    fn allows_head(path: Option<Path<'a>>) -> bool {
        matches!(path, Some(Path::Root | Path::Health))
    }
}

/// Answers a request. `is_full`: there is no room for another connection.
///
/// # Errors
/// The first check that failed.
pub fn answer(request: &Request, access: &Access, is_full: bool, now: SystemTime) -> Result<Answer, Rejection> {
    let target = request.target();
    let host = request.host()?;
    // HTTP/1.0 may come without a Host, and then there is no name to judge.
    let is_ours = |name: &str| name.is_empty() && request.minor_version == 0 || access.welcomes_host(name);
    if !is_ours(host) {
        return Err(foreign_host(host));
    }
    match target.authority {
        Some(authority) if !authority.is_empty() && !is_authority(authority) => {
            let seen = shown(authority.as_bytes());
            return Err(Rejection::new(400, format!("{seen} is no host and port (RFC 9112 §3.2).")));
        }
        Some(authority) if !is_ours(authority) => return Err(foreign_host(authority)),
        _ => {}
    }
    // RFC 9112 §3.2.2: the authority of an absolute target takes the place of Host.
    let host = target.authority.unwrap_or(host);
    let path = Path::find(target.path);
    let is_head = request.method == "HEAD" && Path::allows_head(path);
    if request.method != "GET" && !is_head {
        return Err(wrong_method(request.method, path));
    }
    let Some(path) = path else {
        return Err(Rejection::new(404, format!("There is nothing at {}.", shown(target.path.as_bytes()))));
    };
    let wants_websocket = request.has_token("Upgrade", "websocket");
    let page = match path {
        Path::Health => Some(("application/json", "{\"status\":\"ok\"}\n")),
        Path::Root if is_head || !wants_websocket => Some(("text/html; charset=utf-8", PAGE)),
        _ if !wants_websocket => return Err(upgrade_required()),
        _ => None,
    };
    if let Some((content_type, body)) = page {
        let body_sent = if is_head { "" } else { body };
        return Ok(Answer::Plain(plain(now, 200, &[("Content-Type", content_type)], body.len(), body_sent)));
    }
    let upgrade = Upgrade::check(request)?;
    check_origin(request, access, host)?;
    let query = Query::new(target.query);
    if path == Path::Inspect {
        // Its ticket is all that is asked for, and is judged by those who know the connections.
        query.check()?;
        let ticket = query.get("ticket").transpose()?;
        let ticket = ticket.ok_or_else(|| Rejection::new(400, "The parameter ticket is missing."))?;
        return Ok(Answer::Upgraded(upgrade.switching_protocols("inspect"), Entrance::Inspect(ticket.to_owned())));
    }
    let grant = check_token(request, access, &query)?;
    query.check()?;
    let (entrance, subprotocol) = match path {
        Path::Echo => (Entrance::Echo, "echo"),
        _ => {
            let newcomer = newcomer(path, &query, grant)?;
            let subprotocol = newcomer.dialect.subprotocol();
            (Entrance::Chat(newcomer), subprotocol)
        }
    };
    if is_full {
        return Err(full("The server is full"));
    }
    Ok(Answer::Upgraded(upgrade.switching_protocols(subprotocol), entrance))
}

/// There is no room for another one; later there may be.
pub fn full(what: &str) -> Rejection {
    let body = format!("{what}; try again in a moment (RFC 9110 §15.6.4).");
    Rejection { status: 503, headers: &[("Retry-After", "5")], body }
}

/// In place of a `401`, for an address that has tried too often.
pub fn too_many_wrong_tokens() -> Rejection {
    let body = "Too many wrong tokens came from this address; try again in a minute (RFC 6585 §4).".into();
    Rejection { status: 429, headers: &[("Retry-After", "60")], body }
}

fn foreign_host(authority: &str) -> Rejection {
    let seen = shown(authority.as_bytes());
    let body = format!(
        "This server listens on loopback, and {seen} is not a name of loopback. Without this check any site could \
         reach it by a name of its own (DNS rebinding); --allow-host NAME allows one."
    );
    Rejection::new(403, body)
}

fn wrong_method(method: &str, path: Option<Path>) -> Rejection {
    let with_head = Path::allows_head(path);
    Rejection {
        status: 405,
        headers: if with_head { &[("Allow", "GET, HEAD")] } else { &[("Allow", "GET")] },
        body: format!("The method must be GET, not {} (RFC 6455 §4.2.1).", shown(method.as_bytes())),
    }
}

fn check_origin(request: &Request, access: &Access, host: &str) -> Result<(), Rejection> {
    let mut origins = request.header("Origin");
    let origin = match (origins.next(), origins.next()) {
        (None, _) => return Ok(()), // not a browser (§10.2 protects browsers' users)
        (Some(origin), None) if origin.len() <= MAX_ORIGIN => origin,
        (Some(_), None) => return Err(Rejection::new(400, "The Origin is too long (RFC 6454 §7).")),
        _ => return Err(Rejection::new(400, "Origin must be sent once (RFC 6454 §7).")),
    };
    let is_welcome = std::str::from_utf8(origin).is_ok_and(|origin| access.welcomes_origin(origin, host));
    if is_welcome {
        return Ok(());
    }
    let seen = shown(origin);
    let body = format!(
        "Pages of the origin {seen} are not welcome here (RFC 6455 §10.2); --allow-origin {} allows them.",
        seen.trim_matches('"')
    );
    Err(Rejection::new(403, body))
}

/// The token of the query, or failing that the one of `Authorization: Bearer`.
fn check_token(request: &Request, access: &Access, query: &Query) -> Result<Grant, Rejection> {
    let in_query = query.get("token");
    let in_header = request.header("Authorization").find_map(bearer);
    let token = match &in_query {
        Some(Ok(token)) => Some(*token),
        Some(Err(_)) => Some(""), // what cannot be decoded is no token of ours
        None => in_header,
    };
    access.grant(token).ok_or_else(|| Rejection {
        status: 401,
        headers: &[("WWW-Authenticate", "Bearer")],
        body: "Unauthorized".into(),
    })
}

/// RFC 6750 §2.1, with the scheme in any case (RFC 9110 §11.1).
fn bearer(value: &[u8]) -> Option<&str> {
    let (scheme, token) = std::str::from_utf8(value).ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("Bearer").then(|| token.trim_start_matches(' '))
}

/// Who comes in at a chat endpoint, and where to.
fn newcomer(path: Path, query: &Query, grant: Grant) -> Result<Newcomer, Rejection> {
    let dialect = match path {
        Path::Rooms(_) => Dialect::Rooms,
        Path::Presence => Dialect::Presence,
        _ => Dialect::Events,
    };
    let bad = |error| Rejection::new(400, format!("{error}."));
    let room = match path {
        Path::Rooms(room) => decode(room, false)?,
        _ => Cow::Borrowed(query.get("room").transpose()?.unwrap_or(DEFAULT_ROOM)),
    };
    let room = access::room_name(&room).map_err(bad)?.into();
    // In the dialect `rooms` a name comes with each message.
    let asked = if dialect == Dialect::Rooms { None } else { query.get("username").transpose()? };
    let client_id = match dialect {
        Dialect::Presence => Some(client_id(query)?),
        _ => None,
    };
    // Last: what is missing or bad is a 400, and only then what is not allowed a 403.
    let username = username(asked, &grant, dialect)?;
    let resume = if dialect.welcomes_with_history() { resume(query)? } else { None };
    Ok(Newcomer { dialect, username, room, grant, client_id, resume, ticket: None })
}

fn username(asked: Option<&str>, grant: &Grant, dialect: Dialect) -> Result<Rc<str>, Rejection> {
    let asked = asked.map(access::username).transpose();
    let asked = asked.map_err(|error| Rejection::new(400, format!("{error}.")))?;
    match (asked, &grant.username) {
        (Some(asked), Some(own)) if *asked != **own => {
            Err(Rejection::new(403, "This token may be used with another username only."))
        }
        (_, Some(own)) => Ok(Rc::clone(own)),
        (Some(asked), None) => Ok(asked.into()),
        (None, None) => match dialect.default_username() {
            Some(name) => Ok(name.into()),
            None => Err(Rejection::new(400, "The parameter username is missing.")),
        },
    }
}

fn client_id(query: &Query) -> Result<Rc<str>, Rejection> {
    let id = query.get("client_id").transpose()?.unwrap_or_default();
    let id = id.trim();
    match id.chars().take(65).count() {
        1..=64 => Ok(id.into()),
        _ => Err(Rejection::new(400, "The parameter client_id must have 1 to 64 characters.")),
    }
}

/// Where a client was when it was last here. A `since` that is no number counts as none.
fn resume(query: &Query) -> Result<Option<Resume>, Rejection> {
    let (epoch, since) = (query.get("epoch").transpose()?, query.get("since").transpose()?);
    let since = since.and_then(|since| since.parse().ok());
    Ok(epoch.zip(since).map(|(epoch, since)| Resume { epoch: epoch.to_owned(), since }))
}
