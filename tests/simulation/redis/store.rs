//! The data of the Redis model, and the Redis commands that the broker's script calls. The commands follow the Redis
//! documentation. A hash keeps its fields in the order of insertion, like a small hash in Redis.

use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    Nil,
    Number(i64),
    Text(String),
    List(Vec<Reply>),
}

type Result = std::result::Result<Reply, String>;
type StreamId = (u64, u64);

#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Hash(Vec<(String, String)>),
    Set(BTreeSet<String>),
    Sorted(BTreeMap<String, f64>),
    Stream(Stream),
}

#[derive(Debug, Clone, PartialEq, Default)]
pub struct Stream {
    pub entries: BTreeMap<StreamId, Vec<String>>,
    pub last_id: StreamId,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    pub value: Value,
    pub expires_at: Option<u64>,
}

/// All keys of the Redis model. A clone is a snapshot.
#[derive(Debug, Clone, Default)]
pub struct Store {
    pub keys: BTreeMap<String, Entry>,
    /// The current time, in milliseconds since 1970.
    pub now: u64,
    /// Lowers the limit in `XADD … MAXLEN ~`, so that a test can exceed the limit.
    pub max_stream_len: Option<usize>,
    /// The entries that XADD has appended since the test last emptied this list: the stream's key, the first part of
    /// the entry's id, and the entry's fields.
    pub appended: Vec<(String, u64, Vec<String>)>,
}

impl Value {
    fn is_empty(&self) -> bool {
        match self {
            Value::Hash(fields) => fields.is_empty(),
            Value::Set(members) => members.is_empty(),
            Value::Sorted(members) => members.is_empty(),
            Value::Stream(_) => false, // Redis keeps an empty stream, but deletes other empty values
        }
    }
}

macro_rules! accessors {
    ($read:ident, $write:ident, $variant:ident, $type:ty) => {
        fn $read(&self, key: &str) -> std::result::Result<Option<&$type>, String> {
            match self.keys.get(key).map(|entry| &entry.value) {
                None => Ok(None),
                Some(Value::$variant(value)) => Ok(Some(value)),
                Some(_) => Err(WRONG_TYPE.to_owned()),
            }
        }

        fn $write(&mut self, key: &str) -> std::result::Result<&mut $type, String> {
            let new = || Entry { value: Value::$variant(Default::default()), expires_at: None };
            match &mut self.keys.entry(key.to_owned()).or_insert_with(new).value {
                Value::$variant(value) => Ok(value),
                _ => Err(WRONG_TYPE.to_owned()),
            }
        }
    };
}

const WRONG_TYPE: &str = "WRONGTYPE Operation against a key holding the wrong kind of value";

impl Store {
    accessors!(hash, hash_mut, Hash, Vec<(String, String)>);
    accessors!(set, set_mut, Set, BTreeSet<String>);
    accessors!(sorted, sorted_mut, Sorted, BTreeMap<String, f64>);
    accessors!(stream, stream_mut, Stream, Stream);

    /// Sets the time, and deletes the keys that have expired.
    pub fn set_time(&mut self, now: u64) {
        self.now = now;
        self.keys.retain(|_, entry| entry.expires_at.is_none_or(|at| at > now));
    }

    /// Returns the number in a field of a hash, or 0 if there is none.
    pub fn number(&self, key: &str, field: &str) -> u64 {
        let fields = self.hash(key).ok().flatten().into_iter().flatten();
        fields.filter(|(name, _)| name == field).find_map(|(_, value)| value.parse().ok()).unwrap_or(0)
    }

    pub fn execute(&mut self, command: &[String]) -> Result {
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        let [name, rest @ ..] = &words[..] else { return Err("no command".to_owned()) };
        let reply = self.dispatch(&name.to_uppercase(), rest);
        if let Some(key) = rest.first()
            && self.keys.get(*key).is_some_and(|entry| entry.value.is_empty())
        {
            self.keys.remove(*key);
        }
        reply
    }

