//! `wirechat admin` sends the operator's requests to a server started with `--admin`, and prints the responses.

use std::io::{self, Read, Write};
use std::net::{IpAddr, TcpStream};
use std::time::Duration;

use clap::{ArgAction, Args, Subcommand};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::json;

use super::screen::{check_written, escape};
use super::url::Url;

const TIMEOUT: Duration = Duration::from_secs(20); // longer than the 10 s that the server allows for a request
const MAX_RESPONSE: u64 = 256 * 1024 * 1024; // in bytes; the list of clients takes about 150 bytes per client

const DEFAULT_URL: &str = "http://127.0.0.1:9000";

const AFTER_HELP: &str = "\
Try, with a server that was started with --admin 9000:
  wirechat admin clients
  wirechat admin ban mallory --seconds 3600

The exit code is 0 if the server carried out the request, 1 if not, 2 if an argument is invalid.";

#[derive(Debug, Args)]
#[command(max_term_width = 110, after_help = AFTER_HELP)]
#[command(subcommand_required = true, disable_help_subcommand = true)]
pub struct Arguments {
    /// The server's --admin address, as a URL, as HOST:PORT or as a port
    #[arg(
        long,
        global = true,
        env = "WIRECHAT_ADMIN",
        hide_env_values = true,
        default_value = DEFAULT_URL
    )]
    url: String,

    #[arg(short, long, global = true, action = ArgAction::HelpShort, help = "Print this help")]
    help: Option<bool>,

    #[command(subcommand)]
    request: Request,
}

#[derive(Debug, Subcommand)]
enum Request {
    /// List the clients as JSON
    Clients,
    /// Close all connections of a user, or one connection
    Kick {
        #[arg(value_name = "NAME", required_unless_present = "connection", conflicts_with = "connection")]
        username: Option<String>,
        /// Close the connection that `wirechat admin clients` lists under this number
        #[arg(long, value_name = "N")]
        connection: Option<u64>,
    },
    /// Close all connections of a user or an address, and reject new ones for a while
    Ban {
        #[command(flatten)]
        subject: Subject,
        /// End the ban after this long
        #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
        seconds: u64,
    },
    /// Lift a ban
    Unban {
        #[command(flatten)]
        subject: Subject,
    },
    /// List the bans as JSON
    Bans,
    /// Send a message to a room
    Publish {
        #[arg(value_name = "ROOM")]
        room: String,
        #[arg(value_name = "TEXT")]
        text: String,
        /// Send the message under this username
        #[arg(long, value_name = "NAME", default_value = "operator")]
        username: String,
        /// Send the message only if this username has not used the nonce in the room
        #[arg(long, value_name = "NONCE")]
        nonce: Option<String>,
    },
}

#[derive(Debug, Args)]
struct Subject {
    #[arg(value_name = "NAME", required_unless_present = "address", conflicts_with = "address")]
    username: Option<String>,
    /// Ban or unban this IP address, or the /64 network of an IPv6 address, instead of a user
    #[arg(long, value_name = "ADDRESS")]
    address: Option<IpAddr>,
}

impl Subject {
    fn query(&self) -> String {
        let address = || self.address.map(|address| address.to_string());
        let username = self.username.as_deref().map(|username| format!("username={}", encode(username)));
        username.or_else(|| address().map(|address| format!("address={}", encode(&address)))).unwrap_or_default()
    }
}

impl Request {
    /// The method, target and body of the HTTP request.
    fn to_http(&self) -> (&'static str, String, String) {
        let (method, target) = match self {
            Request::Clients => ("GET", "/clients".to_owned()),
            Request::Bans => ("GET", "/bans".to_owned()),
            Request::Kick { connection: Some(connection), .. } => ("POST", format!("/kick?connection={connection}")),
            Request::Kick { username, .. } => {
                ("POST", format!("/kick?username={}", encode(username.as_deref().unwrap_or_default())))
            }
            Request::Ban { subject, seconds } => ("POST", format!("/ban?{}&seconds={seconds}", subject.query())),
            Request::Unban { subject } => ("DELETE", format!("/ban?{}", subject.query())),
            Request::Publish { room, text, username, nonce } => {
                let mut body = json!({ "username": username, "text": text });
                nonce.iter().for_each(|nonce| body["nonce"] = json!(nonce));
                return ("POST", format!("/publish?room={}", encode(room)), body.to_string());
            }
        };
        (method, target, String::new())
    }
}

