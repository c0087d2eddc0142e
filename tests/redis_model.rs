//! Compares the simulation's model of Redis with a real `redis-server`. The same random commands and the same calls
//! of the broker's script must return the same replies and leave the same keys.
#![cfg(feature = "redis")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "simulation/redis/mod.rs"]
mod redis;
#[path = "support/redis_server.rs"]
mod redis_server;
mod support;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fastrand::Rng;
use serde_json::{Value, json};
use wirechat::broker::redis::SCRIPT;

use redis::Redis;
use redis::store::{Reply, Store, Value as Stored};
use redis_server::{Persistence, RedisServer};

/// Makes Redis store every hash as a listpack, which keeps the order of insertion, as the model does.
const OPTIONS: &[&str] = &["--hash-max-listpack-entries", "100000", "--hash-max-listpack-value", "100000"];

/// A script that returns every key with its type, value and remaining time to live.
const DUMP_SCRIPT: &str = "
    local keys = {}
    for _, key in ipairs(redis.call('KEYS', '*')) do
        local type, value = redis.call('TYPE', key)['ok']
        if type == 'hash' then
            value = redis.call('HGETALL', key)
        elseif type == 'set' then
            value = redis.call('SMEMBERS', key)
            table.sort(value)
        elseif type == 'zset' then
            value = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
        else
            value = { redis.call('XINFO', 'STREAM', key)[8], redis.call('XRANGE', key, '-', '+') }
        end
        table.insert(keys, { key, type, value, redis.call('PTTL', key) })
    end
    return keys";

/// Returns the system time, which the tests pass to the model. The real Redis reads the system clock itself.
fn now_millis() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970").as_millis() as u64
}

fn to_json(reply: &Reply) -> Value {
    match reply {
        Reply::Nil => Value::Null,
        Reply::Number(number) => json!(number),
        Reply::Text(text) => json!(text),
        Reply::List(replies) => replies.iter().map(to_json).collect(),
    }
}

/// Returns the model's data in the format of `DUMP_SCRIPT`, sorted by key.
fn dump(store: &Store) -> Vec<Value> {
    let keys = store.keys.iter().map(|(key, entry)| {
        let (kind, value) = match &entry.value {
            Stored::Hash(fields) => {
                ("hash", fields.iter().flat_map(|(name, value)| [json!(name), json!(value)]).collect())
            }
            Stored::Set(members) => ("set", json!(members)),
            Stored::Sorted(members) => {
                let mut ranked: Vec<_> = members.iter().collect();
                ranked.sort_by(|a, b| a.1.total_cmp(b.1));
                ("zset", ranked.iter().flat_map(|(member, score)| [json!(member), json!(score.to_string())]).collect())
            }
            Stored::Stream(stream) => {
                let entries: Vec<Value> =
                    stream.entries.iter().map(|(id, fields)| json!([format!("{}-{}", id.0, id.1), fields])).collect();
                ("stream", json!([format!("{}-{}", stream.last_id.0, stream.last_id.1), entries]))
            }
        };
        let left = entry.expires_at.map_or(-1, |at| at as i64 - store.now as i64);
        json!([key, kind, value, left])
    });
    keys.collect()
}

