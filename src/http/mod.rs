//! [`route_request`] turns a request into a response, an upgrade, a trial handshake (`/check`) or a rejection. Checks
//! follow the order in PROTOCOL.md ("Rejections"). The server may still reject the upgrade, for example if it is full.

pub mod access;
#[cfg_attr(not(feature = "jwt"), path = "jwt/absent.rs")]
pub mod jwt;
pub mod proxy;
pub mod tokens;

use std::{net::IpAddr, rc::Rc, sync::LazyLock, time::SystemTime};

use ::http::StatusCode;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use percent_encoding::percent_decode_str;
use sha1::{Digest, Sha1};

use crate::chat::{DEFAULT_ROOM, Identity, Join, JoinRequest, Now, Resume, Session, User, dialect::Dialect, names};
use crate::ws::deflate::{Agreement, negotiate};
use crate::ws::handshake::{BEARER_PREFIX, accept_handshake, method_rejection, upgrade_required};
pub use crate::ws::request::{HeadReader, Rejection, Request, bad_request, is_authority, quote};
use access::{AccessControl, normalize_host, normalize_origin};

const PAGE: &str = include_str!("../../client.html");
const MAX_ORIGIN_LEN: usize = 300; // in bytes: enough for a scheme, a 255-byte DNS name and a port

pub enum Outcome {
    Response(Vec<u8>),
    Upgrade { response: Vec<u8>, deflate: Option<Agreement>, route: Route },
    Check { route: Result<Route, Rejection>, origin: Option<String> }, // pages of `origin` may read the response
}

pub enum Route {
    Echo(Identity),
    Chat(Box<JoinRequest>),
    Inspect { ticket: String }, // `ticket` identifies the connection to inspect
}

pub struct Client {
    pub address: IpAddr, // the address that a trusted proxy reported, or else the peer's address
    pub is_proxied: bool,
    pub may_try_token: bool, // `false` after too many wrong access tokens from this client's address
    pub needs_token: bool,
}

pub fn route_request(request: &Request, access: &AccessControl, from: Client, now: Now) -> Result<Outcome, Rejection> {
    let scheme = if access.is_encrypted { "https" } else { "http" };
    let scheme = if from.is_proxied { proxy::find_scheme(request) } else { scheme };
    let own_origin = format!("{scheme}://{}", check_authority(request, access)?);
    let dialect = dialect_at(request.path);
    let has_page = matches!(request.path, "/" | "/health" | "/check");
    // Allow HEAD only on paths that also serve plain HTTP: the method of an upgrade "MUST be GET" (RFC 6455 §4.1).
    let is_head = has_page && request.method == "HEAD";
    if request.method != "GET" && !is_head {
        return Err(method_rejection(request, if has_page { &[("Allow", "GET, HEAD")] } else { &[("Allow", "GET")] }));
    }
    let wants_websocket = request.has_token("Upgrade", "websocket");
    let json = [("Content-Type", "application/json")];
    let health = || format_response(200, &json, "{\"status\":\"ok\"}\n", is_head, now.time);
    match request.path {
        "/health" => return Ok(Outcome::Response(health())),
        "/" if is_head || !wants_websocket => return Ok(Outcome::Response(format_page(request, is_head, now.time))),
        "/check" => return Ok(check_handshake(request, access, &from, &own_origin, now)),
        path if dialect.is_none() && path != "/inspect" && (path != "/echo" || access.no_echo) => {
            return Err(not_found(path));
        }
        _ if !wants_websocket => return Err(upgrade_required()),
        _ => {}
    }
    let subprotocol = dialect.map_or(request.path.trim_start_matches('/'), |dialect| dialect.subprotocol());
    let deflate = if access.deflates { negotiate(request) } else { None };
    let mut response = accept_handshake(request, subprotocol).map_err(|mut rejections| rejections.swap_remove(0))?;
    deflate.iter().for_each(|agreement| agreement.add_header(&mut response));
    check_origin(request, access, &own_origin)?;
    Ok(Outcome::Upgrade { response, deflate, route: select_route(request, access, &from, now)? })
}

