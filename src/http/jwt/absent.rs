//! Stands in for the module in a build without the feature `jwt`, and rejects its options.

#[path = "proof.rs"]
pub mod proof;

use std::{rc::Rc, time::SystemTime};

use mio::Token;

use crate::chat::{Chat, CredentialId, Identity};
use crate::config::Config;

#[derive(Debug, Default)]
pub struct JwtKeys;

pub fn read_key_files(_: &Config) -> Vec<Result<Vec<u8>, String>> {
    Vec::new()
}

impl JwtKeys {
    /// Returns an error that names the first option that needs the feature.
    pub fn load(&mut self, config: &Config, _files: Vec<Result<Vec<u8>, String>>) -> (Vec<String>, String) {
        let Config { jwt_key, jwt_issuer, jwt_aud, .. } = config;
        let option = jwt_key.first().map(|_| "--jwt-key").or(jwt_issuer.as_ref().map(|_| "--jwt-issuer"));
        let option = option.or(jwt_aud.as_ref().map(|_| "--jwt-audience"));
        let error = |option| format!("{option} needs the feature jwt; build with cargo build --release --features jwt");
        (option.map(error).into_iter().collect(), String::new())
    }

    pub fn reload(&mut self, _: &Config, _files: Vec<Result<Vec<u8>, String>>) -> String {
        String::new()
    }

    pub fn contains(&self, _: CredentialId) -> bool {
        false
    }

    pub fn renew(
        &self,
        _: &mut Chat,
        _client: Token,
        _token: &str,
        _nonce: Option<Rc<str>>,
        _: SystemTime,
    ) -> Option<Identity> {
        None
    }

    pub fn identify(&self, _token: &str, _: SystemTime) -> Option<Identity> {
        None
    }
}
