//! **wirechat**: a chat server over WebSockets in which every byte of RFC 6455 is handled by hand, on raw TCP.
//!
//! It is a program (see the README for how to run it) and a text: this page is a short book about it, meant to be read
//! beside the sources. All modules are public so that they show up here, not because anybody should depend on them.
//!
//! # The house
//!
//! Who may name whom, and what each is good for:
//!
//! ```text
//!   main   ─▶ server, tools             arguments become a Config, the Config a server; or they name a tool
//!   server ─▶ ws, chat, config, inspect   sockets, the clock, the poll loop
//!   tools  ─▶ ws, inspect               frames explained, and servers poked
//!   inspect ─▶ ws                       what passed on the wire, to be looked at
//!   ws                                  RFC 6455: bytes in, events and bytes out
//!   chat   ─▶ config                    clients, rooms, names, JSON
//!   config                              every bound and every wait
//! ```
//!
//! [`server`] knows sockets and the clock, and so does the one tool that is a client. [`ws`] and [`chat`] know neither, and
//! never name each other, so either can be read, tested and replaced without the other. A test reads the sources and keeps
//! it so (`tests/layering.rs`), and another keeps this page true (`tests/book.rs`).
//!
//! # The way to read it
//!
//! Each file opens with what it is for, often with a picture, and with the one subtle thing in it; its tests stand at
//! its end, and can be skipped at first. What a picture shows, a test has drawn from the code, or measured against it.
//!
//! | minutes | module | what it is |
//! |---|---|---|
//! | 8 | [`ws`], [`ws::frame`], [`ws::mask`] | what a frame looks like, and every rule that its header can break |
//! | 8 | [`ws::reader`], [`ws::message`] | a stream that is cut anywhere becomes frames, and frames become messages |
//! | 12 | [`ws::close`], [`ws::protocol`] | how a connection is closed or failed, and the state machine |
//! | 12 | [`ws::request`], [`ws::handshake`], [`ws::extension`] | how it all begins |
//! | 24 | [`chat::command`], [`chat`], [`chat::admission`], [`chat::speech`], [`chat::dialect`] | who is where and who hears what; the JSON of it |
//! | 12 | [`chat::rooms`], [`chat::history`], [`chat::names`], [`chat::pace`], [`chat::ids`], [`chat::timestamp`] | the tables |
//! | 6 | [`chat::access`] | who may come in, and as whom |
//! | 12 | [`server::phase`], [`server::connection`], [`server::outbox`] | one socket, and what waits to be written to it |
//! | 20 | [`server`], [`server::dispatch`], [`server::delivery`], [`server::batch`] | one turn of the loop |
//! | 22 | [`server::routes`], [`server::query`], [`server::answer`], [`server::deadline`], [`server::listener`], [`server::addresses`], [`server::journal`], [`server::shutdown`] | the rest of the glue |
//! | 5 | [`config`] | the limits |
//! | 20 | [`inspect`], [`inspect::frame`], [`inspect::tap`], [`inspect::head`], [`inspect::scan`], [`inspect::judge`], [`inspect::life`] | the wire, watched: what passed, as records |
//! | 24 | [`inspect::failure`], [`inspect::records`], [`inspect::text`], [`inspect::figure`], [`inspect::visible`], [`inspect::json`], [`inspect::secret`], [`inspect::filter`], [`inspect::recorder`], [`inspect::recording`] | how a record looks, and what is never shown |
//! | 11 | [`server::watch`], [`server::inspection`] | who is shown the wire |
//! | 14 | [`tools`], [`tools::notation`], [`tools::screen`], [`tools::response`], [`tools::inbox`], [`tools::replay`] | what the tools have in common; a recording, seen again |
//! | 13 | [`tools::explain`], [`tools::explain::frames`], [`tools::explain::numbers`], [`tools::explain::sections`] | frames drawn from bytes, questions answered |
//! | 30 | [`tools::poke`], [`tools::poke::case`], [`tools::poke::catalogue`] | everything that a peer can do to a server, as data |
//! | 19 | [`tools::poke::url`], [`tools::poke::request`], [`tools::poke::wire`], [`tools::poke::play`], [`tools::poke::verdict`], [`tools::poke::report`] | a client that does it, and judges what comes back |
//!
//! # One message, from socket to socket
//!
//! Six hops, and what the message is at each of them:
//!
//! 1. [`Connection::read_some`](server::connection::Connection::read_some) reads *bytes* into one buffer that all
//!    connections share, within a budget.
//! 2. [`Protocol::receive`](ws::protocol::Protocol::receive) judges the header, unmasks the payload where it lies, checks
//!    that it is UTF-8, and makes it a *message*.
//! 3. [`Chat::receive`](chat::Chat::receive) reads the JSON as a *command*, looks up who is in the room, and returns
//!    *deliveries*: a notice, and who is to be told.
//! 4. [`Batches::append`](server::batch::Batches::append) has the notice written as JSON again and framed, once for each
//!    dialect in the room, behind whatever else the room is told in this turn.
//! 5. [`Outbox::send_shared`](server::outbox::Outbox::send_shared) hands that batch to the kernel at the end of the turn,
//!    in one system call a member. Where the kernel does not take all of it, the rest waits in that member's *outbox*: one
//!    copy for everyone who must wait.
//! 6. [`Connection::flush`](server::connection::Connection::flush) writes what waits when the socket takes more. Who lets
//!    too much wait is closed, and nobody else notices.
//!
//! The middle four need no socket. Here they are:
//!
//! ```
//! # use clap::Parser;
//! # use wirechat::chat::{access::Grant, dialect::Dialect, Audience, Chat, Delivery, Newcomer, Now};
//! # use wirechat::server::{batch::Batches, outbox::Outbox, Config};
//! # use wirechat::ws::{message::Message, protocol::{Event, Limits, Protocol}};
//! # let now = Now { time: std::time::SystemTime::UNIX_EPOCH, steady: std::time::Duration::ZERO };
//! # let alice = Newcomer { dialect: Dialect::Events, username: "alice".into(), room: "general".into(),
//! #     grant: Grant::default(), client_id: None, resume: None, ticket: None };
//! # let mut chat = Chat::new(&Config::parse_from(["wirechat"]));
//! # let token = mio::Token(2);
//! # chat.join(token, alice, now);
//! // What a client sends: a header, a masking key (zeros change nothing), and the payload.
//! let mut bytes = *b"\x81\xa8\0\0\0\0{\"event\":\"message\",\"data\":{\"text\":\"hi\"}}";
//!
//! let mut protocol = Protocol::new(Limits { message: 65536, fragments: 100, binary: false });
//! let Some(Event::Message(Message::Text(text))) = protocol.receive(&mut &mut bytes[..]) else { panic!() };
//!
//! let deliveries = chat.receive(token, &text, now);
//! let [Delivery::Tell { to: Audience::Room(room), notice }] = &deliveries[..] else { panic!() };
//!
//! let mut batches = Batches::default();
//! batches.append(*room, chat.dialects(*room), notice);
//!
//! let (mut outbox, mut socket) = (Outbox::default(), Vec::new());
//! let batch = batches.take(*room).unwrap();
//! outbox.send_shared(batch.frames(Dialect::Events), &mut None, &mut socket).unwrap();
//! let sent = b"\x81\x64{\"event\":\"message\",\"data\":{\"username\":\"alice\",\"text\":\"hi\",";
//! assert!(socket.starts_with(sent)); // and there follow a number and the time
//! ```
//!
//! # Why each limit is what it is
//!
//! Whatever a peer can make grow has a bound, and whatever it can make last has an end. Each is a flag of [`config`]:
//!
//! | option | default | why it is there, and why that number |
//! |---|---|---|
//! | `--max-head` | 8192 | a head that never ends would fill the memory; no browser sends half as much |
//! | `--max-headers` | 64 | each costs a place in a table before it is looked at; a browser sends about fifteen |
//! | `--max-message` | 65536 | a message is held until it is whole; the longest text, all of it in JSON escapes, fits |
//! | `--max-echo` | 16777216 | the same on `/echo`, where the Autobahn suite sends this much |
//! | `--max-text` | 500 | one line should not push all others off the screen of everyone |
//! | `--max-fragments` | 100000 | empty fragments never reach a limit in bytes, but cost time; the Autobahn suite sends 65,536 |
//! | `--max-outbox` | 262144 | who reads slower than its room speaks would be remembered without end; seconds of a busy room |
//! | `--max-buffered` | 268435456 | many peers, each within its limits, would fill the memory together; a small machine has this much |
//! | `--max-read` | 65536 | one who sends without pause would keep the others waiting; one system call's worth |
//! | `--max-connections` | the descriptor limit less 16 | without descriptors nobody could even be told that the server is full |
//! | `--max-per-address` | 32 | one machine could take all places; a family behind one address does not |
//! | `--max-wrong-tokens` | 30 | tokens could be tried by the million; thirty a minute is more than anybody mistypes |
//! | `--max-rooms` | 1000 | whoever moves from name to name would leave tables behind |
//! | `--rate-limit` | 5 | one could drown a room; nobody types five messages a second for long |
//! | `--history` | 50 | a newcomer should see what is being talked about, not have to read a day |
//! | `--max-history` | 16777216 | histories of all rooms together; about 50,000 messages |
//! | `--max-empty-rooms` | 1000 | rooms that nobody is in would be remembered without end |
//! | `--history-ttl` | 3600 | the last one to be cut off may take this long to come back, and misses nothing |
//! | `--handshake-timeout` | 10 | a peer that says nothing takes a place; the slowest line sends a head in less |
//! | `--ping-interval` | 30 | a line that is cut is silent: only a ping can tell; many proxies cut what is silent for a minute |
//! | `--idle-timeout` | 60 | who is still silent as long after a ping as before it is gone |
//! | `--close-timeout` | 5 | a Close that is never answered would keep the place; an answer takes one round trip |
//!
//! # What a production system would add
//!
//! And why it is not here: each would hide what this text is about. Most have a place where they would come in.
//!
//! | what | why not here, and where it would come in |
//! |---|---|
//! | TLS | a proxy does it well. Bytes in, bytes out: below [`server::connection`] |
//! | compression | the bytes on the wire could no longer be read. [`ws::extension`]; a batch would be compressed once |
//! | several threads | one thread needs no locks, and outruns the network of most machines |
//! | several instances | rooms would need a bus between them. Behind [`server::delivery`], which knows who hears what |
//! | durable history | a disk must never stall the loop. Another [`chat::history::History`], with a thread that writes |
//! | accounts | tokens in a file show where a check belongs. [`chat::access`] |
//! | moderation | who may silence whom is a matter of people. [`chat::command`], and a rule beside [`chat::pace`] |
//! | metrics | the log tells what a person needs. A path of [`server::routes`], as in the exercise below |
//! | the address behind a proxy | it is a header that anybody can send. [`server::addresses`], once a proxy is trusted |
//! | upgrades without a cut | clients come back by themselves and miss nothing, so a restart is enough |
//!
//! # Ten exercises
//!
//! Each names what to change and the test to write; the first take ten minutes, the last ones an evening. Where a `match`
//! must know of it as well, the compiler says so; and see which of the old tests have something to say about it.
//!
//! | | do this | change | write a test |
//! |---|---|---|---|
//! | 1 | make `/echo` answer in upper case | `receive_frames` in `src/server/dispatch.rs` | a row in `frame_rows` of `tests/hostile_frames.rs` |
//! | 2 | refuse a room named "admin", however it is spelled | `room_name` in `src/chat/access.rs` | beside `names` in `src/chat/access.rs` |
//! | 3 | add an event `who` that is answered with the names of those in the room | `Command` and `Notice` in `src/chat/command.rs`, `read` and `write` in `src/chat/dialect/events.rs`, `handle` in `src/chat/mod.rs` | beside `a_newcomer_is_welcomed_and_announced` in `src/chat/mod.rs` |
//! | 4 | add a `topic` event: a room has a topic, and a newcomer is told it | as before, and `Room` in `src/chat/rooms.rs` | beside `joining` in `tests/conversation.rs` |
//! | 5 | add `--max-members`: how many a room may have | `Config` in `src/config.rs`, `has_room_for` in `src/chat/admission.rs`, `switch_room` in `src/chat/mod.rs` | beside `limit_of_rooms` in `tests/limits.rs` |
//! | 6 | answer `GET /stats` with the number of connections, as JSON | `Path` and `answer` in `src/server/routes.rs`, `answer` in `src/server/dispatch.rs` | a row in `plain_rows` of `tests/hostile_handshake.rs` |
//! | 7 | give each Ping of the server a number as its payload, and count the Pongs that answer one | `ping` and `receive_control` in `src/ws/protocol.rs` | beside `rfc_5_5_2_a_ping_is_answered_with_its_payload` in `src/ws/protocol.rs` |
//! | 8 | send what is longer than 1,000 bytes in fragments; what must [`server::outbox`] know now? | `append` and `server_frame_len` in `src/ws/frame.rs` | beside `rfc_6_1_frames_as_a_server_sends_them` in `src/ws/frame.rs` |
//! | 9 | add a dialect of plain lines, `alice: hi` | `Dialect` in `src/chat/dialect/mod.rs`, `Path` and `newcomer` in `src/server/routes.rs` | beside `rooms_word_for_word` in `tests/dialects.rs` |
//! | 10 | negotiate an extension of your own: with RSV1 set, the payload is written backwards | `is_offer` in `src/ws/extension.rs`, `switching_protocols` in `src/ws/handshake.rs`, `parse` and `append` in `src/ws/frame.rs`, `receive` in `src/ws/protocol.rs`, `push` in `src/ws/message.rs` | a row in `extension_rows` of `tests/hostile_handshake.rs` |
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod chat;
pub mod config;
pub mod inspect;
#[cfg(test)]
mod pictures;
pub mod server;
pub mod tools;
pub mod ws;
