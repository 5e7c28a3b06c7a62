//! The rooms of the server that the simulation runs, compiled by themselves. Their unit tests are the server's package's.

#![cfg(not(test))]
#![allow(dead_code, reason = "other rooms use the rest")]

#[path = "../../src/chance.rs"]
pub mod chance;
#[path = "../../src/clock.rs"]
pub mod clock;
#[path = "../../src/domain/mod.rs"]
pub mod domain;
#[path = "../../src/egress/mod.rs"]
pub mod egress;
#[path = "../../src/engine/mod.rs"]
pub mod engine;
#[path = "../../src/failure.rs"]
pub mod failure;
#[path = "../../src/mutation.rs"]
pub mod mutation;
#[path = "../../src/store/mod.rs"]
pub mod store;
#[path = "../../src/tasks.rs"]
pub mod tasks;

impl store::StoreError {
    /// The trouble with the database, in words: there is no database, so none.
    #[expect(clippy::unused_self, reason = "the SQL stores' errors tell")]
    pub(crate) const fn trouble(&self) -> Option<&'static str> {
        None
    }
}
