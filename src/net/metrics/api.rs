//! Responds to the operator's HTTP requests (PROTOCOL.md, "Administration").

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, SystemTime};

use mio::Token;
use serde::Serialize;
use serde_json::{Value, json};

use super::connection::MAX_HEADERS;
use super::text;
use crate::chat::command::Command;
use crate::chat::dialect::Dialect;
use crate::chat::event::{ErrorText, Event};
use crate::chat::{Message, Now, names, network_of, quote_for_log};
use crate::http::access::AccessControl;
use crate::http::{Rejection, Request, bad_request, check_authority, forbidden, not_found, quote, read_parameter};
use crate::operator::{BanSubject, DurationHistogram};
use crate::server::connection::{Connection, Service};
use crate::server::{CloseCode, Server};
use crate::{config::Config, http::format_response, net::listener::Listener, net::tls::Transport};

const REASON: &str = "removed by the operator";
const MAX_BAN_SECONDS: u64 = 100 * 366 * 24 * 60 * 60; // 100 years
const STORAGE_STALL_TIMEOUT: Duration = Duration::from_secs(5); // `/ready` fails after this long without progress
// `/ready` fails for this long after a listener logs a failed accept. While accepts keep failing, a listener logs one
// failure per second, so `/ready` keeps failing too.
const ACCEPT_FAILURE_WINDOW: Duration = Duration::from_secs(2);
// The operator's announcements and ban changes have tokens, as connections do. Connections' tokens count up from 1, so
// they never reach this value.
const FIRST_ANNOUNCEMENT: Token = Token(usize::MAX / 2);

type AllowHeader = &'static [(&'static str, &'static str)];
const GET: AllowHeader = &[("Allow", "GET, HEAD")];
const POST: AllowHeader = &[("Allow", "POST")];
const POST_DELETE: AllowHeader = &[("Allow", "POST, DELETE")];

const ROUTES: [(&str, AllowHeader); 8] = [
    ("/live", GET),
    ("/ready", GET),
    ("/metrics", GET),
    ("/clients", GET),
    ("/bans", GET),
    ("/kick", POST),
    ("/ban", POST_DELETE),
    ("/publish", POST),
];

pub struct AdminApi {
    access: AccessControl,
    max_text: usize,
    pub turn_durations: DurationHistogram,
    pub storage: StorageMonitor,
    // Ban changes that are being saved. For each change: the channel that reports the result, and the body of the
    // response to send if the change was saved.
    pending_ban_changes: HashMap<Token, (Receiver<bool>, Value)>,
    next_announcement: Token,
}

/// Detects stalled storage: messages are queued, the queue does not shrink, and no client receives a message.
#[derive(Debug, Default)]
pub struct StorageMonitor {
    queued: usize,
    deliveries: u64,
    progressed_at: Duration,
}

pub enum Reply {
    Response(Vec<u8>),
    Announcing(Token), // the server responds once the message or the ban change is stored
}

/// `Err`: the rejection, and whether the method is HEAD.
pub type AdminOutcome = Result<Reply, (Rejection, bool)>;

enum Subject {
    Connection(Token),
    Ban(BanSubject),
}

impl StorageMonitor {
    pub fn observe(&mut self, server: &Server<Transport>, now: Duration) {
        let (queued, deliveries) = (server.chat.broker.queued_bytes(), server.chat.operator.counters.deliveries);
        if self.queued == 0 || queued < self.queued || deliveries != self.deliveries {
            self.progressed_at = now;
        }
        (self.queued, self.deliveries) = (queued, deliveries);
    }

    fn is_stalled(&self, now: Duration) -> bool {
        self.queued > 0 && now.saturating_sub(self.progressed_at) >= STORAGE_STALL_TIMEOUT
    }
}

impl AdminApi {
    pub fn new(config: &Config, address: SocketAddr) -> Result<AdminApi, String> {
        // Requests to the admin API need no access token, so the check of `Host` must prevent DNS rebinding. Derive the
        // allowed `Host` values from the admin API's address, not from `--listen`.
        let mut config = config.clone();
        (config.listen, config.tokens) = (vec![address.into()], None);
        let (access, max_text) = (AccessControl::new(&config, None)?, config.max_text);
        let (turn_durations, storage) = (DurationHistogram::default(), StorageMonitor::default());
        let (pending_ban_changes, next_announcement) = (HashMap::new(), FIRST_ANNOUNCEMENT);
        Ok(AdminApi { access, max_text, turn_durations, storage, pending_ban_changes, next_announcement })
    }

