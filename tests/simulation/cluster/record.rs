//! Records the messages that the simulated Redis has stored, and how each loss of data shortened a room's history. The
//! messages that clients receive must match this record.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::model::{ACKNOWLEDGEMENT, ORDER, Violation};
use crate::{FNV_OFFSET, fnv1a};

/// For each message id, a hash of the message that clients received. The test compares it with the stored message.
pub type Fingerprints = BTreeMap<u64, u64>;

#[derive(Default)]
pub struct Record {
    /// All histories of each room. The last one is current. When Redis loses messages of a room, the remaining
    /// messages become the new current history.
    rooms: BTreeMap<String, Vec<Vec<Entry>>>,
    /// For each room and epoch, the messages in the backlogs that clients received.
    epochs: BTreeMap<(String, String), Fingerprints>,
    /// Texts for which a client received `Message not stored`.
    pub rejected: BTreeSet<String>,
    /// Texts that had no reply when their sender's connection ended. Redis may store these texts out of order,
    /// because the sender sends them again.
    pub unordered: BTreeSet<String>,
    /// The texts of all messages that Redis has ever stored.
    published: BTreeSet<String>,
    /// For each connection, the number of its newest stored message. A message's text starts with the connection's id,
    /// a dot and this number, for example `c5.17`.
    last_numbers: BTreeMap<String, u64>,
    pub violation: Option<Violation>,
    /// The number of messages that Redis keeps per room.
    history: usize,
    pub has_lost_data: bool,
    pub messages: u64,
}

struct Entry {
    fingerprint: u64,
    nonce_key: String,
}

pub fn fingerprint(message: &Value) -> u64 {
    let fields = ["username", "text", "time", "nonce"].map(|name| message[name].to_string());
    fnv1a(FNV_OFFSET, fields.concat().as_bytes())
}

impl Record {
    pub fn new(history: usize) -> Record {
        Record { history, ..Record::default() }
    }

    pub fn fail(&mut self, rule: &'static str, text: impl Into<String>) {
        let text = text.into();
        self.violation.get_or_insert(Violation { rule, text });
    }

    /// Records a message that Redis has appended to a history.
    pub fn append(&mut self, room: &str, id: u64, fields: &[String]) {
        self.messages += 1;
        let [_, payload, _, nonce_key] = fields else { return self.fail(ORDER, format!("an entry has {fields:?}")) };
        let payload: Value = serde_json::from_str(payload).expect("a payload is JSON");
        let text = payload["text"].as_str().unwrap_or_default().to_owned();
        if self.rejected.contains(&text) {
            self.fail(ACKNOWLEDGEMENT, format!("{text:?} was rejected, and appears later"));
        }
        let (connection, number) = text.split_once('.').unwrap_or((&text, "0"));
        if self.published.insert(text.clone()) && !self.unordered.contains(&text) {
            let number = number.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0);
            let before = self.last_numbers.insert(connection.to_owned(), number);
            if before.is_some_and(|before| before >= number) {
                self.fail(ORDER, format!("{text:?} is published after number {before:?} of its connection"));
            }
        }
        let entry = Entry { fingerprint: fingerprint(&payload), nonce_key: nonce_key.clone() };
        let histories = self.rooms.entry(room.to_owned()).or_insert_with(|| vec![Vec::new()]);
        let is_first = histories.len() == 1 && histories[0].is_empty();
        let Some(current) = histories.last_mut() else { return };
        let kept = &current[current.len().saturating_sub(self.history)..];
        let is_repeated = !nonce_key.is_empty() && kept.iter().any(|kept| kept.nonce_key == *nonce_key);
        let last_id = current.len() as u64;
        if id == last_id + 1 {
            current.push(entry);
        } else if id == 1 && !is_first {
            histories.push(vec![entry]); // the room's earlier history expired while the room was empty
        } else {
            self.fail(ORDER, format!("message {id} of {room} follows message {last_id}"));
        }
        if is_repeated && id != 1 {
            self.fail(ACKNOWLEDGEMENT, format!("the nonce of {text:?} is published twice in {room}"));
        }
    }

    /// Starts a new, shorter history for each room whose newest messages Redis has lost. `last_id(room)` returns the id
    /// of the last message that Redis still has.
    pub fn rewind(&mut self, last_id: impl Fn(&str) -> u64) {
        self.has_lost_data = true;
        for (room, histories) in &mut self.rooms {
            let current = histories.last().map_or(&[][..], Vec::as_slice);
            let kept = (last_id(room) as usize).min(current.len());
            if kept < current.len() {
                let copy = current[..kept].iter();
                let copy =
                    copy.map(|entry| Entry { fingerprint: entry.fingerprint, nonce_key: entry.nonce_key.clone() });
                let copy = copy.collect();
                histories.push(copy);
            }
        }
    }

    pub fn last_id(&self, room: &str) -> u64 {
        self.rooms.get(room).and_then(|histories| histories.last()).map_or(0, |history| history.len() as u64)
    }

    pub fn was_published(&self, text: &str) -> bool {
        self.published.contains(text)
    }

    /// Whether at least one of the room's histories contains all messages in `seen`.
    pub fn contains_all(&self, room: &str, seen: &Fingerprints) -> bool {
        let fits = |history: &Vec<Entry>| {
            seen.iter().all(|(id, fingerprint)| {
                history.get((*id as usize).wrapping_sub(1)).is_some_and(|entry| entry.fingerprint == *fingerprint)
            })
        };
        seen.is_empty() || self.rooms.get(room).is_some_and(|histories| histories.iter().rev().any(fits))
    }

    /// Records the messages of a backlog with this epoch. Fails if no single history contains the messages of all
    /// backlogs that clients have received with this epoch.
    pub fn add_backlog(&mut self, room: &str, epoch: &str, given: &Fingerprints) {
        let known = self.epochs.entry((room.to_owned(), epoch.to_owned())).or_default();
        let differs = given.iter().find(|(id, fingerprint)| known.get(id).is_some_and(|known| known != *fingerprint));
        if let Some((id, _)) = differs {
            let text = format!("message {id} of {room} in epoch {epoch} was another message before");
            return self.fail(ORDER, text);
        }
        known.extend(given);
        let known = known.clone();
        if !self.contains_all(room, &known) {
            self.fail(ORDER, format!("the messages of {room} in epoch {epoch} are of several histories"));
        }
    }
}
