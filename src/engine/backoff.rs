//! Waiting longer after each fault.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::clock::pause;

/// How long a task waits after a fault: twice as long each time, until something succeeds.
pub(super) struct Backoff {
    first: Duration,
    next: Duration,
}

impl Backoff {
    const LONGEST: Duration = Duration::from_secs(2);

    /// A back-off that begins with this wait.
    pub(super) const fn from(first: Duration) -> Self {
        Self { first, next: first }
    }

    /// Begins with the first wait again.
    pub(super) fn reset(&mut self) {
        self.next = self.first;
    }

    /// Waits; false: `end` came first.
    pub(super) async fn wait(&mut self, end: &CancellationToken) -> bool {
        let wait = self.next;
        self.next = (wait * 2).min(Self::LONGEST);
        tokio::select! {
            biased;
            () = end.cancelled() => false,
            () = pause(wait) => true,
        }
    }
}

/// The back-off of a task that fetches work: others can do it meanwhile.
pub(super) const fn fetching() -> Backoff {
    Backoff::from(Duration::from_millis(200))
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waits_get_longer_up_to_a_limit_and_end_early() {
        let (mut backoff, end) = (fetching(), CancellationToken::new());
        let mut waits = Vec::new();
        for _ in 0..6 {
            let start = Instant::now();
            assert!(backoff.wait(&end).await);
            waits.push(start.elapsed().as_millis());
        }
        assert_eq!(waits, [200, 400, 800, 1600, 2000, 2000]);
        end.cancel();
        assert!(!backoff.wait(&end).await);
    }
}
