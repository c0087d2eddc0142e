//! Access tokens, allowed origins and allowed hosts (RFC 6455 §10.1, §10.2, §10.5). All three matter even on loopback:
//! pages can open `ws://localhost`, any name can resolve to 127.0.0.1 (DNS rebinding), and programs can forge `Origin`.

use std::{rc::Rc, time::SystemTime};

use url::{Host, Url};

use super::{jwt::JwtKeys, tokens::AccessTokens, tokens::DEMO_TOKENS};
use crate::chat::Identity;
use crate::config::{Config, is_loopback_name};

/// Decides which clients may connect. `None` in a field allows every token, origin or host.
#[derive(Debug, Default)]
pub struct AccessControl {
    pub tokens: Option<AccessTokens>,
    pub is_encrypted: bool, // whether the server itself speaks TLS
    pub jwt_keys: JwtKeys,  // keys that verify JWTs; the server accepts JWTs in addition to `tokens`
    origins: Option<Vec<String>>,
    hosts: Option<Vec<String>>,
    pub no_echo: bool,
    pub deflates: bool, // whether the server accepts permessage-deflate
}

impl AccessControl {
    pub fn new(config: &Config, token_file: Option<&str>) -> Result<AccessControl, String> {
        let (is_encrypted, no_echo) = (config.features.tls_cert.is_some(), config.no_echo);
        let mut access = AccessControl { is_encrypted, no_echo, deflates: config.features.deflate, ..Self::default() };
        access.load_tokens(config, token_file)?;
        let mut origins = config.allow_origin.clone();
        // Allow pages opened from disk, but only with tokens: sandboxed iframes of any site also send `Origin: null`.
        if config.is_local() && access.tokens.is_some() {
            origins.push("null".into());
        }
        access.origins = parse_allowed(&origins, parse_allowed_origin)?;
        let allows_all = config.allow_host.is_empty() && !config.is_loopback();
        access.hosts = if allows_all { None } else { parse_allowed(&config.allow_host, parse_allowed_host)? };
        Ok(access)
    }

    /// Replaces the access tokens. On error, the old tokens stay in force.
    pub fn load_tokens(&mut self, config: &Config, token_file: Option<&str>) -> Result<(), String> {
        let path = config.tokens.as_deref().unwrap_or("".as_ref()).display();
        let text = token_file.or(config.features.jwt_key.is_empty().then_some(DEMO_TOKENS));
        let parse = |text| AccessTokens::parse(text, config.max_head);
        let parse = || text.map(parse).unwrap_or(Ok(AccessTokens::default()));
        self.tokens = (!config.open).then(parse).transpose().map_err(|error| format!("--tokens {path}: {error}"))?;
        Ok(())
    }

    pub fn reserved_usernames(&self) -> impl Iterator<Item = Rc<str>> {
        self.tokens.iter().flat_map(|tokens| tokens.usernames.values().cloned())
    }

    pub fn allows_host(&self, authority: &str) -> bool {
        let Some(hosts) = &self.hosts else { return true };
        normalize_host(authority).is_some_and(|host| is_loopback_name(&host) || hosts.contains(&host))
    }

    /// Whether pages from `origin` may connect. The server's own origin, `own`, is always allowed.
    pub fn allows_origin(&self, origin: &str, own: &str) -> bool {
        let Some(origins) = &self.origins else { return true };
        normalize_origin(origin)
            .is_some_and(|origin| origins.contains(&origin) || normalize_origin(own) == Some(origin))
    }

    pub fn identify(&self, token: Option<&str>, now: SystemTime) -> Option<Identity> {
        let Some(tokens) = &self.tokens else { return Some(Identity::default()) };
        tokens.identify(token?).cloned().or_else(|| self.jwt_keys.identify(token?, now))
    }
}

/// Parses the values of `--allow-origin` or `--allow-host`. Returns `Ok(None)`, which allows all, if a value is `*`.
fn parse_allowed(values: &[String], parse: fn(&str) -> Result<String, String>) -> Result<Option<Vec<String>>, String> {
    let allowed = values.iter().filter(|text| *text != "*").map(|text| parse(text)).collect::<Result<Vec<_>, _>>()?;
    Ok((allowed.len() == values.len()).then_some(allowed))
}

fn parse_allowed_origin(value: &str) -> Result<String, String> {
    let (scheme, authority) = split_scheme(value);
    let scheme = match scheme {
        "ws" => "http",
        "" if normalize_host(authority).is_some_and(|host| is_loopback_name(&host)) => "http",
        "wss" | "" => "https",
        scheme => scheme,
    };
    let suggestion = normalize_origin(&format!("{scheme}://{authority}"));
    let rule = "an origin is the scheme, host and port of a page, such as https://chat.example";
    normalize_origin(value).ok_or_else(|| format_option_error("--allow-origin", value, rule, suggestion))
}