/// Checks the origin, token and parameters of a trial handshake, for the path in the query parameter `endpoint`.
fn check_handshake(request: &Request, access: &AccessControl, client: &Client, own_origin: &str, now: Now) -> Outcome {
    let checked = check_origin(request, access, own_origin);
    let origin = checked.as_ref().ok().copied().flatten().map(str::to_owned);
    let endpoint = find_parameter(request.query, "endpoint").unwrap_or_else(|| Ok("/".into()));
    let route = endpoint.and_then(|path| match dialect_at(&path) {
        Some(_) => checked.and_then(|_| select_route(&Request { path: &path, ..request.clone() }, access, client, now)),
        None => Err(not_found(&path)),
    });
    Outcome::Check { route, origin }
}

fn dialect_at(path: &str) -> Option<Dialect> {
    match path {
        "/" => Some(Dialect::Events),
        "/ws" => Some(Dialect::Presence),
        // Split the path before decoding it: %2f in a room name is not a separator.
        path => path.strip_prefix("/ws/").filter(|room| !room.contains('/')).map(|_| Dialect::Rooms),
    }
}

fn select_route(request: &Request, access: &AccessControl, client: &Client, now: Now) -> Result<Route, Rejection> {
    // /inspect needs no token: only `welcome` contains a ticket, so a client with a ticket has passed the token check.
    let (query, has_ticket) = (request.query, request.path == "/inspect");
    let is_exempt = has_ticket || (!client.needs_token && find_token(request).is_none());
    let identity = if is_exempt { Identity::default() } else { check_token(request, access, client, now)? };
    percent_decode(query)?; // reject a malformed parameter even if its name is unknown
    Ok(match dialect_at(request.path) {
        Some(dialect) => {
            let join = parse_join(request, dialect, &identity, identity.user(client.address))?;
            Route::Chat(Box::new(JoinRequest { dialect, identity, address: client.address, join, extra: None }))
        }
        None if has_ticket => Route::Inspect { ticket: require_parameter("ticket", read_parameter(query, "ticket"))? },
        None => Route::Echo(identity),
    })
}

pub fn service_unavailable(what: &str) -> Rejection {
    let body = format!("{what}. Try again in a few seconds (RFC 9110 §15.6.4).");
    Rejection { status: 503, headers: &[("Retry-After", "5")], body }
}

pub fn too_many_requests(what: &str, headers: &'static [(&'static str, &'static str)]) -> Rejection {
    Rejection { status: 429, headers, body: format!("{what}. Try again later (RFC 6585 §4).") }
}

pub fn forbidden(body: impl Into<String>) -> Rejection {
    Rejection::new(403, body)
}

pub fn format_rejection(rejection: &Rejection, is_head: bool, now: SystemTime) -> Vec<u8> {
    let headers = [&[("Content-Type", "text/plain; charset=utf-8")], rejection.headers].concat();
    format_response(rejection.status, &headers, &format_body(rejection), is_head, now)
}

/// Formats the response to `/check`. Pages need `/check` because browsers hide the response to a rejected handshake.
pub fn format_check(checked: Result<(), Rejection>, origin: Option<&str>, is_head: bool, now: SystemTime) -> Vec<u8> {
    let (status, message) = checked.map_or_else(|error| (error.status, format_body(&error)), |()| (101, "".into()));
    let json = format!("{{\"status\":{status},\"message\":{}}}\n", serde_json::json!(message));
    let allow = origin.into_iter().flat_map(|origin| [("Access-Control-Allow-Origin", origin), ("Vary", "Origin")]);
    let headers: Vec<_> = [("Content-Type", "application/json")].into_iter().chain(allow).collect();
    format_response(200, &headers, &json, is_head, now)
}

fn format_body(rejection: &Rejection) -> String {
    // For terminals, end the body with a newline, except in a 401: clients may compare the body of a 401 exactly.
    let newline = if rejection.status == 401 { "" } else { "\n" };
    format!("{}{newline}", rejection.body)
}