    pub fn respond(
        &mut self,
        head: &[u8],
        body: &[u8],
        server: &mut Server<Transport>,
        clients: &[Listener],
        peer: SocketAddr,
        now: Now,
    ) -> AdminOutcome {
        let is_head = head.starts_with(b"HEAD ");
        let reply = Request::parse_head(head, MAX_HEADERS)
            .and_then(|request| self.reply(&request, body, server, clients, peer, now));
        reply.map_err(|rejection| (rejection, is_head))
    }

    fn reply(
        &mut self,
        request: &Request,
        body: &[u8],
        server: &mut Server<Transport>,
        clients: &[Listener],
        peer: SocketAddr,
        now: Now,
    ) -> Result<Reply, Rejection> {
        self.check(request)?;
        let is_head = request.method == "HEAD";
        let json = |text: String| format_response(200, &[JSON_CONTENT_TYPE], &(text + "\n"), is_head, now.time);
        Ok(Reply::Response(match (request.path, request.method) {
            ("/live", _) => format_response(200, &[TEXT_CONTENT_TYPE], "live\n", is_head, now.time),
            ("/ready", _) => {
                let reason = self.reason_not_ready(server, clients, now.monotonic);
                let (status, line) = reason.map_or((200, "ready"), |reason| (503, reason));
                format_response(status, &[TEXT_CONTENT_TYPE], &format!("{line}\n"), is_head, now.time)
            }
            ("/metrics", _) => {
                let (content_type, text) = text::write(request, server, &self.turn_durations);
                format_response(200, &[("Content-Type", content_type)], &text, is_head, now.time)
            }
            ("/clients", _) => json(list_clients(server)),
            ("/bans", _) => json(list_bans(server, now.time).to_string()),
            ("/kick", _) => json(json!({ "closed": kick(request, server, peer)? }).to_string()),
            ("/ban", method) => {
                let change = if method == "POST" { ban } else { unban };
                let (result, receiver) = change(request, server, peer, now.time)?;
                let Some(receiver) = receiver else { return Ok(Reply::Response(json(result.to_string()))) };
                let token = self.next_token();
                self.pending_ban_changes.insert(token, (receiver, result));
                return Ok(Reply::Announcing(token));
            }
            _ => return self.publish(request, body, server, peer, now).map(Reply::Announcing),
        }))
    }

    fn check(&self, request: &Request) -> Result<(), Rejection> {
        check_authority(request, &self.access)?;
        if request.header_values("Origin").next().is_some() {
            return Err(forbidden("Web pages may not send requests to this port (RFC 6454 §7.3)."));
        }
        let (_, allow) =
            ROUTES.into_iter().find(|(path, _)| *path == request.path).ok_or_else(|| not_found(request.path))?;
        let methods = allow[0].1;
        if methods.split(", ").any(|method| method == request.method) {
            return Ok(());
        }
        let body = format!(
            "The method is {}; it must be one of {methods} (RFC 9110 §15.5.6).",
            quote(request.method.as_bytes())
        );
        Err(Rejection { status: 405, headers: allow, body })
    }

