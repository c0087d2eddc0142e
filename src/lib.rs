//! **wirechat**: a chat server that implements RFC 6455 on raw TCP, without a WebSocket library. This page is a guided
//! tour of the code; the README adds reading times. The modules are public only for this page, `main.rs` and the tests.
//!
//! # Layers
//! ```text
//! main    ─▶ net, tools, config, config_file, http, systemd  parses the arguments, then runs a server or a tool
//! net     ─▶ server, inspect, config, broker, chat, http, operator, systemd, proxy_protocol  poll loop, sockets, clock
//! server  ─▶ ws, http, chat, broker, config      connections: bytes to the protocol, messages to the chat, and back
//! http    ─▶ ws, chat, config                    everything before the upgrade: pages, tokens, origins
//! chat    ─▶ broker, config, operator            clients, rooms, names, JSON
//! operator                                       numbers and bans for the operator (feature metrics)
//! broker                                         the order of a room's events, and its history
//! ws                                             RFC 6455: bytes in, events and bytes out
//! config  ─▶ features                            every option: default, bounds, reason
//! features ─▶ config                             part three: the options of the optional features
//! config_file ─▶ config                          part two: options from a file
//! systemd                                        inherited sockets, and reports to the service manager
//! proxy_protocol                                 a header in which a proxy names the client
//! inspect ─▶ ws, server                          part two: traces, recordings, the inspector
//! tools   ─▶ ws, inspect, broker                 part two: explain, poke, replay, history, admin, health
//! ```
//! In the diagram, an arrow means "may use"; `tests/layering.rs` enforces it. "Part two" and "part three" are parts of
//! the README's reading order. Only [`net`], [`systemd`], the tools, and the broker's SQLite and Redis code read a
//! clock or open sockets. Other code receives sockets, time and random bytes as arguments, so tests can supply these.
//!
//! # Reading order
//! 1. [`ws`], [`ws::frame`], [`ws::mask`]: the index of the RFC; the frame header and its rules; masking.
//! 2. [`ws::reader`], [`ws::message`]: frames from a stream that may be cut anywhere, messages from frames.
//! 3. [`ws::close`], [`ws::protocol`]: close codes and protocol errors; the state machine of a connection.
//! 4. [`ws::request`], [`ws::handshake`], [`ws::extension`]: the opening handshake.
//! 5. [`chat`], [`chat::command`], [`chat::event`]: commands in, events and their recipients out.
//! 6. [`chat::identity`], [`chat::room`], [`chat::names`], [`chat::rate_limiter`]: members; names; rate limits.
//! 7. [`chat::dialect`]: three message formats for the same chat.
//! 8. [`broker`], [`broker::log`], [`broker::memory`]: the order of a room's events; ids, history, nonces.
//! 9. [`http`], [`http::access`], [`http::tokens`], [`http::proxy`]: requests, responses; who may connect, and as whom.
//! 10. [`server`], [`server::connection`], `server::lifecycle`, `server::shutdown`: one turn of the loop; the life
//!     cycle of a connection; the stages of a shutdown.
//! 11. [`server::fanout`], [`server::outbox`]: one message to a thousand clients, and backpressure.
//! 12. [`server::timers`], [`server::limits`], [`server::observer`]: deadlines; limits; the inspector's interface.
//! 13. [`net`], [`net::event_loop`], [`net::listener`], [`net::log_writer`], [`config`], `main.rs`: system, options.
//! 14. [`inspect`]: from the bytes of a connection to records, and from records to text, JSON and recordings.
//! 15. [`tools`], [`tools::replay`], [`tools::explain`], [`tools::health`], [`tools::packaging`]: the other tools.
//! 16. [`config_file`], [`systemd`], [`proxy_protocol`]: options from a file; sockets from systemd; a proxy's header.
//! 17. [`tools::poke`]: a table of valid and hostile client behavior, and the client that runs it.
//!
//! # One message, seven hops
//! | | code | what happens to the message |
//! |---|---|---|
//! | 1 | [`Connection::read`](server::connection::Connection::read) | reads its *bytes* into one buffer that all connections share, at most `--max-read` bytes per connection and turn |
//! | 2 | [`Protocol::receive`](ws::protocol::Protocol::receive) | validates the *frame* header, unmasks the payload in place, validates UTF-8, and returns a *message* |
//! | 3 | [`Chat::receive`](chat::Chat::receive) | parses the JSON into a *command*, checks rate, length and name, and submits a *request* to the broker |
//! | 4 | [`Broker::submit`](broker::Broker::submit) | gives the request its place in the order of the room, gives the message its id, stores it, and returns a *room event* |
//! | 5 | [`Chat::next_effect`](chat::Chat::next_effect) | applies the event to the tables, and returns an *effect*: what to send, and to whom |
//! | 6 | [`Fanout::append`](server::fanout::Fanout::append) | renders and frames the event once per dialect, at the end of the room's *batch* |
//! | 7 | [`Outbox::send_broadcast`](server::outbox::Outbox::send_broadcast) | sends the batch to each member with one write at the end of the turn; the *outbox* keeps the bytes that the kernel does not accept, as a shared pointer; the server closes a client over its bound with 1008 |
//!
//! Hops 2 to 5 of the table, from the frame to the effect, need no socket. This test passes a message through them:
//! ```
//! # use wirechat::chat::{Chat, Identity, JoinRequest, Now, dialect::Dialect, event::{self, Effect}};
//! # use wirechat::{broker::{Join, User}, ws::{message::Message, protocol::{Event, Limits, Protocol}}};
//! # let now = Now { time: std::time::SystemTime::UNIX_EPOCH, monotonic: Default::default() };
//! # let (config, identity) = (clap::Parser::parse_from(["wirechat"]), Identity::default());
//! # let broker = wirechat::server::new_memory_broker(&config, Box::new(|bytes| bytes.fill(7)));
//! # let mut chat = Chat::new(&config, Box::new(broker));
//! # let (join, address) = (Join::new("alice", "general", User::Connection(mio::Token(2))), [127, 0, 0, 1].into());
//! # chat.join(mio::Token(2), JoinRequest { dialect: Dialect::Events, identity, address, join, extra: None }, now);
//! # while chat.next_effect().is_some() {}
//! // A client's frame: header, masking key (zeros leave the payload readable), payload.
//! let mut bytes = *b"\x81\xa8\0\0\0\0{\"event\":\"message\",\"data\":{\"text\":\"hi\"}}";
//! let mut protocol = Protocol::new(Limits { message: 65536, fragments: 100, accepts_binary: false, deflates: false });
//! let Some(Event::Message(Message::Text(text))) = protocol.receive(&mut &mut bytes[..]) else { panic!() };
//! chat.receive(mio::Token(2), &text, now); // alice, who has joined, has token 2
//! let Some(Effect::Broadcast { event: event::Event::Message(message), .. }) = chat.next_effect() else { panic!() };
//! assert_eq!((&*message.username, &*message.text, message.id), ("alice", "hi", 1));
//! ```
//!
//! # Ten exercises
//! The first exercise takes ten minutes, the last an evening. The compiler finds each `match` that needs a new arm.
//!
//! | | task | change | test |
//! |---|---|---|---|
//! | 1 | make `/echo` reply `polo` to the text `marco` | `receive_message` in `src/server/mod.rs` | a row in `frame_rows` of `tests/hostile_frames.rs` |
//! | 2 | reject a room named "admin", in upper or lower case | `parse_room_name` in `src/chat/names.rs` | next to `allowed_and_forbidden_names` in `src/chat/names.rs` |
//! | 3 | add a `who` command that lists the usernames in the room | `Command` in `src/chat/command.rs`, `Event` in `src/chat/event.rs`, `parse` and `write` in `src/chat/dialect.rs`, `Chat` in `src/chat/mod.rs` | next to `joining` in `tests/conversation.rs` |
//! | 4 | add a `topic` command: a room has a topic, and a new member receives it | `Request` and `RoomEvent` in `src/broker/mod.rs`, `MemoryBroker` in `src/broker/memory.rs`, `Chat` in `src/chat/mod.rs`, `Room` in `src/chat/room.rs` | next to `joining` in `tests/conversation.rs` |
//! | 5 | add `--max-members`, a bound on the members of a room | `Config` in `src/config.rs`, `BrokerError` in `src/broker/mod.rs`, `BrokerLimits` and `MemoryBroker` in `src/broker/memory.rs` | next to `room_limit` in `tests/limits.rs` |
//! | 6 | reply to `GET /stats` with the number of connections, as JSON | `route_request` and `Outcome` (a new variant) in `src/http/mod.rs`; the number comes from `Server` in `src/server/mod.rs` | a row in `non_upgrade_rows` of `tests/hostile_handshake.rs` |
//! | 7 | give each Ping of the server a number as its payload, and count the matching Pongs | `ping` and `receive_control_chunk` in `src/ws/protocol.rs` | next to `rfc_5_5_2_pong_repeats_the_ping_payload` in `src/ws/protocol.rs` |
//! | 8 | send messages over 1,000 bytes in fragments. What must [`server::outbox`] know now? | `append` and `server_frame_len` in `src/ws/frame.rs` | next to `rfc_6_1_server_frames` in `src/ws/frame.rs` |
//! | 9 | add a dialect of plain lines: `alice: hi` | `Dialect` in `src/chat/dialect.rs`, `dialect_at` in `src/http/mod.rs` | next to `exact_rooms_json` in `tests/dialects.rs` |
//! | 10 | negotiate an extension that reverses each payload with RSV2 set | `is_extension_list` in `src/ws/extension.rs`, `accept_handshake` in `src/ws/handshake.rs`, `parse` and `append` in `src/ws/frame.rs`, `receive` in `src/ws/protocol.rs`, `push` in `src/ws/message.rs` | a row in `extension_rows` of `tests/hostile_handshake.rs` |
#![forbid(unsafe_code)]

pub mod broker;
pub mod chat;
pub mod config;
pub mod config_file;
pub mod features;
pub mod http;
pub mod inspect;
pub mod maps;
pub mod net;
pub mod operator;
#[cfg(test)]
mod pictures;
pub mod proxy_protocol;
pub mod server;
pub mod systemd;
pub mod tools;
pub mod ws;
