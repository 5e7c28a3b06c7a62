//! The wire contract, inbound.

pub mod headers;