    /// Returns the reason why a load balancer should send new clients elsewhere, if any.
    fn reason_not_ready(
        &self,
        server: &Server<Transport>,
        clients: &[Listener],
        now: Duration,
    ) -> Option<&'static str> {
        let failed_at = clients.iter().filter_map(|listener| listener.logged_at).max();
        if server.is_draining() || server.storage_failed {
            Some("draining: the server is shutting down")
        } else if server.limits.is_full() {
            Some("full: the server has as many clients as --max-connections allows")
        } else if !server.chat.broker.is_available() {
            Some("redis: the rooms are unavailable")
        } else if server.pauses_reads() || self.storage.is_stalled(now) {
            Some("storage: messages wait for the disk")
        } else if failed_at.is_some_and(|at| now.saturating_sub(at) < ACCEPT_FAILURE_WINDOW) {
            Some("descriptors: the server cannot accept clients")
        } else {
            None
        }
    }

    fn publish(
        &mut self,
        request: &Request,
        body: &[u8],
        server: &mut Server<Transport>,
        peer: SocketAddr,
        now: Now,
    ) -> Result<Token, Rejection> {
        if !server.accepts_clients() || server.storage_failed {
            return Err(Rejection::new(503, "The server is shutting down (RFC 9110 §15.6.4)."));
        }
        let room = read_parameter(request.query, "room").ok_or_else(|| missing_parameter("room"))?;
        let room = names::parse_room_name(&room).map_err(|error| bad_request(error + "."))?;
        let room: Rc<str> = room.into();
        let time = humantime::format_rfc3339_millis(now.time).to_string().into();
        let message = parse_message(body, self.max_text, time).map_err(bad_request)?;
        let token = self.next_token();
        let (name, user) = (quote_for_log(&room), quote_for_log(&message.username));
        log::info!("PUBLISH room={name} user={user} by={peer}");
        server.chat.announce(token, room, message, now);
        server.apply_effects();
        Ok(token)
    }

    fn next_token(&mut self) -> Token {
        self.next_announcement.0 += 1;
        self.next_announcement
    }

    /// Forgets a pending `/publish` or `/ban` request whose peer has disconnected.
    pub fn forget(&mut self, token: Token, server: &mut Server<Transport>) {
        server.chat.operator.announcements.remove(&token);
        self.pending_ban_changes.remove(&token);
    }

    /// Returns the response to a `/ban` request, once the writer reports the result or the request times out.
    fn take_ban_result(&mut self, token: Token, has_timed_out: bool, now: Now) -> Option<AdminOutcome> {
        let (receiver, result) = self.pending_ban_changes.get(&token)?;
        let body = match receiver.try_recv() {
            Ok(true) => {
                let response = format_response(200, &[JSON_CONTENT_TYPE], &format!("{result}\n"), false, now.time);
                self.pending_ban_changes.remove(&token);
                return Some(Ok(Reply::Response(response)));
            }
            Ok(false) => "The disk is full. The change is in force, but a restart will undo it.",
            Err(TryRecvError::Empty) if !has_timed_out => return None,
            Err(_) => "The change is in force, but not stored yet. Send the request again.",
        };
        self.pending_ban_changes.remove(&token);
        Some(Err((Rejection::new(507, body), false)))
    }

    /// Returns the response to a `/publish` or `/ban` request, once its result is known or the request times out.
    pub fn take_outcome(
        &mut self,
        token: Token,
        has_timed_out: bool,
        server: &mut Server<Transport>,
        now: Now,
    ) -> Option<AdminOutcome> {
        if self.pending_ban_changes.contains_key(&token) {
            return self.take_ban_result(token, has_timed_out, now);
        }
        let announcements = &mut server.chat.operator.announcements;
        let event = announcements.get_mut(&token).and_then(Option::take);
        if event.is_some() || has_timed_out {
            announcements.remove(&token);
        }
        match event {
            Some(Event::Message(message)) => {
                let body = format!("{}\n", serde_json::to_string(&message).unwrap_or_default());
                Some(Ok(Reply::Response(format_response(200, &[JSON_CONTENT_TYPE], &body, false, now.time))))
            }
            Some(Event::Error { message, .. }) => Some(Err((bad_request(message), false))),
            _ if has_timed_out => {
                let body = "The message is not stored yet, and may be stored later. Send it again with the same nonce.";
                Some(Err((Rejection::new(503, body), false)))
            }
            _ => None,
        }
    }
}

const JSON_CONTENT_TYPE: (&str, &str) = ("Content-Type", "application/json");
const TEXT_CONTENT_TYPE: (&str, &str) = ("Content-Type", "text/plain; charset=utf-8");

fn missing_parameter(parameter: &str) -> Rejection {
    bad_request(format!("The query parameter {parameter} is missing."))
}

