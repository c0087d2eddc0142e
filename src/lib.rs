#![forbid(unsafe_code)]
pub mod chat;
pub mod config;
pub mod server;
pub mod ws;
