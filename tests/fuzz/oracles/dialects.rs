//! Checks how the three protocol dialects parse and write. Each client message must parse to the same command or error
//! as in a second, simpler implementation of PROTOCOL.md, which uses `serde_json::Value`. Each event that a dialect
//! writes must equal the JSON that PROTOCOL.md shows.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::ops::RangeInclusive;
use std::rc::Rc;

use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value, json};
use wirechat::broker::{Backlog, Message, Page, PrivateMessage};
use wirechat::chat::command::Command;
use wirechat::chat::dialect::Dialect;
use wirechat::chat::event::{ActiveUsers, ClientLimits, ErrorText, Event};

const TIME: &str = "2026-11-28T00:00:00.000Z";

pub fn check(data: &[u8]) {
    let &[choice, ref rest @ ..] = data else { return };
    let Ok(text) = std::str::from_utf8(rest) else { return };
    match choice % 4 {
        0 => check_events_dialect(text),
        1 => check_rooms_dialect(text),
        2 => {
            let command = Command::Message { username: None, to: None, text: text.into() };
            assert_eq!(Dialect::Presence.parse(text), (Ok(command), None));
        }
        _ => Parts::new(choice / 4, text).check_written(),
    }
}

/// All keys of a JSON object, including duplicates: of several equal keys, a `Value` keeps only one.
struct Keys(Vec<String>);

impl<'de> Visitor<'de> for Keys {
    type Value = Keys;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Keys, A::Error> {
        while let Some((key, IgnoredAny)) = map.next_entry::<String, _>()? {
            self.0.push(key);
        }
        Ok(self)
    }
}

/// Returns the keys that occur more than once.
fn repeated_keys(json: &str) -> Vec<String> {
    let keys = serde_json::Deserializer::from_str(json).deserialize_map(Keys(Vec::new()));
    let (keys, mut seen) = (keys.map_or(Vec::new(), |keys| keys.0), HashSet::new());
    keys.into_iter().filter(|key| !seen.insert(key.clone())).collect()
}

/// An error text that PROTOCOL.md allows as the reply to a client's message.
#[derive(Debug)]
enum AllowedError {
    Exact(String),  // PROTOCOL.md specifies the whole text
    Prefix(String), // PROTOCOL.md says only that the text names what is wrong, and the prefix does so
}

impl AllowedError {
    fn unknown_event(event: &str) -> AllowedError {
        AllowedError::Exact(format!("Unknown event: {}", event.chars().take(64).collect::<String>()))
    }

    fn allows(&self, text: &str) -> bool {
        match self {
            AllowedError::Exact(exact) => text == exact,
            AllowedError::Prefix(prefix) => text.starts_with(prefix),
        }
    }
}

/// The expected command, or the error texts that the server may reply with.
type Expected<'a> = Result<Command<'a>, Vec<AllowedError>>;

fn reject_repeated_keys(path: &str, json: &str) -> Result<(), Vec<AllowedError>> {
    let cut = |key: String| key.chars().take(64).collect::<String>();
    let error = |key| AllowedError::Prefix(format!("{path}duplicate field `{}`", cut(key)));
    let errors: Vec<_> = repeated_keys(json).into_iter().map(error).collect();
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

/// Parses `text` as a JSON object, which the test compares with the result of a dialect's parser. Returns `None` if the
/// two cannot be compared: `Value` also decodes fields that the dialect's parser skips, and may fail there.
fn parse_object(text: &str) -> Option<Result<Map<String, Value>, Vec<AllowedError>>> {
    // serde_json reserves keys with this prefix for itself, so a `Value` does not treat them as ordinary keys.
    if text.contains("$serde_json::private") {
        return None;
    }
    match serde_json::from_str(text) {
        Ok(Value::Object(object)) => Some(reject_repeated_keys("", text).map(|()| object)),
        Ok(_) => Some(Err(vec![AllowedError::Prefix("A message must be a JSON object".into())])),
        Err(error) => {
            let error = error.to_string();
            let is_stricter = ["recursion limit", "out of range", "surrogate", "hex escape"];
            let is_comparable = !is_stricter.iter().any(|what| error.contains(what));
            is_comparable.then(|| Err(vec![AllowedError::Exact("Invalid JSON".into())]))
        }
    }
}

/// Reads the fields of a JSON object. Collects all errors, because PROTOCOL.md does not say which one the server sends.
struct Fields<'a> {
    object: &'a Map<String, Value>,
    path: &'static str, // the object's path in error texts
    errors: Vec<AllowedError>,
}