/// Formats the response with the page, or a 304 if the client already has this version (RFC 9110 §13.1.2).
fn format_page(request: &Request, is_head: bool, now: SystemTime) -> Vec<u8> {
    static TAG_AND_POLICY: LazyLock<(String, String)> = LazyLock::new(|| {
        let policy =
            PAGE.split_once("\"Content-Security-Policy\" content=\"").and_then(|(_, page)| page.split_once('"'));
        let policy = policy.map_or(Vec::new(), |(policy, _)| policy.split_whitespace().collect()).join(" ");
        // `frame-ancestors` prevents clickjacking. Browsers obey it only in a header, not in the page's <meta>.
        (format!("\"{}\"", URL_SAFE_NO_PAD.encode(Sha1::digest(PAGE))), policy + "; frame-ancestors 'none'")
    });
    let (tag, policy) = &*TAG_AND_POLICY;
    let is_known = |known: &[u8]| known == b"*" || known.strip_prefix(b"W/").unwrap_or(known) == tag.as_bytes();
    let is_cached = request.list_elements("If-None-Match").any(is_known);
    let headers = [
        ("Content-Type", "text/html; charset=utf-8"),
        ("ETag", tag),
        ("Cache-Control", "no-cache"), // the browser must revalidate its copy before each use
        ("Referrer-Policy", "no-referrer"), // the query may contain an access token
        ("Content-Security-Policy", policy),
    ];
    format_response(if is_cached { 304 } else { 200 }, &headers, PAGE, is_head || is_cached, now)
}

pub fn not_found(path: &str) -> Rejection {
    // Cut the quoted path at `=`: if the client sent `?` as %3F, the path includes the query and perhaps a token.
    let path = quote(path.split('=').next().unwrap_or_default().as_bytes());
    Rejection::new(404, format!("There is nothing at {path} (RFC 9110 §15.5.5)."))
}

pub fn format_response(status: u16, headers: &[(&str, &str)], body: &str, is_head: bool, now: SystemTime) -> Vec<u8> {
    let (date, length) = (httpdate::fmt_http_date(now), body.len());
    let reason = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or_default();
    let lines: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let has = |wanted| headers.iter().any(|(name, _)| *name == wanted);
    // Add `Connection: close`, because the response ends the connection (RFC 6455 §7.2.2). A 426 already has its own
    // `Connection` header, which also contains `close` (RFC 9110 §7.8).
    let close = if has("Connection") { "" } else { "Connection: close\r\n" };
    let no_store = if has("Cache-Control") { "" } else { "Cache-Control: no-store\r\n" };
    // RFC 9110 §9.3.2: a HEAD gets the Content-Length of the GET, but "the server MUST NOT send content".
    let body = if is_head { "" } else { body };
    // nosniff: browsers must not render quoted input as HTML.
    let response = format!(
        "HTTP/1.1 {status} {reason}\r\nDate: {date}\r\nContent-Length: {length}\r\n{lines}{close}{no_store}\
         X-Content-Type-Options: nosniff\r\n\r\n{body}"
    );
    response.into_bytes()
}

/// Checks that `Host` and any authority in the request target are allowed. Returns the authority, or else `Host`.
pub fn check_authority<'h>(request: &Request<'h>, access: &AccessControl) -> Result<&'h str, Rejection> {
    let host = request.host()?;
    let is_absent = host.is_empty() && request.minor_version == 0; // an HTTP/1.0 request may omit Host
    for authority in [Some(host).filter(|_| !is_absent), request.authority].into_iter().flatten() {
        let seen = quote(authority.as_bytes());
        if !authority.is_empty() && !is_authority(authority) {
            return Err(bad_request(format!("The target names {seen}, which is not a host and port (RFC 9112 §3.2).")));
        }
        if !access.allows_host(authority) {
            let advice = match normalize_host(authority) {
                Some(host) => format!("Start the server with --allow-host {host} to allow it."),
                None => "It is not a valid host name, so --allow-host cannot name it.".into(),
            };
            return Err(forbidden(format!(
                "{seen} is not a host name of this server; a foreign name may be an attack by DNS rebinding (RFC 9110 \
                 §7.4). {advice}"
            )));
        }
    }
    // RFC 9112 §3.2.2: for an absolute-form target, a server "MUST ignore the received Host header field (if any)".
    Ok(request.authority.unwrap_or(host))
}

