//! The dialect of `/ws`: a client sends the text itself, no JSON, and is told who is present at every join and leave.
//!
//! The subtle thing: nothing that a client sends can be malformed here, so there is no error of reading; and a newcomer is
//! told of its own coming, since that is how it learns who is there.

use std::borrow::Cow;
use std::rc::Rc;

use serde::Serialize;

use super::write_json;
use crate::chat::command::{Command, Notice};
use crate::chat::timestamp::Timestamp;

/// Reads a client's message: all of it is the text.
pub fn read(text: &str) -> Command<'_> {
    Command::Message { username: None, text: Cow::Borrowed(text), nonce: None }
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Told<'a> {
    UserJoined { username: &'a str, active_users: Vec<&'a Rc<str>> },
    UserLeft { username: &'a str, active_users: Vec<&'a Rc<str>> },
    ChatMessage { username: &'a str, text: &'a str, timestamp: &'a Timestamp },
    PrivateMessage { from: &'a str, to: &'a str, text: &'a str, timestamp: &'a Timestamp },
}

#[derive(Serialize)]
struct Failure {
    error: String,
}

/// Appends a notice to `out`, if it has a shape here.
pub fn write(notice: &Notice, out: &mut Vec<u8>) {
    let told = match notice {
        // To the newcomer itself, who is in the list as well.
        Notice::Welcome { username, members, .. } => {
            Told::UserJoined { username, active_users: members.iter().chain([username]).collect() }
        }
        Notice::Joined { username, members } => Told::UserJoined { username, active_users: members.iter().collect() },
        Notice::Left { username, members } => Told::UserLeft { username, active_users: members.iter().collect() },
        Notice::Message(posted) => {
            Told::ChatMessage { username: &posted.username, text: &posted.text, timestamp: &posted.time }
        }
        Notice::Private(whisper) => {
            Told::PrivateMessage { from: &whisper.from, to: &whisper.to, text: &whisper.text, timestamp: &whisper.time }
        }
        Notice::Error(fault) => return write_json(&Failure { error: fault.complaint.to_string() }, out),
        Notice::Switched { .. } | Notice::Typing { .. } | Notice::Pong => return,
    };
    write_json(&told, out);
}