fn parse_allowed_host(value: &str) -> Result<String, String> {
    let host = normalize_host(value).or_else(|| normalize_host(&format!("[{value}]")));
    let rule = "a host is a name without scheme and path, such as chat.example";
    host.ok_or_else(|| format_option_error("--allow-host", value, rule, normalize_host(split_scheme(value).1)))
}

fn format_option_error(option: &str, value: &str, rule: &str, suggestion: Option<String>) -> String {
    let advice = suggestion.map_or("in ASCII; only * alone is a wildcard".into(), |value| format!("write {value}"));
    format!("invalid value '{value}' for '{option}': {rule}; {advice}")
}

/// Returns the scheme (or "") and the authority of `text`, which need not be a valid URL.
fn split_scheme(text: &str) -> (&str, &str) {
    let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
    (scheme, rest.split(['/', '?', '#']).next().unwrap_or_default())
}

/// Normalizes an origin for comparison (RFC 6454 §5): `HTTP://Chat.example:80` becomes `http://chat.example`.
pub(super) fn normalize_origin(text: &str) -> Option<String> {
    if text.eq_ignore_ascii_case("null") {
        return Some("null".into());
    }
    let (_, authority) = text.split_once("://")?;
    // RFC 6454 §6.2: an origin is only `scheme://host[:port]`, without a path, a username or a trailing slash.
    let url = Url::parse(text).ok().filter(|_| is_plain_authority(authority))?;
    // Reject ws:// and wss://: no page has such an origin, so allowing one would have no effect.
    (!matches!(url.scheme(), "ws" | "wss")).then(|| format!("{}://{}", url.scheme(), url.authority()))
}

/// Returns the host of an authority in lowercase. An IPv4 number such as 0x7f000001 becomes 127.0.0.1.
pub(super) fn normalize_host(authority: &str) -> Option<String> {
    let name = authority.trim_end_matches(|c: char| c.is_ascii_digit()).strip_suffix(':').unwrap_or(authority);
    let name = name.strip_suffix('.').unwrap_or(name); // a fully qualified name may end with a dot
    Host::parse(name).ok().filter(|_| is_plain_authority(authority)).map(|host| host.to_string())
}

