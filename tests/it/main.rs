//! The black-box suite: the real binary, a real database of each kind, HTTP in, a scripted receiver out.
//!
//! Every test is an `async fn(Test)` named in its file's `engines!` list, which runs it on SQLite and on PostgreSQL.
//! `./scripts/test` brings up what they need. Nothing here sleeps to let something happen: tests wait on a condition
//! with a deadline (`support::wait`), or on a gate that they open themselves (`support::receiver::Gate`).

#![allow(clippy::unwrap_used, reason = "these are tests: a panic is how they fail")]
#![allow(clippy::print_stderr, reason = "a failed test shows the server's output; libtest captures the rest")]
#![allow(
    clippy::disallowed_methods,
    reason = "the bans are about the server; the tests look at it from outside"
)]

#[macro_use]
mod support;
#[path = "../common/postgres.rs"]
mod postgres;

mod auth;
mod batch;
mod bulk;
mod callbacks;
mod callers;
mod commands;
mod contract;
mod crash;
mod delivery;
mod egress;
mod enqueue;
mod errors;
mod explain;
mod failover;
mod faults;
mod flow_control;
mod go;
mod lifecycle;
mod llm;
mod openapi;
mod publish;
mod queues;
mod quota;
mod reads;
mod redaction;
mod resources;
mod responses;
mod rude_clients;
mod schedules;
mod sdk;
mod signing;
mod tls;
mod url_groups;
mod urls;
mod workflow_dlq;
mod workflow_log;
mod workflows;
