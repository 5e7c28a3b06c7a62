//! Which Postgres the node works with: the one that its URL leads to now, and no former primary.
//!
//! After a failover, connections that were made before it may still lead to the former primary, which may still take
//! writes; nobody will ever see them. What tells is a connection that is made anew: it leads where the URL leads now. So
//! one is made every few seconds, and each server is known by its system identifier, its timeline and the start of its
//! postmaster. As soon as it is another one, the connections to the one before are closed.
//!
//! Between two probes a promotion shows by what a standby leaves behind: it stops following before it takes writes. Where
//! a standby follows, each step that stores checks after its commit whether it still does. If not, the step is not
//! answered before a probe that began after its commit has confirmed the server.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::error::DatabaseError;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions as _, Connection as _, PgConnection, Row as _};
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;

use super::within;
use crate::clock::pause;
use crate::failure::Failure;
use crate::store::{Result, StoreError};

/// Between two probes, and while one has failed.
const PROBE_EVERY: Duration = Duration::from_secs(5);
const PROBE_EVERY_IN_TROUBLE: Duration = Duration::from_secs(1);
/// Limit for a probe.
const LIMIT: Duration = Duration::from_secs(3);
/// How long after a standby has stopped following steps are confirmed one by one, unless it follows again. It may be
/// promoted, or have been taken away for good.
const SUSPICION: Duration = Duration::from_mins(5);
/// Connections that were made until then after a move may have been under way before it.
const OVERLAP: Duration = Duration::from_secs(1);

/// When the postmaster started, in Unix microseconds.
macro_rules! started {
    () => {
        "(EXTRACT(EPOCH FROM pg_postmaster_start_time()) * 1000000)::bigint"
    };
}

/// A running Postgres server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Server {
    /// When its postmaster started, in Unix microseconds.
    started: i64,
    /// Whether it follows another one, and so takes no writes.
    is_standby: bool,
    /// The system identifier, which a primary shares with its standbys, and the timeline, which each promotion counts up.
    /// `None` where the server doesn't tell, and of a standby.
    history: Option<(i64, u32)>,
}

impl Server {
    /// Whether it was the primary before `other` was promoted.
    fn is_former_of(&self, other: &Self) -> bool {
        match (self.history, other.history) {
            (Some((system, timeline)), Some((other_system, other_timeline))) => {
                system == other_system && timeline < other_timeline
            }
            _ => false,
        }
    }
}

/// Everything that is known of the primary.
#[derive(Clone, Copy, Default)]
struct Seen {
    /// The server that the node works with; `None` until the first connection.
    server: Option<Server>,
    /// How often it has become another one.
    moves: u64,
    /// Connections that were made before this lead to the server before.
    opened_after: Option<Instant>,
    /// When the last probe began that found the URL to lead to the server.
    confirmed: Option<Instant>,
    /// Standbys that follow it, and other readers of its write-ahead log.
    followers: i64,
    /// Fewer follow than did before, until then.
    suspicious_until: Option<Instant>,
    /// Why the server that the URL leads to must not be used.
    trouble: Option<&'static str>,
    /// The last probe got no connection, or no answer.
    probe_failed: bool,
}

/// A promise that nothing has moved since it was made, to be redeemed after a write.
#[derive(Clone, Copy)]
pub(super) struct Ticket(u64);

/// The server that the node works with.
pub(super) struct Primary {
    seen: watch::Sender<Seen>,
    /// Rung when a probe is wanted.
    wanted: Notify,
}

