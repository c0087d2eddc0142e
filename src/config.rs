//! Every bound and every wait, its default, and why it is that number.
//!
//! `Config` is also the command line: each field is a flag, and an environment variable of the same name
//! (`--max-text` is `WIRECHAT_MAX_TEXT`). It is validated once, at start; nothing else reads the environment.
//!
//! The subtle thing: some limits only make sense together (a ping must come before the idle timeout that it is to
//! prevent), so [`Config::validate`] looks at relations as well as at single values.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::FalseyValueParser;
use clap::{ArgAction, Parser, ValueEnum, value_parser};

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// Descriptors that are kept for what is not a client: the standard streams, the poll, the listener, and a few
/// clients more than the limit, who are told with a `503` that the server is full.
pub const RESERVED_DESCRIPTORS: usize = 16;

/// A chat server over WebSockets in which every byte of RFC 6455 is handled by hand, to be read, run and watched.
/// Start it without any option, then open client.html in a browser.
#[derive(Debug, Clone, Parser)]
#[command(name = "wirechat", version, max_term_width = 110, after_help = AFTER_HELP, disable_help_flag = true)]
pub struct Config {
    /// Where to listen. Port 0 takes a free port, which is printed
    #[arg(long, env = "WIRECHAT_LISTEN", hide_env = true, default_value = "127.0.0.1:3000", value_name = "HOST:PORT", value_parser = address, help_heading = WHO)]
    pub listen: SocketAddr,

    /// The tokens that let a client in: one a line, optionally followed by the one username it may use; # starts a
    /// comment. Without this a demo set is in force, on loopback only
    #[arg(long, env = "WIRECHAT_TOKENS", hide_env = true, value_name = "FILE", help_heading = WHO)]
    pub tokens: Option<PathBuf>,

    /// Ask for no token at all
    #[arg(long, env = "WIRECHAT_OPEN", hide_env = true, value_parser = FalseyValueParser::new(), help_heading = WHO)]
    pub open: bool,

    /// Welcome pages from this origin, as often as needed; "null" stands for pages opened from disk, "*" for all
    #[arg(long, env = "WIRECHAT_ALLOW_ORIGIN", hide_env = true, value_name = "ORIGIN", value_delimiter = ',', help_heading = WHO)]
    pub allow_origin: Vec<String>,

    /// On a loopback address, welcome requests for this host name, as often as needed; "*" stands for all
    #[arg(long, env = "WIRECHAT_ALLOW_HOST", hide_env = true, value_name = "NAME", value_delimiter = ',', help_heading = WHO)]
    pub allow_host: Vec<String>,

    /// Let no two clients have the same name, however it is spelled
    #[arg(long, env = "WIRECHAT_UNIQUE_NAMES", hide_env = true, value_parser = FalseyValueParser::new(), help_heading = WHO)]
    pub unique_names: bool,

    /// Show every frame on stderr as it passes: a line each, or with =full drawn field by field over its bytes
    #[arg(long, env = "WIRECHAT_TRACE", hide_env = true, value_name = "full", num_args = 0..=1, require_equals = true, default_missing_value = "line", hide_possible_values = true, help_heading = WIRE)]
    pub trace: Option<TraceDetail>,

    /// Of that only this, with commas between: connection=7 (or '#7', quoted for the shell), user=NAME, control (frames),
    /// errors
    #[arg(long, env = "WIRECHAT_TRACE_FILTER", hide_env = true, value_name = "WHAT", requires = "trace", help_heading = WIRE)]
    pub trace_filter: Option<String>,

    /// Let pages look at their own connection also where others than this machine can reach the server
    #[arg(long, env = "WIRECHAT_INSPECT", hide_env = true, value_parser = FalseyValueParser::new(), help_heading = WIRE)]
    pub inspect: bool,

    /// Record the bytes of each connection in a file of this folder, to be read with wirechat replay
    #[arg(long, env = "WIRECHAT_RECORD", hide_env = true, value_name = "DIR", help_heading = WIRE)]
    pub record: Option<PathBuf>,

    /// Bytes of all recordings of one run together (64 MiB: half as many on the wire, since they are written as text)
    #[arg(long, env = "WIRECHAT_RECORD_LIMIT", hide_env = true, default_value_t = 64 * MIB as u64, value_name = "BYTES", value_parser = value_parser!(u64).range(KIB as u64..), help_heading = WIRE)]
    pub record_limit: u64,