/// Removes permitted differences between Redis and the model. Sorts the members and recipients in inbox events.
/// Replaces each remaining time to live, and each sorted-set score that is a timestamp, with a placeholder.
fn normalize(dump: &mut [Value]) {
    for key in dump.iter_mut() {
        let left = key[3].as_i64().expect("a time");
        key[3] = if left < 0 { json!(left) } else { json!("expires") };
        match key[1].as_str() {
            Some("zset") => {
                // Redis and the model may read the clock at different times, so their timestamps may order the members
                // differently. Sort the members by name instead.
                let mut list = key[2].as_array().expect("a list").chunks(2).map(<[Value]>::to_vec).collect::<Vec<_>>();
                for pair in &mut list {
                    let score: f64 = pair[1].as_str().expect("a score").parse().expect("a number");
                    pair[1] = if score.abs() > 1e9 { json!("a time") } else { json!(score) };
                }
                if list.iter().any(|pair| pair[1] == "a time") {
                    list.sort_by_key(|pair| pair[0].to_string());
                }
                key[2] = json!(list);
            }
            Some("hash") if key[0].as_str().is_some_and(|name| name.contains(":clients:")) => {
                for client in key[2].as_array_mut().expect("a list").iter_mut().skip(1).step_by(2) {
                    *client = serde_json::from_str(client.as_str().expect("a client")).expect("a client is JSON");
                }
            }
            Some("stream") if key[0].as_str().is_some_and(|name| name.contains(":inbox:")) => {
                for entry in key[2][1].as_array_mut().expect("entries") {
                    let events = entry[1][1].as_str().expect("events");
                    entry[1][1] = events.lines().map(normalize_event).collect();
                }
            }
            _ => {}
        }
    }
    dump.sort_by_key(|key| key[0].as_str().expect("a name").to_owned());
}

fn normalize_event(event: &str) -> Value {
    let mut event: Value = serde_json::from_str(event).expect("an event is JSON");
    assert!(event.get("failed").is_none(), "a request fails in the script: {event}");
    for pointer in ["/opened/1", "/synced/5", "/private/0"] {
        if let Some(Value::Array(list)) = event.pointer_mut(pointer) {
            list.sort_by_key(Value::to_string);
        }
    }
    event
}

fn assert_same_keys(real: &RedisServer, model: &Redis, what: &str) {
    let mut real: Vec<Value> = real.run(&["EVAL", DUMP_SCRIPT, "0"]).as_array().expect("keys").clone();
    let mut modelled = dump(&model.store.borrow());
    normalize(&mut real);
    normalize(&mut modelled);
    for (real, modelled) in real.iter().zip(&modelled) {
        assert_eq!(real, modelled, "{what}: Redis on the left, the model on the right");
    }
    assert_eq!(real.len(), modelled.len(), "{what}: the number of keys");
}

fn random_command(random: &mut Rng) -> Vec<String> {
    let mut word = |prefix: &str, count: u32| format!("{prefix}{}", random.u32(..count));
    let (hash, set, sorted, stream) = (word("hash", 3), word("set", 3), word("zset", 3), word("stream", 2));
    let (field, other, member) = (word("field", 5), word("field", 5), word("member", 5));
    let (number, small, limit, part) = (word("", 40), word("", 6), word("", 4), word("", 3));
    let (id, low, high) = (format!("{number}-{part}"), word("", 40), word("", 40));
    let any = [&hash, &set, &sorted, &stream][random.usize(..4)].clone();
    let bounds = |random: &mut Rng, id: &str, end: &str| match random.u8(..5) {
        0 => end.to_owned(),
        1 => format!("({id}"),
        2 => format!("({id}-{part}"),
        3 => format!("{id}-{part}"),
        _ => id.to_owned(),
    };
    let (start, end) = (bounds(random, &low, "-"), bounds(random, &high, "+"));
    let command = [
        format!("HSET {hash} {field} {number} {other} {small}"),
        format!("HSET {hash} {field} text"),
        format!("HGET {hash} {field}"),
        format!("HMGET {hash} {field} {other}"),
        format!("HEXISTS {hash} {field}"),
        format!("HDEL {hash} {field} {other}"),
        format!("HINCRBY {hash} {field} -1{small}"),
        format!("HKEYS {hash}"),
        format!("HGETALL {hash}"),
        format!("SADD {set} {member} {field}"),
        format!("SREM {set} {member} {field}"),
        format!("ZADD {sorted} {small} {member}"),
        format!("ZADD {sorted} -{number} {member}"),
        format!("ZREM {sorted} {member}"),
        format!("ZCARD {sorted}"),
        format!("ZRANGE {sorted} 0 -1"),
        format!("ZPOPMIN {sorted}"),
        format!("ZREMRANGEBYSCORE {sorted} -inf {small}"),
        format!("ZREMRANGEBYSCORE {sorted} {small} {number}"),
        format!("XADD {stream} {id} {field} {number}"),
        format!("XADD {stream} MAXLEN {small} {number}-0 {field} {number}"),
        format!("XADD {stream} MAXLEN ~ 100000 {id} {field} {number} {other} {small}"),
        format!("XDEL {stream} {id} {low}"),
        format!("XTRIM {stream} MINID {number}"),
        format!("XLEN {stream}"),
        format!("XRANGE {stream} {start} {end}"),
        format!("XRANGE {stream} {start} {end} COUNT {limit}"),
        format!("XREVRANGE {stream} {end} {start}"),
        format!("XREVRANGE {stream} {end} {start} COUNT {limit}"),
        format!("PEXPIRE {any} 100000000"),
        format!("PEXPIRE {any} 0"),
        format!("PERSIST {any}"),
        format!("EXISTS {any} {hash}"),
        format!("DEL {stream}"),
        format!("HGET {any} {field}"),
        format!("XLEN {any}"),
    ];
    command[random.usize(..command.len())].split(' ').map(str::to_owned).collect()
}