impl Primary {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { seen: watch::Sender::default(), wanted: Notify::new() })
    }

    /// Starts the probes.
    pub(super) fn start(self: &Arc<Self>, options: PgConnectOptions, failure: &Failure) -> AbortHandle {
        failure.spawn("probing for the primary", run(Arc::clone(self), options)).abort_handle()
    }

    /// Options for a pool whose connections all lead to the server. `prepare` is run on each new connection, which is used
    /// also where that fails.
    pub(super) fn pool(self: &Arc<Self>, prepare: Option<&'static str>) -> PgPoolOptions {
        let primary = Arc::clone(self);
        PgPoolOptions::new().after_connect(move |connection, _| {
            let primary = Arc::clone(&primary);
            Box::pin(async move {
                let server = identify(connection).await?;
                if let Some(sql) = prepare
                    && let Err(error) = sqlx::raw_sql(sql).execute(connection).await
                {
                    tracing::debug!(%error, "a connection goes without {sql}");
                }
                primary.meet(server, None).map_err(|reason| sqlx::Error::Protocol(reason.to_owned()))
            })
        })
    }

    /// Whether a connection of that age leads to the server.
    pub(super) fn is_current(&self, age: Duration) -> bool {
        let opened_after = self.seen.borrow().opened_after;
        opened_after.is_none_or(|at| Instant::now().checked_sub(age).is_some_and(|opened| opened > at))
    }

    /// To be taken before the connection for a write is.
    pub(super) fn ticket(&self) -> Ticket {
        Ticket(self.seen.borrow().moves)
    }

    /// How often the server has become another one.
    pub(super) fn moves(&self) -> u64 {
        self.seen.borrow().moves
    }

    /// Waits until the server has become another one since then.
    pub(super) async fn moved(&self, since: Ticket) {
        // The sender is in `self`.
        drop(self.seen.subscribe().wait_for(|seen| seen.moves != since.0).await);
    }

    /// Whether a standby follows the server, or did until lately.
    pub(super) fn is_followed(&self) -> bool {
        self.seen.borrow().followers > 0
    }

    /// Why the server can't be relied on.
    pub(super) fn trouble(&self) -> Option<&'static str> {
        self.seen.borrow().trouble()
    }

    /// Whether what was written on this connection is on the primary. To be asked after the commit, before anybody is told.
    pub(super) async fn settle(&self, connection: &mut PgConnection, ticket: Ticket) -> Result<()> {
        self.watch_followers(connection).await?;
        self.confirm(ticket).await
    }

    /// Becomes suspicious if fewer standbys follow the server of this connection than did at the last probe.
    async fn watch_followers(&self, connection: &mut PgConnection) -> Result<()> {
        let seen = *self.seen.borrow();
        if seen.followers > 0
            && seen.suspicious_until.is_none()
            && followers(connection).await? < seen.followers
        {
            self.suspect();
        }
        Ok(())
    }

    /// Whether the connection leads to the server. To be asked before a commit, which [`Primary::confirm`] follows: the
    /// connection can't be asked any more then.
    pub(super) async fn check(&self, connection: &mut PgConnection) -> Result<()> {
        let started: i64 =
            sqlx::query_scalar(concat!("SELECT ", started!())).fetch_one(&mut *connection).await?;
        let server = self.seen.borrow().server;
        if server.is_some_and(|server| server.started != started) {
            return Err(left());
        }
        self.watch_followers(connection).await
    }

    /// In doubt, waits for a probe that begins now.
    pub(super) async fn confirm(&self, ticket: Ticket) -> Result<()> {
        let settled = |seen: &Seen| {
            (seen.moves != ticket.0).then(|| Err(left())).or_else(|| (!seen.is_doubtful()).then_some(Ok(())))
        };
        if let Some(settled) = settled(&self.seen.borrow()) {
            return settled;
        }
        let asked = Instant::now();
        let mut probes = self.seen.subscribe();
        self.wanted.notify_one();
        let answered = |seen: &Seen| seen.moves != ticket.0 || seen.confirmed.is_some_and(|at| at >= asked);
        match probes.wait_for(answered).await {
            Ok(seen) if seen.moves == ticket.0 => Ok(()),
            _ => Err(left()),
        }
    }

    fn suspect(&self) {
        self.seen.send_if_modified(|seen| {
            let first = seen.suspicious_until.is_none();
            if first {
                tracing::info!(
                    "a standby has stopped following: what is stored is confirmed on new connections"
                );
                seen.suspicious_until = Some(Instant::now() + SUSPICION);
            }
            first
        });
    }

    /// Takes note of the server that a new connection leads to; with what a probe has seen, when it began and how many
    /// follow. The reason if it must not be used.
    fn meet(&self, server: Server, probe: Option<(Instant, i64)>) -> Result<(), &'static str> {
        let mut refused = None;
        self.seen.send_modify(|seen| refused = seen.meet(server, probe).err());
        refused.map_or(Ok(()), Err)
    }

    fn probe_failed(&self) {
        self.seen.send_modify(|seen| seen.probe_failed = true);
    }
}

