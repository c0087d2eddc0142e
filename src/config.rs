//! The server's options, their defaults and their bounds, with the reasons for many of the values.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::{path::PathBuf, time::Duration};

use clap::builder::BoolishValueParser;
use clap::{ArgAction, Command, Parser, value_parser};
use ipnet::IpNet;
use socket2::SockAddr;

use crate::features::FeatureOptions;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;
pub const RESERVED_DESCRIPTORS: usize = 16; // 8 descriptors for stdio, listeners etc., and 8 for rejected connections

const LOGGING_HEADING: &str = "Logging and help";
const AFTER_HELP: &str = "\
Every option except those of the last group is also an environment variable: --max-text is WIRECHAT_MAX_TEXT.
WIRECHAT_LOG selects log lines, such as debug, or off,wirechat::server=info.
Without --tokens, --jwt-key and --open, the demo tokens work on a local server. Try:
  wscat -c 'ws://127.0.0.1:3000/?token=dev-token&username=me&room=general'
and type:
  {\"event\":\"message\",\"data\":{\"text\":\"hello from wscat\"}}";

/// A WebSocket chat server that implements RFC 6455 from scratch. Start it without options, then open client.html in
/// a browser.
#[derive(Debug, Clone, Parser)]
#[command(name = "wirechat", version, max_term_width = 110, after_help = AFTER_HELP, disable_help_flag = true)]
pub struct Config {
    // Set `help` here: in a doc comment, rustdoc would parse [::] as a link.
    #[arg(long, help = "Listen on HOST:PORT, on [::]:PORT for IPv6 and IPv4, on a port of 127.0.0.1 (0: any free port), or on unix:PATH for a proxy on this machine (repeatable)", default_value = "127.0.0.1:3000", value_name = "ADDRESS", value_delimiter = ',', value_parser = parse_listen_address, help_heading = "Access")]
    pub listen: Vec<SockAddr>,
    /// Read access tokens from this file: one per line, optionally followed by the username that the token is bound to;
    /// # starts a comment
    #[arg(long, value_name = "FILE", help_heading = "Access")]
    pub tokens: Option<PathBuf>, // without `tokens`, `jwt_key` or `open`, a local server accepts the demo tokens
    /// Accept clients without an access token
    #[arg(long, value_parser = BoolishValueParser::new(), help_heading = "Access")]
    pub open: bool,
    /// Allow pages from this origin (scheme, host, port); "null" allows pages opened from disk, "*" any (repeatable)
    #[arg(long, value_name = "ORIGIN", value_delimiter = ',', value_parser = parse_list_item, help_heading = "Access")]
    pub allow_origin: Vec<String>,
    /// Allow requests with this name in the Host header, besides loopback names; "*" allows all (repeatable)
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = parse_list_item, help_heading = "Access")]
    // An empty list allows every name or, if a `listen` address is loopback, only loopback names.
    pub allow_host: Vec<String>,
    /// Take the client's address from X-Forwarded-For if the connection comes from this proxy (repeatable)
    #[arg(long, value_name = "CIDR", value_delimiter = ',', value_parser = parse_network, help_heading = "Access")]
    pub trusted_proxy: Vec<IpNet>,
    /// Require a PROXY protocol header, which names the client, on each connection from a --trusted-proxy or Unix
    /// socket
    #[arg(long, value_parser = BoolishValueParser::new(), help_heading = "Access")]
    pub proxy_protocol: bool,
    /// Reject a username that is already in use (case-insensitive)
    #[arg(long, value_parser = BoolishValueParser::new(), help_heading = "Access")]
    pub unique_names: bool,
    /// Disable /echo, which sends every message back to its sender
    #[arg(long, value_parser = BoolishValueParser::new(), help_heading = "Access")]
    pub no_echo: bool,
    /// Print every frame to stderr, either on one line or, with =full, with all of its fields
    #[arg(long, value_name = "full", num_args = 0..=1, require_equals = true, default_missing_value = "line", value_parser = ["line", "full"], hide_possible_values = true, help_heading = "Tracing and recording")]
    pub trace: Option<String>,
    /// Print only records that match this comma-separated list: connection=7 (or '#7'), user=NAME, control, errors
    #[arg(long, value_name = "FILTER", help_heading = "Tracing and recording")]
    pub trace_filter: Option<String>,
    /// Let each page inspect its own connection; on by default if only this machine can reach the server
    #[arg(long, value_parser = BoolishValueParser::new(), help_heading = "Tracing and recording")]
    pub inspect: bool,
    /// Do not let pages inspect their own connections, even if only this machine can reach the server
    #[arg(long, value_parser = BoolishValueParser::new(), help_heading = "Tracing and recording")]
    pub no_inspect: bool,
    /// Record every connection to a file in this directory, for wirechat replay
    #[arg(long, value_name = "DIR", help_heading = "Tracing and recording")]
    pub record: Option<PathBuf>,
    /// Stop recording after this many bytes in total, at most a tenth of them for rejected or unfinished requests
    #[arg(long, default_value_t = 64 * MIB as u64, value_name = "BYTES", value_parser = value_parser!(u64).range(KIB as u64..), help_heading = "Tracing and recording")]
    pub record_limit: u64, // counts file bytes, not wire bytes: a recording stores each wire byte as two hex digits
    /// Limit a request head to this many bytes
    #[arg(long, default_value_t = 8 * KIB, value_name = "BYTES", value_parser = parse_number(140, MIB), help_heading = "Limits")]
    pub max_head: usize, // an endless request head must not fill memory; browsers usually send under 4 KiB
    /// Limit a request to this many headers
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = parse_number(5, 10_000), help_heading = "Limits")]
    pub max_headers: usize, // bounds the parser's memory; 64 is ample: a browser sends about 15, an upgrade needs 5
    /// Limit a chat message to this many bytes
    #[arg(long, default_value_t = 64 * KIB, value_name = "BYTES", value_parser = parse_number(125, 1024 * MIB), help_heading = "Limits")]
    pub max_message: usize, // bounds the memory per message, but fits the longest text with every character escaped
    /// Limit a message on /echo to this many bytes
    #[arg(long, default_value_t = 16 * MIB, value_name = "BYTES", value_parser = parse_number(125, 1024 * MIB), help_heading = "Limits")]
    pub max_echo: usize, // 16 MiB is the largest message that the Autobahn test suite sends
    /// Limit a chat text to this many characters
    #[arg(long, default_value_t = 500, value_name = "N", value_parser = parse_number(1, MIB), help_heading = "Limits")]
    pub max_text: usize, // a long text must not push all other messages off the screen
    /// Limit a message to this many frames
    #[arg(long, default_value_t = 100_000, value_name = "N", value_parser = value_parser!(u32).range(1..), help_heading = "Limits")]
    pub max_fragments: u32, // bounds the time spent on empty frames; Autobahn sends messages of up to 65,536 frames
    /// Disconnect a client that leaves more bytes than this unread
    #[arg(long, default_value_t = 256 * KIB, value_name = "BYTES", value_parser = parse_number(KIB, 1024 * MIB), help_heading = "Limits")]
    pub max_outbox: usize, // 256 KiB lets a client stall for several seconds even in a busy room
    /// Limit the total size of unfinished requests, unfinished messages and unsent output of all connections
    #[arg(long, default_value_t = 256 * MIB, value_name = "BYTES", value_parser = parse_number(KIB, usize::MAX), help_heading = "Limits")]
    pub max_buffered: usize, // many peers within their own limits could together exhaust memory
    /// Read at most this many bytes from a connection before serving the others
    #[arg(long, default_value_t = 64 * KIB, value_name = "BYTES", value_parser = parse_number(KIB, 16 * MIB), help_heading = "Limits")]
    pub max_read: usize, // one read(2) per connection per turn: a peer that never pauses must not delay others
    /// Accept at most this many connections [default: the descriptor limit minus 16]
    #[arg(long, value_name = "N", value_parser = parse_number(1, 10_000_000), help_heading = "Limits")]
    pub max_connections: Option<usize>,
    /// Limit the number of connections from one address (loopback is exempt unless the server is public); 0: no limit
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = parse_number(0, 10_000_000), help_heading = "Limits")]
    pub max_per_address: usize, // a household shares one IPv4 address or IPv6 /64, so IPv6 is limited per /64
    /// Accept at most this many connections per second, and bursts of five times as many, from one address (loopback is
    /// exempt unless the server is public); 0: no limit
    #[arg(long, default_value = "20", value_name = "N", value_parser = parse_rate, help_heading = "Limits")]
    // The server limits new connections because a handshake costs it as much as ten messages. An ordinary user stays
    // below the limit, because loading the page opens at most two connections.
    pub connect_rate: f64,
    /// Allow this many wrong access tokens per minute from one address (loopback is exempt unless the server is
    /// public); 0: no limit
    #[arg(long, default_value_t = 30, value_name = "N", value_parser = parse_number(0, 10_000_000), help_heading = "Limits")]
    pub max_wrong_tokens: usize, // no user mistypes a token thirty times a minute, but a program could guess millions
    /// Limit the number of rooms that have members
    #[arg(long, default_value_t = 1000, value_name = "N", value_parser = parse_number(1, 10_000_000), help_heading = "Limits")]
    pub max_rooms: usize, // each room needs memory, and one client can open many rooms
    /// Limit the number of rooms that one user may open; ignored if only this machine can reach the server
    #[arg(long, default_value_t = 50, value_name = "N", value_parser = parse_number(1, 10_000_000), help_heading = "Limits")]
    pub max_rooms_per_user: usize, // one user must not use up `max_rooms` or evict the histories of all empty rooms
    /// List at most this many members to a client that joins
    #[arg(long, default_value_t = 1000, value_name = "N", value_parser = parse_number(0, 1_000_000), help_heading = "Limits")]
    pub max_listed: usize, // the cost of a join grows with the length of the member list
    /// In the presence dialect, send the member list with every join and leave in rooms of up to this many members
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = parse_number(0, 100_000), help_heading = "Limits")]
    pub max_presence: usize, // n joins send O(n³) names: each join sends up to n names to up to n members
    /// Allow each user this many messages per second, and bursts of twice as many; 0: no limit
    #[arg(long, default_value = "5", value_name = "N", value_parser = parse_rate, help_heading = "Limits")]
    pub rate_limit: f64, // no user types five messages a second for long
    /// Keep this many messages per room for clients that join; 0: none
    #[arg(long, default_value_t = 50, value_name = "N", value_parser = parse_number(0, 10_000), help_heading = "Limits")]
    pub history: usize,
    /// Limit the total size of all rooms' histories
    #[arg(long, default_value_t = 16 * MIB, value_name = "BYTES", value_parser = parse_number(KIB, usize::MAX), help_heading = "Limits")]
    pub max_history: usize, // 16 MiB holds about 50,000 messages
    /// Keep the history of at most this many empty rooms
    #[arg(long, default_value_t = 1000, value_name = "N", value_parser = parse_number(0, 10_000_000), help_heading = "Limits")]
    pub max_empty_rooms: usize,
    /// Keep the history of an empty room for this long
    #[arg(long, default_value = "3600", value_name = "SECONDS", value_parser = parse_seconds(0.001), help_heading = "Timeouts")]
    pub history_ttl: Duration, // a member whose connection is lost can return within an hour and still find the history
    /// Reject a request that is not complete after this long
    #[arg(long, default_value = "10", value_name = "SECONDS", value_parser = parse_seconds(0.001), help_heading = "Timeouts")]
    pub handshake_timeout: Duration, // a silent peer must not keep a connection slot; slow networks need less than 10 s
    /// Ping a client that has sent nothing for this long
    #[arg(long, default_value = "30", value_name = "SECONDS", value_parser = parse_seconds(0.001), help_heading = "Timeouts")]
    pub ping_interval: Duration, // detects dead peers, and keeps a proxy's idle timeout, often 60 s, from expiring
    /// Drop a client that has sent nothing for this long
    #[arg(long, default_value = "60", value_name = "SECONDS", value_parser = parse_seconds(0.001), help_heading = "Timeouts")]
    pub idle_timeout: Duration,
    /// Wait this long for the reply to a Close frame
    #[arg(long, default_value = "5", value_name = "SECONDS", value_parser = parse_seconds(0.001), help_heading = "Timeouts")]
    pub close_timeout: Duration, // the reply to a Close takes only one round trip, so 5 s is plenty
    /// After SIGTERM, accept clients for this much longer: a load balancer needs time to notice
    #[arg(long, default_value = "0", value_name = "SECONDS", value_parser = parse_seconds(0.0), help_heading = "Timeouts")]
    pub drain_delay: Duration,
    /// After SIGTERM, spread the closing of connections evenly over this time
    #[arg(long, default_value = "0", value_name = "SECONDS", value_parser = parse_seconds(0.0), help_heading = "Timeouts")]
    pub drain: Duration, // if all clients reconnected at once, they could overload the server that they reconnect to
    /// Read options, such as max-text = 1000, from this TOML file; the environment and the command line override it
    #[arg(long, value_name = "FILE", help_heading = "Configuration file")]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    pub features: FeatureOptions,
    /// Also log every message (its first 64 characters)
    #[arg(short, long, help_heading = LOGGING_HEADING)]
    pub verbose: bool,
    /// Print this help
    #[arg(short, long, action = ArgAction::HelpShort, help_heading = LOGGING_HEADING)]
    help: Option<bool>,
    /// Log only warnings and errors
    #[arg(short, long, conflicts_with = "verbose", help_heading = LOGGING_HEADING)]
    pub quiet: bool,
}

