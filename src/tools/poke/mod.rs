//! `wirechat poke` is a WebSocket test client. It runs a test [`case`] from the [`catalogue`] against a server, and
//! prints the exchange, the expected result and the rule. [`request`] builds the request, [`connection`] wraps the
//! socket, [`play`] runs the steps, [`check`] compares the result with the case, and [`report`] prints the verdict.
//! `poke` can test any ws:// server. Without a URL, it tests the wirechat server on this machine, including wirechat's
//! own rules. [`player`] runs the same cases for the inspector of the chat page.

pub mod case;
pub mod catalogue;
pub mod check;
pub mod connection;
pub mod play;
pub mod player;
pub mod report;
pub mod request;

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use clap::{ArgAction, Args};

use self::case::{Case, Requirement};
use self::play::{Timing, Transcript};
use self::report::Report;
use crate::inspect::Record;
use crate::tools::url::Url;
use crate::tools::{parse_duration, parse_timeout};

const LOCAL_URL: &str = "ws://127.0.0.1:3000/";
const ECHO_TARGET: &str = "/echo?token=dev-token";
const CHAT_TARGET: &str = "/?token=dev-token&username=poke&room=poke";

const AFTER_HELP: &str = "\
Try:  wirechat poke list                                   the cases
      wirechat poke hello                                  the RFC's own handshake and frame
      wirechat poke unmasked-frame --full                  with every byte drawn
      wirechat poke one-byte-at-a-time --delay 200ms
      wirechat poke bad-utf8 ws://127.0.0.1:8080/          to the server that you are writing
      wirechat poke all ws://127.0.0.1:8080/               every case, one line each

The exit code is 0 if the server did what RFC 6455 demands or permits, 1 if not, 2 if it cannot be
reached.";

#[derive(Debug, Args)]
#[command(max_term_width = 110, after_help = AFTER_HELP)]
pub struct Arguments {
    /// Run this test case; "list" prints all names, "all" runs every test case
    #[arg(value_name = "CASE")]
    case: String,

    /// Test the server at this URL, such as ws://127.0.0.1:8080/path [default: wirechat on port 3000 of this machine]
    #[arg(value_name = "URL")]
    url: Option<String>,

    /// Draw every frame, field by field
    #[arg(long)]
    full: bool,

    /// Pause this long wherever a test case pauses, and between bytes that it sends one at a time
    #[arg(long, default_value = "20ms", value_name = "DURATION", value_parser = parse_delay)]
    delay: Duration,

    /// Wait this long for each reply
    #[arg(long, default_value = "3s", value_name = "DURATION", value_parser = parse_timeout)]
    timeout: Duration,

    /// Skip test cases that need an echo, for a server that does not send messages back
    #[arg(long)]
    no_echo: bool,

    /// Treat the server at URL as a wirechat server: use wirechat's endpoints, and also test wirechat's own rules
    #[arg(long)]
    wirechat: bool,

    /// Permit a connection to another machine; use this only with the permission of its owner
    #[arg(long)]
    yes_i_may: bool,

    #[arg(short, long, action = ArgAction::HelpShort, help = "Print this help")]
    help: Option<bool>,
}

#[derive(Debug, Clone)]
pub struct Target {
    url: Url,
    addresses: Vec<SocketAddr>,
    is_wirechat: bool,
    is_echo: bool,
}

impl Target {
    /// Returns a target for a wirechat server on this machine that accepts the demo access tokens.
    ///
    /// # Errors
    /// A one-line message if the URL is invalid, does not resolve, or names another machine.
    pub fn for_wirechat(url: &str) -> Result<Target, String> {
        let url = Url::parse(url)?;
        Ok(Target { addresses: url.resolve(false)?, url, is_wirechat: true, is_echo: true })
    }

    pub fn for_echo(url: &str) -> Result<Target, String> {
        Ok(Target { is_wirechat: false, ..Target::for_wirechat(url)? })
    }