#[test]
fn commands() {
    let Some(real) = RedisServer::start_with(Persistence::Off, None, OPTIONS) else { return };
    let random = &mut Rng::with_seed(1);
    let model = Redis::new(SCRIPT);
    for _ in 0..3000 {
        let command = random_command(random);
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        let expected = real.ask(&words);
        let mut store = model.store.borrow_mut();
        store.set_time(now_millis());
        let reply = store.execute(&command).map(|reply| to_json(&reply));
        match (expected, reply) {
            (Ok(expected), Ok(reply)) => assert_eq!(expected, reply, "{command:?}: Redis on the left"),
            (Err(_), Err(_)) => {}
            (expected, reply) => panic!("{command:?}: Redis replies {expected:?}, the model {reply:?}"),
        }
        drop(store);
        if random.u8(..20) == 0 {
            assert_same_keys(&real, &model, &command.join(" "));
        }
    }
}

/// The state that a simulated server instance keeps between calls to the broker's Lua script.
#[derive(Default, Clone)]
struct Caller {
    generation: String,
    connection: String,
    read: u64,
    number: u64,
}

struct Calls {
    callers: Vec<Caller>,
    lineage: u32,
    requests: u32,
    generations: u32,
}

impl Calls {
    fn open(&mut self, random: &mut Rng, at: usize) -> Vec<String> {
        self.generations += 1;
        let caller = &self.callers[at];
        let read = if random.u8(..8) == 0 { caller.read + 100 } else { caller.read };
        let (lineage, generation) = (self.lineage.to_string(), format!("new{}", self.generations));
        let words = [
            "open",
            "p",
            &(at + 1).to_string(),
            "1",
            &lineage,
            &generation,
            &caller.generation,
            &read.to_string(),
            "600000",
        ];
        words.map(str::to_owned).to_vec()
    }

    fn call(&mut self, random: &mut Rng, at: usize) -> Vec<String> {
        let caller = self.callers[at].clone();
        let history = ["0", "3", "50"][random.usize(..3)];
        let (is_beat, read) = (random.bool() as u8, caller.read.saturating_sub(random.u64(..3)));
        let words = ["call", "p", &(at + 1).to_string(), &caller.generation, &caller.connection];
        let mut words = words.map(str::to_owned).to_vec();
        // Redis must reject a call if it has not executed the previous one, such as a rejected call.
        let previous = if random.bool() { caller.number } else { 0 };
        words.extend([read.to_string(), is_beat.to_string(), previous.to_string(), history.to_owned()]);
        words.extend(["2000", "100", "100000000", "600000"].map(str::to_owned));
        for _ in 0..random.usize(1..6) {
            let request = self.request(random);
            let number = &mut self.callers[at].number;
            *number += 1;
            // Give one request in ten an earlier request number, as if the instance resent that request.
            let number = if random.u8(..10) == 0 { number.saturating_sub(2) } else { *number };
            words.extend([number.to_string(), request[0].clone(), (request.len() - 1).to_string()]);
            words.extend(request.into_iter().skip(1));
        }
        words
    }

