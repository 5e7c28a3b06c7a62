//! The composition root: opens the store, starts engine, API and console, drains them on stop.

use crate::config::Config;

/// Runs the server until it is told to stop.
#[expect(clippy::unused_async, reason = "the signature is settled before the body")]
pub async fn run(_config: Config) -> anyhow::Result<()> {
    anyhow::bail!("not built yet")
}

/// Brings the database's schema up to date and returns.
#[expect(clippy::unused_async, reason = "the signature is settled before the body")]
pub async fn migrate(_config: Config) -> anyhow::Result<()> {
    anyhow::bail!("not built yet")
}
