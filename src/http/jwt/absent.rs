//! Replaces `http::jwt` in a build without the `jwt` feature: accepts no JWT.

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
    pub fn load(&mut self, _: &Config, _files: Vec<Result<Vec<u8>, String>>) -> (Vec<String>, String) {
        // No keys to load: without the `jwt` feature, `FeatureOptions::validate` has already rejected the JWT options.
        (Vec::new(), String::new())
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