/// Checks that `Origin` is allowed. Returns its value, or `None` if the header is missing, empty or not UTF-8.
fn check_origin<'h>(request: &Request<'h>, access: &AccessControl, own: &str) -> Result<Option<&'h str>, Rejection> {
    let origin = match request.header_values("Origin").collect::<Vec<_>>()[..] {
        // Allow a missing Origin: the check protects only users of browsers, which send Origin (RFC 6455 §10.2).
        [] => return Ok(None),
        [origin] => origin,
        _ => return Err(bad_request("Origin must be sent once, not twice (RFC 6454 §7.3).")),
    };
    let length = origin.len();
    if length > MAX_ORIGIN_LEN {
        return Err(bad_request(format!("Origin has {length} bytes; the limit is {MAX_ORIGIN_LEN} (RFC 6454 §7).")));
    }
    let text = str::from_utf8(origin).unwrap_or_default(); // only the wildcard `*` allows an origin that is not UTF-8
    if access.allows_origin(text, own) {
        return Ok(Some(text).filter(|text| !text.is_empty()));
    }
    // Suggest the normalized origin, not the received text: an operator may paste the suggested option into a shell,
    // and a client could have sent shell syntax.
    let advice = match normalize_origin(text) {
        Some(origin) => format!("Start it with --allow-origin {origin} to allow them."),
        None => "It is not a valid origin, so --allow-origin cannot name it.".into(),
    };
    let seen = quote(origin);
    Err(forbidden(format!("Pages of the origin {seen} may not connect to this server (RFC 6455 §10.2). {advice}")))
}

fn check_token(request: &Request, access: &AccessControl, client: &Client, now: Now) -> Result<Identity, Rejection> {
    if !client.may_try_token {
        return Err(too_many_requests("Too many wrong tokens from this address", &[("Retry-After", "60")]));
    }
    // The response must not reveal why the token is wrong, not even that its percent-encoding is malformed.
    let headers = &[("WWW-Authenticate", "Bearer")];
    let unauthorized = || Rejection { status: 401, headers, body: "Unauthorized".into() };
    access.identify(find_token(request).as_deref(), now.time).ok_or_else(unauthorized)
}

/// Finds the access token: `?token=`, else `Authorization: Bearer` (RFC 6750 §2.1), else a subprotocol `bearer.TOKEN`.
pub fn find_token(request: &Request) -> Option<String> {
    let in_header = |value| {
        let (scheme, token) = str::from_utf8(value).ok()?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("Bearer").then(|| token.trim_start_matches(' ').to_owned())
    };
    let in_subprotocol = |name: &[u8]| {
        let decoded = URL_SAFE_NO_PAD.decode(name.strip_prefix(BEARER_PREFIX)?).unwrap_or_default();
        Some(String::from_utf8(decoded).unwrap_or_default())
    };
    let token =
        read_parameter(request.query, "token").or_else(|| request.header_values("Authorization").find_map(in_header));
    token.or_else(|| request.list_elements("Sec-WebSocket-Protocol").find_map(in_subprotocol))
}

