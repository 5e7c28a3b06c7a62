//! Homing: a self-hosted HTTP message queue, wire-compatible with `QStash`.

pub mod api;
pub mod clock;
pub mod domain;
pub mod store;
