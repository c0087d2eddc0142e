//! RFC 6455, the server's side, by hand.
//!
//! Bytes go in, events and bytes come out. Nothing under `ws` knows a socket, a clock, a room or a name, so all of it
//! can be tested with byte literals, and the same code serves a connection, a benchmark and a doc example.
//!
//! Reading order: [`frame`], [`mask`] and [`reader`] (one frame, and a stream of them), [`message`] (many frames, one
//! message), [`close`] (how it ends and why), [`protocol`] (the state machine that holds these together), [`request`] and
//! [`handshake`] (how it all begins), [`extension`] (what is declined).
//!
//! | section | where | test |
//! |---|---|---|
//! | 1.3, 4.2.2 accept key | [`handshake::accept_key`] | `rfc_1_3_the_accept_key` |
//! | 4.1, 4.2.1 what a request must have | [`handshake::Upgrade::check`] | `rfc_4_2_1_requests_and_statuses` |
//! | 4.2.2, 1.9 the 101 | [`handshake::Upgrade::switching_protocols`] | `rfc_4_2_2_the_answer` |
//! | 4.2.1 the head of a request | [`request::HeadReader`], [`request::Request`] | `a_head_in_any_pieces_ends_at_the_same_byte` |
//! | 4.4 versions | [`handshake::Upgrade::check`] | `rfc_4_2_1_requests_and_statuses` |
//! | 5.1 masks are demanded, never sent | [`frame::FrameHeader::parse`], [`frame::append`] | `rfc_5_2_headers_and_verdicts` |
//! | 5.2 header, opcodes, minimal length, top bit | [`frame::FrameHeader::parse`] | `rfc_5_2_headers_and_verdicts` |
//! | 5.3 masking | [`mask::apply`] | `rfc_5_3_split_at_every_offset` |
//! | 5.4 fragments, control frames between them | [`protocol::Protocol`], [`message::Assembler`] | `rfc_5_4_orders_of_frames` |
//! | 5.5 control frames | [`frame::FrameHeader::parse`] | `rfc_5_2_headers_and_verdicts` |
//! | 5.5.1, 7.4 Close, codes, reasons | [`close`] | `rfc_5_5_1_payloads_and_verdicts` |
//! | 5.5.2, 5.5.3 Ping and Pong | [`protocol::Protocol`] | `rfc_5_5_2_a_ping_is_answered_with_its_payload` |
//! | 5.6, 8.1 text is UTF-8 | [`message::Assembler`] | `rfc_8_1_text_cut_at_any_two_places_is_the_same_text` |
//! | 5.7 worked examples | [`protocol::Protocol`] | `tests/rfc6455_examples.rs` |
//! | 7.1 closing and failing | [`protocol::State`] | `rfc_7_1_states_and_events` |
//! | 9.1 extensions are declined | [`extension`] | `rfc_9_1_offers` |
//! | 10.4 limits | [`protocol::Limits`] | `rfc_10_4_each_limit_at_n_and_n_plus_1` |

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