impl Config {
    pub fn validate(&self) -> Result<(), String> {
        let Config { max_text, max_message, max_echo, max_buffered, max_history, .. } = self;
        let (ping, idle) = (self.ping_interval.as_secs_f64(), self.idle_timeout.as_secs_f64());
        let (largest, option) = (max_message, "--max-message").max((max_echo, "--max-echo"));
        // `--max-message` must have room for the longest text at one byte per character. An escaped character can take
        // 12 bytes in JSON, but few clients escape characters, so this check does not demand room for escapes.
        let needed = max_text + r#"{"event":"message","data":{"text":""}}"#.len();
        let is_fixed = |address: &SockAddr| address.as_socket().is_none_or(|address| address.port() != 0);
        let is_repeated = |i: &usize| is_fixed(&self.listen[*i]) && self.listen[..*i].contains(&self.listen[*i]);
        let repeated = (0..self.listen.len()).find(is_repeated);
        let listens_on_tcp = self.listen.iter().any(|address| address.as_socket().is_some());
        self.features.validate()?;
        Err(if let Some(index) = repeated {
            format!("--listen {} is given twice; remove one of the two", format_address(&self.listen[index]))
        } else if self.open && self.requires_token() {
            "--open requires no token, --tokens and --jwt-key require one; remove --open or the others".into()
        } else if let (true, Some(set)) = (self.has_demo_tokens(), self.public_option()) {
            format!("the demo tokens are public, so not for {set}; pass --tokens FILE, --jwt-key FILE or --open")
        } else if self.proxy_protocol && self.trusted_proxy.is_empty() && listens_on_tcp {
            "--proxy-protocol needs --trusted-proxy, which is missing; add --trusted-proxy CIDR".into()
        } else if self.inspect && self.no_inspect {
            "--inspect and --no-inspect contradict each other; remove one of the two".into()
        } else if self.trace_filter.is_some() && self.trace.is_none() {
            "--trace-filter selects records of --trace, which is missing; add --trace".into()
        } else if ping >= idle {
            format!("--ping-interval {ping} must be less than --idle-timeout {idle}; lower it, or raise --idle-timeout")
        } else if needed > *max_message {
            format!("--max-text {max_text} does not fit into --max-message {max_message}; raise that to {needed}")
        } else if max_buffered < largest {
            format!("--max-buffered {max_buffered} cannot hold a message of {option} {largest}; raise it to {largest}")
        } else if self.history > 0 && max_history < max_text {
            format!("--max-history {max_history} cannot hold a text of --max-text {max_text}; raise it")
        } else {
            return Ok(());
        })
    }

