//! The commands that clients send. A dialect parses each command from a text message. The chat then trims and validates
//! the texts and names in the command.

use std::{borrow::Cow, rc::Rc};

use super::event::ErrorText;

/// A command or an error, and an optional nonce (1 to 64 characters) that the resulting event repeats.
pub type ParsedCommand<'a> = (Result<Command<'a>, ErrorText>, Option<Rc<str>>);

#[derive(Debug, PartialEq, Eq)]
pub enum Command<'a> {
    // The message goes to the room unless `to` is set or `text` begins with the word `/msg`. Only the `rooms` dialect
    // sets `username`.
    Message { username: Option<Cow<'a, str>>, to: Option<Cow<'a, str>>, text: Cow<'a, str> },
    SwitchRoom { room: Cow<'a, str> }, // only the `events` dialect has `SwitchRoom`, `History`, `Token` and `Ping`
    History { before: u64, limit: usize },
    Typing { username: Option<Cow<'a, str>> },
    // The client's new JWT, or an error if the JSON field `token` is not a string. Without `--jwt-key`, the chat
    // rejects the command `token`.
    Token(Result<Cow<'a, str>, ErrorText>),
    Ping, // the command `ping`; the `ws` module replies to Ping frames
}

/// Splits `/msg NAME TEXT` into NAME (a word or a quoted phrase) and TEXT; both may be empty. `None` without `/msg`.
pub fn split_private_message(text: &str) -> Option<(&str, &str)> {
    let words = text.strip_prefix("/msg").filter(|words| words.is_empty() || words.starts_with(char::is_whitespace))?;
    let words = words.trim_start();
    let quoted = words.strip_prefix('"').and_then(|quoted| quoted.split_once('"'));
    let (name, text) = quoted.or_else(|| words.split_once(char::is_whitespace)).unwrap_or((words, ""));
    Some((name, text.trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_message_names_its_recipient_first() {
        let cases = [
            ("/msg ann hi", Some(("ann", "hi"))),
            ("/msg ann   two  words", Some(("ann", "two  words"))),
            ("/msg \"ann lee\" hi there", Some(("ann lee", "hi there"))),
            ("/msg\t\"ann lee\"  hi", Some(("ann lee", "hi"))),
            ("/msg ann \"lee\" hi", Some(("ann", "\"lee\" hi"))),
            ("/msg \"ann lee hi", Some(("\"ann", "lee hi"))),
            ("/msg \"\" hi", Some(("", "hi"))),
            ("/msg ann", Some(("ann", ""))),
            ("/msg \"ann lee\"", Some(("ann lee", ""))),
            ("/msg", Some(("", ""))),
            ("/message ann hi", None),
            ("/MSG ann hi", None),
        ];
        for (text, split) in cases {
            assert_eq!(split_private_message(text), split, "{text}");
        }
    }
}
