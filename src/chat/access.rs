//! Who may come in, and as whom: tokens, origins, hosts, names.
//!
//! Four questions, each asked once at the handshake and each answered whole: is this `Host` ours, is this `Origin`
//! welcome, is this token known, is this name allowed. It does not know HTTP; the caller turns a no into a status.
//!
//! The subtle thing: being on loopback is no defence. Any web page can open `ws://localhost` (hence origins), and a
//! foreign name can be made to resolve to 127.0.0.1 (DNS rebinding, hence hosts). So both are checked, and a secret
//! that the page cannot know is asked for besides (RFC 6455 §10.2, §10.5); not only browsers come, and what is no browser
//! can send any `Origin` (§10.1).

use std::net::IpAddr;
use std::rc::Rc;

use subtle::ConstantTimeEq;

use crate::config::Config;

/// What lets a newcomer in who has not been told anything: for trying things out, on loopback only.
const DEMO_TOKENS: [&str; 4] = ["token-alice", "token-bob", "token-carol", "dev-token"];

/// The rules that are in force.
#[derive(Debug)]
pub struct Access {
    /// `None`: no token is asked for.
    tokens: Option<Vec<KnownToken>>,
    origins: Allowed<Origin>,
    null_origin: bool,
    hosts: Allowed<String>,
    is_loopback: bool,
}

#[derive(Debug, PartialEq, Eq)]
struct KnownToken {
    token: String,
    grant: Grant,
}

/// What a token allows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Grant {
    /// Which token it is; `None`: none was asked for.
    pub token: Option<u32>,
    /// The one username that may be used with it; `None`: any.
    pub username: Option<Rc<str>>,
}

#[derive(Debug)]
enum Allowed<T> {
    Any,
    These(Vec<T>),
}

/// Scheme, host and port, compared whole (RFC 6454 §4, §5).
#[derive(Debug, PartialEq, Eq)]
struct Origin {
    scheme: String,
    host: String,
    port: Option<u16>,
}

impl Access {
    /// Reads the rules, and the token file if there is one.
    ///
    /// # Errors
    /// One line that says which file or option is at fault.
    pub fn new(config: &Config) -> Result<Access, String> {
        let tokens = match &config.tokens {
            _ if config.open => None,
            None => {
                let grant = |number: usize| Grant { token: Some(number as u32), username: None };
                let known = DEMO_TOKENS.iter().enumerate();
                Some(known.map(|(number, token)| KnownToken { token: (*token).into(), grant: grant(number) }).collect())
            }
            Some(path) => {
                let in_file = |error: String| format!("--tokens {}: {error}", path.display());
                let text = std::fs::read_to_string(path).map_err(|error| in_file(error.to_string()))?;
                Some(read_tokens(&text).map_err(in_file)?)
            }
        };
        let mut origins = Vec::new();
        for text in config.allow_origin.iter().filter(|text| !["null", "*"].contains(&text.as_str())) {
            let origin = Origin::parse(text);
            origins.push(origin.ok_or_else(|| format!("--allow-origin {text}: not of the form https://host:port"))?);
        }
        let any = |list: &[String]| list.iter().any(|text| text == "*");
        Ok(Access {
            null_origin: config.allow_origin.iter().any(|text| text == "null")
                || (config.is_loopback() && tokens.is_some()),
            tokens,
            origins: if any(&config.allow_origin) { Allowed::Any } else { Allowed::These(origins) },
            hosts: match any(&config.allow_host) {
                true => Allowed::Any,
                false => Allowed::These(config.allow_host.iter().map(|name| host_name(name).to_owned()).collect()),
            },
            is_loopback: config.is_loopback(),
        })
    }

    /// Whether a request may name this authority (host, and perhaps a port) as its `Host`. Only a loopback listener
    /// asks: elsewhere a server cannot know all its names.
    pub fn welcomes_host(&self, authority: &str) -> bool {
        let name = host_name(authority);
        match &self.hosts {
            _ if !self.is_loopback => true,
            Allowed::Any => true,
            Allowed::These(names) => {
                is_loopback_name(name) || names.iter().any(|known| known.eq_ignore_ascii_case(name))
            }
        }
    }

    /// Whether a page of this origin may connect to a server that it calls `host` (with its port).
    pub fn welcomes_origin(&self, origin: &str, host: &str) -> bool {
        let Allowed::These(origins) = &self.origins else { return true };
        if origin == "null" {
            return self.null_origin;
        }
        let own = Origin::parse(&format!("http://{host}"));
        Origin::parse(origin).is_some_and(|origin| own.is_some_and(|own| own == origin) || origins.contains(&origin))
    }