    fn dispatch(&mut self, name: &str, words: &[&str]) -> Result {
        match (name, words) {
            ("TIME", []) => Ok(list([(self.now / 1000).to_string(), (self.now % 1000 * 1000).to_string()])),
            ("DEL", keys) => Ok(count(keys.iter().filter(|key| self.keys.remove(**key).is_some()).count())),
            ("EXISTS", keys) => Ok(count(keys.iter().filter(|key| self.keys.contains_key(**key)).count())),
            ("PEXPIRE", [key, time]) => {
                let at = (self.now as i64 + parse_integer(time)?).max(0) as u64;
                let found = self.keys.get_mut(*key).map(|entry| entry.expires_at = Some(at)).is_some();
                if at <= self.now {
                    self.keys.remove(*key);
                }
                Ok(count(usize::from(found)))
            }
            ("PERSIST", [key]) => {
                let before = self.keys.get_mut(*key).and_then(|entry| entry.expires_at.take());
                Ok(count(usize::from(before.is_some())))
            }
            (_, [key, rest @ ..]) if name.starts_with('H') => self.hash_command(name, key, rest),
            (_, [key, rest @ ..]) if name.starts_with('S') => self.set_command(name, key, rest),
            (_, [key, rest @ ..]) if name.starts_with('Z') => self.sorted_set_command(name, key, rest),
            (_, [key, rest @ ..]) if name.starts_with('X') => self.stream_command(name, key, rest),
            _ => Err(format!("the model does not know {name} {words:?}")),
        }
    }

    fn hash_command(&mut self, name: &str, key: &str, words: &[&str]) -> Result {
        let none = Vec::new();
        let fields = self.hash(key)?.unwrap_or(&none);
        let get = |field: &str| fields.iter().find(|(name, _)| name == field).map(|(_, value)| value.clone());
        match (name, words) {
            ("HGET", [field]) => Ok(text_or_nil(get(field))),
            ("HMGET", [_, ..]) => Ok(Reply::List(words.iter().map(|field| text_or_nil(get(field))).collect())),
            ("HEXISTS", [field]) => Ok(count(usize::from(get(field).is_some()))),
            ("HKEYS", []) => Ok(list(fields.iter().map(|(name, _)| name.clone()))),
            ("HGETALL", []) => Ok(list(fields.iter().flat_map(|(name, value)| [name.clone(), value.clone()]))),
            ("HSET", pairs) if !pairs.is_empty() && pairs.len().is_multiple_of(2) => {
                let mut added = 0;
                for pair in pairs.chunks(2) {
                    added += self.set_field(key, pair[0], pair[1])?;
                }
                Ok(count(added))
            }
            ("HINCRBY", [field, by]) => {
                let before = get(field).map_or(Ok(0), |value| parse_integer(&value))?;
                let number = before.checked_add(parse_integer(by)?).ok_or("increment or decrement would overflow")?;
                self.set_field(key, field, &number.to_string())?;
                Ok(Reply::Number(number))
            }
            ("HDEL", [_, ..]) => {
                let (before, fields) = (fields.len(), self.hash_mut(key)?);
                fields.retain(|(name, _)| !words.contains(&name.as_str()));
                Ok(count(before - fields.len()))
            }
            _ => Err(format!("the model does not know {name} {words:?}")),
        }
    }

    fn set_field(&mut self, key: &str, field: &str, value: &str) -> std::result::Result<usize, String> {
        let fields = self.hash_mut(key)?;
        if let Some((_, found)) = fields.iter_mut().find(|(name, _)| name == field) {
            value.clone_into(found);
            return Ok(0);
        }
        fields.push((field.to_owned(), value.to_owned()));
        Ok(1)
    }

