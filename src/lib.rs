//! Homing: a self-hosted HTTP message queue, wire-compatible with `QStash`.

pub mod api;
#[cfg(test)]
mod arrows;
pub mod chance;
pub mod clock;
pub mod config;
mod descriptors;
pub mod domain;
pub mod egress;
pub mod engine;
pub mod failure;
pub mod listener;
pub mod logging;
pub mod mutation;
pub mod operations;
pub mod server;
pub mod store;
pub mod tasks;