/// Parses the body of a `/publish` request as a client's message, but requires `username` and publishes `/msg` as text.
fn parse_message(body: &[u8], max_text: usize, time: Rc<str>) -> Result<Message, ErrorText> {
    let body = str::from_utf8(body).map_err(|_| "Invalid JSON")?;
    let fields: Value = serde_json::from_str(body).map_err(|_| "Invalid JSON")?;
    let event = format!("{{\"event\":\"message\",\"data\":{body}}}");
    let (command, nonce) = Dialect::Events.parse(&event);
    let Command::Message { text, .. } = command? else { return Err("Invalid JSON".into()) };
    let username = fields.get("username").ok_or("data.username is missing")?;
    let username = names::parse_username(username.as_str().ok_or("data.username must be a string")?)?.into();
    match text.trim() {
        "" => Err("Nothing to send".into()),
        text if text.chars().count() > max_text => Err("Message too long".into()),
        text => Ok(Message { username, text: text.into(), id: 0, time, nonce }),
    }
}

/// Parses the subject of a kick, ban or unban from the query. `names` holds the two parameters that can identify the
/// subject, for example `username` and `address`. The query must contain exactly one of them.
fn parse_subject(request: &Request, names: [&'static str; 2]) -> Result<Subject, Rejection> {
    let values = names.map(|name| read_parameter(request.query, name).map(|value| (name, value)));
    let (name, value) = match values {
        [Some(one), None] | [None, Some(one)] => one,
        _ => return Err(bad_request(format!("The query needs either {} or {}.", names[0], names[1]))),
    };
    let seen = quote(value.as_bytes());
    match name {
        "username" => {
            let username = names::parse_username(&value).map_err(|error| bad_request(error + "."))?;
            Ok(Subject::Ban(BanSubject::Username(names::username_key(&username.into()))))
        }
        "address" => {
            let address = value.parse().map_err(|_| bad_request(format!("{seen} is not an IP address.")))?;
            Ok(Subject::Ban(BanSubject::Address(network_of(address))))
        }
        _ => {
            let number =
                value.parse().map_err(|_| bad_request(format!("{seen} is not the number of a connection.")))?;
            Ok(Subject::Connection(Token(number)))
        }
    }
}

impl Subject {
    /// Closes all of the subject's open connections, and returns how many there were.
    fn close(&self, server: &mut Server<Transport>) -> usize {
        let is_key = |username: &Rc<str>, key: &Rc<str>| names::username_key(username) == *key;
        let mut tokens: Vec<Token> = match self {
            Subject::Connection(token) => vec![*token],
            Subject::Ban(BanSubject::Address(network)) => {
                let is_in = |connection: &Connection<_>| network_of(connection.cold.peer.ip()) == *network;
                let found = server.connections.table.iter().filter(|(_, connection)| is_in(connection));
                found.map(|(token, _)| *token).collect()
            }
            Subject::Ban(BanSubject::Username(key)) => {
                let found = server
                    .chat
                    .clients
                    .iter()
                    .filter(|(_, client)| is_key(&client.username, key) || is_key(&client.last_username, key));
                found.map(|(token, _)| *token).collect()
            }
        };
        tokens.retain(|token| server.connections.table.get(token).is_some_and(Connection::is_open));
        tokens.sort_unstable(); // oldest connection first
        tokens.iter().for_each(|token| server.close(*token, CloseCode::POLICY_VIOLATION, REASON));
        tokens.len()
    }

    fn format_for_log(&self) -> String {
        match self {
            Subject::Connection(token) => format!("connection={}", token.0),
            Subject::Ban(BanSubject::Address(network)) => format!("address={}", format_network(*network)),
            Subject::Ban(BanSubject::Username(key)) => format!("user={}", quote_for_log(key)),
        }
    }
}

fn format_network(network: IpAddr) -> String {
    if network.is_ipv6() { format!("{network}/64") } else { network.to_string() }
}

fn kick(request: &Request, server: &mut Server<Transport>, peer: SocketAddr) -> Result<usize, Rejection> {
    let subject = parse_subject(request, ["username", "connection"])?;
    let closed = subject.close(server);
    log::info!("KICK {} closed={closed} by={peer}", subject.format_for_log());
    Ok(closed)
}

type BanResult = Result<(Value, Option<Receiver<bool>>), Rejection>;

fn ban(request: &Request, server: &mut Server<Transport>, peer: SocketAddr, now: SystemTime) -> BanResult {
    let subject = parse_subject(request, ["username", "address"])?;
    let seconds = read_parameter(request.query, "seconds").ok_or_else(|| missing_parameter("seconds"))?;
    let seconds = seconds.parse().ok().filter(|seconds| (1..=MAX_BAN_SECONDS).contains(seconds));
    let error = || bad_request(format!("seconds must be a number from 1 to {MAX_BAN_SECONDS}."));
    let seconds = seconds.ok_or_else(error)?;
    let (until, bans) = (now + Duration::from_secs(seconds), &mut server.chat.operator.bans);
    bans.remove_expired(now);
    let Subject::Ban(ban) = &subject else { return Err(missing_parameter("username")) };
    if bans.is_full() && !bans.is_banned(ban) {
        return Err(Rejection::new(507, "There are too many bans; lift some first."));
    }
    let (_, receiver) = bans.set(ban, Some(until), now);
    let closed = subject.close(server);
    log::info!("BAN {} seconds={seconds} closed={closed} by={peer}", subject.format_for_log());
    Ok((json!({ "closed": closed }), receiver))
}

fn unban(request: &Request, server: &mut Server<Transport>, peer: SocketAddr, now: SystemTime) -> BanResult {
    let subject = parse_subject(request, ["username", "address"])?;
    let Subject::Ban(ban) = &subject else { return Err(missing_parameter("username")) };
    let (was_banned, receiver) = server.chat.operator.bans.set(ban, None, now);
    let lifted = usize::from(was_banned);
    log::info!("UNBAN {} lifted={lifted} by={peer}", subject.format_for_log());
    Ok((json!({ "lifted": lifted }), receiver))
}

fn list_bans(server: &mut Server<Transport>, now: SystemTime) -> Value {
    let bans = &mut server.chat.operator.bans;
    bans.remove_expired(now);
    let format = |until: &SystemTime| humantime::format_rfc3339_seconds(*until).to_string();
    let addresses = bans.addresses.iter().map(|(network, until)| ("address", format_network(*network), format(until)));
    let usernames = bans.usernames.iter().map(|(key, until)| ("username", key.to_string(), format(until)));
    let mut rows: Vec<_> = addresses.chain(usernames).collect();
    rows.sort_unstable();
    rows.into_iter().map(|(kind, subject, until)| json!({ kind: subject, "until": until })).collect()
}

/// A row of `/clients`, serialized directly because building a [`Value`] first would take five times as long.
#[derive(Serialize)]
struct ListedClient<'a> {
    connection: usize,
    address: IpAddr,
    username: Option<&'a str>,
    room: Option<&'a str>,
    dialect: &'static str,
    since: Option<String>,
    queued: usize, // size of the outbox, in bytes
}

fn list_clients(server: &Server<Transport>) -> String {
    let mut rows: Vec<_> = server.connections.table.iter().filter(|(_, connection)| connection.is_open()).collect();
    rows.sort_unstable_by_key(|(token, _)| **token);
    let describe = |(token, connection): (&Token, &Connection<_>)| {
        let client = server.chat.clients.get(token);
        let room = server.chat.room_of(*token).and_then(|room| server.chat.rooms.get(&room));
        let dialect = match connection.cold.service {
            Some(Service::Chat) => {
                client.map_or("chat.", |client| client.dialect.subprotocol()).trim_start_matches("chat.")
            }
            Some(Service::Echo) => "echo",
            Some(Service::Inspect) | None => "inspect",
        };
        ListedClient {
            connection: token.0,
            address: connection.cold.peer.ip(),
            username: client.map(|client| &*client.last_username),
            room: room.map(|room| &*room.name),
            dialect,
            since: client.map(|client| humantime::format_rfc3339_millis(client.since).to_string()),
            queued: connection.outbox.len(),
        }
    };
    let rows: Vec<_> = rows.into_iter().map(describe).collect();
    serde_json::to_string(&rows).unwrap_or_default()
}
