//! The server's part of RFC 6455: bytes go in, events and bytes come out. The module uses no sockets and no clocks.
//!
//! # Index: the sections of RFC 6455 that bind a server
//!
//! In the index's `test` column, `file::name` is the test `name` in `tests/file.rs`; a name alone is a unit test.
//!
//! | section | where | test |
//! |---|---|---|
//! | 4.1 bytes after the request head are frames | [`server`](crate::server), [`request::HeadReader`] | `hostile_frames::a_broken_frame_after_the_head` |
//! | 3, 4.2, 4.2.1 the request head, with path and query | [`request::HeadReader`], [`request::Request::parse`], [`handshake`] | `a_head_ends_at_the_same_byte_wherever_it_is_cut`, `heads_and_statuses`, `targets`, `hostile_handshake::targets` |
//! | 4.1, 4.2.1, 4.4, 11.3.1–11.3.5 the headers of the request | [`handshake::accept_handshake`], [`request::Request::host`] | `rfc_4_2_1_requests_and_statuses`, `rfc_4_2_1_every_broken_rule_has_a_rejection`, `host_must_be_sent_once`, `hostile_handshake::keys_and_versions` |
//! | 1.2, 1.3, 1.9, 4.2.2 the 101, with the accept value and at most one subprotocol | [`handshake::accept_value`], [`handshake::accept_handshake`] | `rfc_1_3_accept_value`, `rfc_4_2_2_response`, `dialects::subprotocols` |
//! | 4.2.2, 7.2.2 rejections and their statuses, aborting a handshake | [`handshake::upgrade_required`], [`http::route_request`](crate::http::route_request) | `hostile_handshake::upgrade_headers`, `hostile_handshake::bodies_and_what_follows`, `server::a_rejected_peer_that_stays_is_dropped` |
//! | 4.3 the grammar of the headers | [`handshake::accept_handshake`], [`request::is_token`] | `hostile_handshake::subprotocols`, `hostile_handshake::extensions` |
//! | 5.1, 6.1 clients mask, servers do not | [`frame::FrameHeader::parse`], [`frame::append`] | `rfc_5_2_headers_and_results`, `rfc_6_1_server_frames` |
//! | 5.2, 5.5, 5.8 header, opcodes, control frames, minimal length, top bit | [`frame::FrameHeader::parse`], [`frame::Opcode::from_bits`], [`reader::FrameReader`] | `rfc_5_2_headers_and_results`, `rfc_5_2_the_masking_key_follows_the_length` |
//! | 5.3, 10.3 masking, and the attacks that it prevents | [`mask::apply`] | `rfc_5_3_split_at_every_offset` |
//! | 5.4, 5.6 messages, fragments, control frames between them | [`protocol::Protocol`], [`message::Assembler`], [`message::Message`] | `rfc_5_4_frame_order`, `rfc_5_4_binary_fragments_are_concatenated_and_not_validated`, `hostile_frames::fragments` |
//! | 5.5.1, 7.1.5, 7.1.6 Close, its code and reason | [`close::CloseFrame`], [`protocol::Protocol`], [`protocol::Event`] | `rfc_5_5_1_close_payloads`, `rfc_7_1_states_and_events`, `hostile_frames::close_frames` |
//! | 5.5.2, 5.5.3 Ping and Pong | [`protocol::Protocol::receive`] | `rfc_5_5_2_pong_repeats_the_ping_payload`, `hostile_frames::pings` |
//! | 5.7, 6.2 receiving, with examples | [`reader::FrameReader`], [`protocol::Protocol::receive`], [`frame::append`] | `tests/rfc6455_examples.rs`, `random_streams_have_the_same_result_wherever_they_are_cut`, `hostile_frames::any_legal_stream_cut_anywhere` |
//! | 7.1.1 the server closes TCP first | [`Connection::apply_protocol_state`](crate::server::connection::Connection::apply_protocol_state) | `rfc_7_1_1_when_the_server_closes_tcp`, `autobahn::the_server_closes_tcp_first` |
//! | 7.1.2–7.1.4, 7.3 the closing handshake, clean or not | [`protocol::Protocol::close`], [`protocol::State`] | `rfc_7_1_states_and_events`, `memory::both_close_at_once`, `memory::peers_that_do_not_reply_to_a_close`, `server::sigterm_with_a_hundred_clients` |
//! | 7.1.7, 10.7 failing the connection over invalid data | [`close::ProtocolError`], [`protocol::Protocol::receive`] | `rfc_7_1_picture_and_table_match_the_code`, `the_first_broken_rule_decides`, `hostile_frames::random_bytes` |
//! | 7.4, 7.4.1, 7.4.2, 11.7 status codes | [`close::CloseCode::from_wire`], [`close::ProtocolError::code`] | `rfc_7_4_each_edge_of_each_range_of_codes`, `hostile_frames::close_frames` |
//! | 8.1 text that is not UTF-8 | [`message::Assembler::push`] | `rfc_8_1_text_must_not_end_inside_a_character`, `hostile_frames::utf8` |
//! | 9.1 extensions: permessage-deflate (RFC 7692) or none | [`extension::is_extension_list`], [`deflate::negotiation::negotiate`] | `rfc_9_1_offers`, `hostile_handshake::extensions` |
//! | 10.1, 10.2, 10.5 clients that are not browsers, allowed origins, authentication | [`AccessControl::allows_origin`](crate::http::access::AccessControl::allows_origin), [`AccessControl::identify`](crate::http::access::AccessControl::identify) | `hostile_handshake::origins`, `hostile_handshake::tokens` |
//! | 10.4 limits | [`protocol::Limits`], [`protocol::Protocol`] | `rfc_10_4_each_limit_at_n_and_n_plus_1`, `memory::message_limits` |
//!
//! | section that does not bind a server | why |
//! |---|---|
//! | 1.1, 1.4–1.8, 2.1, 12–14 | introduction, conventions, use by other specifications, acknowledgements, references |
//! | 4.1 checking the response; 5.3 picking a key; 7.2.1, 7.2.3 | the client does it |
//! | 9.2, 10.6, 10.8 | RFC 7692 defines the only extension; TLS is below this module; SHA-1 protects nothing here |
//! | 11.1.1–11.2, 11.4–11.6, 11.8, 11.9 | registries; 5.2, 9.1 and 4.4 restrict their values further |

pub mod close;
pub mod deflate;
pub mod extension;
pub mod frame;
pub mod handshake;
pub mod mask;
pub mod message;
pub mod protocol;
pub mod reader;
pub mod request;
