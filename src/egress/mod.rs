//! HTTP out: which addresses may be reached, and by what client.

pub mod policy;