    /// Bytes of a request head (8 KiB: more than any browser sends)
    #[arg(long, env = "WIRECHAT_MAX_HEAD", hide_env = true, default_value_t = 8 * KIB, value_name = "BYTES", value_parser = number(64, MIB), help_heading = LIMITS)]
    pub max_head: usize,

    /// Headers in a request (64: a browser sends about fifteen)
    #[arg(long, env = "WIRECHAT_MAX_HEADERS", hide_env = true, default_value_t = 64, value_name = "N", value_parser = number(5, 10_000), help_heading = LIMITS)]
    pub max_headers: usize,

    /// Bytes of a message on a chat endpoint (64 KiB: room for the longest text in JSON escapes)
    #[arg(long, env = "WIRECHAT_MAX_MESSAGE", hide_env = true, default_value_t = 64 * KIB, value_name = "BYTES", value_parser = number(125, 1024 * MIB), help_heading = LIMITS)]
    pub max_message: usize,

    /// Bytes of a message on /echo (16 MiB: the largest that the Autobahn test suite sends)
    #[arg(long, env = "WIRECHAT_MAX_ECHO", hide_env = true, default_value_t = 16 * MIB, value_name = "BYTES", value_parser = number(125, 1024 * MIB), help_heading = LIMITS)]
    pub max_echo: usize,

    /// Characters of a chat text
    #[arg(long, env = "WIRECHAT_MAX_TEXT", hide_env = true, default_value_t = 500, value_name = "N", value_parser = number(1, MIB), help_heading = LIMITS)]
    pub max_text: usize,

    /// Frames of one message, empty ones counted (they cost time, if not memory)
    #[arg(long, env = "WIRECHAT_MAX_FRAGMENTS", hide_env = true, default_value_t = 100_000, value_name = "N", value_parser = value_parser!(u32).range(1..), help_heading = LIMITS)]
    pub max_fragments: u32,

    /// Bytes that may wait for one reader; one who is slower than that is closed (256 KiB: seconds of a busy room)
    #[arg(long, env = "WIRECHAT_MAX_OUTBOX", hide_env = true, default_value_t = 256 * KIB, value_name = "BYTES", value_parser = number(KIB, 1024 * MIB), help_heading = LIMITS)]
    pub max_outbox: usize,

    /// Bytes of unfinished messages and unsent echoes of all connections together
    #[arg(long, env = "WIRECHAT_MAX_BUFFERED", hide_env = true, default_value_t = 256 * MIB, value_name = "BYTES", value_parser = number(KIB, usize::MAX), help_heading = LIMITS)]
    pub max_buffered: usize,

    /// Bytes read from one connection before the others get their turn (64 KiB: one read)
    #[arg(long, env = "WIRECHAT_MAX_READ", hide_env = true, default_value_t = 64 * KIB, value_name = "BYTES", value_parser = number(KIB, 16 * MIB), help_heading = LIMITS)]
    pub max_read: usize,

    /// Connections [default: the descriptor limit less 16]
    #[arg(long, env = "WIRECHAT_MAX_CONNECTIONS", hide_env = true, value_name = "N", value_parser = number(1, 10_000_000), help_heading = LIMITS)]
    pub max_connections: Option<usize>,

    /// Connections from one address, loopback excepted (an IPv6 address counts by its first 64 bits)
    #[arg(long, env = "WIRECHAT_MAX_PER_ADDRESS", hide_env = true, default_value_t = 32, value_name = "N", value_parser = number(1, 10_000_000), help_heading = LIMITS)]
    pub max_per_address: usize,

    /// Wrong tokens in a minute from one address, loopback excepted
    #[arg(long, env = "WIRECHAT_MAX_WRONG_TOKENS", hide_env = true, default_value_t = 30, value_name = "N", value_parser = number(1, 10_000_000), help_heading = LIMITS)]
    pub max_wrong_tokens: usize,

    /// Rooms that have members
    #[arg(long, env = "WIRECHAT_MAX_ROOMS", hide_env = true, default_value_t = 1000, value_name = "N", value_parser = number(1, 10_000_000), help_heading = LIMITS)]
    pub max_rooms: usize,