impl<'a> Fields<'a> {
    fn new(path: &'static str, object: &'a Map<String, Value>) -> Fields<'a> {
        Fields { object, path, errors: Vec::new() }
    }

    fn reject(&mut self, name: &str) {
        self.errors.push(AllowedError::Prefix(format!("{}{name}: ", self.path)));
    }

    fn string(&mut self, name: &str) -> Option<Cow<'a, str>> {
        let value = self.object.get(name)?;
        if !value.is_string() {
            self.reject(name);
        }
        value.as_str().map(Cow::from)
    }

    fn integer(&mut self, name: &str, default: Option<u64>, allowed: RangeInclusive<u64>) -> u64 {
        let number = self.object.get(name).map_or(default, Value::as_u64).filter(|number| allowed.contains(number));
        if number.is_none() {
            self.reject(name);
        }
        number.unwrap_or_default()
    }

    fn finish(self, command: Command<'a>) -> Expected<'a> {
        if self.errors.is_empty() { Ok(command) } else { Err(self.errors) }
    }
}

fn check_parsed(text: &str, parsed: Result<Command, ErrorText>, expected: &Expected) {
    match (parsed, expected) {
        (Ok(command), Ok(expected)) => assert_eq!(command, *expected, "{text:?}"),
        (Err(error), Err(allowed)) => {
            assert!(allowed.iter().any(|allowed| allowed.allows(&error)), "{text:?}: {error:?}, not {allowed:?}");
        }
        (parsed, expected) => panic!("{text:?}: {parsed:?}, not {expected:?}"),
    }
}

fn check_events_dialect(text: &str) {
    let (command, nonce) = match Dialect::Events.parse(text) {
        // The chat sends this error to the client if the server accepts JWTs.
        (Ok(Command::Token(Err(error))), nonce) => (Err(error), nonce),
        parsed => parsed,
    };
    let Some(message) = parse_object(text) else { return };
    let message = match message {
        Ok(message) => message,
        Err(errors) => {
            assert_eq!(nonce, None, "{text:?}");
            return check_parsed(text, command, &Err(errors));
        }
    };
    let (empty, raw_data) = (Map::new(), raw_data(text).unwrap_or_default());
    let data = message.get("data").map_or(Some(&empty), Value::as_object);
    let is_fraction = |name| data.is_some_and(|data| data.get(name).is_some_and(Value::is_f64));
    if is_fraction("before") || is_fraction("limit") {
        return; // a `Value` stores a very large integer as a floating-point number
    }
    let expected = expect_command(message.get("event"), data, &raw_data);
    check_parsed(text, command, &expected);
    let is_nonce = |nonce: &&str| (1..=64).contains(&nonce.chars().count());
    let given = data.and_then(|data| data.get("nonce")?.as_str()).filter(is_nonce);
    let is_allowed = match expected {
        Ok(Command::Message { .. } | Command::Token(_)) => nonce.as_deref() == given,
        Ok(_) => nonce.is_none(), // the reply to any other command has no nonce
        // PROTOCOL.md does not say which of several nonces the error repeats. It also does not say whether the server
        // reads the nonce, which is a field of `data`, if `event` is wrong: `event` is checked before `data`.
        Err(_) if repeated_keys(&raw_data).iter().any(|key| key == "nonce") => true,
        Err(_) if message.get("event").is_some_and(|event| !event.is_string()) => {
            nonce.is_none() || nonce.as_deref() == given
        }
        Err(_) => nonce.as_deref() == given,
    };
    assert!(is_allowed, "{text:?}: {nonce:?}, not {given:?}");
}

/// Parses the fields of a client message as PROTOCOL.md specifies. `data` is `None` if it is not an object.
fn expect_command<'a>(event: Option<&Value>, data: Option<&'a Map<String, Value>>, raw_data: &str) -> Expected<'a> {
    let Some(event) = event.map_or(Some(""), Value::as_str) else {
        return Err(vec![AllowedError::Prefix("event: ".into())]);
    };
    if !["message", "private", "switch_room", "typing", "history", "token", "ping"].contains(&event) {
        return Err(vec![AllowedError::unknown_event(event)]);
    }
    let Some(data) = data else { return Err(vec![AllowedError::Prefix("data must be ".into())]) };
    reject_repeated_keys("data: ", raw_data)?;
    let mut fields = Fields::new("data.", data);
    let command = match event {
        "message" | "private" => {
            let to = if event == "private" { Some(fields.string("to").unwrap_or_default()) } else { None };
            let text = fields.string("text").unwrap_or_default();
            if fields.string("nonce").is_some_and(|nonce| !(1..=64).contains(&nonce.chars().count())) {
                fields.reject("nonce");
            }
            Command::Message { username: None, to, text }
        }
        "switch_room" => Command::SwitchRoom { room: fields.string("room").unwrap_or("general".into()) },
        "history" => {
            let before = fields.integer("before", None, 0..=u64::MAX);
            Command::History { before, limit: fields.integer("limit", Some(50), 1..=100) as usize }
        }
        "token" => Command::Token(Ok(fields.string("token").unwrap_or_default())),
        "typing" => Command::Typing { username: None },
        _ => Command::Ping,
    };
    fields.finish(command)
}