    pub fn read_token_file(&self) -> Result<Option<String>, String> {
        let Some(path) = &self.tokens else { return Ok(None) };
        let text = std::fs::read_to_string(path).map(Some); // fails on a token file saved as UTF-16
        text.map_err(|error| format!("--tokens {}: cannot read the file as UTF-8 text: {error}", path.display()))
    }

    fn requires_token(&self) -> bool {
        self.tokens.is_some() || !self.features.jwt_key.is_empty()
    }

    pub fn has_demo_tokens(&self) -> bool {
        !self.open && !self.requires_token()
    }

    pub fn is_loopback(&self) -> bool {
        self.listen.iter().any(is_loopback_address)
    }

    /// Whether the options let only programs on this machine reach the server (PROTOCOL.md, "Local servers").
    pub fn is_local(&self) -> bool {
        self.public_option().is_none()
    }

    /// The first option that makes the server public, with its value. A trusted proxy or a Unix socket makes the server
    /// public too: a proxy may forward the connections of remote clients.
    fn public_option(&self) -> Option<String> {
        let listen = self.listen.iter().find(|address| !is_loopback_address(address));
        let listen = listen.map(|address| format!("--listen {}", format_address(address)));
        let proxy = || self.trusted_proxy.first().map(|proxy| format!("--trusted-proxy {proxy}"));
        let host = || self.allow_host.iter().find(|host| !is_loopback_name(host));
        listen.or_else(proxy).or_else(|| host().map(|host| format!("--allow-host {host}")))
    }
}

