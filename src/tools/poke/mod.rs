//! `wirechat poke`: a client that does one thing to a server, and shows what comes of it.
//!
//! | | |
//! |---|---|
//! | [`case`] | what a case is, as data |
//! | [`catalogue`] | all of them |
//! | [`url`], [`request`] | where the server is, and how it is asked |
//! | [`play`], [`wire`] | does what a case says, on a socket |
//! | [`verdict`] | was it right? |
//! | [`report`] | tells a person |
//!
//! What the server sends is taken apart by [`inbox`](super::inbox).
//!
//! It runs against any server, so that a learner can point it at the one that they are writing. Without a URL it looks
//! for a wirechat on this machine, and then also tries rules that are wirechat's own.

pub mod case;
pub mod catalogue;
pub mod play;
pub mod report;
pub mod request;
pub mod url;
pub mod verdict;
pub mod wire;

use std::net::SocketAddr;
use std::time::Duration;

use clap::{ArgAction, Args};

use self::case::{Case, Needs};
use self::play::{Outcome, Patience};
use self::report::Report;
use self::url::Url;
use crate::inspect::Record;

/// Where a wirechat listens that was started without options.
const OWN_SERVER: &str = "ws://127.0.0.1:3000/";
/// Its endpoints, with a token of the demo set.
const OWN_ECHO: &str = "/echo?token=dev-token";
const OWN_CHAT: &str = "/?token=dev-token&username=poke&room=poke";

const AFTER_HELP: &str = "\
Try:  wirechat poke list                                   what there is
      wirechat poke hello                                  the RFC's handshake and frame, to a wirechat
      wirechat poke unmasked-frame --full                  and every byte of it
      wirechat poke one-byte-at-a-time --delay 200ms
      wirechat poke bad-utf8 ws://127.0.0.1:8080/          to the server that you are writing
      wirechat poke all ws://127.0.0.1:8080/               everything, and what came of it

The exit code is 0 if the server answered as RFC 6455 asks or allows, 1 if not, 2 if there was no server.";

/// What is asked of `poke`.
#[derive(Debug, Args)]
#[command(max_term_width = 110, after_help = AFTER_HELP)]
pub struct Arguments {
    /// A case of the catalogue; "list" lists them, "all" plays them one after the other
    #[arg(value_name = "CASE")]
    pub case: String,

    /// The server, as ws://127.0.0.1:8080/path [default: a wirechat on this machine, port 3000, with the demo token]
    #[arg(value_name = "URL")]
    pub url: Option<String>,

    /// Draw every frame, field by field
    #[arg(long)]
    pub full: bool,

    /// How long to wait between the pieces of what is sent slowly
    #[arg(long, default_value = "20ms", value_name = "DURATION", value_parser = delay)]
    pub delay: Duration,

    /// How long to wait for each answer
    #[arg(long, default_value = "3s", value_name = "DURATION", value_parser = timeout)]
    pub timeout: Duration,

    /// The server gives no message back: leave out the cases that need an echo
    #[arg(long)]
    pub no_echo: bool,

    /// The server at URL is a wirechat: use its endpoints, and try its own rules too
    #[arg(long)]
    pub wirechat: bool,

    /// Go to a server that is not on this machine. Only if it is yours, or its owner knows
    #[arg(long)]
    pub yes_i_may: bool,

    /// Print this help
    #[arg(short, long, action = ArgAction::HelpShort)]
    help: Option<bool>,
}

/// A server, and what is known of it.
#[derive(Debug, Clone)]
pub struct Target {
    url: Url,
    addresses: Vec<SocketAddr>,
    is_wirechat: bool,
    is_echo: bool,
}

impl Target {
    /// A wirechat that takes the demo tokens.
    ///
    /// # Errors
    /// A line: the URL is none, or leads to another machine.
    pub fn wirechat(url: &str) -> Result<Target, String> {
        let url = Url::parse(url)?;
        Ok(Target { addresses: url.addresses(false)?, url, is_wirechat: true, is_echo: true })
    }

