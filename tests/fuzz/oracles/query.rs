//! Compares the server's parsing of query strings with a simple decoder that reads one byte at a time.

use std::net::Ipv4Addr;

use wirechat::chat::names::{parse_room_name, parse_username};
use wirechat::http::{Client, Outcome, Route, route_request};
use wirechat::ws::request::Request;

const HEADERS: &str = "Host: a.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// Decodes `+` and percent escapes. Returns `None` if an escape is malformed.
fn decode(text: &str) -> Option<Vec<u8>> {
    let (mut decoded, mut bytes) = (Vec::new(), text.bytes());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
                (digit(bytes.next())? * 16 + digit(bytes.next())?) as u8
            }
            byte => byte,
        });
    }
    Some(decoded)
}

pub fn check(data: &[u8]) {
    let Ok(query) = std::str::from_utf8(data) else { return };
    if !query.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#') {
        return;
    }
    let head = format!("GET /?token=dev-token&{query} HTTP/1.1\r\n{HEADERS}");
    let request = Request::parse(head.as_bytes(), 64).expect("a request");
    let client =
        Client { address: Ipv4Addr::LOCALHOST.into(), is_proxied: false, may_try_token: true, needs_token: true };
    let outcome = route_request(&request, &super::access(None), client, super::NOW);
    let pairs: Vec<_> = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, ""))).collect();
    let text = |text: &str| decode(text).and_then(|bytes| String::from_utf8(bytes).ok());
    let value =
        |name: &str| pairs.iter().find(|pair| text(pair.0).as_deref() == Some(name)).and_then(|pair| text(pair.1));
    let is_valid = text(&query.replace('+', " ")).is_some();
    let (username, room) = (value("username"), value("room"));
    let username = parse_username(username.as_deref().unwrap_or("anonymous")).ok().map(String::from);
    let room = parse_room_name(room.as_deref().unwrap_or("general")).ok().map(String::from);
    match outcome {
        Ok(Outcome::Upgrade { route: Route::Chat(joined), .. }) => {
            assert!(is_valid, "{query:?} is malformed");
            assert_eq!(
                (Some(&*joined.join.username), Some(&*joined.join.room)),
                (username.as_deref(), room.as_deref())
            );
            let resume = value("epoch").zip(value("since").and_then(|since| since.parse().ok()));
            assert_eq!(joined.join.resume.map(|resume| (resume.epoch, resume.since)), resume);
            let session = value("session")
                .filter(|hex| hex.len() == 32 && hex.chars().all(|c| c.is_ascii_digit() || ('a'..='f').contains(&c)));
            let found = joined.join.session.map(|session| session.0.map(|byte| format!("{byte:02x}")).concat());
            assert_eq!(found, session);
        }
        Err(rejection) => {
            assert_eq!(rejection.status, 400, "{query:?}: {}", rejection.body);
            assert!(!is_valid || username.is_none() || room.is_none(), "{query:?}: {}", rejection.body);
        }
        _ => panic!("{query:?} is no join"),
    }
}