/// The TCP address at which programs on this machine reach a listener; `None` for a Unix socket. An unspecified address
/// becomes 127.0.0.1, because browsers cannot open `http://[::]:3000/`.
pub fn local_address(address: &SockAddr) -> Option<SocketAddr> {
    let address = address.as_socket()?;
    Some(if address.ip().is_unspecified() { (Ipv4Addr::LOCALHOST, address.port()).into() } else { address })
}

pub fn format_address(address: &SockAddr) -> String {
    let path = || address.as_pathname().unwrap_or("".as_ref()).display();
    address.as_socket().map_or_else(|| format!("unix:{}", path()), |address| address.to_string())
}

fn is_loopback_address(address: &SockAddr) -> bool {
    address.as_socket().is_some_and(|address| address.ip().to_canonical().is_loopback())
}

/// Whether `host`, a name or an address without a port, refers to this machine.
pub fn is_loopback_name(host: &str) -> bool {
    let ip = host.trim_matches(['[', ']']).parse::<IpAddr>();
    // RFC 6761 §6.3: `localhost` and its subdomains are loopback names.
    let label = host.strip_suffix('.').unwrap_or(host).rsplit('.').next();
    let is_localhost = label.is_some_and(|label| label.eq_ignore_ascii_case("localhost"));
    is_localhost || ip.is_ok_and(|ip| ip.to_canonical().is_loopback())
}

