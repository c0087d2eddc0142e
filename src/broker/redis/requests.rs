//! The requests that Redis has not confirmed, oldest first. A request keeps its number when it is sent again, so Redis
//! executes it only once, even if the first reply was lost.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use mio::Token;

use super::super::{CredentialId, Message};

const MAX_REQUESTS_PER_CALL: usize = 256; // limits how long one call of the script blocks Redis
const MAX_BYTES_PER_CALL: usize = 256 * 1024; // maximum size of all requests in a call; a larger request is sent alone

/// The kinds of requests. If Redis does not confirm a client's request in time, the kind determines whether the client
/// gets an error, has to reconnect, or gets nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    Join,
    Message { nonce: Option<Rc<str>> }, // a room message or a private message
    Query,                              // a switch or a history page: the client gets an error if the request expires
    Typing,
    Internal, // a client's leave, or a request by the server itself; never expires, because no client waits for it
}

#[derive(Debug)]
pub struct QueuedRequest {
    number: u64,
    pub client: Token,
    pub kind: Kind,
    name: &'static str,
    arguments: Vec<String>,
    submitted_at: Duration,
    pub is_sent: bool, // if true, Redis may have executed the request
}

#[derive(Default)]
pub struct Requests {
    queue: VecDeque<QueuedRequest>, // requests that were sent come before unsent ones
    sent: usize,                    // number of requests in the queue that were sent
    last_number: u64,
    pub last_sent: u64, // number of the last request that was sent, or that Redis has executed
    pub bytes: usize,   // sum of `QueuedRequest::counted_bytes` over the queue
}

impl QueuedRequest {
    pub fn new(client: Token, kind: Kind, name: &'static str, arguments: Vec<String>, now: Duration) -> QueuedRequest {
        QueuedRequest { number: 0, client, kind, name, arguments, submitted_at: now, is_sent: false }
    }

    /// Whether a rejoin of the instance drops the request. The broker then sends a new one if it is still needed.
    pub fn is_obsolete(&self) -> bool {
        matches!(self.name, "rejoin" | "retain" | "sync" | "reap" | "probe")
    }

    /// Returns the request's share of the queued bytes: its size, or 0 for an internal request. A shutdown waits until
    /// no bytes are queued, and an internal request never expires, so it could block the shutdown.
    fn counted_bytes(&self) -> usize {
        if self.kind == Kind::Internal { 0 } else { self.size() }
    }

    fn size(&self) -> usize {
        size_of::<QueuedRequest>() + self.arguments.iter().map(|text| size_of::<String>() + text.len()).sum::<usize>()
    }
}

impl Requests {
    pub fn push(&mut self, mut request: QueuedRequest) {
        self.last_number += 1;
        request.number = self.last_number;
        self.bytes += request.counted_bytes();
        self.queue.push_back(request);
    }

    pub fn has_unsent(&self) -> bool {
        self.sent < self.queue.len()
    }

    /// Marks the next batch as sent. Returns its arguments for the Redis script, and the number of its last request.
    pub fn take_batch(&mut self) -> (Vec<String>, u64) {
        let (mut arguments, mut bytes, mut last) = (Vec::new(), 0, 0);
        for request in self.queue.range_mut(self.sent..).take(MAX_REQUESTS_PER_CALL) {
            bytes += request.size();
            if bytes > MAX_BYTES_PER_CALL && last > 0 {
                break;
            }
            let count = request.arguments.len();
            arguments.extend([request.number.to_string(), request.name.to_owned(), count.to_string()]);
            arguments.extend(request.arguments.iter().cloned());
            (request.is_sent, last) = (true, request.number);
            self.sent += 1;
            self.last_sent = last;
        }
        (arguments, last)
    }

    /// Drops the requests up to `number`: their events have arrived.
    pub fn confirm(&mut self, number: u64) {
        while self.queue.front().is_some_and(|request| request.number <= number) {
            self.remove(0);
        }
    }

    /// Handles a reconnect to Redis, which has executed the requests up to `number`. Marks all later requests as
    /// unsent: Redis will reject them if they still arrive through an earlier connection.
    pub fn mark_unsent_after(&mut self, number: u64) {
        self.sent = self.queue.partition_point(|request| request.number <= number);
        self.queue.range_mut(self.sent..).for_each(|request| request.is_sent = false);
    }

    /// Removes and returns the oldest expired request, if any.
    pub fn pop_expired(&mut self, now: Duration, timeout: Duration) -> Option<QueuedRequest> {
        self.next_expiry(timeout).filter(|at| *at <= now)?;
        let oldest = self.queue.iter().position(|request| request.kind != Kind::Internal)?;
        self.remove(oldest)
    }

