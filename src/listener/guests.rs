//! Who is connected: a place for each, a lobby for those who come when all places are taken, and who has to leave then.
//!
//! A connection in the lobby is served like any other once a place is free; until then only health checks are answered.
//! While somebody waits there, connections without a request leave, those first that have been idle the longest: so
//! whoever only keeps connections open keeps nobody else out.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, SetOnce, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::api::LEAST;
use crate::clock::pause;

/// Requests under way on all HTTP/2 connections, beside one on each: some 12 KiB of memory each.
const PARALLEL: usize = 4096;
/// How long a connection may be idle, or an HTTP/2 answer not be read, when others need what it holds.
pub(super) const GRACE: Duration = Duration::from_secs(5);
/// How long a connection in the lobby may be idle when others need what it holds.
const LOBBY_GRACE: Duration = Duration::from_secs(1);
/// The time to leave for a connection without a request.
const LEAVE: Duration = Duration::from_secs(1);

/// How many connections may be open beside so many that have places.
pub(crate) fn lobby(places: usize) -> usize {
    (places / 4).clamp(8, 128)
}

/// All connections.
pub(super) struct Guests {
    /// What times are counted from.
    start: Instant,
    places: Arc<Semaphore>,
    lobby: Arc<Semaphore>,
    /// All that the lobby has room for.
    lobby_size: usize,
    parallel: Arc<Semaphore>,
    present: Mutex<HashMap<u64, Arc<Guest>>>,
    number: AtomicU64,
}

impl Guests {
    pub(super) fn new(places: usize) -> Self {
        Self {
            start: Instant::now(),
            places: Arc::new(Semaphore::new(places)),
            lobby: Arc::new(Semaphore::new(lobby(places))),
            lobby_size: lobby(places),
            parallel: Arc::new(Semaphore::new(PARALLEL)),
            present: Mutex::default(),
            number: AtomicU64::new(0),
        }
    }

    /// Room in the lobby for one more connection, as soon as there is some.
    pub(super) async fn lobby(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.lobby).acquire_owned().await.ok()
    }

    /// Lets a connection in: to a place, or else to the lobby.
    pub(super) fn enter(self: &Arc<Self>, lobby: OwnedSemaphorePermit) -> Entry {
        let seated = match Arc::clone(&self.places).try_acquire_owned() {
            Ok(place) => Ok(place),
            Err(_) => Err(lobby),
        };
        let guest = Arc::new(Guest {
            start: self.start,
            exchanges: AtomicUsize::new(0),
            idle_since: AtomicU64::new(millis(self.start)),
            seated: SetOnce::new_with(seated.is_ok().then_some(())),
            leave: CancellationToken::new(),
        });
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        self.present().insert(number, Arc::clone(&guest));
        Entry { guests: Arc::clone(self), number, guest, seated: Some(seated) }
    }

    /// Whether somebody is in the lobby.
    pub(super) fn crowded(&self) -> bool {
        self.lobby.available_permits() < self.lobby_size
    }

    /// Makes idle connections leave, as many as wait in the lobby. How many leave.
    pub(super) fn make_room(&self) -> usize {
        let now = millis(self.start);
        let mut wanted = self.lobby_size - self.lobby.available_permits();
        let mut idle = Vec::new();
        for guest in self.present().values() {
            let grace = if guest.is_seated() { GRACE } else { LOBBY_GRACE };
            // Whoever is busy may stay for long, also when asked to leave.
            let Some(since) = guest.idle_since() else { continue };
            if guest.leave.is_cancelled() {
                wanted = wanted.saturating_sub(1);
            } else if u128::from(now.saturating_sub(since)) >= grace.as_millis() {
                idle.push((since, Arc::clone(guest)));
            }
        }
        idle.sort_unstable_by_key(|(since, _)| *since);
        idle.truncate(wanted);
        for (_, guest) in &idle {
            guest.leave.cancel();
        }
        idle.len()
    }

    /// How long an answer on an HTTP/2 connection may not be read: less when others need what it holds.
    pub(super) fn patience(&self, limit: Duration) -> Duration {
        if self.parallel.available_permits() == 0 { limit.min(GRACE) } else { limit }
    }

    fn present(&self) -> MutexGuard<'_, HashMap<u64, Arc<Guest>>> {
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's presence; dropping it gives back its place.
pub(super) struct Entry {
    guests: Arc<Guests>,
    number: u64,
    pub(super) guest: Arc<Guest>,
    /// A place, or room in the lobby.
    seated: Option<Result<OwnedSemaphorePermit, OwnedSemaphorePermit>>,
}