    /// Messages a second from one client, with bursts of twice that; 0: no limit
    #[arg(long, env = "WIRECHAT_RATE_LIMIT", hide_env = true, default_value = "5", value_name = "N", value_parser = rate, help_heading = LIMITS)]
    pub rate_limit: f64,

    /// Messages of a room that are kept and told to newcomers; 0: none
    #[arg(long, env = "WIRECHAT_HISTORY", hide_env = true, default_value_t = 50, value_name = "N", value_parser = number(0, 10_000), help_heading = LIMITS)]
    pub history: usize,

    /// Bytes of the history of all rooms together (16 MiB: about 50,000 messages)
    #[arg(long, env = "WIRECHAT_MAX_HISTORY", hide_env = true, default_value_t = 16 * MIB, value_name = "BYTES", value_parser = number(KIB, usize::MAX), help_heading = LIMITS)]
    pub max_history: usize,

    /// Rooms with nobody in them whose history is kept
    #[arg(long, env = "WIRECHAT_MAX_EMPTY_ROOMS", hide_env = true, default_value_t = 1000, value_name = "N", value_parser = number(0, 10_000_000), help_heading = LIMITS)]
    pub max_empty_rooms: usize,

    /// Seconds that the history of a room with nobody in it is kept
    #[arg(long, env = "WIRECHAT_HISTORY_TTL", hide_env = true, default_value = "3600", value_name = "SECONDS", value_parser = seconds, help_heading = WAITS)]
    pub history_ttl: Duration,

    /// Seconds from accept to the end of the request head
    #[arg(long, env = "WIRECHAT_HANDSHAKE_TIMEOUT", hide_env = true, default_value = "10", value_name = "SECONDS", value_parser = seconds, help_heading = WAITS)]
    pub handshake_timeout: Duration,

    /// Seconds without a byte from a client before it is sent a ping
    #[arg(long, env = "WIRECHAT_PING_INTERVAL", hide_env = true, default_value = "30", value_name = "SECONDS", value_parser = seconds, help_heading = WAITS)]
    pub ping_interval: Duration,

    /// Seconds without a byte from a client before it is cut off
    #[arg(long, env = "WIRECHAT_IDLE_TIMEOUT", hide_env = true, default_value = "60", value_name = "SECONDS", value_parser = seconds, help_heading = WAITS)]
    pub idle_timeout: Duration,

    /// Seconds that a client has to answer a close
    #[arg(long, env = "WIRECHAT_CLOSE_TIMEOUT", hide_env = true, default_value = "5", value_name = "SECONDS", value_parser = seconds, help_heading = WAITS)]
    pub close_timeout: Duration,

    /// Log each message too, its first 80 characters
    #[arg(short, long, help_heading = LOGGING)]
    pub verbose: bool,

    /// Print this help
    #[arg(short, long, action = ArgAction::HelpShort, help_heading = LOGGING)]
    help: Option<bool>,

    /// Log warnings and errors only
    #[arg(short, long, conflicts_with = "verbose", help_heading = LOGGING)]
    pub quiet: bool,
}

const WHO: &str = "Who may come in";
const WIRE: &str = "Watching the wire";
const LIMITS: &str = "Limits";
const WAITS: &str = "Waits";
const LOGGING: &str = "Logging and help";
const AFTER_HELP: &str = "\
Each option but the logging ones can be set by an environment variable as well: --max-text is WIRECHAT_MAX_TEXT.
With the demo set, try:  wscat -c 'ws://127.0.0.1:3000/?token=dev-token&username=me&room=general'
and type:                {\"event\":\"message\",\"data\":{\"text\":\"hello from wscat\"}}";

/// How much `--trace` shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TraceDetail {
    /// One line a frame.
    Line,
    /// All of it.
    Full,
}

impl Config {
    /// Checks what one value alone cannot tell.
    ///
    /// # Errors
    /// A line that names the options at odds.
    pub fn validate(&self) -> Result<(), String> {
        if self.open && self.tokens.is_some() {
            return Err("--open and --tokens exclude each other: either no token is asked for, or these are".into());
        }
        if self.tokens.is_none() && !self.open && !self.is_loopback() {
            let listen = self.listen;
            return Err(format!(
                "the demo tokens are public, so without --tokens FILE (or --open) only a loopback address will do, not {listen}"
            ));
        }
        if self.ping_interval >= self.idle_timeout {
            return Err("--ping-interval must be shorter than --idle-timeout, or no ping could keep a client".into());
        }
        Ok(())
    }