    /// What this token allows; `None` if it is wrong, or missing where one is asked for. Every known token is
    /// compared to its last byte, so that the time taken tells nothing about how much of one was right.
    pub fn grant(&self, token: Option<&str>) -> Option<Grant> {
        let Some(known) = &self.tokens else { return Some(Grant::default()) };
        let token = token?.as_bytes();
        known.iter().fold(None, |found, known| match bool::from(known.token.as_bytes().ct_eq(token)) {
            true => Some(known.grant.clone()),
            false => found,
        })
    }
}

/// Reads a token file: a token a line, optionally blanks and the one username that it may use.
fn read_tokens(text: &str) -> Result<Vec<KnownToken>, String> {
    let mut known: Vec<KnownToken> = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        // Inside a token a # is part of it.
        let begins_comment = |at: &usize| line[..*at].chars().next_back().is_none_or(char::is_whitespace);
        let comment = line.match_indices('#').map(|(at, _)| at).find(begins_comment);
        let line = line[..comment.unwrap_or(line.len())].trim();
        let (token, name) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        if token.is_empty() {
            continue;
        }
        if known.iter().any(|known| known.token == token) {
            return Err(format!("line {number} has a token that stands there already"));
        }
        let username = match name.trim() {
            "" => None,
            name => Some(username(name).map_err(|error| format!("line {number}: {error}"))?.into()),
        };
        let grant = Grant { token: Some(known.len() as u32), username };
        known.push(KnownToken { token: token.into(), grant });
    }
    if known.is_empty() { Err("no token in it".into()) } else { Ok(known) }
}

impl Origin {
    fn parse(text: &str) -> Option<Origin> {
        let (scheme, authority) = text.split_once("://")?;
        let host = host_name(authority);
        let port = match &authority[host.len()..] {
            "" => None,
            port => Some(port.strip_prefix(':')?.parse().ok()?),
        };
        let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b"-._[]:".contains(&byte);
        let is_scheme = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
        if host.is_empty() || scheme.is_empty() || !host.bytes().all(is_host) || !scheme.bytes().all(is_scheme) {
            return None;
        }
        let scheme = scheme.to_ascii_lowercase();
        let default_port = match scheme.as_str() {
            "http" => Some(80),
            "https" => Some(443),
            _ => None,
        };
        Some(Origin { host: host.to_ascii_lowercase(), port: port.or(default_port), scheme })
    }
}

/// An authority without its port; an IPv6 address keeps its brackets.
fn host_name(authority: &str) -> &str {
    let position = |wanted: u8| authority.bytes().position(|byte| byte == wanted);
    let end = match authority.starts_with('[').then(|| position(b']')).flatten() {
        Some(bracket) => bracket + 1,
        None => position(b':').unwrap_or(authority.len()),
    };
    &authority[..end]
}

/// RFC 6761 §6.3: `localhost` and the names below it; and the loopback addresses.
fn is_loopback_name(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    let last_label = name.as_bytes().rsplit(|byte| *byte == b'.').next().unwrap_or_default();
    last_label.eq_ignore_ascii_case(b"localhost") || address.is_ok_and(|ip| ip.to_canonical().is_loopback())
}

/// Characters that no name may have: controls, line separators, and what is invisible or turns the direction of
/// text, with which one name can be made to look like another.
fn is_deceptive(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'
            | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

fn name<'a>(kind: &str, text: &'a str, characters: usize, bytes: usize) -> Result<&'a str, String> {
    let name = text.trim();
    let count = name.chars().count();
    if name.chars().any(is_deceptive) {
        Err(format!("A {kind} must not hold control or invisible characters"))
    } else if !(1..=characters).contains(&count) || name.len() > bytes {
        Err(format!(
            "A {kind} has 1 to {characters} characters and at most {bytes} bytes, not {count} and {}",
            name.len()
        ))
    } else {
        Ok(name)
    }
}

/// A username, trimmed.
///
/// # Errors
/// A sentence that says what a username must be.
pub fn username(text: &str) -> Result<&str, String> {
    name("username", text, 32, 128)
}