/// Lets the environment set all options except logging and help: `WIRECHAT_MAX_TEXT` sets `--max-text`.
pub fn add_environment(command: Command) -> Command {
    command.mut_args(|arg| {
        let name = format!("WIRECHAT_{}", arg.get_id().as_str().to_uppercase());
        let value = std::env::var_os(&name).filter(|_| arg.get_help_heading() != Some(LOGGING_HEADING));
        // Ignore empty environment variables. clap requires `'static` names, so leak each name, once at start.
        if value.is_some_and(|value| !value.is_empty()) { arg.env(&*name.leak()).hide_env(true) } else { arg }
    })
}

/// Puts the paragraphs of a clap error on one line, without the usage.
pub fn format_error(error: &str) -> String {
    let is_message = |paragraph: &&str| !paragraph.starts_with("Usage:") && !paragraph.starts_with("For more");
    let paragraphs = error.trim_start_matches("error: ").split("\n\n").filter(is_message);
    let lines = paragraphs.map(|paragraph| paragraph.split_whitespace().collect::<Vec<_>>().join(" "));
    lines.collect::<Vec<_>>().join("; ") + " (see --help)"
}

fn parse_listen_address(text: &str) -> Result<SockAddr, String> {
    let Some(path) = text.strip_prefix("unix:") else { return parse_address(text).map(SockAddr::from) };
    let address = SockAddr::unix(path).ok().filter(|_| !path.is_empty());
    address.ok_or_else(|| "write unix:PATH with a path of 1 to 107 bytes".into())
}