impl Entry {
    /// Waits for a place and takes it; never ends.
    pub(super) async fn wait_for_place(&mut self) {
        if let Some(Err(_)) = &self.seated
            && let Ok(place) = Arc::clone(&self.guests.places).acquire_owned().await
        {
            self.seated = Some(Ok(place));
            // Nobody else sets it.
            drop(self.guest.seated.set(()));
        }
        std::future::pending::<()>().await;
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.guests.present().remove(&self.number);
    }
}

/// One connection.
pub(super) struct Guest {
    start: Instant,
    /// Requests under way, up to the last byte of their answers.
    exchanges: AtomicUsize,
    /// When the last one ended, or the connection began; in milliseconds since `start`.
    idle_since: AtomicU64,
    seated: SetOnce<()>,
    leave: CancellationToken,
}

impl Guest {
    /// Begins a request on a connection that has one at a time.
    pub(super) fn begin(self: &Arc<Self>) -> Exchange {
        self.exchange(None).0
    }

    /// Begins a request on a connection that may have several; `None` if there are too many of them on all connections.
    pub(super) fn begin_parallel(self: &Arc<Self>, guests: &Guests) -> Option<(Exchange, Watch)> {
        let permit = match self.exchanges.load(Ordering::Acquire) {
            0 => None,
            _ => Some(Arc::clone(&guests.parallel).try_acquire_owned().ok()?),
        };
        Some(self.exchange(permit))
    }

    fn exchange(self: &Arc<Self>, parallel: Option<OwnedSemaphorePermit>) -> (Exchange, Watch) {
        self.exchanges.fetch_add(1, Ordering::AcqRel);
        let (over, is_over) = oneshot::channel();
        let progress = Arc::new(Progress::default());
        let watch = Watch { start: self.start, progress: Arc::clone(&progress), is_over };
        (Exchange { guest: Arc::clone(self), progress, _over: over, _parallel: parallel }, watch)
    }

    /// Since when there has been no request; `None` while there is one.
    fn idle_since(&self) -> Option<u64> {
        // In this order: a request that ends in between has set the time before.
        (self.exchanges.load(Ordering::Acquire) == 0).then(|| self.idle_since.load(Ordering::Acquire))
    }

    /// Whether it has a place.
    pub(super) fn is_seated(&self) -> bool {
        self.seated.initialized()
    }

    /// Waits for a place.
    pub(super) async fn seated(&self) {
        self.seated.wait().await;
    }

    /// Makes it leave.
    pub(super) fn ask_to_leave(&self) {
        self.leave.cancel();
    }

    /// Waits until it has to leave: when it has been idle for that long, or was asked to.
    pub(super) async fn leaves(&self, idle_timeout: Duration) {
        let idle = async {
            loop {
                let idle = self.idle_since().map(|since| millis(self.start).saturating_sub(since));
                let left = idle_timeout.saturating_sub(Duration::from_millis(idle.unwrap_or(0)));
                if left.is_zero() {
                    return;
                }
                pause(left).await;
            }
        };
        tokio::select! {
            biased;
            () = idle => {}
            () = self.leave.cancelled() => {}
        }
    }

    /// The time that it gets to leave: a moment, and as long as it has requests, up to that limit.
    pub(super) async fn farewell(&self, limit: Duration) {
        pause(LEAVE).await;
        let begin = Instant::now();
        while self.idle_since().is_none() && begin.elapsed() < limit {
            pause(LEAVE).await;
        }
    }
}

/// A request from its head until the last byte of its answer was handed to the socket, or is known not to be.
pub(super) struct Exchange {
    guest: Arc<Guest>,
    progress: Arc<Progress>,
    _over: oneshot::Sender<()>,
    _parallel: Option<OwnedSemaphorePermit>,
}

impl Exchange {
    /// It is the server's turn: what comes next of the answer is still to be made.
    pub(super) fn works(&self) {
        self.progress.since.store(0, Ordering::Release);
    }

    /// It is the client's turn, if it wasn't already.
    pub(super) fn goes_on(&self) {
        let now = millis(self.guest.start);
        let _was_before = self.progress.since.compare_exchange(0, now, Ordering::AcqRel, Ordering::Acquire);
    }

