//! Plain HTTP answers as bytes (RFC 9110, RFC 9112 §6). Every one of them ends its connection (RFC 6455 §7.2.2).
//!
//! The subtle thing: a `HEAD` is answered with the length that a body would have, and with no body.

use std::time::SystemTime;

use crate::ws::request::Rejection;

/// The bytes of a refusal. `to_head`: of a `HEAD`, which no content answers (RFC 9110 §9.3.2).
pub fn refusal(rejection: &Rejection, to_head: bool, now: SystemTime) -> Vec<u8> {
    let mut headers = vec![("Content-Type", "text/plain; charset=utf-8")];
    headers.extend(rejection.headers);
    // The body of a 401 is fixed to the letter; the others end like any text.
    let end = if rejection.status == 401 { "" } else { "\n" };
    let body = format!("{}{end}", rejection.body);
    plain(now, rejection.status, &headers, body.len(), if to_head { "" } else { &body })
}

/// A plain answer. Everyone ends the connection, and a `HEAD` has the length of a body that is not sent.
pub fn plain(now: SystemTime, status: u16, headers: &[(&str, &str)], length: usize, body: &str) -> Vec<u8> {
    let date = httpdate::fmt_http_date(now);
    let mut answer = format!("HTTP/1.1 {status} {}\r\nDate: {date}\r\nContent-Length: {length}\r\n", reason(status));
    for (name, value) in headers {
        answer.push_str(&format!("{name}: {value}\r\n"));
    }
    if !headers.iter().any(|(name, _)| *name == "Connection") {
        answer.push_str("Connection: close\r\n");
    }
    answer.push_str("Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n\r\n");
    answer.push_str(body);
    answer.into_bytes()
}

/// RFC 9110 §15.
fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        414 => "URI Too Long",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        _ => "",
    }
}