pub fn parse_address(text: &str) -> Result<SocketAddr, String> {
    let text = &text.parse::<u16>().map_or(text.to_owned(), |port| format!("127.0.0.1:{port}"));
    // Require brackets around an IPv6 address: `::1:3000` could be an address alone, or an address and a port.
    let is_host = |host: &str| host.starts_with('[') || !(host.is_empty() || host.contains([':', '/']));
    if !text.rsplit_once(':').is_some_and(|(host, port)| is_host(host) && port.parse::<u16>().is_ok()) {
        return Err("write HOST:PORT, such as 127.0.0.1:3000, a port from 0 to 65535 alone, or unix:PATH".into());
    }
    let found = text.to_socket_addrs().map_err(|error| format!("the host cannot be resolved: {error}"))?.next();
    found.ok_or_else(|| "the host has no address; write one, such as 127.0.0.1".into())
}

fn parse_network(text: &str) -> Result<IpNet, &'static str> {
    let network = text.trim().parse().or_else(|_| text.trim().parse::<IpAddr>().map(IpNet::from));
    network.map_err(|_| "write an address or a network, such as 127.0.0.1 or 10.0.0.0/8")
}

fn parse_list_item(text: &str) -> Result<String, &'static str> {
    let item = Some(text.trim().to_owned()).filter(|item| !item.is_empty());
    item.ok_or("an item of the list is empty; remove the extra comma")
}

pub fn parse_number(min: usize, max: usize) -> impl Fn(&str) -> Result<usize, String> + Clone {
    let is_allowed = move |number: &usize| (min..=max).contains(number);
    move |text| text.parse().ok().filter(is_allowed).ok_or(format!("write a whole number from {min} to {max}"))
}

fn parse_rate(text: &str) -> Result<f64, &'static str> {
    let rate = text.parse().ok().filter(|rate| *rate == 0.0 || (0.001..=10_000.0).contains(rate));
    rate.ok_or("write 0, or a number from 0.001 to 10000")
}

