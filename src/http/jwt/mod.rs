//! JSON Web Tokens: a signature (RFC 7515 §7.1, the compact form) over claims (RFC 7519 §4) that name the user. The key
//! decides the algorithm. If the token decided, an attacker could choose `none`, or sign with a public key as if it
//! were a shared secret (RFC 8725 §2.1).
//!
//! The `jsonwebtoken` crate is used only to verify signatures. This module checks the claims itself, because the
//! crate's checks would read the system clock, round `exp` and overlook a repeated `rooms`.

pub mod proof;

use std::time::{Duration, SystemTime};
use std::{collections::HashSet, fmt, rc::Rc};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use humantime::format_rfc3339_millis;
use jsonwebtoken::crypto::{JwtVerifier, rust_crypto::DEFAULT_PROVIDER};
use jsonwebtoken::{Algorithm, DecodingKey};
use mio::Token;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use serde_json::{Map, Value};

use crate::chat::event::Event;
use crate::chat::{Chat, Claims, CredentialId, Identity, dialect::excerpt, names, quote_for_log};
use crate::config::Config;

const LEEWAY_SECONDS: f64 = 5.0; // allowed clock skew between the server and the issuer
const MAX_UNIX_TIME: f64 = 253_402_300_799.0; // the end of the year 9999, because RFC 3339 has no later times
const MIN_SECRET_LEN: usize = 32; // in bytes; RFC 7518 §3.2: at least the size of the hash output
const MIN_RSA_LEN: usize = 256; // in bytes; RFC 7518 §3.3: "2048 bits or larger"

/// The keys given with `--jwt-key`, in the order of the options, and the required `iss` and `aud` of a JWT, if any.
#[derive(Debug, Default)]
pub struct JwtKeys {
    keys: Vec<Key>,
    key_count: u64, // the number of keys that have ever been loaded
    iss: Option<String>,
    aud: Option<String>,
}

#[derive(Clone)]
struct Key {
    id: CredentialId, // counts down from the maximum: unlikely to equal an access token's id, which is a hash
    algorithm: Algorithm,
    key: DecodingKey,
    verifier: Rc<dyn JwtVerifier>,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("id", &self.id).field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}

/// Reads the files given with `--jwt-key`. Returns each file's contents or an error, in the order of the options.
pub fn read_key_files(config: &Config) -> Vec<Result<Vec<u8>, String>> {
    let read = |path| std::fs::read(path).map_err(|error| format!("cannot read the file: {error}"));
    config.features.jwt_key.iter().map(read).collect()
}

impl JwtKeys {
    /// Replaces the keys with those in `files`, the contents of the `--jwt-key` files. If a file cannot be loaded, its
    /// old key stays. Returns the errors, and the changes for the log.
    pub fn load(&mut self, config: &Config, files: Vec<Result<Vec<u8>, String>>) -> (Vec<String>, String) {
        (self.iss, self.aud) = (config.features.jwt_issuer.clone(), config.features.jwt_aud.clone());
        let (before, old, mut errors) = (self.ids(), std::mem::take(&mut self.keys), Vec::new());
        for (index, (path, file)) in config.features.jwt_key.iter().zip(files).enumerate() {
            let key = file.and_then(|file| parse_key(&file)).map(|parsed| self.assign_key_id(parsed, &old));
            let key = key.map_err(|error| errors.push(format!("--jwt-key {}: {error}", path.display())));
            self.keys.extend(key.ok().or_else(|| old.get(index).cloned()));
        }
        let now = self.ids();
        let (added, removed) = (now.difference(&before).count(), before.difference(&now).count());
        let changes = format!(" jwt_keys_added={added} jwt_keys_removed={removed}");
        (errors, if now == before { String::new() } else { changes })
    }

    /// Calls `load` and logs any errors. Returns the numbers of added and removed keys as text for the caller's log.
    pub fn reload(&mut self, config: &Config, files: Vec<Result<Vec<u8>, String>>) -> String {
        let (errors, changes) = self.load(config, files);
        errors.iter().for_each(|error| log::error!("RELOAD failed, the old key stays in force: {error}"));
        changes
    }

    fn assign_key_id(&mut self, (algorithm, key, verifier): ParsedKey, old: &[Key]) -> Key {
        let is_same = |other: &&Key| other.algorithm == algorithm && bytes_of(&other.key) == bytes_of(&key);
        let known = old.iter().chain(&self.keys).find(is_same).map(|other| other.id);
        let id = known.unwrap_or_else(|| {
            let id = CredentialId::MAX.get().saturating_sub(self.key_count);
            self.key_count += 1;
            CredentialId::new(id).unwrap_or(CredentialId::MIN)
        });
        Key { id, algorithm, key, verifier }
    }

    fn ids(&self) -> HashSet<CredentialId> {
        self.keys.iter().map(|key| key.id).collect()
    }

    pub fn contains(&self, id: CredentialId) -> bool {
        self.keys.iter().any(|key| key.id == id)
    }