impl Seen {
    fn trouble(&self) -> Option<&'static str> {
        self.trouble.or_else(|| self.probe_failed.then_some("no new connection to it can be made"))
    }

    /// Whether a write may have gone to a former primary. A probe that failed says so only where a standby can have taken its
    /// place.
    fn is_doubtful(&self) -> bool {
        self.suspicious_until.is_some() || self.trouble.is_some() || (self.probe_failed && self.followers > 0)
    }

    fn meet(&mut self, server: Server, probe: Option<(Instant, i64)>) -> Result<(), &'static str> {
        let Some(known) = self.server else {
            if !server.is_standby {
                self.server = Some(server);
                self.follow(probe);
            }
            return Ok(());
        };
        let reason = if server.is_standby {
            Some("it is a standby")
        } else if server.is_former_of(&known) {
            Some("it is a former primary")
        } else {
            None
        };
        if let Some(reason) = reason {
            self.trouble = Some(reason);
            return Err(reason);
        }
        if server.started != known.started {
            tracing::warn!(
                "the database has restarted or is another server; connections to the one before are closed"
            );
            self.moves += 1;
            self.opened_after = Some(Instant::now() + OVERLAP);
            self.followers = 0;
            self.suspicious_until = None;
        }
        // Its timeline may be another one without a restart.
        self.server = Some(server);
        self.follow(probe);
        Ok(())
    }

    fn follow(&mut self, probe: Option<(Instant, i64)>) {
        let Some((began, followers)) = probe else { return };
        self.confirmed = Some(began);
        self.trouble = None;
        self.probe_failed = false;
        if followers >= self.followers {
            self.followers = followers;
            self.suspicious_until = None;
            return;
        }
        let until = *self.suspicious_until.get_or_insert(Instant::now() + SUSPICION);
        if until < Instant::now() {
            self.followers = followers;
            self.suspicious_until = None;
        }
    }
}

fn left() -> StoreError {
    sqlx::Error::Protocol("the connection led to a former primary".to_owned()).into()
}

async fn run(primary: Arc<Primary>, options: PgConnectOptions) {
    loop {
        let began = Instant::now();
        match within(LIMIT, probe(&options)).await {
            Ok((server, followers)) => {
                let known = primary.trouble();
                if let Err(reason) = primary.meet(server, Some((began, followers)))
                    && known != Some(reason)
                {
                    tracing::warn!(reason, "the URL leads to a database that must not be used");
                }
            }
            // Some server has answered; the next probe will tell which.
            Err(error) if is_full(&error) => {}
            Err(error) => {
                if primary.trouble().is_none() {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "no new connection to the database can be made"
                    );
                }
                primary.probe_failed();
            }
        }
        let rest = if primary.trouble().is_some() { PROBE_EVERY_IN_TROUBLE } else { PROBE_EVERY };
        tokio::select! {
            biased;
            () = pause(rest) => {}
            () = primary.wanted.notified() => {}
        }
    }
}

/// Whether the server has no connection to give.
fn is_full(error: &StoreError) -> bool {
    let StoreError::Unavailable(source) = error else { return false };
    let database = source.downcast_ref().and_then(sqlx::Error::as_database_error);
    database.and_then(DatabaseError::code).as_deref() == Some("53300")
}

async fn probe(options: &PgConnectOptions) -> Result<(Server, i64)> {
    let mut connection = options.connect().await?;
    let server = identify(&mut connection).await?;
    let followers = followers(&mut connection).await?;
    connection.close().await?;
    Ok((server, followers))
}

async fn followers(connection: &mut PgConnection) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("SELECT COUNT(*) FROM pg_stat_get_wal_senders()").fetch_one(connection).await
}

