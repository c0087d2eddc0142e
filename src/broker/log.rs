//! The history of one room: the newest messages, their ids, and an epoch that identifies the history. To resume, a
//! client sends the epoch and the id of the last message that it saw. Example: the log keeps three of five messages:
//!
//! ```text
//!   published    1 2 3 4 5
//!   new client       3 4 5   not resumed
//!   since 4              5   resumed
//!   since 2          3 4 5   resumed
//!   since 1          3 4 5   not resumed: message 2 is gone
//! ```

use std::{collections::HashMap, collections::VecDeque, rc::Rc};

use super::{Backlog, Message, Resume};

pub const JSON_OVERHEAD: usize = 120; // maximum length of a message's JSON without username, text and nonce, in bytes

pub struct RoomLog {
    epoch: Rc<str>,
    pub last_id: u64, // id of the newest message, even if the log has dropped it; 0 before the first message
    pub messages: VecDeque<Rc<Message>>,
    nonces: HashMap<(Rc<str>, Rc<str>), Rc<Message>>, // messages by username and nonce, to detect duplicates
    pub bytes: usize,                                 // estimated memory use of all messages in the log, in bytes
}

impl RoomLog {
    pub fn new(epoch: Rc<str>) -> RoomLog {
        RoomLog { epoch, last_id: 0, messages: VecDeque::new(), nonces: HashMap::new(), bytes: 0 }
    }

    pub fn append(&mut self, mut message: Message) -> Rc<Message> {
        message.id = self.last_id + 1;
        let message = Rc::new(message);
        self.push(Rc::clone(&message));
        message
    }

    /// Appends a message whose id the caller has already set to `last_id + 1`.
    pub fn push(&mut self, message: Rc<Message>) {
        debug_assert_eq!(self.find_duplicate(&message), None, "the nonce is new");
        debug_assert_eq!(message.id, self.last_id + 1, "ids are consecutive");
        self.last_id = message.id;
        self.nonces.extend(nonce_key(&message).map(|key| (key, Rc::clone(&message))));
        self.bytes += memory_bytes(&message);
        self.messages.push_back(message);
    }

    pub fn find_duplicate(&self, message: &Message) -> Option<&Rc<Message>> {
        self.nonces.get(&nonce_key(message)?)
    }

    /// Drops the oldest message, if any, and returns the number of freed bytes.
    pub fn drop_oldest(&mut self) -> usize {
        let Some(oldest) = self.messages.pop_front() else { return 0 };
        nonce_key(&oldest).and_then(|key| self.nonces.remove(&key));
        self.bytes -= memory_bytes(&oldest);
        memory_bytes(&oldest)
    }

    /// Returns all messages after `resume.since` if the epoch matches, the log still has these messages, and their JSON
    /// fits in `max_bytes`. Otherwise, returns the newest messages whose JSON fits.
    pub fn backlog(&self, resume: Option<&Resume>, max_bytes: usize) -> Backlog {
        let fitting = self.count_fitting(self.messages.len(), max_bytes) as u64;
        let resume = resume.filter(|resume| *resume.epoch == *self.epoch);
        let missed = resume.and_then(|resume| self.last_id.checked_sub(resume.since)).filter(|count| *count <= fitting);
        let skipped = self.messages.len() - missed.unwrap_or(fitting) as usize;
        let messages = self.messages.range(skipped..).map(Rc::clone).collect();
        Backlog { epoch: Rc::clone(&self.epoch), last_id: self.last_id, resumed: missed.is_some(), messages }
    }

    /// Returns the newest messages with ids less than `before`, and whether the log has older ones. A page has at most
    /// `limit` messages and `max_bytes` of JSON. A single message over `max_bytes` is a page by itself, so that every
    /// message can be read.
    pub fn page(&self, before: u64, limit: usize, max_bytes: usize) -> (Vec<Rc<Message>>, bool) {
        let end = self.messages.partition_point(|message| message.id < before);
        let start = end - self.count_fitting(end, max_bytes).min(limit).max(1).min(end);
        (self.messages.range(start..end).map(Rc::clone).collect(), start > 0)
    }

