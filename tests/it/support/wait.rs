//! Waiting on conditions, always with a deadline.

use std::time::{Duration, Instant};

use super::{Receiver, Server};

/// How long anything that should happen soon may take. Generous: a busy machine is no failure.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// Asks again and again until there is an answer; panics, naming `what`, when there is none [`SOON`].
#[track_caller]
pub(crate) fn eventually<T>(what: &str, ask: impl AsyncFnMut() -> Option<T>) -> impl Future<Output = T> {
    within(SOON, what, ask)
}

/// [`eventually`] with a deadline of its own.
#[track_caller]
pub(crate) fn within<T>(
    limit: Duration,
    what: &str,
    mut ask: impl AsyncFnMut() -> Option<T>,
) -> impl Future<Output = T> {
    let caller = std::panic::Location::caller();
    async move {
        let start = Instant::now();
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            assert!(start.elapsed() < limit, "{caller}: not within {limit:?}: {what}");
            pause(Duration::from_millis(20)).await;
        }
    }
}

/// Waits until that many requests wait for their answers.
pub(crate) async fn open(receiver: &Receiver, count: usize) {
    eventually(&format!("{count} requests are open"), async || (receiver.open() == count).then_some(()))
        .await;
}

/// Waits until messages that have nothing to do with queues and keys have gone through: by then, whatever could go has
/// gone.
pub(crate) async fn something_else(server: &Server, receiver: &Receiver) {
    for _ in 0..3 {
        let id = server.publish(&receiver.url("/else"), &[], "x").await;
        assert_eq!(server.ended(&id).await, "CREATED ACTIVE DELIVERED");
    }
}

/// The pause between two looks at a condition, or between two requests of a client that should not flood.
pub(crate) async fn pause(duration: Duration) {
    tokio::time::sleep(duration).await;
}