    /// Returns the identity if the JWT is valid. Otherwise logs the reason, which the client must not learn.
    pub fn identify(&self, token: &str, now: SystemTime) -> Option<Identity> {
        if self.keys.is_empty() {
            return None;
        }
        self.verify(token, now).inspect_err(|reason| log::info!("JWT rejected: {reason}")).ok()
    }

    /// Replaces the identity of a client that has sent a fresh JWT, if the JWT names the same user and allows the
    /// client's current room. Sends the client a reply, and returns the new identity.
    pub fn renew(
        &self,
        chat: &mut Chat,
        client: Token,
        token: &str,
        nonce: Option<Rc<str>>,
        now: SystemTime,
    ) -> Option<Identity> {
        let (current, room) = chat.identity_mut(client)?;
        let is_same_user = |fresh: &Identity| current.claims.is_some() && current.username == fresh.username;
        let fresh = self.identify(token, now).filter(is_same_user);
        let fresh = fresh.filter(|fresh| room.is_none_or(|room| fresh.allows_room(&room)));
        fresh.iter().for_each(|fresh| *current = fresh.clone());
        let expires = fresh.as_ref().and_then(|fresh| fresh.claims.as_ref()).map(|claims| claims.expires);
        let accepted = expires.map(|at| Event::TokenAccepted { expires: format_rfc3339_millis(at).to_string() });
        let error = || Event::Error { message: "This token cannot renew the current one".into(), nonce };
        chat.send(client, accepted.unwrap_or_else(error));
        fresh
    }

    fn verify(&self, token: &str, now: SystemTime) -> Result<Identity, String> {
        let (signed, signature) = token.rsplit_once('.').ok_or("a JWT has three parts with a dot between them")?;
        let (header, claims) = signed.split_once('.').ok_or("a JWT has three parts with a dot between them")?;
        let header = decode_object("header", header)?;
        // RFC 7515 §4.1.11: a token is invalid if its `crit` header lists an extension that the recipient does not
        // support. This server supports no extensions, so it rejects every token with `crit`.
        if header.contains_key("crit") {
            return Err("the header demands an extension (crit)".into());
        }
        let name = header.get("alg").and_then(Value::as_str).ok_or("the header names no algorithm (alg)")?;
        let algorithm: Option<Algorithm> = name.parse().ok();
        let mut candidates = self.keys.iter().filter(|key| Some(key.algorithm) == algorithm).peekable();
        candidates.peek().ok_or_else(|| format!("no key is for the algorithm {}", quote_for_log(&excerpt(name))))?;
        let signature = decode("signature", signature)?;
        let is_signed = |key: &&Key| key.verifier.verify(signed.as_bytes(), &signature).is_ok();
        let key = candidates.find(is_signed).ok_or("no key verifies the signature")?;
        let (username, claims) = self.check_claims(&decode_object("payload", claims)?, now)?;
        let (credential, username, claims) = (Some(key.id), Some(username), Some(Rc::new(claims)));
        Ok(Identity { credential, token_line: None, username, claims })
    }

    fn check_claims(&self, claims: &Map<String, Value>, now: SystemTime) -> Result<(Rc<str>, Claims), String> {
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let number = |name| {
            let number = claims.get(name).map(|value| value.as_f64().ok_or(format!("{name} is not a number")));
            number.transpose()
        };
        let expires = number("exp")?.ok_or("exp is missing")?;
        if now >= expires + LEEWAY_SECONDS {
            return Err("it has expired (exp)".into());
        }
        if number("nbf")?.is_some_and(|start| start > now + LEEWAY_SECONDS) {
            return Err("it is not valid yet (nbf)".into());
        }
        if self.iss.is_some() && self.iss.as_deref() != claims.get("iss").and_then(Value::as_str) {
            return Err("iss is not --jwt-issuer".into());
        }
        if self.aud.as_ref().is_some_and(|aud| !is_intended_for(claims.get("aud"), aud)) {
            return Err("aud does not include --jwt-audience".into());
        }
        let subject = claims.get("sub").and_then(Value::as_str).ok_or("sub is not a string")?;
        let username = names::parse_username(subject).map_err(|_| "sub is not a username")?.into();
        let rooms = claims.get("rooms").map(parse_rooms).transpose()?;
        let expires = SystemTime::UNIX_EPOCH + Duration::from_secs_f64(expires.clamp(0.0, MAX_UNIX_TIME));
        Ok((username, Claims { rooms, expires }))
    }
}

/// RFC 7519 §4.1.3: `aud` is a string, or an array of strings.
fn is_intended_for(claim: Option<&Value>, aud: &str) -> bool {
    match claim {
        Some(Value::String(claim)) => claim == aud,
        Some(Value::Array(claims)) => claims.iter().all(Value::is_string) && claims.iter().any(|claim| claim == aud),
        _ => false,
    }
}