fn parse_join(request: &Request, dialect: Dialect, identity: &Identity, user: User) -> Result<Join, Rejection> {
    let query = |name| read_parameter(request.query, name);
    let name_error = |error: String| bad_request(error + ".");
    let room = request.path.strip_prefix("/ws/").map(percent_decode).transpose()?;
    let room = room.or_else(|| query("room"));
    let room = names::parse_room_name(room.as_deref().unwrap_or(DEFAULT_ROOM)).map_err(name_error)?;
    let client_id = (dialect == Dialect::Presence).then(|| require_parameter("client_id", query("client_id")));
    let client_id: Option<Rc<str>> = client_id.transpose()?.map(|id| id.trim().into());
    if let Some(count) = client_id.as_ref().map(|id| id.chars().count()).filter(|count| !(1..=64).contains(count)) {
        return Err(bad_request(format!("The parameter client_id must have 1 to 64 characters, not {count}.")));
    }
    // In the `rooms` dialect, each message may carry its own username, so ignore the query parameter `username`.
    let username = query("username").filter(|_| dialect != Dialect::Rooms);
    let username = username.as_deref().map(names::parse_username).transpose().map_err(name_error)?;
    // An invalid parameter (400) takes precedence over a username that the token does not allow (403).
    let (username, bound) = (username.as_deref(), identity.username.as_deref());
    if let Some(username) = username.filter(|username| bound.is_some_and(|bound| bound != *username)) {
        let seen = quote(username.as_bytes());
        return Err(forbidden(format!("This token is bound to another username than {seen} (RFC 6455 §10.5).")));
    }
    let username = require_parameter("username", bound.or(username).or(dialect.default_username()))?;
    if !identity.allows_room(&room) {
        return Err(forbidden("This token does not allow this room (RFC 6455 §10.5)."));
    }
    // Only clients of the `events` dialect can resume, because only `events` sends message ids and a session.
    let parameter = |name| query(name).filter(|_| dialect == Dialect::Events);
    let since = parameter("since").and_then(|since| since.parse().ok()); // a `since` that is not a number is ignored
    let resume = parameter("epoch").zip(since).map(|(epoch, since)| Resume { epoch, since });
    let session = parameter("session").and_then(|hex| parse_session(&hex));
    let (is_bound, credential) = (bound.is_some(), identity.credential.filter(|_| identity.claims.is_none()));
    Ok(Join { is_bound, session, client_id, credential, resume, ..Join::new(username, &room, user) })
}

/// Parses the 32 lowercase hex digits of a session. `from_str_radix` alone would also accept a sign or fewer digits.
fn parse_session(hex: &str) -> Option<Session> {
    let is_exact = hex.len() == 32 && hex.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
    u128::from_str_radix(hex, 16).ok().filter(|_| is_exact).map(|session| Session(session.to_be_bytes()))
}

/// Decodes the value of the first parameter named `wanted`. A proxy may have validated only the first one.
fn find_parameter(query: &str, wanted: &str) -> Option<Result<String, Rejection>> {
    let decode = |text: &str| percent_decode(&text.replace('+', " ")); // in a query, unlike in a path, + means a space
    let mut pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.find(|(name, _)| decode(name).is_ok_and(|name| name == wanted)).map(|(_, value)| decode(value))
}

/// Returns the decoded value of a parameter, `Some("")` if decoding fails, or `None` if the parameter is missing.
pub fn read_parameter(query: &str, wanted: &str) -> Option<String> {
    find_parameter(query, wanted).map(Result::unwrap_or_default)
}

fn require_parameter<T>(parameter: &str, value: Option<T>) -> Result<T, Rejection> {
    value.ok_or_else(|| bad_request(format!("The query parameter {parameter} is missing.")))
}