    /// Returns how many of the newest messages before index `end` fit in `max_bytes` of JSON together.
    fn count_fitting(&self, end: usize, max_bytes: usize) -> usize {
        let mut left = max_bytes;
        let fits = |kept: &&Rc<Message>| left.checked_sub(max_json_len(kept)).inspect(|rest| left = *rest).is_some();
        self.messages.range(..end).rev().take_while(fits).count()
    }
}

fn nonce_key(message: &Message) -> Option<(Rc<str>, Rc<str>)> {
    Some((Rc::clone(&message.username), Rc::clone(message.nonce.as_ref()?)))
}

fn max_json_len(message: &Message) -> usize {
    let byte_len = |byte: u8| 1 + usize::from(byte < b' ') * 5 + usize::from(matches!(byte, b'"' | b'\\'));
    let escaped = |text: &str| text.bytes().map(byte_len).sum::<usize>();
    JSON_OVERHEAD + escaped(&message.username) + escaped(&message.text) + message.nonce.as_deref().map_or(0, escaped)
}

pub fn memory_bytes(message: &Message) -> usize {
    let nonce = message.nonce.as_ref().map_or(0, |nonce| 80 + nonce.len()); // 80 bytes per entry in a half-full HashMap
    // About 160 bytes per message: structs, reference counts, allocator headers, and part of a shared timestamp.
    160 + message.username.len() + message.text.len() + nonce
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(username: &str, text: &str, nonce: Option<&str>) -> Message {
        let nonce = nonce.map(Rc::from);
        Message { username: username.into(), text: text.into(), id: 0, time: "t".into(), nonce }
    }

    fn log_of(texts: &[&str]) -> RoomLog {
        let mut log = RoomLog::new("e".into());
        for text in texts {
            log.append(message("a", text, Some(text)));
            if log.messages.len() > 3 {
                log.drop_oldest();
            }
        }
        log
    }

    fn resume(epoch: &str, since: u64) -> Option<Resume> {
        Some(Resume { epoch: epoch.into(), since })
    }

    fn texts(backlog: &Backlog) -> Vec<&str> {
        backlog.messages.iter().map(|message| &*message.text).collect()
    }

    #[test]
    fn picture_matches_the_code() {
        let log = log_of(&["1", "2", "3", "4", "5"]);
        let mut picture = "  published    1 2 3 4 5".to_owned();
        let rows = [("new client", None), ("since 4", resume("e", 4)), ("since 2", resume("e", 2))];
        for (name, resume) in rows.into_iter().chain([("since 1", resume("e", 1))]) {
            let backlog = log.backlog(resume.as_ref(), usize::MAX);
            let resumed = match (backlog.resumed, resume) {
                (true, _) => "resumed",
                (false, None) => "not resumed",
                (false, Some(_)) => "not resumed: message 2 is gone",
            };
            picture += &format!("\n  {name:13}{:>9}   {resumed}", texts(&backlog).join(" "));
        }
        crate::pictures::assert_in_module_doc(include_str!("log.rs"), &picture);
    }

    #[test]
    fn a_backlog_is_the_kept_messages_or_exactly_the_missed_ones() {
        let empty = log_of(&[]);
        let backlog = empty.backlog(None, usize::MAX);
        assert_eq!((backlog.last_id, backlog.messages.len(), backlog.resumed), (0, 0, false));
        assert!(
            empty.backlog(resume("e", 0).as_ref(), usize::MAX).resumed,
            "a client of an empty room has missed nothing"
        );
        let log = log_of(&["one", "two", "three", "four", "five"]);
        let backlog = log.backlog(None, usize::MAX);
        assert_eq!((backlog.last_id, texts(&backlog)), (5, vec!["three", "four", "five"]));
        let cases: [(u64, bool, &[&str]); 7] = [
            (5, true, &[]),
            (4, true, &["five"]),
            (2, true, &["three", "four", "five"]),
            (1, false, &["three", "four", "five"]),
            (0, false, &["three", "four", "five"]),
            (6, false, &["three", "four", "five"]),
            (1 << 63, false, &["three", "four", "five"]),
        ];
        for (since, resumed, expected) in cases {
            let backlog = log.backlog(resume("e", since).as_ref(), usize::MAX);
            assert_eq!((backlog.resumed, &texts(&backlog)[..]), (resumed, expected), "since {since}");
        }
        assert!(!log.backlog(resume("other", 4).as_ref(), usize::MAX).resumed);
    }

    #[test]
    fn a_nonce_is_found_as_long_as_its_message_is_kept() {
        let find = |log: &RoomLog, username: &str, nonce: &str| {
            log.find_duplicate(&message(username, "", Some(nonce))).map(|message| message.id)
        };
        let mut log = log_of(&["one", "two", "three"]);
        assert_eq!((find(&log, "a", "one"), find(&log, "a", "three")), (Some(1), Some(3)));
        assert_eq!((find(&log, "b", "one"), find(&log, "a", "other")), (None, None));
        log = log_of(&["one", "two", "three", "four"]);
        assert_eq!((find(&log, "a", "one"), find(&log, "a", "two"), find(&log, "a", "four")), (None, Some(2), Some(4)));
    }

    #[test]
    fn an_emptied_log_counts_no_bytes_and_goes_on_counting_ids() {
        let mut log = log_of(&["one", "two"]);
        assert!(log.bytes > 320);
        (0..3).for_each(|_| _ = log.drop_oldest());
        assert_eq!((log.bytes, log.nonces.len(), log.messages.len(), log.last_id), (0, 0, 0, 2));
        assert_eq!(log.append(message("a", "x", None)).id, 3);
        assert!(log.backlog(resume("e", 2).as_ref(), usize::MAX).resumed);
    }

    #[test]
    fn a_backlog_fits_in_max_bytes() {
        let mut log = RoomLog::new("e".into());
        let bytes = (1..=5).map(|_| max_json_len(&log.append(message("ann", "x", None)))).sum::<usize>();
        let resume = |since| Some(Resume { epoch: "e".into(), since });
        for (max, since, resumed, count) in
            [(bytes, 0, true, 5), (bytes - 1, 0, false, 4), (bytes - 1, 1, true, 4), (0, 5, true, 0)]
        {
            let backlog = log.backlog(resume(since).as_ref(), max);
            assert_eq!((backlog.resumed, backlog.messages.len()), (resumed, count), "{max} bytes since {since}");
            assert!(backlog.messages.last().is_none_or(|newest| newest.id == 5));
        }
    }

    #[test]
    fn pages_lead_back_to_the_oldest_kept_message() {
        let log = log_of(&["1", "2", "3", "4", "5"]);
        let page = |before, limit, max_bytes| {
            let (messages, more) = log.page(before, limit, max_bytes);
            (messages.iter().map(|message| message.id).collect::<Vec<_>>(), more)
        };
        let (two, all) = (max_json_len(&log.messages[0]) * 2, usize::MAX);
        let rows: [(u64, usize, usize, &[u64], bool); 12] = [
            (6, 100, all, &[3, 4, 5], false),
            (u64::MAX, 3, all, &[3, 4, 5], false),
            (6, 2, all, &[4, 5], true),
            (5, 2, all, &[3, 4], false),
            (5, 1, all, &[4], true),
            (4, 9, all, &[3], false),
            (3, 9, all, &[], false),
            (0, 9, all, &[], false),
            (6, 9, two, &[4, 5], true),
            (6, 9, two - 1, &[5], true),
            (6, 9, 0, &[5], true),
            (4, 9, 0, &[3], false),
        ];
        for (before, limit, max_bytes, ids, more) in rows {
            assert_eq!(
                page(before, limit, max_bytes),
                (ids.to_vec(), more),
                "{limit} messages before id {before}, {max_bytes} bytes"
            );
        }
        assert_eq!(log_of(&[]).page(9, 9, 0), (Vec::new(), false));
    }

    #[test]
    fn no_message_is_longer_as_json_than_its_estimate() {
        for text in ["", "hi", "\u{0}\u{1f}\n\t\r\u{8}", "\"\\/", "\u{7f}\u{e9}\u{2028}"] {
            let message =
                Message { id: u64::MAX, time: "2026-01-31T12:00:00.000Z".into(), ..message(text, text, Some(text)) };
            let len = serde_json::to_string(&message).unwrap().len();
            assert!(len <= max_json_len(&message), "{text:?}: {len}, not {}", max_json_len(&message));
        }
    }
}