    /// What is logged.
    pub fn log_level(&self) -> log::LevelFilter {
        match (self.quiet, self.verbose) {
            (true, _) => log::LevelFilter::Warn,
            (_, true) => log::LevelFilter::Debug,
            _ => log::LevelFilter::Info,
        }
    }

    /// How long after its last byte a client that has been silent for this long must be looked at again: for a ping,
    /// then to be cut off. `None`: it is to be cut off now.
    pub fn after_silence(&self, silent: Duration) -> Option<Duration> {
        [self.ping_interval, self.idle_timeout].into_iter().find(|wait| *wait > silent)
    }

    /// Whether only this machine can reach the server.
    pub fn is_loopback(&self) -> bool {
        self.listen.ip().to_canonical().is_loopback()
    }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let mut found = text.to_socket_addrs().map_err(|error| format!("not a host and a port ({error})"))?;
    found.next().ok_or_else(|| "that name has no address".into())
}

/// A parser for a number within bounds that are not silly.
fn number(min: usize, max: usize) -> impl Fn(&str) -> Result<usize, String> + Clone {
    move |text| match text.parse() {
        Ok(number) if (min..=max).contains(&number) => Ok(number),
        Ok(_) if max == usize::MAX => Err(format!("must be at least {min}")),
        Ok(_) => Err(format!("must be from {min} to {max}")),
        Err(_) => Err("must be a whole number".into()),
    }
}

/// A parser for a rate a second.
fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate == 0.0 || (0.001..=10_000.0).contains(&rate) => Ok(rate),
        _ => Err("must be 0, or a number from 0.001 to 10000".into()),
    }
}

/// A parser for a wait. A day is far beyond what any of them is for.
fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.001..=86_400.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("must be seconds, from 0.001 to 86400".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(args: &[&str]) -> Result<Config, String> {
        let args = std::iter::once("wirechat").chain(args.iter().copied());
        let config = Config::try_parse_from(args).map_err(|error| error.to_string())?;
        config.validate().map(|()| config)
    }

    #[test]
    fn the_defaults_are_those_of_the_protocol_page() {
        let config = config(&[]).unwrap();
        assert_eq!(config.listen.to_string(), "127.0.0.1:3000");
        assert_eq!((config.max_head, config.max_headers, config.max_text), (8192, 64, 500));
        assert_eq!((config.max_message, config.max_echo, config.max_fragments), (65536, 16_777_216, 100_000));
        assert_eq!((config.max_outbox, config.max_buffered), (262_144, 268_435_456));
        let waits = [config.handshake_timeout, config.ping_interval, config.idle_timeout, config.close_timeout];
        assert_eq!(waits.map(|wait| wait.as_secs()), [10, 30, 60, 5]);
    }

    #[test]
    fn silly_values_are_refused() {
        let silly: &[&[&str]] = &[
            &["--listen", "nowhere"],
            &["--max-text", "0"],
            &["--max-text", "-1"],
            &["--max-text", "many"],
            &["--max-outbox", "10"],
            &["--max-fragments", "0"],
            &["--handshake-timeout", "0"],
            &["--handshake-timeout", "NaN"],
            &["--close-timeout", "-1"],
            &["--idle-timeout", "1e9"],
            &["--ping-interval", "60", "--idle-timeout", "60"],
            &["--open", "--tokens", "file"],
            &["--listen", "0.0.0.0:3000"],
            &["--listen", "[::]:3000"],
        ];
        for args in silly {
            assert!(config(args).is_err(), "{args:?}");
        }
    }

    #[test]
    fn off_loopback_is_for_those_who_say_who_may_come_in() {
        assert!(config(&["--listen", "0.0.0.0:3000", "--open"]).is_ok());
        assert!(config(&["--listen", "0.0.0.0:3000", "--tokens", "file"]).is_ok());
        assert!(config(&["--listen", "[::1]:3000"]).unwrap().is_loopback());
    }
}