/// Returns the unparsed JSON of the `data` field.
fn raw_data(text: &str) -> Option<String> {
    let fields: std::collections::BTreeMap<String, Box<serde_json::value::RawValue>> =
        serde_json::from_str(text).ok()?;
    fields.get("data").map(|data| data.get().to_owned())
}

fn check_rooms_dialect(text: &str) {
    let (command, nonce) = Dialect::Rooms.parse(text);
    assert_eq!(nonce, None);
    match parse_object(text) {
        None => {}
        Some(Err(errors)) => check_parsed(text, command, &Err(errors)),
        Some(Ok(message)) => check_parsed(text, command, &rooms_command(&message)),
    }
}

fn rooms_command(message: &Map<String, Value>) -> Expected<'_> {
    let mut fields = Fields::new("", message);
    let (kind, username) = (fields.string("type").unwrap_or_default(), fields.string("username"));
    let text = fields.string("text").unwrap_or_default();
    if !["", "message", "typing"].contains(&&*kind) {
        fields.errors.push(AllowedError::unknown_event(&kind));
    }
    let is_typing = kind == "typing";
    fields.finish(if is_typing { Command::Typing { username } } else { Command::Message { username, to: None, text } })
}

/// The values from which the test builds events. All strings, except the time, are from the input.
struct Parts<'a> {
    name: &'a str,
    body: &'a str,
    text: &'a str,
    nonce: Option<Rc<str>>,
    is_true: bool,
    list: Vec<&'a str>,
    number: u64,
}