    /// A server that gives every message back, whoever wrote it.
    ///
    /// # Errors
    /// As above.
    pub fn echo(url: &str) -> Result<Target, String> {
        Ok(Target { is_wirechat: false, ..Target::wirechat(url)? })
    }

    fn new(arguments: &Arguments) -> Result<Target, String> {
        let url = Url::parse(arguments.url.as_deref().unwrap_or(OWN_SERVER))?;
        Ok(Target {
            addresses: url.addresses(arguments.yes_i_may)?,
            url,
            is_wirechat: arguments.wirechat || arguments.url.is_none(),
            is_echo: !arguments.no_echo,
        })
    }

    /// Where a case is played; `Err`: why it is not.
    fn place(&self, case: &Case) -> Result<Url, &'static str> {
        match (case.needs, self.is_wirechat) {
            (Needs::Echo, _) if !self.is_echo => Err("it needs an echo"),
            (Needs::OwnEcho | Needs::OwnChat, false) => {
                Err("it tries a rule of wirechat's own (is it one? --wirechat)")
            }
            (_, false) => Ok(self.url.clone()),
            (Needs::OwnChat, true) => Ok(self.url.with_target(OWN_CHAT)),
            (_, true) => Ok(self.url.with_target(OWN_ECHO)),
        }
    }

    /// Whether a case makes sense for this server.
    pub fn takes(&self, case: &Case) -> bool {
        self.place(case).is_ok()
    }

    /// Plays a case; `show` gets what the tracer sees.
    ///
    /// # Errors
    /// A line: nobody listens, or the case makes no sense here.
    pub fn play(&self, case: &Case, patience: Patience, show: &mut dyn FnMut(Record)) -> Result<Outcome, String> {
        let url = self.place(case).map_err(|why| format!("{} is not for {}: {why}", case.name, self.url))?;
        play::play(case, &url, &self.addresses, patience, show)
    }
}

/// Does what is asked. `true`: the server answered as it should.
///
/// # Errors
/// A line: no such case, no such server.
pub fn run(arguments: &Arguments) -> Result<bool, String> {
    let report = Report::new(arguments.full);
    if arguments.case == "list" {
        report.list();
        return Ok(true);
    }
    let target = Target::new(arguments)?;
    let patience = Patience { timeout: arguments.timeout, delay: arguments.delay };
    let is_right = match arguments.case.as_str() {
        "all" => report.all(&target, patience),
        name => report.one(&target, find(name)?, patience),
    };
    is_right.map_err(|error| match arguments.url {
        Some(_) => error,
        None => format!("{error}; start a wirechat there, or name a server: wirechat poke CASE ws://…"),
    })
}

/// The case of this name.
fn find(name: &str) -> Result<&'static Case, String> {
    catalogue::all().find(|case| case.name == name).ok_or_else(|| {
        let near: Vec<&str> = catalogue::all().map(|case| case.name).filter(|other| is_near(name, other)).collect();
        let near = if near.is_empty() { String::new() } else { format!("; there is {}", near.join(", ")) };
        format!("there is no case {name:?}{near} (wirechat poke list)")
    })
}

/// Whether one of the words of a name is in the other.
fn is_near(name: &str, other: &str) -> bool {
    name.split('-').any(|word| word.len() > 2 && other.contains(word.trim_end_matches('s')))
}

fn delay(text: &str) -> Result<Duration, String> {
    duration(text, Duration::ZERO, Duration::from_secs(10))
}

fn timeout(text: &str) -> Result<Duration, String> {
    duration(text, Duration::from_millis(10), Duration::from_secs(600))
}

fn duration(text: &str, min: Duration, max: Duration) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(duration) if (min..=max).contains(&duration) => Ok(duration),
        Ok(_) => {
            let (min, max) = (humantime::format_duration(min), humantime::format_duration(max));
            Err(format!("must be from {min} to {max}"))
        }
        Err(_) => Err("must be a duration, as 200ms or 5s".into()),
    }
}