fn percent_decode(text: &str) -> Result<String, Rejection> {
    // Check every %: the percent_encoding crate accepts malformed escapes, which proxies may decode differently.
    let is_digits = |digits: &[u8; 2]| digits.iter().all(u8::is_ascii_hexdigit);
    let is_well_formed = text.split('%').skip(1).all(|rest| rest.as_bytes().first_chunk().is_some_and(is_digits));
    let decoded = percent_decode_str(text).decode_utf8().ok().filter(|_| is_well_formed);
    // Do not quote the invalid text in the response: the text may contain a mistyped access token.
    let body = "A query parameter, or the room in the path, is not percent-encoded UTF-8 (RFC 3986 §2.1).";
    decoded.map(String::from).ok_or_else(|| bad_request(body))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use clap::Parser;

    use super::*;
    use crate::config::Config;

    fn outcome(request_line: &str, headers: &str) -> String {
        let access = AccessControl::new(&Config::parse_from(["wirechat"]), None).unwrap();
        let head = format!("{request_line}\r\nHost: localhost\r\n{headers}\r\n");
        let request = Request::parse(head.as_bytes(), 64).unwrap();
        let client =
            Client { address: Ipv4Addr::LOCALHOST.into(), is_proxied: false, may_try_token: true, needs_token: true };
        let now = Now { time: SystemTime::UNIX_EPOCH, monotonic: Duration::ZERO };
        match route_request(&request, &access, client, now) {
            Ok(Outcome::Response(bytes)) => String::from_utf8(bytes).unwrap()[9..12].to_owned(),
            Ok(Outcome::Upgrade { route: Route::Echo(_), .. }) => "echo".into(),
            Ok(Outcome::Upgrade { route: Route::Inspect { ticket }, .. }) => format!("observe {ticket}"),
            Ok(Outcome::Upgrade { route: Route::Chat(request), .. }) => {
                let JoinRequest { dialect, join, .. } = *request;
                format!("{dialect:?} {} in {}", join.username, join.room)
            }
            Ok(Outcome::Check { route, .. }) => format!("check {}", route.map_or_else(|error| error.status, |_| 101)),
            Err(rejection) => rejection.status.to_string(),
        }
    }

    #[test]
    fn targets_and_their_outcomes() {
        const UPGRADE: &str = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                               Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
        let rows = [
            ("GET / HTTP/1.1", "", "200"),
            ("HEAD / HTTP/1.1", UPGRADE, "200"),
            ("GET /health HTTP/1.1", UPGRADE, "200"),
            ("POST /health HTTP/1.1", "", "405"),
            ("GET /check HTTP/1.1", UPGRADE, "check 401"),
            ("HEAD /check?token=dev-token HTTP/1.1", "", "check 101"),
            ("POST /check?token=dev-token HTTP/1.1", "", "405"),
            ("GET /check?token=dev-token&endpoint=%2Fws HTTP/1.1", "", "check 400"),
            ("GET /check?token=dev-token&endpoint=/ws&username=al&client_id=7 HTTP/1.1", "", "check 101"),
            ("GET /check?token=dev-token&endpoint=/ws/a%252Fb HTTP/1.1", "", "check 101"),
            ("GET /check?token=dev-token&endpoint=/ws/a%2Fb HTTP/1.1", "", "check 404"),
            ("GET /check?token=dev-token&endpoint=/echo HTTP/1.1", "", "check 404"),
            ("GET /check?token=dev-token&endpoint=%zz HTTP/1.1", "", "check 400"),
            ("GET /nope HTTP/1.1", UPGRADE, "404"),
            ("GET /echo?token=dev-token HTTP/1.1", "", "426"),
            ("GET /echo?token=dev-token HTTP/1.1", UPGRADE, "echo"),
            ("GET /echo?token=%zz HTTP/1.1", UPGRADE, "401"),
            ("GET /echo?token=dev-token&unknown=%zz HTTP/1.1", UPGRADE, "400"),
            ("GET /?token=dev-token HTTP/1.1", UPGRADE, "Events anonymous in general"),
            ("GET /?token=dev-token&username=+al+&room=a%2fb HTTP/1.1", UPGRADE, "Events al in a/b"),
            ("GET /ws/a+b?token=dev-token&username=al HTTP/1.1", UPGRADE, "Rooms Anonymous in a+b"),
            ("GET /ws/a%2fb?token=dev-token HTTP/1.1", UPGRADE, "Rooms Anonymous in a/b"),
            ("GET /ws/a/b?token=dev-token HTTP/1.1", UPGRADE, "404"),
            ("GET /ws?token=dev-token&username=al&client_id=7 HTTP/1.1", UPGRADE, "Presence al in general"),
            ("GET /ws?token=dev-token&username=al HTTP/1.1", UPGRADE, "400"),
            ("GET /ws?token=dev-token&client_id=7 HTTP/1.1", UPGRADE, "400"),
            ("GET /inspect?ticket=t HTTP/1.1", UPGRADE, "observe t"),
            ("GET /inspect HTTP/1.1", UPGRADE, "400"),
        ];
        for (request_line, headers, expected) in rows {
            assert_eq!(outcome(request_line, headers), expected, "{request_line}");
        }
    }

    fn get_parameter(query: &str, name: &str) -> Result<Option<String>, u16> {
        let value = read_parameter(query, name);
        match percent_decode(query) {
            Ok(_) => Ok(value),
            Err(rejection) => {
                assert_eq!(value.as_deref(), Some(""), "{query}: the malformed parameter wins over a later one");
                Err(rejection.status)
            }
        }
    }

    #[test]
    fn the_first_of_duplicate_parameters_wins() {
        let cases = [
            ("token=a&token=b", Ok(Some("a"))),
            ("x=1&token=a%20b+c", Ok(Some("a b c"))),
            ("%74oken=a", Ok(Some("a"))),
            ("token", Ok(Some(""))),
            ("token=a=b", Ok(Some("a=b"))),
            ("?=&&", Ok(None)),
            ("", Ok(None)),
            ("Token=a", Ok(None)),
            ("token=%e2%82%ac", Ok(Some("€"))),
            ("token=%2B%25", Ok(Some("+%"))),
            ("token=%zz", Err(400)),
            ("token=%", Err(400)),
            ("token=%4", Err(400)),
            ("token=%+1", Err(400)),
            ("token=%€", Err(400)),
            ("token=%e2%82", Err(400)),
            ("token=%ed%a0%80", Err(400)),
            ("token=%zz&token=a", Err(400)),
        ];
        for (query, expected) in cases {
            assert_eq!(get_parameter(query, "token"), expected.map(|value| value.map(str::to_owned)), "{query}");
        }
    }

    #[test]
    fn unknown_parameters_are_checked_too() {
        assert!(percent_decode("a=1&b=%41").is_ok());
        assert!(percent_decode("a=1&b=%4").is_err());
        assert!(percent_decode("a=1&%ff=b").is_err());
    }

    #[test]
    fn a_session_has_32_digits() {
        let zeros = "0".repeat(24);
        assert_eq!(
            parse_session(&format!("{zeros}0102abcd")).map(|session| session.0[12..].to_vec()),
            Some(vec![1, 2, 0xab, 0xcd])
        );
        for wrong in ["102abcd", "+102abcd", "00102abcd", "0102ABCD", "0102abcg"] {
            assert!(parse_session(&format!("{zeros}{wrong}")).is_none(), "{wrong}");
        }
    }

    #[test]
    fn a_plus_in_a_path_is_a_plus() {
        assert_eq!(percent_decode("a+b%20c").unwrap(), "a+b c");
    }

    fn rejection_text(status: u16, is_head: bool) -> String {
        let rejection = Rejection { status, headers: &[("Retry-After", "5")], body: "Why.".into() };
        String::from_utf8(format_rejection(&rejection, is_head, SystemTime::UNIX_EPOCH)).unwrap()
    }

    #[test]
    fn a_rejection_in_full() {
        let head = "HTTP/1.1 503 Service Unavailable\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\nContent-Length: 5\r\n\
                    Content-Type: text/plain; charset=utf-8\r\nRetry-After: 5\r\nConnection: close\r\n\
                    Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n\r\n";
        assert_eq!(rejection_text(503, false), format!("{head}Why.\n"));
        assert_eq!(rejection_text(503, true), head, "a HEAD gets the length of the body, and no body");
    }

    #[test]
    fn only_a_401_has_no_newline() {
        assert!(rejection_text(401, false).ends_with("\r\n\r\nWhy."));
    }
}
