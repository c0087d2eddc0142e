//! `wirechat health URL` sends one request over HTTP, or over TLS with the feature `tls`, and reports the status as an
//! exit code. Containers and proxies can use it for their health checks: a container image without a shell usually has
//! no curl either.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use clap::{ArgAction, Args};

use super::inbox::Inbox;
use super::parse_timeout;
use super::url::Url;

const HEALTH_TARGET: &str = "/health";
const HEALTHY_STATUS: u16 = 200;

const AFTER_HELP: &str = "\
Try:  wirechat health http://127.0.0.1:3000

The exit code is 0 if the status is 200, 1 if it is not or if there is no response, 2 if the URL is invalid.";

#[derive(Debug, Args)]
#[command(max_term_width = 110, after_help = AFTER_HELP)]
pub struct Arguments {
    /// Ask the server at this URL; without a path, request /health
    #[arg(value_name = "URL")]
    url: String,

    /// Wait this long for the response
    #[arg(long, default_value = "5s", value_name = "DURATION", value_parser = parse_timeout)]
    timeout: Duration,

    #[arg(short, long, action = ArgAction::HelpShort, help = "Print this help")]
    help: Option<bool>,
}

/// Returns `true` if the status is 200. Otherwise, prints the reason to stderr.
///
/// # Errors
/// A one-line message if the URL is invalid.
pub fn run(arguments: &Arguments) -> Result<bool, String> {
    let url = Url::parse_http_or_https(&arguments.url)?;
    let url = if url.target() == "/" { url.with_target(HEALTH_TARGET) } else { url };
    let error = match request_status_within(arguments.timeout, url.clone()) {
        Ok(HEALTHY_STATUS) => return Ok(true),
        Ok(status) => format!("the status is {status}, not {HEALTHY_STATUS}"),
        Err(error) => error,
    };
    let _ = writeln!(io::stderr(), "wirechat: {url}: {error}");
    Ok(false)
}

/// Runs [`request_status`] on another thread to limit its total time: name resolution has no timeout, and a socket
/// timeout limits only a single call. After a timeout, the thread keeps running until the process exits.
fn request_status_within(timeout: Duration, url: Url) -> Result<u16, String> {
    let (sender, receiver) = mpsc::channel();
    let spawned = thread::Builder::new().spawn(move || sender.send(request_status(&url)));
    spawned.map_err(|error| format!("cannot start a thread: {error}"))?;
    receiver
        .recv_timeout(timeout)
        .unwrap_or_else(|_| Err(format!("no response within {}", humantime::format_duration(timeout))))
}

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

#[cfg(not(feature = "tls"))]
fn encrypt(_: TcpStream) -> Result<Box<dyn Stream>, String> {
    Err("https needs the feature tls".into())
}

#[cfg(feature = "tls")]
fn encrypt(tcp: TcpStream) -> Result<Box<dyn Stream>, String> {
    Ok(Box::new(super::any_certificate::connect(tcp).map_err(|error| format!("TLS: {error}"))?))
}

fn request_status(url: &Url) -> Result<u16, String> {
    let addresses = url.resolve(true)?;
    let tcp = TcpStream::connect(&addresses[..]).map_err(|error| format!("cannot connect: {error}"))?;
    let mut stream = if url.is_https() { encrypt(tcp)? } else { Box::new(tcp) };
    let (target, host) = (url.target(), url.authority());
    let request = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    // Ignore a write error and read the response: a full server may respond and close without reading the request.
    let _ = stream.write_all(request.as_bytes());
    let mut inbox = Inbox::new(request.as_bytes());
    let mut bytes = [0; 4096];
    // The inbox limits the size of the response head. The loop stops after the head, so the body needs no limit.
    loop {
        match (&inbox.response, inbox.violation.take()) {
            (Some(response), _) => return Ok(response.status),
            (None, Some(violation)) => return Err(violation),
            (None, None) => {}
        }
        match stream.read(&mut bytes) {
            Ok(0) => return Err("the server closed the connection without a complete response".into()),
            Ok(len) => inbox.receive(&bytes[..len]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(format!("cannot read the response: {error}")),
        }
    }
}