fn is_plain_authority(authority: &str) -> bool {
    // Reject shell metacharacters: an operator may paste the origin or host from a log into a shell.
    authority.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._[]:".contains(&byte))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn try_access(args: &[&str]) -> Result<AccessControl, String> {
        let args = std::iter::once("wirechat").chain(args.iter().copied());
        AccessControl::new(&Config::try_parse_from(args).unwrap(), None)
    }

    fn access(args: &[&str]) -> AccessControl {
        try_access(args).unwrap()
    }

    #[test]
    fn origins() {
        let default = access(&[]);
        let open = access(&["--open"]);
        let public = access(&["--open", "--listen", "0.0.0.0:80"]);
        let named = access(&["--allow-origin", "https://Chat.example", "--allow-origin", "http://a.example:8080"]);
        let odd = access(&["--allow-origin", "file://,moz-extension://ab-c,app://x"]);
        let null = access(&["--open", "--allow-origin", "null"]);
        let any = access(&["--allow-origin", "*"]);
        let own = "http://127.0.0.1:3000";
        let cases = [
            (&default, "http://127.0.0.1:3000", true),
            (&default, "http://127.0.0.1", false),
            (&default, "https://127.0.0.1:3000", false),
            (&default, "http://localhost:3000", false),
            (&default, "http://127.0.0.1:3000.evil.example", false),
            (&default, "http://evil.example", false),
            (&default, "null", true),
            (&default, "file://", false),
            (&public, "null", false),
            (&open, "null", false),
            (&open, "http://127.0.0.1:3000", true),
            (&named, "https://chat.example", true),
            (&named, "https://chat.example:443", true),
            (&named, "http://chat.example", false),
            (&named, "https://chat.example.evil", false),
            (&named, "http://a.example:8080", true),
            (&named, "http://a.example", false),
            (&odd, "file://", true),
            (&odd, "moz-extension://ab-c", true),
            (&odd, "moz-extension://ab-d", false),
            (&odd, "app://x", true),
            (&null, "null", true),
            (&any, "http://evil.example", true),
            (&any, "null", true),
            (&default, "", false),
            (&default, "nonsense", false),
            (&default, "http://127.0.0.1:3000/", false),
            (&default, "http://127.0.0.1:3000/path", false),
            (&default, "http:127.0.0.1:3000", false),
            (&default, "http:///127.0.0.1:3000", false),
            (&default, "http://127.0.0.1:3000@", false),
            (&default, "http://127.0.0.1:30\t00", false),
        ];
        for (access, origin, is_allowed) in cases {
            assert_eq!(access.allows_origin(origin, own), is_allowed, "{origin}");
        }
        assert!(default.allows_origin("http://localhost", "http://localhost:80"), "80 is the default port of http");
        assert!(default.allows_origin("https://chat.example", "https://chat.example"), "behind a proxy with TLS");
    }

    /// An operator may paste an origin or host from a log into a shell, so `normalize_origin` and `normalize_host`
    /// reject shell metacharacters.
    #[test]
    fn no_value_for_a_shell_contains_what_a_shell_would_execute() {
        for hostile in ["http://x$(touch y)", "http://x;`id`", "http://x|y", "http://x&y", "http://x'y", "http://x\"y"]
        {
            assert_eq!(normalize_origin(hostile), None, "{hostile}");
            assert_eq!(normalize_host(&hostile[7..]), None, "{hostile}");
        }
        assert_eq!(normalize_origin("http://Chat.Example:8080").as_deref(), Some("http://chat.example:8080"));
    }

    #[test]
    fn hosts_on_loopback() {
        let default = access(&[]);
        let loopback =
            ["localhost", "LOCALHOST:1", "a.localhost", "127.0.0.1:9", "127.9.9.9", "[::1]:3000", "localhost."];
        for host in loopback.into_iter().chain(["[::ffff:127.0.0.1]", "[0:0::1]", "localhost.:80"]) {
            assert!(default.allows_host(host), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "localhost.evil.example",
            "128.0.0.1",
            "[::2]",
            "127.0.0.1.evil.example",
            "notlocalhost",
        ] {
            assert!(!default.allows_host(host), "{host}");
        }
        assert!(access(&["--allow-host", "Chat.lan"]).allows_host("chat.LAN:80"));
        assert!(access(&["--allow-host", "chat.lan."]).allows_host("chat.lan"));
        assert!(access(&["--allow-host", "fe80::1"]).allows_host("[fe80::0:1]:80"));
        assert!(access(&["--allow-host", "*"]).allows_host("anything"));
    }

    #[test]
    fn hosts_off_loopback_are_checked_only_against_a_list() {
        assert!(access(&["--open", "--listen", "0.0.0.0:80"]).allows_host("anything"));
        let listed = access(&["--open", "--listen", "0.0.0.0:80", "--allow-host", "chat.example"]);
        assert!(listed.allows_host("chat.example:80") && listed.allows_host("localhost"));
        assert!(!listed.allows_host("evil.example"));
    }

    /// Each test row: an option, an invalid value, and the value that the error suggests, if any.
    #[test]
    fn an_error_suggests_a_value_that_is_accepted() {
        let rows = [
            ("--allow-origin", "chat.example", Some("https://chat.example")),
            ("--allow-origin", "chat.example:8443", Some("https://chat.example:8443")),
            ("--allow-origin", "localhost:8080", Some("http://localhost:8080")),
            ("--allow-origin", "[::1]:8080", Some("http://[::1]:8080")),
            ("--allow-origin", "https://chat.example/", Some("https://chat.example")),
            ("--allow-origin", "https://chat.example/a?b#c", Some("https://chat.example")),
            ("--allow-origin", "wss://chat.example", Some("https://chat.example")),
            ("--allow-origin", "ws://chat.example:80", Some("http://chat.example")),
            ("--allow-origin", "https://*.example", None),
            ("--allow-origin", "https://", None),
            ("--allow-origin", "https://a b", None),
            ("--allow-origin", "https://chat.example:99999", None),
            ("--allow-origin", "https://me@chat.example", None),
            ("--allow-origin", "https://münchen.example", None),
            ("--allow-host", "https://chat.example", Some("chat.example")),
            ("--allow-host", "https://chat.example:8443/", Some("chat.example")),
            ("--allow-host", "chat.example/", Some("chat.example")),
            ("--allow-host", "*.example", None),
            ("--allow-host", "a b", None),
            ("--allow-host", "chat.example:port", None),
            ("--allow-host", "münchen.example", None),
            ("--allow-host", "300.1.1.1", None),
        ];
        for (option, value, suggestion) in rows {
            let error = try_access(&[option, value]).unwrap_err();
            assert!(error.contains(option) && error.contains(value), "{error}");
            assert_eq!(error.split_once("write ").map(|(_, suggestion)| suggestion), suggestion, "{error}");
            let example = if option == "--allow-host" { "chat.example" } else { "https://chat.example" };
            assert!(suggestion.is_some() || error.contains(example), "{error}");
            assert!(try_access(&[option, suggestion.unwrap_or(example)]).is_ok(), "{error}");
        }
    }

    #[test]
    fn tokens() {
        let demo = access(&[]);
        let now = SystemTime::UNIX_EPOCH;
        assert!(DEMO_TOKENS.lines().all(|token| demo.identify(Some(token), now).is_some()));
        let credential = |token| demo.identify(Some(token), now).unwrap().credential;
        assert_ne!(credential("token-alice"), credential("token-bob"));
        for wrong in [None, Some(""), Some("dev-toke"), Some("dev-token "), Some("DEV-TOKEN")] {
            assert_eq!(demo.identify(wrong, now), None, "{wrong:?}");
        }
        assert_eq!(access(&["--open"]).identify(None, now), Some(Identity::default()));
    }
}
