//! Homing: a self-hosted HTTP message queue, wire-compatible with `QStash`.

pub mod api;
pub mod domain;
