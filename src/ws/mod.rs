//! RFC 6455, the server's side, by hand.
//!
//! Bytes go in, events and bytes come out. Nothing under `ws` knows a socket, a clock, a room or a name, so all of it
//! can be tested with byte literals, and the same code serves a connection, a benchmark and a doc example.
//!
//! Reading order: [`frame`], [`mask`] and [`reader`] (one frame, and a stream of them), [`message`] (many frames, one
//! message), [`close`] (how it ends and why), [`protocol`] (the state machine that holds these together), [`request`] and
//! [`handshake`] (how it all begins), [`extension`] (what is declined).
//!
//! # Every section of RFC 6455 that binds a server
//!
//! Where it is obeyed, and the test that proves it: a name alone is a unit test, `hostile_frames::closes` is one of
//! `tests/hostile_frames.rs`. A section is cited (`§5.1`) where it is obeyed; other RFCs are cited by their number. A test
//! holds this table against the sources and against the contents of the RFC (`tests/rfc_index.rs`).
//!
//! | section | where | test |
//! |---|---|---|
//! | 1.2, 1.3 the accept key | [`handshake::accept_key`] | `rfc_1_3_the_accept_key` |
//! | 1.9 one subprotocol, or none | [`Upgrade::switching_protocols`](handshake::Upgrade::switching_protocols) | `rfc_4_2_2_the_answer`, `dialects::subprotocols` |
//! | 3 a path and a query | [`request::Request::target`] | `targets_are_taken_apart`, `hostile_handshake::targets` |
//! | 4.1 what a client must send | [`handshake::Upgrade::check`] | `rfc_4_2_1_requests_and_statuses` |
//! | 4.1 what comes behind the head is frames | [`server::dispatch`](crate::server::dispatch), [`request::HeadReader`] | `hostile_frames::a_broken_frame_behind_the_head` |
//! | 4.2, 4.2.1 the head of a request | [`request::HeadReader`], [`request::Request::parse`], [`handshake`] | `a_head_in_any_pieces_ends_at_the_same_byte`, `heads_and_statuses` |
//! | 4.2.1 the headers of a request | [`handshake::Upgrade::check`], [`request::Request::host`] | `rfc_4_2_1_requests_and_statuses`, `there_is_one_host` |
//! | 4.2.2 the 101 | [`Upgrade::switching_protocols`](handshake::Upgrade::switching_protocols) | `rfc_4_2_2_the_answer` |
//! | 4.2.2 a refusal, and its status | [`handshake::upgrade_required`], [`routes::answer`](crate::server::routes::answer) | `hostile_handshake::upgrade_headers` |
//! | 4.3 the grammar of the headers | [`handshake::Upgrade::check`], [`request::is_token`] | `hostile_handshake::subprotocols`, `hostile_handshake::extensions` |
//! | 4.4 versions | [`handshake::Upgrade::check`] | `hostile_handshake::keys_and_versions` |
//! | 5.1 masks are demanded, never sent | [`frame::FrameHeader::parse`], [`frame::append`] | `rfc_5_2_headers_and_verdicts`, `rfc_6_1_frames_as_a_server_sends_them` |
//! | 5.2 header, opcodes, minimal length, top bit | [`frame::FrameHeader::parse`], [`reader::FrameReader`] | `rfc_5_2_headers_and_verdicts`, `rfc_5_2_the_masking_key_follows_the_length` |
//! | 5.3 masking | [`mask::apply`] | `rfc_5_3_split_at_every_offset` |
//! | 5.4 fragments, control frames between them | [`protocol::Protocol`], [`message::Assembler`] | `rfc_5_4_orders_of_frames`, `hostile_frames::fragments` |
//! | 5.5 control frames | [`frame::FrameHeader::parse`] | `rfc_5_2_headers_and_verdicts` |
//! | 5.5.1 Close | [`close::CloseFrame`], [`protocol::Protocol`] | `rfc_5_5_1_payloads_and_verdicts`, `hostile_frames::closes` |
//! | 5.5.2, 5.5.3 Ping and Pong | [`protocol::Protocol::receive`] | `rfc_5_5_2_a_ping_is_answered_with_its_payload`, `hostile_frames::pings` |
//! | 5.6 text and bytes | [`message::Message`], [`message::whole`] | `rfc_5_4_binary_is_joined_and_not_checked`, `hostile_frames::utf8` |
//! | 5.7 the worked examples | [`protocol::Protocol::receive`], [`frame::append`] | `tests/rfc6455_examples.rs` |
//! | 5.8 what is reserved stays so | [`frame::Opcode::from_bits`] | `rfc_5_2_headers_and_verdicts` |
//! | 6.1 sending | [`frame::append`] | `rfc_6_1_frames_as_a_server_sends_them` |
//! | 6.2 receiving | [`protocol::Protocol::receive`] | `random_streams_read_the_same_whatever_the_cuts`, `hostile_frames::any_legal_stream_cut_anywhere` |
//! | 7.1.1 the server hangs up first | [`Connection::follow_protocol`](crate::server::connection::Connection::follow_protocol) | `rfc_7_1_1_when_the_server_hangs_up`, `autobahn::the_server_is_the_first_to_hang_up` |
//! | 7.1.2, 7.1.3 the closing handshake | [`protocol::Protocol::close`], [`protocol::State`] | `rfc_7_1_states_and_events` |
//! | 7.1.4 closed, cleanly or not | [`protocol::State`] | `server::both_close_at_once`, `server::peers_that_do_not_answer_a_close` |
//! | 7.1.5, 7.1.6 code and reason | [`close::CloseFrame`], [`protocol::Event`] | `rfc_7_1_states_and_events` |
//! | 7.1.7 failing | [`close::ProtocolError`], [`protocol::Protocol::receive`] | `rfc_7_1_the_picture_and_the_table_are_true`, `the_first_broken_rule_speaks` |
//! | 7.2.2 a handshake that is given up | [`answer::refusal`](crate::server::answer::refusal) | `hostile_handshake::bodies_and_what_follows`, `server::a_refused_peer_that_stays_is_cut` |
//! | 7.3 closing when all is well | [`protocol::Protocol::close`] | `server::sigterm_with_a_hundred_clients` |
//! | 7.4, 7.4.1, 7.4.2, 11.7 codes | [`close::CloseCode::from_wire`], [`close::ProtocolError::code`] | `rfc_7_4_each_edge_of_each_range_of_codes`, `hostile_frames::closes` |
//! | 8.1 text is UTF-8 | [`message::Assembler::push`] | `rfc_8_1_text_must_not_end_inside_a_character`, `hostile_frames::utf8` |
//! | 9.1 extensions are declined | [`extension::is_offer`], [`Upgrade::switching_protocols`](handshake::Upgrade::switching_protocols) | `rfc_9_1_offers`, `hostile_handshake::extensions` |
//! | 10.1, 10.5 not only browsers come: who may | [`Access::grant`](crate::chat::access::Access::grant) | `hostile_handshake::tokens` |
//! | 10.2 whose pages may come | [`Access::welcomes_origin`](crate::chat::access::Access::welcomes_origin) | `hostile_handshake::origins` |
//! | 10.3 why there are masks | [`mask::apply`] | `rfc_5_3_split_at_every_offset` |
//! | 10.4 limits | [`Limits`], [`protocol::Protocol`] | `rfc_10_4_each_limit_at_n_and_n_plus_1`, `limits::limits_of_messages` |
//! | 10.7 nothing is taken on trust | [`close::ProtocolError`] | `hostile_frames::random_bytes` |
//! | 11.3.1–11.3.5 how often a header may come | [`handshake::Upgrade::check`] | `rfc_4_2_1_requests_and_statuses`, `rfc_4_2_2_the_answer` |
//!
//! # The sections that do not
//!
//! | section | why |
//! |---|---|
//! | 1.1, 1.4–1.8 | the introduction: what it tells is said again later, where it binds |
//! | 2.1 | how the RFC itself is to be read |
//! | 4.1 what a client does with the answer; 5.3 how it chooses a key | a browser does both for `client.html`; `wirechat poke`, a client, does them itself |
//! | 7.2.1 | how a client gives up a connection |
//! | 7.2.3 | how a client comes back, later each time and at random: `client.html` does it |
//! | 9.2 | it defines no extension |
//! | 10.6 | TLS is for a proxy in front |
//! | 10.8 | SHA-1 protects nothing here, so that it is broken does not matter |
//! | 11.1.1–11.2 | names that IANA has registered |
//! | 11.4–11.6, 11.8, 11.9 | registries: of what they hold, 5.2, 9.1 and 4.4 allow this server nothing more |
//! | 12 | for those who build other protocols upon this one |
//! | 13, 14 | thanks and references |

pub mod close;
pub mod extension;
pub mod frame;
pub mod handshake;
pub mod mask;
pub mod message;
pub mod protocol;
pub mod reader;
pub mod request;

pub use protocol::Limits;