    /// The client has taken that much of the answer.
    pub(super) fn took(&self, bytes: usize) {
        let taken = self.progress.taken.fetch_add(bytes, Ordering::AcqRel) + bytes;
        if taken >= LEAST {
            self.progress.taken.store(0, Ordering::Release);
            if self.progress.since.load(Ordering::Acquire) != 0 {
                self.progress.since.store(millis(self.guest.start), Ordering::Release);
            }
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.guest.idle_since.store(millis(self.guest.start), Ordering::Release);
        self.guest.exchanges.fetch_sub(1, Ordering::AcqRel);
    }
}

/// How an answer gets on.
#[derive(Default)]
struct Progress {
    /// When it last got on, in milliseconds; 0: it is the server's turn.
    since: AtomicU64,
    /// Bytes since then.
    taken: AtomicUsize,
}

/// A look at an exchange from outside.
pub(super) struct Watch {
    start: Instant,
    progress: Arc<Progress>,
    is_over: oneshot::Receiver<()>,
}

impl Watch {
    /// Waits until the exchange is over (true), or until its answer has not got on for as long as `patience` says (false).
    pub(super) async fn over(mut self, patience: impl Fn() -> Duration) -> bool {
        loop {
            let since = self.progress.since.load(Ordering::Acquire);
            let waited = if since == 0 { 0 } else { millis(self.start).saturating_sub(since) };
            let left = patience().saturating_sub(Duration::from_millis(waited));
            if left.is_zero() {
                return false;
            }
            tokio::select! {
                biased;
                _ = &mut self.is_over => return true,
                () = pause(left.min(GRACE)) => {}
            }
        }
    }
}

/// Milliseconds since then, at least one.
fn millis(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The present, in milliseconds since a start that lies back that long.
    const NOW: u64 = 3_600_000;

    fn house(places: usize) -> Arc<Guests> {
        let mut guests = Guests::new(places);
        guests.start = Instant::now().checked_sub(Duration::from_millis(NOW)).unwrap();
        Arc::new(guests)
    }

    async fn enter(guests: &Arc<Guests>, idle_s: u64) -> Entry {
        let entry = guests.enter(guests.lobby().await.unwrap());
        entry.guest.idle_since.store(NOW - idle_s * 1000, Ordering::Release);
        entry
    }

    fn left(entries: &[Entry]) -> Vec<bool> {
        entries.iter().map(|entry| entry.guest.leave.is_cancelled()).collect()
    }

    #[tokio::test]
    async fn those_leave_that_have_been_idle_the_longest() {
        let guests = house(4);
        let mut entries = Vec::new();
        for idle_s in [60, 600, 3, 900] {
            entries.push(enter(&guests, idle_s).await);
        }
        let busy = entries[3].guest.begin();
        assert!(!guests.crowded());
        let mut waiting = enter(&guests, 0).await;
        assert!(guests.crowded() && !waiting.guest.is_seated());
        assert_eq!(guests.make_room(), 1);
        assert_eq!(left(&entries), [false, true, false, false]);
        assert_eq!(guests.make_room(), 0, "one is on its way out for the one who waits");
        let last = entries[1].guest.begin();
        assert_eq!(guests.make_room(), 1, "it has begun something, and may take long");
        drop(last);
        assert_eq!(left(&entries), [true, true, false, false]);
        entries.remove(1);
        let guest = Arc::clone(&waiting.guest);
        tokio::select! {
            () = waiting.wait_for_place() => unreachable!(),
            () = guest.seated() => {}
        }
        assert!(!guests.crowded());
        // Whoever is busy stays, and whoever has just come.
        let mut more = Vec::new();
        for _ in 0..4 {
            more.push(enter(&guests, 0).await);
        }
        assert_eq!(guests.make_room(), 0, "one is on its way out already");
        assert_eq!(left(&entries), [true, false, false]);
        drop(busy);
        let begun = entries[2].guest.idle_since().unwrap();
        assert!(begun >= NOW, "it is idle from now on: {begun}");
    }

    #[tokio::test]
    async fn the_first_request_of_a_connection_is_always_taken() {
        let guests = house(4);
        let one = Arc::clone(&enter(&guests, 0).await.guest);
        let all: Vec<_> = (0..=PARALLEL).map(|_| one.begin_parallel(&guests).unwrap()).collect();
        assert!(one.begin_parallel(&guests).is_none());
        let long = Duration::from_mins(1);
        assert_eq!(guests.patience(long), GRACE);
        let other = Arc::clone(&enter(&guests, 0).await.guest);
        let first = other.begin_parallel(&guests);
        assert!(first.is_some() && other.begin_parallel(&guests).is_none());
        drop(all);
        assert!(other.begin_parallel(&guests).is_some());
        assert_eq!(guests.patience(long), long);
    }
}