fn parse_rooms(rooms: &Value) -> Result<HashSet<Box<str>>, String> {
    let rooms = rooms.as_array().ok_or("rooms is not an array")?;
    let room = |room: &Value| names::parse_room_name(room.as_str()?).ok().map(Box::from);
    rooms.iter().map(room).collect::<Option<_>>().ok_or_else(|| "rooms contains a value that is not a room name".into())
}

fn decode(part: &str, text: &str) -> Result<Vec<u8>, String> {
    // Reject padding, white space, and stray bits in the last character (RFC 7515 §2).
    URL_SAFE_NO_PAD.decode(text).map_err(|_| format!("the {part} is not base64url without padding"))
}

fn decode_object(part: &str, text: &str) -> Result<Map<String, Value>, String> {
    let object = serde_json::from_slice(&decode(part, text)?).map(|StrictObject(object)| object);
    object.map_err(|_| format!("the {part} is not a JSON object without repeated names"))
}

/// A JSON object in which no name is repeated, as RFC 7515 §4 and RFC 7519 §4 require. By default, serde_json would
/// keep the last value of a repeated name. Another program may have checked only the first value.
struct StrictObject(Map<String, Value>);

impl<'de> Deserialize<'de> for StrictObject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<StrictObject, D::Error> {
        deserializer.deserialize_map(StrictObject(Map::new()))
    }
}

impl<'de> Visitor<'de> for StrictObject {
    type Value = StrictObject;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<StrictObject, A::Error> {
        while let Some((name, value)) = map.next_entry()? {
            if self.0.insert(name, value).is_some() {
                return Err(A::Error::custom("a repeated name"));
            }
        }
        Ok(self)
    }
}

type ParsedKey = (Algorithm, DecodingKey, Rc<dyn JwtVerifier>);

/// Parses a key file: a public key in PEM, or else a secret. Error messages never quote the file.
fn parse_key(file: &[u8]) -> Result<ParsedKey, String> {
    // Remove NULs, so that a PEM file saved as UTF-16 is still recognized as a public key. If the server used that file
    // as an HMAC secret instead, anyone with the public key could sign JWTs.
    let text = String::from_utf8_lossy(file).replace('\0', "");
    if text.contains("-----BEGIN") {
        return parse_public_key(&text);
    }
    let line = file.strip_suffix(b"\n").unwrap_or(file);
    let secret = line.strip_suffix(b"\r").filter(|_| line.len() < file.len()).unwrap_or(line);
    if secret.len() < MIN_SECRET_LEN {
        return Err(format!("a secret has at least {MIN_SECRET_LEN} bytes, and this one has {}", secret.len()));
    }
    if parse_public_key(&format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----", STANDARD.encode(file)))
        .is_ok()
    {
        return Err("this is a public key in DER; convert it to PEM with openssl pkey -pubin -inform DER".into());
    }
    let key = DecodingKey::from_secret(secret).map_err(|error| error.to_string())?;
    add_verifier(Algorithm::HS256, key)
}

fn parse_public_key(pem: &str) -> Result<ParsedKey, String> {
    let labels: Vec<_> = pem.split("-----BEGIN ").skip(1).filter_map(|rest| rest.split("-----").next()).collect();
    let ["PUBLIC KEY" | "RSA PUBLIC KEY"] = labels[..] else {
        return Err("a PEM file must contain one public key (BEGIN PUBLIC KEY) and nothing else".into());
    };
    let pem = pem.as_bytes();
    let key = DecodingKey::from_rsa_pem(pem).map(|key| (Algorithm::RS256, key));
    let key = key.or_else(|_| DecodingKey::from_ec_pem(pem).map(|key| (Algorithm::ES256, key)));
    let key = key.or_else(|_| DecodingKey::from_ed_pem(pem).map(|key| (Algorithm::EdDSA, key)));
    let (algorithm, key) = key.map_err(|_| "this is no public key of RSA, P-256 or Ed25519")?;
    let bytes = bytes_of(&key);
    // `jsonwebtoken` does not check RSA keys before their first use, and panics on a short Ed25519 key.
    let modulus = || (DEFAULT_PROVIDER.key_utils.rsa_pub_components_from_public_key)(bytes);
    match algorithm {
        Algorithm::RS256 if modulus().is_err() => Err("the RSA key is damaged or too long".into()),
        Algorithm::RS256 if modulus().is_ok_and(|(n, _)| n.len() < MIN_RSA_LEN) => {
            Err("an RSA key needs at least 2048 bits (RFC 7518 §3.3)".into())
        }
        Algorithm::EdDSA if bytes.len() != 32 => Err("an Ed25519 key has 32 bytes".into()),
        _ => add_verifier(algorithm, key),
    }
}

fn add_verifier(algorithm: Algorithm, key: DecodingKey) -> Result<ParsedKey, String> {
    let verifier = (DEFAULT_PROVIDER.verifier_factory)(&algorithm, &key);
    let verifier = verifier.map_err(|_| format!("this is no key for {algorithm:?}"))?;
    Ok((algorithm, key, verifier.into()))
}

fn bytes_of(key: &DecodingKey) -> &[u8] {
    key.try_get_as_bytes().unwrap_or_default()
}