    fn from_arguments(arguments: &Arguments) -> Result<Target, String> {
        let url = Url::parse(arguments.url.as_deref().unwrap_or(LOCAL_URL))?;
        Ok(Target {
            addresses: url.resolve(arguments.yes_i_may)?,
            url,
            is_wirechat: arguments.wirechat || arguments.url.is_none(),
            is_echo: !arguments.no_echo,
        })
    }

    /// Returns the URL of the endpoint for a test case. The error says why the case does not apply to the server.
    fn endpoint(&self, case: &Case) -> Result<Url, &'static str> {
        match (case.needs, self.is_wirechat) {
            (Requirement::Echo, _) if !self.is_echo => Err("it needs an echo, which --no-echo rules out"),
            (Requirement::WirechatEcho | Requirement::WirechatChat, false) => {
                Err("it tests a rule of wirechat's own; if the server is a wirechat, add --wirechat")
            }
            (_, false) => Ok(self.url.clone()),
            (Requirement::WirechatChat, true) => Ok(self.url.with_target(CHAT_TARGET)),
            (_, true) => Ok(self.url.with_target(ECHO_TARGET)),
        }
    }

    pub fn supports(&self, case: &Case) -> bool {
        self.endpoint(case).is_ok()
    }

    /// Runs a test case. `show` receives each trace record immediately.
    ///
    /// # Errors
    /// A one-line message if the case does not apply to the server, the server cannot be reached, or the socket fails.
    pub fn play(&self, case: &Case, timing: Timing, show: &mut dyn FnMut(Record)) -> Result<Transcript, String> {
        let url = self.endpoint(case).map_err(|why| format!("{} is not for {}: {why}", case.name, self.url))?;
        let stream = connect(&self.addresses, timing.timeout);
        let stream = stream.map_err(|error| format!("cannot connect to {}: {error}", url.authority()))?;
        play::play(case, &url, stream, timing, show).map_err(|error| format!("the socket failed: {error}"))
    }
}

/// Lists or runs test cases. Returns `true` if every result is expected or permitted.
///
/// # Errors
/// A one-line message, for example if the case is unknown, the URL is invalid, or the server cannot be reached.
pub fn run(arguments: &Arguments) -> Result<bool, String> {
    let report = Report::new(arguments.full);
    if arguments.case == "list" {
        report.print_cases();
        return Ok(true);
    }
    let target = Target::from_arguments(arguments)?;
    let timing = Timing { timeout: arguments.timeout, delay: arguments.delay, max_duration: None };
    let result = match arguments.case.as_str() {
        "all" => report.play_all(&target, timing),
        name => report.run_case(&target, find_case(name)?, timing),
    };
    result.map_err(|error| match arguments.url {
        Some(_) => error,
        None => format!("{error}. Start a wirechat there, or name a server: wirechat poke CASE ws://…"),
    })
}

/// Connects to the first address that accepts within `timeout`. The error is from the last address tried.
fn connect(addresses: &[SocketAddr], timeout: Duration) -> std::io::Result<TcpStream> {
    let mut last = std::io::Error::from(ErrorKind::AddrNotAvailable);
    for address in addresses {
        match TcpStream::connect_timeout(address, timeout) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn find_case(name: &str) -> Result<&'static Case, String> {
    catalogue::all_cases().find(|case| case.name == name).ok_or_else(|| {
        let similar: Vec<&str> =
            catalogue::all_cases().map(|case| case.name).filter(|other| is_similar(name, other)).collect();
        let hint = if similar.is_empty() { String::new() } else { format!("; similar: {}", similar.join(", ")) };
        format!("there is no case {name:?}{hint} (wirechat poke list prints all)")
    })
}

/// Whether the case name `other` contains a word of `name`. Ignores a plural "s", and words of one or two letters.
fn is_similar(name: &str, other: &str) -> bool {
    name.split('-').any(|word| word.len() > 2 && other.contains(word.trim_end_matches('s')))
}

fn parse_delay(text: &str) -> Result<Duration, String> {
    parse_duration(text, Duration::ZERO, Duration::from_secs(10))
}