    fn request(&mut self, random: &mut Rng) -> Vec<String> {
        self.requests += 1;
        let client = random.u32(1..6).to_string();
        let room = ["general", "Été \"x\"", "tea/2"][random.usize(..3)];
        let name = ["ann", "Bob", "zoé"][random.usize(..3)];
        let (key, share) = (name.to_lowercase(), if random.u8(..3) > 0 { "1" } else { "0" });
        let nonce = format!("n{}", random.u32(..20));
        let (quoted, nonce_key) = (format!("\"{nonce}\""), format!("{name}\n{nonce}"));
        let (quoted, nonce_key) = if random.bool() { (quoted, nonce_key) } else { ("null".into(), String::new()) };
        let text = "x".repeat(random.usize(..300));
        let payload = json!({"username": name, "text": format!("{} {text}", self.requests), "time": "t"}).to_string();
        let private = json!({"from": name, "to": "Bob", "text": "\u{1f600}/\u{7f}", "time": "t"}).to_string();
        let (session, other) = (format!("s{}", random.u32(..4)), format!("s{}", self.requests));
        let session = if random.bool() { session } else { String::new() };
        let client_id = if random.u8(..4) == 0 { format!("id{}", random.u32(..2)) } else { String::new() };
        let credential = random.u32(..2).to_string();
        let epoch = format!("{}-new{}-{}", random.u32(1..3), random.u32(1..4), random.u32(1..8));
        let since = random.u32(..8).to_string();
        let words: Vec<&str> = match random.u8(..20) {
            0..=3 => vec![
                "join",
                &client,
                room,
                name,
                &key,
                share,
                "0",
                &client_id,
                &credential,
                &session,
                &other,
                &epoch,
                &since,
            ],
            4 => vec!["leave", &client],
            5..=6 => vec!["switch", &client, room, name],
            7..=11 => vec!["publish", &client, name, &key, share, &quoted, &nonce_key, &payload],
            12 => vec!["announce", "0", room, &nonce_key, &payload],
            13 => vec!["private", &client, name, &key, share, &quoted, "bob", "Bob", &private],
            14 => vec!["page", &client, &since, "3"],
            15 => vec!["typing", &client, name, &key, share],
            16 => vec!["rejoin", &client, room, name, name, &key, share, &client_id, &credential, &other],
            17 => vec!["sync", room, &epoch, &since],
            18 => vec!["reap", &credential, &since],
            _ => match random.u8(..5) {
                0 => vec!["retain", "2", &client, "3"],
                1 => vec!["close"],
                2 => vec!["reject", &client, "rooms", &quoted],
                _ => vec!["probe"],
            },
        };
        words.into_iter().map(str::to_owned).collect()
    }
}

#[test]
fn script_calls() {
    let Some(real) = RedisServer::start_with(Persistence::Off, None, OPTIONS) else { return };
    for seed in 1..=12 {
        real.run(&["FLUSHALL"]);
        let random = &mut Rng::with_seed(seed);
        let model = Redis::new(SCRIPT);
        let mut calls = Calls { callers: vec![Caller::default(); 3], lineage: 1, requests: 0, generations: 0 };
        for step in 0..80 {
            let at = random.usize(..3);
            if random.u8(..30) == 0 {
                calls.lineage += 1;
            }
            let opens = calls.callers[at].connection.is_empty() || random.u8(..15) == 0;
            let arguments = if opens { calls.open(random, at) } else { calls.call(random, at) };
            let mut words = vec!["EVAL", SCRIPT, "0"];
            words.extend(arguments.iter().map(String::as_str));
            let expected = real.ask(&words);
            model.store.borrow_mut().set_time(now_millis());
            let reply = model.call(&arguments);
            let what = format!("seed {seed}, step {step}, {arguments:?}");
            match (&expected, &reply) {
                (Ok(expected), Ok(reply)) => assert_same_reply(expected, reply, &what),
                _ => panic!("{what}: Redis replies {expected:?}, the model {reply:?}"),
            }
            assert_same_keys(&real, &model, &what);
            let caller = &mut calls.callers[at];
            match &reply.as_deref() {
                Ok([_, generation, connection, ..]) if opens => {
                    (caller.generation, caller.connection) = (generation.clone(), connection.clone());
                }
                Ok([status]) if status == "stale" => caller.connection.clear(),
                _ => {}
            }
            let name = format!("p:inbox:{}", at + 1);
            if let Some(Stored::Stream(stream)) = model.store.borrow().keys.get(&name).map(|entry| &entry.value) {
                caller.read = stream.last_id.0;
            }
        }
    }
}