    fn set_command(&mut self, name: &str, key: &str, words: &[&str]) -> Result {
        match (name, words) {
            ("SMEMBERS", []) => Ok(list(self.set(key)?.into_iter().flatten().cloned())),
            ("SADD", [_, ..]) => {
                let members = self.set_mut(key)?;
                Ok(count(words.iter().filter(|member| members.insert((**member).to_owned())).count()))
            }
            ("SREM", [_, ..]) => {
                let members = self.set_mut(key)?;
                Ok(count(words.iter().filter(|member| members.remove(**member)).count()))
            }
            _ => Err(format!("the model does not know {name} {words:?}")),
        }
    }

    fn sorted_set_command(&mut self, name: &str, key: &str, words: &[&str]) -> Result {
        match (name, words) {
            ("ZADD", [score, member]) => {
                let score = parse_float(score)?;
                let added = self.sorted_mut(key)?.insert((*member).to_owned(), score).is_none();
                Ok(count(usize::from(added)))
            }
            ("ZCARD", []) => Ok(count(self.sorted(key)?.map_or(0, BTreeMap::len))),
            ("ZREM", [_, ..]) => {
                let members = self.sorted_mut(key)?;
                Ok(count(words.iter().filter(|member| members.remove(**member).is_some()).count()))
            }
            ("ZRANGE", ["0", "-1"]) => Ok(list(self.members_by_score(key)?.into_iter().map(|(member, _)| member))),
            ("ZPOPMIN", []) => {
                let Some((member, score)) = self.members_by_score(key)?.into_iter().next() else {
                    return Ok(Reply::List(vec![]));
                };
                self.sorted_mut(key)?.remove(&member);
                Ok(list([member, score.to_string()]))
            }
            ("ZREMRANGEBYSCORE", [min, max]) => {
                let (min, max) = (parse_float(min)?, parse_float(max)?);
                let members = self.sorted_mut(key)?;
                let before = members.len();
                members.retain(|_, score| *score < min || *score > max);
                Ok(count(before - members.len()))
            }
            _ => Err(format!("the model does not know {name} {words:?}")),
        }
    }

    fn members_by_score(&self, key: &str) -> std::result::Result<Vec<(String, f64)>, String> {
        let members = self.sorted(key)?.into_iter().flatten();
        let mut members: Vec<_> = members.map(|(member, score)| (member.clone(), *score)).collect();
        members.sort_by(|a, b| a.1.total_cmp(&b.1)); // a stable sort: members with equal scores stay sorted by name
        Ok(members)
    }

    fn stream_command(&mut self, name: &str, key: &str, words: &[&str]) -> Result {
        match (name, words) {
            ("XADD", ["MAXLEN", "~", max, id, fields @ ..]) => {
                let max = self.max_stream_len.unwrap_or(usize::MAX).min(parse_integer(max)? as usize);
                self.add_entry(key, id, fields, max)
            }
            ("XADD", ["MAXLEN", max, id, fields @ ..]) => self.add_entry(key, id, fields, parse_integer(max)? as usize),
            ("XADD", [id, fields @ ..]) => self.add_entry(key, id, fields, usize::MAX),
            ("XLEN", []) => Ok(count(self.stream(key)?.map_or(0, |stream| stream.entries.len()))),
            ("XDEL", [_, ..]) => {
                let ids = words.iter().map(|id| parse_stream_id(id, 0)).collect::<std::result::Result<Vec<_>, _>>()?;
                if self.stream(key)?.is_none() {
                    return Ok(count(0));
                }
                let stream = self.stream_mut(key)?;
                Ok(count(ids.iter().filter(|id| stream.entries.remove(id).is_some()).count()))
            }
            ("XTRIM", ["MINID", id]) => {
                let id = parse_stream_id(id, 0)?;
                if self.stream(key)?.is_none() {
                    return Ok(count(0));
                }
                let stream = self.stream_mut(key)?;
                let kept = stream.entries.split_off(&id);
                Ok(count(std::mem::replace(&mut stream.entries, kept).len()))
            }
            ("XRANGE", [start, end, limit @ ..]) => self.range(key, start, end, limit, false),
            ("XREVRANGE", [end, start, limit @ ..]) => self.range(key, start, end, limit, true),
            _ => Err(format!("the model does not know {name} {words:?}")),
        }
    }

