//! Keeps the credential with which a client connected, and warns the client before its JWT expires.

use std::time::{Duration, SystemTime};
use std::{mem, rc::Rc};

use crate::chat::{Claims, CredentialId, Identity, event::Event};

const EXPIRY_WARNING_LEAD_TIME: Duration = Duration::from_secs(30); // time from the warning to the expiry of the JWT

/// The credential of a client, and the JWT's claims if the credential is a JWT.
#[derive(Debug, Default)]
pub struct Proof {
    pub credential: Option<CredentialId>,
    claims: Option<Rc<Claims>>,
    has_warned: bool, // whether the server has sent the expiry warning
}

impl Proof {
    pub fn new(identity: &Identity) -> Proof {
        Proof { credential: identity.credential, claims: identity.claims.clone(), has_warned: false }
    }

    /// Returns the time until the next check (`None` if the JWT has expired) and an event for the client, if any. `exp`
    /// is a wall-clock time, and the clock may be changed, so each check compares `exp` with the current time.
    pub fn check(&mut self, now: SystemTime) -> (Option<Duration>, Option<Event>) {
        let Some(claims) = &self.claims else { return (Some(Duration::MAX), None) };
        let left = claims.expires.duration_since(now).unwrap_or_default();
        if left.is_zero() {
            return (None, None);
        }
        if left > EXPIRY_WARNING_LEAD_TIME {
            return (Some(left - EXPIRY_WARNING_LEAD_TIME), None);
        }
        let warning = Event::TokenExpiring { seconds: left.as_secs_f64().ceil() as u64 };
        (Some(left), (!mem::replace(&mut self.has_warned, true)).then_some(warning))
    }
}
