//! **wirechat**: a chat server over WebSockets in which every byte of RFC 6455 is handled by hand, on raw TCP.
//!
//! It is a program (see the README for how to run it) and a text: this documentation is meant to be read beside the
//! sources. All modules are public so that they show up here, not because anybody should depend on them.
//!
//! # The house
//!
//! ```text
//!   main ──▶ server ──▶ ws       RFC 6455: bytes in, events and bytes out. No sockets, no clock, no rooms
//!               │
//!               ├─────▶ chat     clients, rooms, names, JSON. No frames, no sockets, no clock
//!               │        │
//!               └─────▶ config   every bound and every wait
//! ```
//!
//! [`server`] is the only one that knows `mio` and the clock; [`ws`] and [`chat`] never name each other. A test reads the
//! sources and keeps it so (`tests/layering.rs`).
//!
//! # The way to read it
//!
//! | | minutes | |
//! |---|---|---|
//! | [`ws::frame`], [`ws::mask`] | 8 | what a frame looks like, and every rule that its header can break |
//! | [`ws::reader`], [`ws::message`] | 10 | a stream that is cut anywhere becomes frames, and frames become messages |
//! | [`ws::close`], [`ws::protocol`] | 12 | how a connection is closed or failed, and the state machine |
//! | [`ws::request`], [`ws::handshake`], [`ws::extension`] | 12 | how it all begins |
//! | [`chat::command`], [`chat`], [`chat::admission`], [`chat::speech`], [`chat::dialect`] | 20 | who is where and who hears what; the JSON of it |
//! | [`chat::rooms`], [`chat::history`], [`chat::names`], [`chat::pace`] | 12 | the tables |
//! | [`chat::access`] | 6 | who may come in |
//! | [`server::connection`], [`server::outbox`] | 10 | one socket, and what waits to be written to it |
//! | [`server`], [`server::dispatch`], [`server::delivery`], [`server::batch`] | 15 | one turn of the loop |
//! | [`server::routes`], [`server::query`], [`server::deadline`], [`server::listener`], [`server::addresses`], [`server::journal`] | 15 | the rest of the glue |
//! | [`config`] | 4 | the limits, and why each is what it is |
//!
//! # One message, from socket to socket
//!
//! 1. `Connection::read_some` reads it into one buffer that all connections share, within a budget.
//! 2. `Protocol::receive` judges the header, unmasks the payload where it lies, checks that it is UTF-8, and says
//!    `Event::Message`.
//! 3. `Chat::receive` reads the JSON, looks up who is in the room, and returns `Delivery`s.
//! 4. `Server::deliver` has it written as JSON and framed, once, at the end of what the room is told in this turn.
//! 5. At the end of the turn that batch is frozen, and every member's `Outbox` gets a pointer to it.
//! 6. `Connection::flush` hands it to the kernel, in one system call a member. What the kernel does not take waits; who
//!    lets too much wait is closed, and nobody else notices.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod chat;
pub mod config;
pub mod server;
pub mod trace;
pub mod ws;
