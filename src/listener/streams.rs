//! The requests of an HTTP/2 connection, each in a task that ends when its client doesn't read the answer.
//!
//! A client says for each answer how much of it may be sent (RFC 9113, 5.2). One that never says so isn't seen on the
//! socket, which takes whatever is written to it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::rt::Executor;

use super::guests::{Exchange, Guest, Guests, Watch};

/// Runs the requests of one connection.
#[derive(Clone)]
pub(super) struct Streams {
    guests: Arc<Guests>,
    guest: Arc<Guest>,
    /// How long an answer may not be read.
    limit: Duration,
    /// The watch of the request that has begun; the library runs it before it begins another.
    begun: Arc<Mutex<Option<Watch>>>,
}

impl Streams {
    pub(super) fn new(guests: Arc<Guests>, guest: Arc<Guest>, limit: Duration) -> Self {
        Self { guests, guest, limit, begun: Arc::default() }
    }

    /// Begins a request; `None` if there are too many.
    pub(super) fn begin(&self) -> Option<Exchange> {
        let (exchange, watch) = self.guest.begin_parallel(&self.guests).unzip();
        *self.begun.lock().unwrap_or_else(PoisonError::into_inner) = watch;
        exchange
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        let watch = self.begun.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(watch) = watch else {
            drop(tokio::spawn(stream));
            return;
        };
        let streams = self.clone();
        drop(tokio::spawn(async move {
            let over = watch.over(|| streams.guests.patience(streams.limit));
            let ends = async {
                stream.await;
                // The last piece may still have to be sent.
                std::future::pending::<()>().await;
            };
            let sent = tokio::select! {
                biased;
                sent = over => sent,
                () = ends => true,
            };
            // The stream ends with this task. But a client that does this needn't be given others.
            if !sent {
                streams.guest.ask_to_leave();
            }
        }));
    }
}
