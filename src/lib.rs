//! Homing: a self-hosted HTTP message queue, wire-compatible with `QStash`.

pub mod config;
pub mod domain;
pub mod egress;
pub mod server;