    /// Drops a client's requests, because the client must reconnect and resend them. Keeps the client's leave request,
    /// which Redis must still execute.
    pub fn drop_requests(&mut self, client: Token) {
        let is_dropped = |request: &QueuedRequest| request.client == client && request.kind != Kind::Internal;
        while let Some(at) = self.queue.iter().position(is_dropped) {
            self.remove(at);
        }
    }

    fn remove(&mut self, at: usize) -> Option<QueuedRequest> {
        self.sent -= usize::from(at < self.sent);
        let request = self.queue.remove(at)?;
        self.bytes -= request.counted_bytes();
        Some(request)
    }

    pub fn next_expiry(&self, timeout: Duration) -> Option<Duration> {
        let expiring = self.queue.iter().find(|request| request.kind != Kind::Internal);
        expiring.map(|request| request.submitted_at + timeout)
    }

    pub fn contains(&self, client: Token, name: &str) -> bool {
        self.queue.iter().any(|request| request.client == client && request.name == name)
    }

    pub fn take(&mut self) -> VecDeque<QueuedRequest> {
        (self.sent, self.bytes) = (0, 0);
        std::mem::take(&mut self.queue)
    }
}

// ---- Arguments ----

/// Serializes a value. Serialization cannot fail, because every map in these values has string keys.
pub fn to_json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

pub fn format_flag(is_set: bool) -> String {
    if is_set { "1" } else { "0" }.into()
}

pub fn format_credential(credential: Option<CredentialId>) -> String {
    credential.map(|id| id.to_string()).unwrap_or_default()
}

/// Returns the key of a message's nonce in the room's Redis hash of nonces: the username, a line feed and the nonce.
/// The key is unambiguous, because usernames contain no line feed. Empty if the message has no nonce.
pub fn nonce_key(message: &Message) -> String {
    message.nonce.as_ref().map(|nonce| format!("{}\n{nonce}", message.username)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(client: usize, kind: Kind, seconds: u64) -> QueuedRequest {
        QueuedRequest::new(Token(client), kind, "name", vec!["argument".into()], Duration::from_secs(seconds))
    }

    fn request_numbers(arguments: &[String]) -> Vec<&str> {
        arguments.chunks(4).map(|request| &*request[0]).collect()
    }

    #[test]
    fn a_request_is_sent_until_it_is_confirmed_and_keeps_its_number() {
        let mut requests = Requests::default();
        (1..=3).for_each(|client| requests.push(request(client, Kind::Join, 0)));
        let (arguments, last) = requests.take_batch();
        assert_eq!((request_numbers(&arguments), last), (vec!["1", "2", "3"], 3));
        assert!(!requests.has_unsent());
        requests.push(request(4, Kind::Join, 0));
        requests.mark_unsent_after(1);
        assert_eq!(
            request_numbers(&requests.take_batch().0),
            ["2", "3", "4"],
            "the connection was lost after request 1"
        );
        requests.confirm(3);
        requests.mark_unsent_after(3);
        assert_eq!(request_numbers(&requests.take_batch().0), ["4"]);
        requests.confirm(4);
        assert_eq!((requests.queue.len(), requests.bytes, requests.sent), (0, 0, 0));
    }

    #[test]
    fn a_call_has_a_bounded_size() {
        let mut requests = Requests::default();
        (0..MAX_REQUESTS_PER_CALL + 1).for_each(|client| requests.push(request(client, Kind::Typing, 0)));
        assert_eq!(requests.take_batch().1, MAX_REQUESTS_PER_CALL as u64);
        assert_eq!(requests.take_batch().1, MAX_REQUESTS_PER_CALL as u64 + 1);
        let argument = "x".repeat(MAX_BYTES_PER_CALL * 2 / 3);
        let long = || QueuedRequest::new(Token(1), Kind::Join, "name", vec![argument.clone()], Duration::ZERO);
        (0..2).for_each(|_| requests.push(long()));
        let before = MAX_REQUESTS_PER_CALL as u64 + 1;
        assert_eq!(requests.take_batch().1, before + 1);
        assert_eq!(requests.take_batch().1, before + 2);
    }

    #[test]
    fn requests_expire_unless_redis_must_execute_them() {
        let mut requests = Requests::default();
        requests.push(request(1, Kind::Internal, 0));
        requests.push(request(2, Kind::Message { nonce: None }, 0));
        requests.take_batch();
        requests.push(request(3, Kind::Message { nonce: None }, 1));
        let timeout = Duration::from_secs(5);
        assert_eq!(requests.next_expiry(timeout), Some(timeout));
        assert!(requests.pop_expired(Duration::from_secs(4), timeout).is_none());
        let mut expired =
            || requests.pop_expired(Duration::from_secs(9), timeout).map(|expired| (expired.client, expired.is_sent));
        assert_eq!([expired(), expired(), expired()], [Some((Token(2), true)), Some((Token(3), false)), None]);
        assert_eq!((requests.queue.len(), requests.sent, requests.bytes), (1, 1, 0), "internal requests do not count");
    }
}