pub fn parse_seconds(min: f64) -> impl Fn(&str) -> Result<Duration, String> + Clone {
    let is_allowed = move |seconds: &f64| (min..=86_400.0).contains(seconds);
    let error = move || format!("write a number of seconds from {min} to 86400");
    move |text| text.parse().ok().filter(is_allowed).map(Duration::from_secs_f64).ok_or_else(error)
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
    fn defaults() {
        let config = config(&[]).unwrap();
        assert_eq!(config.listen.iter().map(format_address).collect::<Vec<_>>(), ["127.0.0.1:3000"]);
        assert_eq!((config.max_head, config.max_headers, config.max_text), (8192, 64, 500));
        assert_eq!((config.max_message, config.max_echo, config.max_fragments), (65536, 16_777_216, 100_000));
        assert_eq!((config.max_outbox, config.max_buffered), (262_144, 268_435_456));
        let waits = [config.handshake_timeout, config.ping_interval, config.idle_timeout, config.close_timeout];
        assert_eq!(waits.map(|wait| wait.as_secs()), [10, 30, 60, 5]);
    }

    #[test]
    fn silly_values_are_rejected() {
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
            &["--listen", "unix:/run/chat.sock"],
            &["--listen", "3000", "--listen", "unix:/run/chat.sock"],
            &["--drain", "-1"],
            &["--drain-delay", "soon"],
        ];
        for args in silly {
            assert!(config(args).is_err(), "{args:?}");
        }
    }

    #[test]
    fn limits_that_exclude_each_other() {
        let rows: [(&[&str], &[&str]); 5] = [
            (&["--max-text", "65499"], &["--max-text", "65498"]),
            (&["--max-message", "537"], &["--max-message", "538"]),
            (&["--max-buffered", "16777215"], &["--max-buffered", "16777216"]),
            (&["--max-echo", "125", "--max-buffered", "65535"], &["--max-echo", "125", "--max-buffered", "65536"]),
            (&["--max-text", "2000", "--max-history", "1999"], &["--max-text", "2000", "--max-history", "2000"]),
        ];
        for (bad, good) in rows {
            let error = config(bad).unwrap_err();
            assert!(error.contains(bad[bad.len() - 2]) && error.contains(bad[bad.len() - 1]), "{error}");
            assert!(config(good).is_ok(), "{good:?}");
        }
        assert!(config(&["--max-text", "20000"]).is_ok(), "the check counts one byte per character");
    }

    #[test]
    fn a_listener_off_loopback_requires_access_control() {
        assert!(config(&["--listen", "0.0.0.0:3000", "--open"]).is_ok());
        assert!(config(&["--listen", "0.0.0.0:3000", "--tokens", "file"]).is_ok());
        assert!(config(&["--listen", "[::1]:3000"]).unwrap().is_loopback());
    }

    #[test]
    fn a_repeated_listen_address_is_rejected() {
        let rows = [
            ("3000", "127.0.0.1:3000", true),
            ("unix:/a", "unix:/a", true),
            ("127.0.0.1:3000", "[::1]:3000", false),
            ("127.0.0.1:0", "127.0.0.1:0", false),
            ("unix:/a", "unix:/b", false),
        ];
        for (one, two, is_error) in rows {
            let result = config(&["--open", "--listen", one, "--listen", &format!("[::1]:9,{two}")]);
            assert_eq!(result.is_err(), is_error, "{one} {two}: {result:?}");
            match result {
                Ok(config) => assert_eq!(config.listen.len(), 3),
                Err(error) => assert!(error.contains(two), "{error}"),
            }
        }
    }

    #[test]
    fn a_unix_socket_path_has_1_to_107_bytes() {
        let listen = |path: &str| config(&["--open", "--listen", &format!("unix:{path}")]);
        assert_eq!(format_address(&listen("/run/chat.sock").unwrap().listen[0]), "unix:/run/chat.sock");
        assert!(listen(&"x".repeat(107)).is_ok());
        for path in ["", &"x".repeat(108)] {
            assert!(listen(path).unwrap_err().contains("1 to 107 bytes"), "{path}");
        }
    }

    #[test]
    fn a_bare_port_is_on_loopback() {
        assert_eq!(format_address(&config(&["--listen", "8080"]).unwrap().listen[0]), "127.0.0.1:8080");
        for bad in
            ["", "127.0.0.1", "localhost", ":3000", "99999", "127.0.0.1:99999", "http://127.0.0.1:3000", "::1", "[::1]"]
        {
            let error = config(&["--listen", bad]).unwrap_err();
            assert!(error.contains("--listen") && error.contains("127.0.0.1:3000"), "{bad}: {error}");
        }
    }

    #[test]
    fn lists_are_split_and_trimmed() {
        let config = config(&["--open", "--allow-host", "a, b ,c", "--allow-host", " d"]).unwrap();
        assert_eq!(config.allow_host, ["a", "b", "c", "d"]);
        assert!(super::tests::config(&["--allow-host", "a,,b"]).unwrap_err().contains("extra comma"));
    }
}