    fn add_entry(&mut self, key: &str, id: &str, fields: &[&str], max: usize) -> Result {
        if fields.is_empty() || !fields.len().is_multiple_of(2) {
            return Err("wrong number of arguments for 'xadd' command".to_owned());
        }
        let id = parse_stream_id(id, 0)?;
        if id == (0, 0) || self.stream(key)?.is_some_and(|stream| id <= stream.last_id) {
            return Err("the ID specified in XADD is equal or smaller than the target stream top item".to_owned());
        }
        let fields: Vec<String> = fields.iter().map(|field| (*field).to_owned()).collect();
        self.appended.push((key.to_owned(), id.0, fields.clone()));
        let stream = self.stream_mut(key)?;
        stream.entries.insert(id, fields);
        stream.last_id = id;
        while stream.entries.len() > max {
            stream.entries.pop_first();
        }
        Ok(Reply::Text(format!("{}-{}", id.0, id.1)))
    }

    fn range(&self, key: &str, start: &str, end: &str, limit: &[&str], is_reverse: bool) -> Result {
        let limit = match limit {
            [] => usize::MAX,
            ["COUNT", limit] => parse_integer(limit)?.max(0) as usize,
            _ => return Err(format!("the model does not know {limit:?}")),
        };
        let start = match (start, start.strip_prefix('(')) {
            ("-", _) => (0, 0),
            (_, Some(id)) => next(parse_stream_id(id, 0)?).ok_or("invalid start ID for the interval")?,
            (id, None) => parse_stream_id(id, 0)?,
        };
        let end = match (end, end.strip_prefix('(')) {
            ("+", _) => (u64::MAX, u64::MAX),
            (_, Some(id)) => previous(parse_stream_id(id, u64::MAX)?).ok_or("invalid end ID for the interval")?,
            (id, None) => parse_stream_id(id, u64::MAX)?,
        };
        let Some(stream) = self.stream(key)?.filter(|_| start <= end) else { return Ok(Reply::List(Vec::new())) };
        let entries = stream.entries.range(start..=end);
        let entries = entries.map(|(id, fields)| {
            Reply::List(vec![Reply::Text(format!("{}-{}", id.0, id.1)), list(fields.iter().cloned())])
        });
        let found = if is_reverse { entries.rev().take(limit).collect() } else { entries.take(limit).collect() };
        Ok(Reply::List(found))
    }
}

fn next((time, number): StreamId) -> Option<StreamId> {
    number.checked_add(1).map(|number| (time, number)).or_else(|| Some((time.checked_add(1)?, 0)))
}

fn previous((time, number): StreamId) -> Option<StreamId> {
    number.checked_sub(1).map(|number| (time, number)).or_else(|| Some((time.checked_sub(1)?, u64::MAX)))
}

/// Parses the id of a Redis stream entry, such as `5-1`. `number` is the default for the second part.
fn parse_stream_id(id: &str, number: u64) -> std::result::Result<StreamId, String> {
    let error = |_| "Invalid stream ID specified as stream command argument".to_owned();
    match id.split_once('-') {
        Some((time, number)) => Ok((time.parse().map_err(error)?, number.parse().map_err(error)?)),
        None => Ok((id.parse().map_err(error)?, number)),
    }
}

fn parse_integer(text: &str) -> std::result::Result<i64, String> {
    text.parse().map_err(|_| "value is not an integer or out of range".to_owned())
}

fn parse_float(text: &str) -> std::result::Result<f64, String> {
    text.parse().map_err(|_| "value is not a valid float".to_owned())
}

fn count(number: usize) -> Reply {
    Reply::Number(number as i64)
}

fn text_or_nil(text: Option<String>) -> Reply {
    text.map_or(Reply::Nil, Reply::Text)
}

fn list(texts: impl IntoIterator<Item = String>) -> Reply {
    Reply::List(texts.into_iter().map(Reply::Text).collect())
}