/// The name of a room, trimmed.
///
/// # Errors
/// A sentence that says what it must be.
pub fn room_name(text: &str) -> Result<&str, String> {
    name("room", text, 64, 256)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn access(args: &[&str]) -> Access {
        let args = std::iter::once("wirechat").chain(args.iter().copied());
        Access::new(&Config::try_parse_from(args).unwrap()).unwrap()
    }

    #[test]
    fn origins() {
        let default = access(&[]);
        let open = access(&["--open"]);
        let public = access(&["--open", "--listen", "0.0.0.0:80"]);
        let named = access(&["--allow-origin", "https://Chat.example", "--allow-origin", "http://a.example:8080"]);
        let null = access(&["--open", "--allow-origin", "null"]);
        let any = access(&["--allow-origin", "*"]);
        let host = "127.0.0.1:3000";
        let cases = [
            (&default, "http://127.0.0.1:3000", true),
            (&default, "http://127.0.0.1", false),
            (&default, "https://127.0.0.1:3000", false),
            (&default, "http://localhost:3000", false),
            (&default, "http://127.0.0.1:3000.evil.example", false),
            (&default, "http://evil.example", false),
            (&default, "null", true),
            (&public, "null", false),
            (&open, "null", false),
            (&open, "http://127.0.0.1:3000", true),
            (&named, "https://chat.example", true),
            (&named, "https://chat.example:443", true),
            (&named, "http://chat.example", false),
            (&named, "https://chat.example.evil", false),
            (&named, "http://a.example:8080", true),
            (&named, "http://a.example", false),
            (&null, "null", true),
            (&any, "http://evil.example", true),
            (&any, "null", true),
            (&default, "", false),
            (&default, "nonsense", false),
            (&default, "http://127.0.0.1:3000/path", false),
        ];
        for (access, origin, welcome) in cases {
            assert_eq!(access.welcomes_origin(origin, host), welcome, "{origin}");
        }
        assert!(default.welcomes_origin("http://localhost", "localhost:80"), "80 is the port of http");
    }

    #[test]
    fn hosts_on_loopback() {
        let default = access(&[]);
        for host in ["localhost", "LOCALHOST:1", "a.localhost", "127.0.0.1:9", "127.9.9.9", "[::1]:3000", "localhost."]
        {
            assert!(default.welcomes_host(host), "{host}");
        }
        for host in ["", "evil.example", "localhost.evil.example", "128.0.0.1", "[::2]", "127.0.0.1.evil.example"] {
            assert!(!default.welcomes_host(host), "{host}");
        }
        assert!(access(&["--allow-host", "Chat.lan"]).welcomes_host("chat.LAN:80"));
        assert!(access(&["--allow-host", "*"]).welcomes_host("anything"));
        assert!(access(&["--open", "--listen", "0.0.0.0:80"]).welcomes_host("anything"));
    }

    #[test]
    fn token_files() {
        let known = read_tokens("# ours\n\nsecret\nother  Al ice # hers\nwith#hash\n").unwrap();
        let seen: Vec<_> = known.iter().map(|known| (known.token.as_str(), known.grant.username.as_deref())).collect();
        assert_eq!(seen, [("secret", None), ("other", Some("Al ice")), ("with#hash", None)]);
        for bad in ["", "# nothing", "one\none", "token \u{200b}"] {
            assert!(read_tokens(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn tokens() {
        let demo = access(&[]);
        assert!(DEMO_TOKENS.iter().all(|token| demo.grant(Some(token)).is_some()));
        for wrong in [None, Some(""), Some("dev-toke"), Some("dev-token "), Some("DEV-TOKEN")] {
            assert_eq!(demo.grant(wrong), None, "{wrong:?}");
        }
        assert!(access(&["--open"]).grant(None).is_some());
    }

    #[test]
    fn names() {
        assert_eq!(username("  Alice \u{a0}\u{3000}"), Ok("Alice"));
        let (longest, widest) = ("x".repeat(32), "😀".repeat(32));
        for good in ["a", "Ünïcödé", "张伟", "<img src=x>", longest.as_str(), widest.as_str()] {
            assert_eq!(username(good), Ok(good));
        }
        let (too_long, too_wide) = ("x".repeat(33), "👨‍👩‍👧".repeat(12));
        let invisible = "\u{0}\u{7f}\u{85}\u{ad}\u{61c}\u{180e}\u{200b}\u{200f}\u{2028}\u{2029}\u{202a}\u{202e}\u{2060}\u{2066}\u{2069}\u{feff}";
        for bad in ["", "  ", too_long.as_str(), too_wide.as_str()] {
            assert!(username(bad).is_err(), "{bad}");
        }
        for character in invisible.chars() {
            assert!(username(&format!("a{character}b")).is_err(), "{character:?}");
        }
        assert!(room_name(&"r".repeat(64)).is_ok() && room_name(&"r".repeat(65)).is_err());
        assert!(room_name("../x").is_ok() && room_name("#a b").is_ok());
    }
}