async fn identify(connection: &mut PgConnection) -> Result<Server, sqlx::Error> {
    let row = sqlx::query(concat!("SELECT ", started!(), ", pg_is_in_recovery()"))
        .fetch_one(&mut *connection)
        .await?;
    let (started, is_standby) = (row.try_get(0)?, row.try_get(1)?);
    let mut server = Server { started, is_standby, history: None };
    if !is_standby {
        let sql = "SELECT system_identifier, pg_walfile_name(pg_current_wal_lsn()) FROM pg_control_system()";
        match sqlx::query_as::<_, (i64, String)>(sql).fetch_one(connection).await {
            // The name begins with the timeline in hexadecimal.
            Ok((system, file)) => {
                let timeline = file.get(..8).and_then(|text| u32::from_str_radix(text, 16).ok());
                server.history = timeline.map(|timeline| (system, timeline));
            }
            // Some services don't let one ask.
            Err(sqlx::Error::Database(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(server)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: Server = Server { started: 1, is_standby: false, history: Some((7, 1)) };
    const NEW: Server = Server { started: 2, is_standby: false, history: Some((7, 2)) };

    fn at_old(followers: i64) -> Seen {
        let mut seen = Seen::default();
        seen.meet(OLD, Some((Instant::now(), followers))).unwrap();
        seen
    }

    #[test]
    fn a_move_goes_one_way() {
        let mut seen = at_old(0);
        assert_eq!((seen.moves, seen.opened_after), (0, None));
        seen.meet(NEW, None).unwrap();
        assert_eq!((seen.moves, seen.server), (1, Some(NEW)));
        assert!(seen.opened_after.is_some());
        assert_eq!(seen.meet(OLD, Some((Instant::now(), 0))), Err("it is a former primary"));
        assert_eq!((seen.moves, seen.server, seen.trouble), (1, Some(NEW), Some("it is a former primary")));
        seen.meet(NEW, Some((Instant::now(), 0))).unwrap();
        assert_eq!((seen.moves, seen.trouble), (1, None));
    }

    #[test]
    fn other_servers() {
        let restarted = Server { started: 3, ..OLD };
        let restored = Server { started: 4, is_standby: false, history: Some((8, 1)) };
        let silent = Server { started: 5, is_standby: false, history: None };
        for server in [restarted, restored, silent] {
            let mut seen = at_old(0);
            seen.meet(server, None).unwrap();
            assert_eq!((seen.moves, seen.server), (1, Some(server)));
        }
        let standby = Server { started: 6, is_standby: true, history: None };
        assert_eq!(at_old(0).meet(standby, None), Err("it is a standby"));
        let mut unknown = Seen::default();
        unknown.meet(standby, None).unwrap();
        assert_eq!(unknown.server, None);
    }

    #[test]
    fn a_lost_follower_is_suspicious_until_it_is_back() {
        let mut seen = at_old(2);
        seen.meet(OLD, Some((Instant::now(), 1))).unwrap();
        assert!(seen.suspicious_until.is_some());
        seen.meet(OLD, Some((Instant::now(), 2))).unwrap();
        assert!(seen.suspicious_until.is_none());
        seen.suspicious_until = Some(Instant::now());
        seen.meet(OLD, Some((Instant::now(), 1))).unwrap();
        assert_eq!((seen.followers, seen.suspicious_until), (1, None), "or for long enough");
    }

    #[tokio::test]
    async fn a_failed_probe_raises_doubts_only_where_a_standby_follows() {
        for (followers, doubtful) in [(0, false), (1, true)] {
            let primary = Primary::new();
            primary.meet(OLD, Some((Instant::now(), followers))).unwrap();
            primary.probe_failed();
            assert_eq!(primary.trouble(), Some("no new connection to it can be made"));
            let mut answer = Box::pin(primary.confirm(primary.ticket()));
            assert_eq!(futures_util::poll!(&mut answer).is_pending(), doubtful);
            drop(answer);
            primary.meet(OLD, Some((Instant::now(), followers))).unwrap();
            assert_eq!(primary.trouble(), None);
            primary.confirm(primary.ticket()).await.unwrap();
        }
    }

    #[tokio::test]
    async fn in_doubt_an_answer_waits_for_a_probe_that_began_after_it_was_asked() {
        let primary = Primary::new();
        let probe = |server, followers| primary.meet(server, Some((Instant::now(), followers)));
        probe(OLD, 1).unwrap();
        let ticket = primary.ticket();
        primary.confirm(ticket).await.unwrap();
        primary.suspect();
        let began = Instant::now();
        let mut answer = Box::pin(primary.confirm(ticket));
        assert!(futures_util::poll!(&mut answer).is_pending());
        primary.meet(OLD, Some((began, 0))).unwrap();
        assert!(futures_util::poll!(&mut answer).is_pending(), "that probe was earlier");
        probe(OLD, 0).unwrap();
        answer.await.unwrap();
        let answer = primary.confirm(ticket);
        probe(NEW, 0).unwrap();
        assert!(answer.await.is_err_and(|error| error.is_transient()));
        primary.confirm(primary.ticket()).await.unwrap();
    }
}
