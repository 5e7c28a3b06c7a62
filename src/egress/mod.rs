//! HTTP out: the one client, the address policy that it obeys, capped response bodies.
//!
//! Invariant: the address that was checked is the address that is dialled. [`connector`] resolves, checks and connects;
//! nothing else opens a connection to a destination.

pub mod client;
pub mod connector;
pub mod policy;