/// Compares two replies. Ignores the order of the heartbeats, because the script reads the instances from a set.
fn assert_same_reply(expected: &Value, reply: &[String], what: &str) {
    let expected: Vec<String> =
        expected.as_array().expect("a list").iter().map(|text| text.as_str().expect("a text").to_owned()).collect();
    let sorted = |reply: &[String]| {
        let mut pairs: Vec<Vec<String>> =
            reply.get(1..).unwrap_or_default().chunks(2).map(<[String]>::to_vec).collect();
        if reply[0] == "done" {
            pairs.sort();
        }
        (reply[0].clone(), pairs)
    };
    assert_eq!(sorted(&expected), sorted(reply), "{what}: Redis on the left");
}

/// A simulated server instance. It runs the broker's Lua script in the model of Redis, not in a real `redis-server`.
struct Instance<'a> {
    redis: &'a Redis,
    number: &'static str,
    generation: String,
    connection: String,
    requests: u64,
}

impl<'a> Instance<'a> {
    fn open(redis: &'a Redis, number: &'static str) -> Instance<'a> {
        let reply = open(redis, number, "1", "", 0);
        assert_eq!(reply[0], "lost", "an instance that Redis does not know");
        Instance::new(redis, number, &reply)
    }

    /// Creates an instance that has received `reply` to its registration.
    fn new(redis: &'a Redis, number: &'static str, reply: &[String]) -> Instance<'a> {
        Instance { redis, number, generation: reply[1].clone(), connection: reply[2].clone(), requests: 0 }
    }

    fn request(&mut self, words: &[&str]) -> Vec<String> {
        self.requests += 1;
        self.resend(words)
    }

    /// Sends a request without increasing the request number. Redis treats a request with a repeated number as a
    /// resend, so the method `request` increases the number before it calls this method. The history limit is set to
    /// one message per room, so that a test can exceed it with few messages.
    fn resend(&self, words: &[&str]) -> Vec<String> {
        let (number, count) = (self.requests.to_string(), (words.len() - 1).to_string());
        let previous = (self.requests - 1).to_string();
        let mut call = vec!["call", "p", self.number, &self.generation, &self.connection, "0", "1", &previous];
        call.extend(["1", "2000", "100", "100000", "600000", &number, words[0], &count]);
        call.extend(&words[1..]);
        self.redis.call(&call.into_iter().map(str::to_owned).collect::<Vec<_>>()).expect("a reply")
    }

    fn join(&mut self, client: &str, name: &str) {
        self.request(&["join", client, "room", name, name, "0", "0", "", "", "", "session", "", "0"]);
    }

    fn publish(&mut self, client: &str, name: &str, nonce_key: &str) {
        self.request(&["publish", client, name, name, "0", "null", nonce_key, r#"{"text":"Hi"}"#]);
    }

    /// Declares another instance dead if its newest heartbeat still is `beat`.
    fn reap(&mut self, other: &str, beat: &Value) {
        self.request(&["reap", other, beat.as_str().expect("a beat")]);
    }

    fn beat(&self) -> Value {
        ask(self.redis, &format!("HGET p:instance:{} beat", self.number))
    }
}

fn open(redis: &Redis, number: &str, protocol: &str, generation: &str, read: u64) -> Vec<String> {
    open_in_lineage(redis, number, protocol, "lineage", generation, read)
}

fn open_in_lineage(
    redis: &Redis,
    number: &str,
    protocol: &str,
    lineage: &str,
    generation: &str,
    read: u64,
) -> Vec<String> {
    let words = ["open", "p", number, protocol, lineage, "name", generation, &read.to_string(), "600000"];
    redis.call(&words.map(str::to_owned)).expect("a reply")
}

fn ask(redis: &Redis, command: &str) -> Value {
    let words: Vec<String> = command.split(' ').map(str::to_owned).collect();
    to_json(&redis.store.borrow_mut().execute(&words).expect("a reply"))
}

fn members(redis: &Redis) -> Value {
    ask(redis, "HGETALL p:members:room")
}

#[test]
fn a_request_is_executed_once_and_only_for_the_newest_connection() {
    let redis = Redis::new(SCRIPT);
    let mut first = Instance::open(&redis, "1");
    first.join("5", "ann");
    first.publish("5", "ann", "");
    let last_id = || ask(&redis, "HGET p:room:room last_id");
    assert_eq!(last_id(), "1");
    first.resend(&["publish", "5", "ann", "ann", "0", "null", "", "{}"]);
    assert_eq!(last_id(), "1", "the script has already executed the request with this number");
    let reply = open(&redis, "1", "1", &first.generation, 2);
    assert_eq!((&*reply[0], &*reply[3], &*reply[4]), ("known", "2", "3"), "two requests, three inbox entries");
    assert_eq!(first.request(&["publish", "5", "ann", "ann", "0", "null", "", "{}"]), ["stale"]);
    assert_eq!(last_id(), "1", "the script ignores a call from an older connection");
    assert_eq!(open(&redis, "1", "1", &first.generation, 4)[0], "lost", "the instance has read more than Redis has");
    assert_eq!(open(&redis, "2", "2", "", 0), ["protocol", "1"]);
}

/// An instance that has missed entries registers with an empty generation. After a restart of Redis, the missing entries
/// may be older than the new generation.
#[test]
fn a_gap_before_the_current_generation_is_detected() {
    let redis = Redis::new(SCRIPT);
    let mut instance = Instance::open(&redis, "1");
    instance.join("5", "ann");
    instance.publish("5", "ann", "");
    let generation = instance.generation.clone();
    let open = |generation: &str, read| open_in_lineage(&redis, "1", "1", "restarted", generation, read)[0].clone();
    assert_eq!(open(&generation, 1), "known", "Redis has all entries that the instance has read");
    assert_eq!(open("", 2), "lost", "the instance has missed an entry");
}

/// Redis restarts twice without its newest writes while an instance is suspended. After the first restart, another
/// instance writes entries with the ids of those that are lost. The first instance has read the lost entries, not these.
#[test]
fn entries_that_replace_lost_ones_are_detected_after_two_restarts() {
    let redis = Redis::new(SCRIPT);
    let mut suspended = Instance::open(&redis, "1");
    suspended.join("5", "ann");
    let entry =
        |of: &str| ask(&redis, &format!("HGET p:instance:{of} entry")).as_str().unwrap().parse::<u64>().unwrap();
    let has_read = entry("1") + 1; // Redis has lost the last entry that the instance has read
    let generation = suspended.generation.clone();
    let mut other = Instance::new(&redis, "2", &open_in_lineage(&redis, "2", "1", "first restart", "", 0));
    other.join("6", "bob");
    other.publish("6", "bob", "");
    assert!(entry("1") >= has_read, "another entry has the id of the lost one");
    let reply = open_in_lineage(&redis, "2", "1", "second restart", &other.generation, entry("2"));
    other = Instance { requests: other.requests, ..Instance::new(&redis, "2", &reply) };
    other.publish("6", "bob", "");
    assert_eq!(open_in_lineage(&redis, "1", "1", "second restart", &generation, has_read)[0], "lost");
}

/// Redis may reject a call, for example because it is full, and execute the next one. The next one must not overtake.
#[test]
fn requests_do_not_overtake_those_of_a_rejected_call() {
    let redis = Redis::new(SCRIPT);
    let mut instance = Instance::open(&redis, "1");
    instance.join("5", "ann");
    instance.requests += 1; // the request that Redis has rejected
    instance.publish("5", "ann", "");
    assert_eq!(ask(&redis, "XLEN p:log:room"), 0);
    assert_eq!(instance.request(&["probe"]), ["stale"]);
}

#[test]
fn the_history_and_its_nonces_have_one_bound() {
    let redis = Redis::new(SCRIPT);
    let mut instance = Instance::open(&redis, "1");
    instance.join("5", "ann");
    (0..3).for_each(|number| instance.publish("5", "ann", &format!("ann-{number}")));
    assert_eq!(ask(&redis, "XLEN p:log:room"), 1);
    assert_eq!(ask(&redis, "HGETALL p:nonces:room"), json!(["ann-2", "3"]));
}

#[test]
fn only_an_instance_without_a_new_heartbeat_is_removed() {
    let redis = Redis::new(SCRIPT);
    let (mut silent, mut other) = (Instance::open(&redis, "1"), Instance::open(&redis, "2"));
    silent.join("5", "ann");
    let beat = silent.beat();
    silent.request(&["probe"]);
    other.reap("1", &beat);
    assert_eq!(members(&redis), json!(["1/5", "ann"]), "the instance has sent a beat in the meantime");
    let beat = silent.beat();
    other.reap("1", &beat);
    assert_eq!(members(&redis), json!([]));
    assert_eq!(open(&redis, "1", "1", &silent.generation, 0)[0], "dead");
    assert_ne!(silent.beat(), beat, "other instances must not measure the silence from the old beat");
}

/// The reply that tells an instance to add its clients again may be lost, so Redis repeats it until the instance does so.
#[test]
fn a_registration_is_repeated_until_the_clients_are_back() {
    let redis = Redis::new(SCRIPT);
    let (mut silent, mut other) = (Instance::open(&redis, "1"), Instance::open(&redis, "2"));
    silent.join("5", "ann");
    let beat = silent.beat();
    other.reap("1", &beat);
    let generation = silent.generation.clone();
    let open = || open(&redis, "1", "1", &generation, 0);
    assert_eq!(open()[0], "dead");
    let reply = open();
    assert_eq!(reply[0], "dead", "the first reply was lost");
    silent.connection = reply[2].clone();
    silent.request(&["probe"]);
    assert_eq!(open()[0], "dead", "a request proves nothing about the clients");
    silent.connection = open()[2].clone();
    silent.request(&["retain", "0"]);
    assert_eq!(open()[0], "known");
}

#[test]
fn clients_come_back_unless_another_client_has_their_name() {
    let redis = Redis::new(SCRIPT);
    let (mut first, mut second) = (Instance::open(&redis, "1"), Instance::open(&redis, "2"));
    first.join("5", "ann");
    first.join("6", "bob");
    first.request(&["retain", "1", "6"]);
    assert_eq!(members(&redis), json!(["1/6", "bob"]));
    let rejoin = |client, name| ["rejoin", client, "room", name, name, name, "0", "", "", "session"];
    second.request(&rejoin("7", "bob"));
    assert_eq!(members(&redis), json!(["1/6", "bob"]), "the name is taken");
    second.request(&rejoin("7", "cid"));
    assert_eq!(members(&redis), json!(["1/6", "bob", "2/7", "cid"]));
    first.request(&["close"]);
    assert_eq!(members(&redis), json!(["2/7", "cid"]));
    assert_eq!(ask(&redis, "SMEMBERS p:instances"), json!(["2"]));
}

#[test]
fn keys_expire() {
    let mut store = Store::default();
    store.set_time(1000);
    let run = |store: &mut Store, command: &str| {
        store.execute(&command.split(' ').map(str::to_owned).collect::<Vec<_>>()).expect("a reply")
    };
    run(&mut store, "HSET a field 1");
    run(&mut store, "HSET b field 1");
    run(&mut store, "PEXPIRE a 500");
    run(&mut store, "PEXPIRE b 500");
    run(&mut store, "PERSIST b");
    store.set_time(1000 + Duration::from_millis(499).as_millis() as u64);
    assert_eq!(run(&mut store, "EXISTS a b"), Reply::Number(2));
    store.set_time(1500);
    assert_eq!(run(&mut store, "EXISTS a b"), Reply::Number(1));
}
