//! Connections that may carry another request, per origin.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::Uri;
use http::uri::{Authority, Scheme};
use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;

use super::{http1, http2};

/// How long an unused connection is kept: shorter than most servers keep theirs, since one that is closed just when a
/// request goes out may cost an attempt.
const IDLE: Duration = Duration::from_secs(30);
/// How long a caller waits for others to open a connection that it may share.
const TURN_WAIT: Duration = Duration::from_secs(1);
/// How often connections are looked for that have been unused for so long, or that the other side has closed.
pub(super) const SWEEP: Duration = Duration::from_secs(5);

/// An origin, by the URL's scheme, host and port as written.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Origin(Option<Scheme>, Option<Authority>);

impl Origin {
    pub(super) fn of(uri: &Uri) -> Self {
        Self(uri.scheme().cloned(), uri.authority().cloned())
    }
}

/// A connection that is free for a request.
pub(super) enum Free {
    Http1(Box<http1::Connection>),
    Http2(http2::Place),
}

/// The right to open a connection to an origin that may speak HTTP/2: only one caller has it, since the others will
/// share that connection.
pub(super) type Turn = OwnedMutexGuard<()>;

pub(super) struct Pool {
    origins: Mutex<HashMap<Origin, Entry>>,
    /// Unused HTTP/1.1 connections per origin.
    max_idle: usize,
}

#[derive(Default)]
struct Entry {
    /// Unused ones, and since when; the last one is the freshest.
    idle: Vec<(Box<http1::Connection>, Instant)>,
    shared: Vec<Arc<http2::Connection>>,
    turn: Arc<tokio::sync::Mutex<()>>,
    /// Whether it is known to speak HTTP/1.1.
    http1: bool,
}

impl Pool {
    pub(super) fn new(max_idle: usize) -> Self {
        Self { origins: Mutex::default(), max_idle }
    }

    fn origins(&self) -> MutexGuard<'_, HashMap<Origin, Entry>> {
        self.origins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection to that origin that is free.
    pub(super) fn take(&self, origin: &Origin) -> Option<Free> {
        loop {
            let (mut connection, since) = {
                let mut origins = self.origins();
                let entry = origins.get_mut(origin)?;
                entry.shared.retain(|connection| connection.is_usable());
                if let Some(place) = entry.shared.iter().find_map(http2::Connection::place) {
                    return Some(Free::Http2(place));
                }
                entry.idle.pop()?
            };
            if since.elapsed() < IDLE && connection.is_quiet() {
                return Some(Free::Http1(connection));
            }
        }
    }

    /// Waits for the caller's turn to open a connection, a moment at most. `None`: it may do so without.
    pub(super) async fn turn(&self, origin: &Origin) -> Option<Turn> {
        let turn = {
            let mut origins = self.origins();
            let entry = origins.entry(origin.clone()).or_default();
            (origin.0 == Some(Scheme::HTTPS) && !entry.http1).then(|| Arc::clone(&entry.turn))?
        };
        let turn = tokio::time::timeout(TURN_WAIT, turn.lock_owned()).await.ok()?;
        // Whoever had it before knows more by now.
        let is_http1 = self.origins().get(origin).is_some_and(|entry| entry.http1);
        (!is_http1).then_some(turn)
    }

    /// Takes note that an origin speaks HTTP/1.1.
    pub(super) fn note_http1(&self, origin: &Origin) {
        self.origins().entry(origin.clone()).or_default().http1 = true;
    }

    /// Takes a connection that has carried a request.
    pub(super) fn put(&self, origin: Origin, connection: Box<http1::Connection>) {
        let mut origins = self.origins();
        let entry = origins.entry(origin).or_default();
        if entry.idle.len() < self.max_idle {
            entry.idle.push((connection, Instant::now()));
        } else {
            // It is closed, which must not happen under the lock.
            drop(origins);
        }
    }

    /// Lets others use a connection.
    pub(super) fn share(&self, origin: Origin, connection: Arc<http2::Connection>) {
        let mut origins = self.origins();
        let entry = origins.entry(origin).or_default();
        entry.http1 = false;
        entry.shared.push(connection);
    }

    /// Closes what has been unused for too long or was closed by the other side, and forgets origins without connections.
    pub(super) fn sweep(&self) {
        self.close(IDLE);
    }

    /// Closes all unused connections.
    pub(super) fn clear(&self) {
        self.close(Duration::ZERO);
    }

    fn close(&self, unused_for: Duration) {
        // Closed when the lock has been given back: saying goodbye takes system calls.
        let (mut idle, mut shared) = (Vec::new(), Vec::new());
        self.origins().retain(|_, entry| {
            idle.extend(entry.idle.extract_if(.., |(connection, since)| {
                since.elapsed() >= unused_for || !connection.is_quiet()
            }));
            shared.extend(
                entry
                    .shared
                    .extract_if(.., |connection| !connection.is_usable() || connection.is_idle(unused_for)),
            );
            let waited_for = Arc::strong_count(&entry.turn) > 1;
            !entry.idle.is_empty() || !entry.shared.is_empty() || waited_for
        });
    }
}