fn encode(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

/// Sends the request and prints the response. Returns `Ok(false)` if the server did not carry out the request.
///
/// # Errors
/// A one-line message if the URL is invalid or stdout cannot be written.
pub fn run(arguments: &Arguments) -> Result<bool, String> {
    let url = match arguments.url.trim() {
        "" => Url::parse_http(DEFAULT_URL)?, // treat an empty environment variable as unset
        url if url.contains("://") => Url::parse_http(url)?,
        port if port.parse::<u16>().is_ok() => Url::parse_http(&format!("http://127.0.0.1:{port}"))?,
        address => Url::parse_http(&format!("http://{address}"))?,
    };
    let (method, target, body) = arguments.request.to_http();
    let url = url.with_target(&target);
    let error = match send(&url, method, &body) {
        Ok((200, body)) => {
            let mut stdout = io::stdout().lock();
            return check_written(stdout.write_all(body.as_bytes()).and_then(|()| stdout.flush())).map(|()| true);
        }
        Ok((status, body)) => format!("the server responds {status}: {}", escape(body.trim())),
        Err(error) => error,
    };
    let _ = writeln!(io::stderr(), "wirechat: {url}: {error}");
    Ok(false)
}

/// Sends a request on a new connection. Returns the status and the body of the response.
fn send(url: &Url, method: &str, body: &str) -> Result<(u16, String), String> {
    let addresses = url.resolve(true)?;
    let mut stream = TcpStream::connect(&addresses[..]).map_err(|error| format!("cannot connect: {error}"))?;
    let timeouts = stream.set_read_timeout(Some(TIMEOUT)).and_then(|()| stream.set_write_timeout(Some(TIMEOUT)));
    timeouts.map_err(|error| format!("the socket failed: {error}"))?;
    let (target, host, length) = (url.target(), url.authority(), body.len());
    let request = format!(
        "{method} {target} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
    // Ignore a write error: a server may respond without reading the whole request, so read its response.
    let _ = stream.write_all(request.as_bytes());
    let mut response = Vec::new();
    stream.take(MAX_RESPONSE).read_to_end(&mut response).map_err(|error| format!("no response: {error}"))?;
    let response = String::from_utf8_lossy(&response);
    let (head, body) = response.split_once("\r\n\r\n").ok_or("the response is not HTTP, or incomplete")?;
    let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.split(' ').next()?.parse().ok());
    Ok((status.ok_or("the response is not HTTP")?, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    #[command(disable_help_flag = true)]
    struct CommandLine {
        #[command(flatten)]
        arguments: Arguments,
    }

    #[test]
    fn arguments_and_their_requests() {
        let rows = [
            ("clients", "GET /clients "),
            ("bans", "GET /bans "),
            ("kick ann", "POST /kick?username=ann "),
            ("kick J\u{fc}rgen&x=y", "POST /kick?username=J%C3%BCrgen%26x%3Dy "),
            ("kick --connection 7", "POST /kick?connection=7 "),
            ("ban ann", "POST /ban?username=ann&seconds=3600 "),
            ("ban --address 2001:db8::1 --seconds 5", "POST /ban?address=2001%3Adb8%3A%3A1&seconds=5 "),
            ("unban ann", "DELETE /ban?username=ann "),
            ("unban --address 192.0.2.1", "DELETE /ban?address=192%2E0%2E2%2E1 "),
            ("publish a/b hi", "POST /publish?room=a%2Fb {\"text\":\"hi\",\"username\":\"operator\"}"),
            (
                "publish tea hi --username bot --nonce n1",
                "POST /publish?room=tea {\"nonce\":\"n1\",\"text\":\"hi\",\"username\":\"bot\"}",
            ),
        ];
        for (typed, expected) in rows {
            let words = ["admin"].into_iter().chain(typed.split(' '));
            let (method, target, body) = CommandLine::parse_from(words).arguments.request.to_http();
            assert_eq!(format!("{method} {target} {body}"), expected, "{typed}");
        }
        for bad in
            ["", "kick", "kick ann --connection 7", "ban", "ban ann --address ::1", "ban --address ann", "publish tea"]
        {
            let words = ["admin"].into_iter().chain(bad.split_whitespace());
            assert!(CommandLine::try_parse_from(words).is_err(), "{bad}");
        }
    }
}
