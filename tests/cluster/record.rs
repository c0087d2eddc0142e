//! Records every message that a client receives, and reports violations of PROTOCOL.md ("History and resuming",
//! "Several instances"). Within an epoch, an id identifies one message, and a sender's nonce has one id. A client
//! never receives a message that the server rejected.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::rc::Rc;

use serde_json::Value;

/// The JSON text of a message, as a client received it.
pub type Text = Rc<str>;

/// The messages that clients have received in one room: one `History` covers a single epoch, another all epochs. After
/// Redis has lost data, a client may resume in a new epoch with messages from the previous one. The test records these
/// messages in the new epoch too, because the new epoch's history includes them.
#[derive(Default)]
struct History {
    messages: BTreeMap<u64, Text>,
    ids: HashMap<(String, String), u64>,
}

#[derive(Default)]
pub struct Record {
    histories: HashMap<(String, String), History>,
    /// The messages of each room in all epochs. Filled only if Redis keeps its data. Otherwise, two epochs may use the
    /// same message id for different messages.
    room_histories: HashMap<String, History>,
    keeps_data: bool,
    /// The sender and nonce of each message that was rejected and not resent. Such a message must never appear.
    rejected: HashSet<(String, String)>,
    pub violations: Vec<String>,
    /// Number of distinct messages that clients have received.
    pub count: usize,
}

impl History {
    fn insert(&mut self, message: &Value, text: &Text) -> Result<bool, String> {
        let id = message["id"].as_u64().ok_or("no id")?;
        if let Some(known) = self.messages.get(&id) {
            return if known == text {
                Ok(false)
            } else {
                Err(format!("two messages have one id: {known} and {text}"))
            };
        }
        if let Some(key) = key(message)
            && let Some(other) = self.ids.insert(key, id)
        {
            return Err(format!("a message has two ids: {text}, and {other}"));
        }
        self.messages.insert(id, Rc::clone(text));
        Ok(true)
    }
}

/// The sender and the nonce of a message, or `None` if either is missing.
pub fn key(message: &Value) -> Option<(String, String)> {
    Some((message["username"].as_str()?.to_owned(), message["nonce"].as_str()?.to_owned()))
}

/// The current time, in the format of the server's log lines.
pub fn now() -> impl std::fmt::Display {
    humantime::format_rfc3339_millis(std::time::SystemTime::now())
}

impl Record {
    pub fn new(keeps_data: bool) -> Record {
        Record { keeps_data, ..Record::default() }
    }

    /// Adds a violation. Prints only the first 20, each cut to 300 characters.
    pub fn report(&mut self, violation: String) {
        if self.violations.len() < 20 {
            let short: String = violation.chars().take(300).collect();
            println!("{} VIOLATION: {short}", now());
        }
        self.violations.push(violation);
    }

    /// Records a message that a client has received in `room` and `epoch`, and reports violations.
    pub fn insert(&mut self, room: &str, epoch: &str, message: &Value, text: &Text) {
        let history = self.histories.entry((room.to_owned(), epoch.to_owned())).or_default();
        let mut results = vec![history.insert(message, text)];
        if self.keeps_data {
            results.push(self.room_histories.entry(room.to_owned()).or_default().insert(message, text));
        }
        self.count += usize::from(results.last() == Some(&Ok(true)));
        for violation in results.into_iter().filter_map(Result::err) {
            self.report(format!("#{room}, epoch {epoch}: {violation}"));
        }
        if key(message).is_some_and(|key| self.rejected.contains(&key)) {
            self.report(format!("#{room}: a rejected message appears: {text}"));
        }
    }

    pub fn reject(&mut self, sender: &str, nonce: &str) {
        self.rejected.insert((sender.to_owned(), nonce.to_owned()));
        let is_known = |history: &History| history.ids.contains_key(&(sender.to_owned(), nonce.to_owned()));
        if self.histories.values().any(is_known) {
            self.report(format!("{nonce} of {sender} was published, and then rejected"));
        }
    }

    /// The highest message id that any client has received in `room`. If Redis keeps its data, message ids continue
    /// from one epoch to the next, so the search covers all epochs. Otherwise, it covers only `epoch`.
    pub fn last_id(&self, room: &str, epoch: &str) -> u64 {
        let history = if self.keeps_data {
            self.room_histories.get(room)
        } else {
            self.histories.get(&(room.to_owned(), epoch.to_owned()))
        };
        history.and_then(|history| history.messages.keys().next_back().copied()).unwrap_or_default()
    }

    /// Reports messages that clients have received but that are missing from `stored`, the room's final history.
    pub fn check_end(&mut self, room: &str, epoch: &str, stored: &[Value]) {
        let first = stored.first().and_then(|message| message["id"].as_u64()).unwrap_or(1);
        for message in stored {
            self.insert(room, epoch, message, &message.to_string().into());
        }
        let ids: HashSet<u64> = stored.iter().filter_map(|message| message["id"].as_u64()).collect();
        let known = if self.keeps_data { self.room_histories.get(room) } else { None };
        let known = known.or_else(|| self.histories.get(&(room.to_owned(), epoch.to_owned())));
        let is_lost = |(id, _): &(&u64, &Text)| (self.keeps_data || **id >= first) && !ids.contains(*id);
        let lost: Vec<String> = known
            .iter()
            .flat_map(|history| history.messages.iter().filter(is_lost))
            .map(|(_, text)| format!("#{room}: an acknowledged message is lost: {text}"))
            .collect();
        lost.into_iter().for_each(|violation| self.report(violation));
    }
}