impl<'a> Parts<'a> {
    /// `bits` selects the optional fields, the number, and the length of every list.
    fn new(bits: u8, text: &'a str) -> Parts<'a> {
        let half = (0..=text.len() / 2).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default();
        let (name, body) = text.split_at(half);
        let has = |bit: u8| bits >> bit & 1 == 1;
        let list = [name, body, text][..usize::from(bits >> 2 & 3)].to_vec();
        let number = match (has(4), has(5)) {
            (false, false) => 0,
            (true, false) => text.len() as u64,
            (_, true) => u64::MAX - u64::from(has(4)),
        };
        Parts { name, body, text, nonce: has(0).then(|| name.into()), is_true: has(1), list, number }
    }

    fn check_written(&self) {
        self.check_messages();
        self.check_members();
        self.check_replies();
        self.check_welcome();
    }

    /// Adds the field `nonce` to `data` if there is a nonce.
    fn with_nonce(&self, mut data: Value) -> Value {
        if let Some(nonce) = &self.nonce {
            data["nonce"] = json!(&**nonce);
        }
        data
    }

    fn message(&self) -> (Rc<Message>, Value) {
        let Parts { name, body, number, .. } = *self;
        let (nonce, time) = (self.nonce.clone(), TIME.into());
        let message = Message { username: name.into(), text: body.into(), id: number, time, nonce };
        (message.into(), self.with_nonce(json!({"username": name, "text": body, "id": number, "time": TIME})))
    }

    /// Returns as many messages as `list` has elements.
    fn history(&self) -> (Vec<Rc<Message>>, Vec<Value>) {
        self.list.iter().map(|_| self.message()).unzip()
    }

    fn members(&self) -> Vec<Rc<str>> {
        self.list.iter().map(|name| (*name).into()).collect()
    }

    fn check_messages(&self) {
        let Parts { name, body, text, .. } = *self;
        let (message, data) = self.message();
        expect(
            &Event::Message(message),
            [
                json!({"event": "message", "data": data}),
                json!({"type": "message", "username": name, "text": body}),
                json!({"type": "chat_message", "username": name, "text": body, "timestamp": TIME}),
            ],
        );
        let (time, nonce) = (TIME.into(), self.nonce.clone());
        let private = PrivateMessage { from: name.into(), to: body.into(), text: text.into(), time, nonce };
        let data = self.with_nonce(json!({"from": name, "to": body, "text": text, "time": TIME}));
        expect(
            &Event::Private(private.into()),
            [
                json!({"event": "private", "data": data}),
                json!({"type": "private", "from": name, "to": body, "text": text}),
                json!({"type": "private_message", "from": name, "to": body, "text": text, "timestamp": TIME}),
            ],
        );
        expect(
            &Event::Error { message: text.to_owned().into(), nonce: self.nonce.clone() },
            [
                json!({"event": "error", "data": self.with_nonce(json!({"message": text}))}),
                json!({"type": "error", "message": text}),
                json!({"error": text}),
            ],
        );
    }

    fn check_members(&self) {
        let Parts { name, is_true, ref list, number, .. } = *self;
        let active_count = is_true.then_some(number as usize);
        let active = || ActiveUsers { active_users: self.members(), active_count };
        let jsons = |event: &str| {
            let mut presence = json!({"type": format!("user_{event}"), "username": name, "active_users": list});
            if let Some(count) = active_count {
                presence["active_count"] = json!(count);
            }
            [
                json!({"event": event, "data": {"username": name}}),
                json!({"type": "system", "message": format!("A user {event} the chat")}),
                presence,
            ]
        };
        expect(&Event::Joined { username: name.into(), active: active() }, jsons("joined"));
        expect(&Event::Left { username: name.into(), active: active() }, jsons("left"));
        expect(
            &Event::Typing { username: name.into() },
            [
                json!({"event": "typing", "data": {"username": name}}),
                json!({"type": "typing", "username": name}),
                Value::Null,
            ],
        );
    }

    fn check_replies(&self) {
        let Parts { name, text, is_true, number, .. } = *self;
        let (messages, jsons) = self.history();
        expect_events_only(
            &Event::History(Page { room: name.into(), before: number, messages, more: is_true }),
            "history",
            json!({"room": name, "before": number, "messages": jsons, "more": is_true}),
        );
        expect_events_only(&Event::Pong {}, "pong", json!({}));
        expect_events_only(&Event::TokenExpiring { seconds: number }, "token_expiring", json!({"seconds": number}));
        expect_events_only(&Event::TokenAccepted { expires: text.into() }, "token_accepted", json!({"expires": text}));
    }

    fn check_welcome(&self) {
        let Parts { name, body, text, is_true: resumed, ref list, number, .. } = *self;
        let (room, username, epoch) = (name.into(), body.into(), Rc::<str>::from(text));
        let (member_count, rate_limit) = (number as usize, number as f64 / 2.0);
        let (messages, jsons) = self.history();
        let switched = json!({
            "room": name, "members": list, "member_count": number, "epoch": text, "last_id": number, "history": jsons,
        });
        let mut welcome = switched.clone();
        for (field, value) in [
            ("message", json!(text)),
            ("username", json!(body)),
            ("resumed", json!(resumed)),
            ("session", json!(name)),
            ("limits", json!({"max_text": number, "max_message": 7, "rate_limit": rate_limit})),
        ] {
            welcome[field] = value;
        }
        if resumed {
            welcome["ticket"] = json!(body);
        }
        let extra = resumed.then(|| ("ticket", body.to_owned())).into_iter().collect();
        let backlog = Backlog { epoch: epoch.clone(), last_id: number, resumed, messages: messages.clone() };
        let limits = ClientLimits { max_text: number as usize, max_message: 7, rate_limit };
        let (message, members, session) = (text.to_owned(), self.members(), name.to_owned());
        expect_events_only(
            &Event::Welcome { message, members, room, username, backlog, session, member_count, limits, extra },
            "welcome",
            welcome,
        );
        let (room, members, history) = (name.into(), self.members(), messages);
        expect_events_only(
            &Event::Switched { room, members, member_count, epoch, last_id: number, history },
            "switched",
            switched,
        );
    }
}

/// Checks an event that only the `events` dialect has.
fn expect_events_only(event: &Event, name: &str, data: Value) {
    expect(event, [json!({"event": name, "data": data}), Value::Null, Value::Null]);
}

/// Checks what each dialect writes. For a dialect that does not have the event, the expected JSON is `null`, and the
/// dialect must write nothing.
fn expect(event: &Event, jsons: [Value; 3]) {
    for (dialect, json) in Dialect::ALL.into_iter().zip(jsons) {
        let mut written = Vec::new();
        dialect.write(event, &mut written);
        let written = String::from_utf8(written).expect("UTF-8");
        if json.is_null() {
            assert_eq!(written, "");
            continue;
        }
        assert_eq!(serde_json::from_str::<Value>(&written).expect("JSON"), json);
        // A `Value` keeps only one of several equal keys, so the comparison does not notice a repeated key.
        let repeated = [repeated_keys(&written), repeated_keys(&raw_data(&written).unwrap_or_default())];
        assert_eq!(repeated.concat(), [""; 0], "{written}");
    }
}
