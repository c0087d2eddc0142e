//! The command-line options of the optional features. Every build has these options, so that a build without a feature
//! can name the missing feature in its error text.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::builder::BoolishValueParser;
use clap::{Args, value_parser};

use crate::config::{parse_address, parse_number, parse_seconds};

#[derive(Debug, Clone, Args)]
pub struct FeatureOptions {
    /// Keep the history in this SQLite file, so that no acknowledged message is lost (feature sqlite)
    #[arg(long, value_name = "FILE", help_heading = "Durable history")]
    pub history_db: Option<PathBuf>,
    /// Make stored messages survive a power failure ("full") or only a crash of the server ("normal") [default: full]
    #[arg(long, value_name = "full|normal", value_parser = ["full", "normal"], hide_possible_values = true, help_heading = "Durable history")]
    pub history_sync: Option<String>, // `normal` avoids one fsync per commit
    /// Keep this many messages per room in the file; 0: all [default: 10000]
    #[arg(long, value_name = "N", value_parser = value_parser!(u64).range(..=i64::MAX as u64), help_heading = "Durable history")]
    pub history_keep: Option<u64>,
    /// Delete messages older than this many days from the file; 0: never [default: 0]
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(..=36_500), help_heading = "Durable history")]
    pub history_days: Option<u32>,
    #[command(flatten)]
    pub redis: RedisOptions,
    /// Accept JWTs that this key verifies: a public key in PEM, or else a secret for HS256 (feature jwt; repeatable)
    #[arg(long, value_name = "FILE", value_delimiter = ',', help_heading = "Access")]
    pub jwt_key: Vec<PathBuf>, // several keys allow rotation: JWTs signed with the old key stay valid
    /// Accept only JWTs with this issuer (iss)
    #[arg(long, value_name = "ISSUER", help_heading = "Access")]
    pub jwt_issuer: Option<String>,
    /// Accept only JWTs with this audience (aud)
    #[arg(long = "jwt-audience", id = "jwt_audience", value_name = "AUDIENCE", help_heading = "Access")]
    pub jwt_aud: Option<String>,
    /// Serve https:// and wss:// with the certificate chain in this PEM file (feature tls)
    #[arg(long, value_name = "FILE", help_heading = "TLS")]
    pub tls_cert: Option<PathBuf>,
    /// Use the private key in this PEM file for --tls-cert
    #[arg(long, value_name = "FILE", help_heading = "TLS")]
    pub tls_key: Option<PathBuf>,
    /// Serve metrics to the operator on this address, and remove or ban clients on request (feature metrics)
    #[arg(long, value_name = "HOST:PORT", value_parser = parse_address, help_heading = "Access")]
    pub admin: Option<SocketAddr>, // requests require no token: other users must not have access to this address
    /// Compress messages for clients that offer permessage-deflate, as browsers do (feature deflate)
    #[arg(long, value_parser = BoolishValueParser::new(), help_heading = "Compression")]
    pub deflate: bool, // off by default: compression costs CPU time, and lengths can reveal secrets (README.md)
    /// Compress only messages of at least this many bytes [default: 32]
    #[arg(long, value_name = "BYTES", value_parser = parse_number(1, 1 << 30), help_heading = "Compression")]
    pub deflate_min: Option<usize>, // compression usually shrinks a shorter message by a few bytes at most
}

#[derive(Debug, Clone, Args)]
pub struct RedisOptions {
    /// Share the rooms with other instances through this Redis, as in redis://HOST:PORT (feature redis)
    #[arg(
        long = "redis",
        id = "redis",
        value_name = "URL",
        hide_env_values = true,
        help_heading = "Several instances"
    )]
    pub url: Option<String>,
    /// Start all keys in Redis with this prefix; instances with the same prefix form one chat [default: wirechat]
    #[arg(long = "redis-prefix", id = "redis_prefix", value_name = "NAME", help_heading = "Several instances")]
    pub prefix: Option<String>,
    /// Wait this many seconds for Redis before rejecting a request [default: 5]
    #[arg(long = "redis-timeout", id = "redis_timeout", value_name = "SECONDS", value_parser = parse_seconds(1.0), help_heading = "Several instances")]
    pub timeout: Option<Duration>,
}

impl FeatureOptions {
    /// Rejects options whose feature is not in this build, and options that require another option that is not set.
    pub fn validate(&self) -> Result<(), String> {
        let FeatureOptions { history_db, history_sync, history_keep, history_days, deflate, deflate_min, .. } = self;
        let FeatureOptions { jwt_key, jwt_issuer, jwt_aud, tls_cert, tls_key, admin, .. } = self;
        let sqlite = (cfg!(feature = "sqlite"), "sqlite", "--history-db FILE", history_db.is_some());
        let redis = (cfg!(feature = "redis"), "redis", "--redis URL", self.redis.url.is_some());
        let jwt = (cfg!(feature = "jwt"), "jwt", "--jwt-key FILE", !jwt_key.is_empty());
        let options = [
            ("--history-db", history_db.is_some(), sqlite),
            ("--history-sync", history_sync.is_some(), sqlite),
            ("--history-keep", history_keep.is_some(), sqlite),
            ("--history-days", history_days.is_some(), sqlite),
            ("--redis", self.redis.url.is_some(), redis),
            ("--redis-prefix", self.redis.prefix.is_some(), redis),
            ("--redis-timeout", self.redis.timeout.is_some(), redis),
            ("--jwt-key", !jwt_key.is_empty(), jwt),
            ("--jwt-issuer", jwt_issuer.is_some(), jwt),
            ("--jwt-audience", jwt_aud.is_some(), jwt),
            ("--tls-cert", tls_cert.is_some(), (cfg!(feature = "tls"), "tls", "--tls-key FILE", tls_key.is_some())),
            ("--tls-key", tls_key.is_some(), (cfg!(feature = "tls"), "tls", "--tls-cert FILE", tls_cert.is_some())),
            ("--admin", admin.is_some(), (cfg!(feature = "metrics"), "metrics", "--admin", true)),
            ("--deflate", *deflate, (cfg!(feature = "deflate"), "deflate", "--deflate", true)),
            ("--deflate-min", deflate_min.is_some(), (cfg!(feature = "deflate"), "deflate", "--deflate", *deflate)),
        ];
        for (option, _, (is_built, feature, needed, has_needed)) in options.into_iter().filter(|(_, is_set, _)| *is_set)
        {
            if !is_built {
                let command = format!("cargo build --release --features {feature}");
                return Err(format!("{option} needs the feature {feature}; build with {command}"));
            } else if !has_needed {
                let name = needed.split(' ').next().unwrap_or(needed);
                return Err(format!("{option} needs {name}, which is missing; add {needed}"));
            }
        }
        let is_allowed = |character: char| character.is_ascii_alphanumeric() || matches!(character, '-' | '_' | '.');
        if self.redis.prefix.as_deref().is_some_and(|prefix| prefix.is_empty() || !prefix.chars().all(is_allowed)) {
            return Err("--redis-prefix may contain only letters, digits, '-', '_' and '.'".into());
        }
        if self.redis.url.is_some() && self.history_db.is_some() {
            return Err("--redis and --history-db exclude each other, as Redis keeps the history; remove one".into());
        }
        Ok(())
    }
}
