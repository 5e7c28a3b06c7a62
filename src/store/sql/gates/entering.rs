//! Entering gates, which is a part of accepting messages: it makes the gates, follows what a message says about its key, wakes
//! them, and takes the message's place.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use serde::Serialize;
use sqlx::{AssertSqlSafe, PgConnection, SqliteConnection};

use super::{ControlRow, limit_columns};
use crate::domain::gate::{Control, Limits, Path, is_queue};
use crate::domain::message::{FlowControl, Message};
use crate::domain::time::Timestamp;
use crate::store::gates::{RECHECK, without_room};
use crate::store::sql::Backend;
use crate::store::sql::codec::json;
use crate::store::sql::nodes::now_ms;
use crate::store::sql::query::table;
use crate::store::{Accepted, Refusal, Result, StoreError};

/// A connection inside a transaction.
pub(in crate::store::sql) type Conn<'a> = Backend<&'a mut PgConnection, AtTime<'a>>;

/// SQLite's connection, and what time it is, which it doesn't tell.
pub(in crate::store::sql) struct AtTime<'a> {
    pub(in crate::store::sql) conn: &'a mut SqliteConnection,
    pub(in crate::store::sql) now: Timestamp,
}

impl Deref for AtTime<'_> {
    type Target = SqliteConnection;

    fn deref(&self) -> &SqliteConnection {
        self.conn
    }
}

impl DerefMut for AtTime<'_> {
    fn deref_mut(&mut self) -> &mut SqliteConnection {
        self.conn
    }
}

/// Where a delivery waits: the columns of its row.
pub(in crate::store::sql) struct GatePlace {
    pub(in crate::store::sql) gate: Arc<str>,
    pub(in crate::store::sql) flow: Option<Arc<str>>,
    /// Its order at the gate: Unix microseconds, each once in a queue.
    pub(in crate::store::sql) order_us: i64,
}

/// The wants of one batch's messages at a gate.
#[derive(Default)]
struct Wanted<'a> {
    /// When the first of those that wait here is due.
    due_at: Option<Timestamp>,
    /// How many join a queue at once.
    joining: i64,
    /// The limits that the last message under this key names.
    flow: Option<&'a FlowControl>,
}

/// A gate as it is.
#[derive(sqlx::FromRow)]
struct KnownRow {
    name: String,
    #[sqlx(flatten)]
    control: ControlRow,
    next_at: Option<i64>,
    now: i64,
}

macro_rules! select_known {
    ($now:expr, $rest:literal) => {
        concat!("SELECT name, ", control_columns!(), ", next_at, ", $now, " AS now FROM gates WHERE ", $rest)
    };
}

/// Postgres' lock for counting: `hqueues` in ASCII.
const ADVISORY_LOCK: i64 = 0x68_7175_6575_6573;

/// Messages that come to their gates.
pub(in crate::store::sql) struct Coming<'a> {
    pub(in crate::store::sql) messages: Vec<&'a Message>,
    /// The request of each: those that would make more queues than there may be are refused as a whole.
    pub(in crate::store::sql) requests: Vec<usize>,
    /// How many queues there may be; `None`: no limit.
    pub(in crate::store::sql) max_queues: Option<u32>,
}

/// What has become of a message at its gate.
pub(in crate::store::sql) enum Entered {
    /// It needs none, or has its place.
    In(Option<GatePlace>),
    Refused(Refusal),
}

impl Entered {
    /// The message's place, if it has one.
    pub(in crate::store::sql) fn place(&self) -> Option<&GatePlace> {
        match self {
            Self::In(place) => place.as_ref(),
            Self::Refused(_) => None,
        }
    }

    /// The result of a message that is not to be stored.
    pub(in crate::store::sql) fn refused(&self) -> Option<Accepted> {
        match self {
            Self::In(_) => None,
            Self::Refused(refusal) => Some(Accepted::Refused(*refusal)),
        }
    }
}

/// Lets messages in. From here to the end of the transaction their gates can't be removed, and nobody else takes places
/// in their queues. Gates are locked in the order of their names, and before any delivery is.
pub(in crate::store::sql) async fn enter(conn: &mut Conn<'_>, coming: &Coming<'_>) -> Result<Vec<Entered>> {
    let messages = &coming.messages;
    let paths: Vec<Option<Path>> = messages.iter().map(|message| Path::of(message)).collect();
    let mut refused = BTreeSet::new();
    let accepted_at = messages.iter().map(|message| message.created_at).max().unwrap_or_default();
    let held = hold(conn, &wanted(messages, &paths), accepted_at, coming.max_queues).await?;
    let now = match held {
        Hold::Held(now) => now,
        Hold::TooMany { there, max } => {
            let queues = paths.iter().zip(&coming.requests).filter_map(|(path, request)| {
                path.as_ref().filter(|path| is_queue(&path.gate)).map(|path| (*request, &*path.gate))
            });
            let names: BTreeSet<&str> = there.iter().map(String::as_str).collect();
            let room = (max as usize).saturating_sub(names.len());
            refused = without_room(queues, &names, room);
            let open = |index: usize| !coming.requests.get(index).is_some_and(|one| refused.contains(one));
            let paths: Vec<Option<Path>> =
                paths.iter().enumerate().map(|(index, path)| path.clone().filter(|_| open(index))).collect();
            match hold(conn, &wanted(messages, &paths), accepted_at, None).await? {
                Hold::Held(now) => now,
                Hold::TooMany { .. } => return Err(StoreError::Contended),
            }
        }
    };
    let refusal = coming.max_queues.map(Refusal::TooManyQueues);
    let refused: Vec<Option<Refusal>> = (0..messages.len())
        .map(|index| refusal.filter(|_| coming.requests.get(index).is_some_and(|one| refused.contains(one))))
        .collect();
    let paths: Vec<Option<Path>> =
        paths.into_iter().zip(&refused).map(|(path, refused)| path.filter(|_| refused.is_none())).collect();
    let mut places = take_places(conn, &wanted(messages, &paths), now).await?;
    let entered = messages.iter().zip(paths).zip(refused).map(|((message, path), refused)| {
        if let Some(refusal) = refused {
            return Entered::Refused(refusal);
        }
        let Some(path) = path else { return Entered::In(None) };
        let next = places.get_mut(&path.gate).filter(|_| !is_delayed(message));
        let place = match next {
            Some(place) => {
                *place += 1;
                *place
            }
            // The publisher's node may be ahead of the database's clock.
            None if !is_delayed(message) => message.due_at.min(now).as_millis() * 1000,
            None => message.due_at.as_millis() * 1000,
        };
        Entered::In(Some(GatePlace { gate: path.gate, flow: path.flow, order_us: place }))
    });
    Ok(entered.collect())
}

/// The result of holding gates.
enum Hold {
    /// They are held; the store's time.
    Held(Timestamp),
    /// There would be more than `max` queues; those that there are.
    TooMany { there: Vec<String>, max: u32 },
}

/// A delayed message joins when it is due, and takes its place by that time.
fn is_delayed(message: &Message) -> bool {
    message.due_at > message.created_at
}

fn wanted<'a>(messages: &[&'a Message], paths: &[Option<Path>]) -> BTreeMap<Arc<str>, Wanted<'a>> {
    let mut all: BTreeMap<Arc<str>, Wanted<'a>> = BTreeMap::new();
    for (message, path) in messages.iter().zip(paths) {
        let Some(path) = path else { continue };
        let wanted = all.entry(Arc::clone(&path.gate)).or_default();
        wanted.due_at = Some(wanted.due_at.map_or(message.due_at, |due_at| due_at.min(message.due_at)));
        if is_queue(&path.gate) && !is_delayed(message) {
            wanted.joining += 1;
        }
        if let Some(flow) = &path.flow {
            all.entry(Arc::clone(flow)).or_default().flow = message.options.flow_control.as_ref();
        }
    }
    all
}

/// Makes the gates that are missing, holds all of them, and brings them up to date; the store's time.
async fn hold(
    conn: &mut Conn<'_>,
    wanted: &BTreeMap<Arc<str>, Wanted<'_>>,
    accepted_at: Timestamp,
    max_queues: Option<u32>,
) -> Result<Hold> {
    // One that was missing may be made by others, and one that was there may be removed, before it is held.
    for _ in 0..4 {
        let known = known(conn, wanted).await?;
        let there: HashSet<&str> = known.iter().map(|row| row.name.as_str()).collect();
        let missing: Vec<(&Arc<str>, &Wanted<'_>)> =
            wanted.iter().filter(|(name, _)| !there.contains(&***name)).collect();
        if missing.is_empty() {
            let now = known.first().map_or(0, |row| row.now);
            update(conn, wanted, &known, now).await?;
            return Ok(Hold::Held(Timestamp::from_millis(now)));
        }
        if let Some(max) = max_queues {
            let queues: Vec<&str> =
                missing.iter().map(|(name, _)| &***name).filter(|name| is_queue(name)).collect();
            if !queues.is_empty() {
                let there = queues_there(conn).await?;
                let new = queues.iter().filter(|name| !there.iter().any(|have| have == *name)).count();
                if there.len() + new > max as usize {
                    return Ok(Hold::TooMany { there, max });
                }
            }
        }
        insert(conn, &missing, accepted_at).await?;
    }
    Err(StoreError::Contended)
}

/// Whether there may be these queues, by their gates, where there may be `max`: those that are missing fit. No other
/// transaction that asks goes on before this one's end.
pub(in crate::store::sql) async fn has_room(conn: &mut Conn<'_>, queues: &[&str], max: u32) -> Result<bool> {
    if queues.is_empty() {
        return Ok(true);
    }
    let there = queues_there(conn).await?;
    let missing = queues.iter().filter(|name| !there.iter().any(|have| have == *name)).count();
    Ok(missing == 0 || there.len() + missing <= max as usize)
}

/// All queues, by their gates. No other transaction that asks goes on before this one's end.
async fn queues_there(conn: &mut Conn<'_>) -> Result<Vec<String>> {
    if let Conn::Postgres(conn) = &mut *conn {
        sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(ADVISORY_LOCK).execute(&mut **conn).await?;
    }
    let sql = "SELECT name FROM gates WHERE name >= 'q:' AND name < 'q;'";
    Ok(on_backend!(conn, |conn| sqlx::query_scalar(sql).fetch_all(&mut **conn).await?))
}

async fn known(conn: &mut Conn<'_>, wanted: &BTreeMap<Arc<str>, Wanted<'_>>) -> Result<Vec<KnownRow>> {
    match conn {
        Backend::Postgres(conn) => {
            let names: Vec<&str> = wanted.keys().map(|name| &**name).collect();
            Ok(sqlx::query_as(select_known!(now_ms!(), "name = ANY ($1) ORDER BY name FOR KEY SHARE"))
                .bind(names)
                .fetch_all(&mut **conn)
                .await?)
        }
        Backend::Sqlite(conn) => {
            let names: Vec<&str> = wanted.keys().map(|name| &**name).collect();
            Ok(sqlx::query_as(select_known!("$2", "name IN (SELECT value FROM json_each($1))"))
                .bind(json(&names))
                .bind(conn.now.as_millis())
                .fetch_all(&mut **conn)
                .await?)
        }
    }
}

/// A gate to make or to change: its limits, and when something is due there earlier than it would be looked at.
#[derive(Serialize)]
struct Change<'a> {
    name: &'a str,
    /// Whether the limits of a gate that is there change.
    changed: bool,
    parallelism: Option<i64>,
    rate: Option<i64>,
    period_s: Option<i64>,
    due_at: Option<i64>,
}

impl<'a> Change<'a> {
    /// The columns of a table of changes.
    const COLUMNS: &'static [(&'static str, &'static str)] = &[
        ("name", "TEXT"),
        ("changed", "BOOLEAN"),
        ("parallelism", "BIGINT"),
        ("rate", "BIGINT"),
        ("period_s", "BIGINT"),
        ("due_at", "BIGINT"),
    ];

    fn new(name: &'a str, changed: bool, limits: Limits, due_at: Option<Timestamp>) -> Self {
        let (parallelism, rate, period_s) = limit_columns(limits);
        Self { name, changed, parallelism, rate, period_s, due_at: due_at.map(Timestamp::as_millis) }
    }

    /// The gate that a batch makes.
    fn making(name: &'a str, wanted: &Wanted<'_>) -> Self {
        let mut control =
            Control { limits: Limits { parallelism: Some(1), rate: None }, ..Control::default() };
        if let Some(flow) = wanted.flow {
            control.follow(flow);
        }
        Self::new(name, false, control.limits, wanted.due_at)
    }

    /// The change of a gate that is there; `None`: it stays as it is.
    fn of(row: &'a KnownRow, wanted: &Wanted<'_>) -> Option<Self> {
        let before = row.control.control();
        let mut control = before;
        if let Some(flow) = wanted.flow {
            control.follow(flow);
        }
        let early = |due_at: &Timestamp| {
            let soon = due_at.after(RECHECK).as_millis();
            !control.paused && row.next_at.is_none_or(|next_at| next_at > soon)
        };
        let change = Self::new(&row.name, control != before, control.limits, wanted.due_at.filter(early));
        (change.changed || change.due_at.is_some()).then_some(change)
    }
}

/// Makes gates. Others may be making some of them; whoever waits for another does it in the order of their names.
async fn insert(
    conn: &mut Conn<'_>,
    missing: &[(&Arc<str>, &Wanted<'_>)],
    accepted_at: Timestamp,
) -> Result<()> {
    let changes: Vec<Change<'_>> =
        missing.iter().map(|(name, wanted)| Change::making(name, wanted)).collect();
    let sql = format!(
        "INSERT INTO gates (name, created_at, updated_at, used_at, parallelism, rate, period_s, paused, \
             pinned_parallelism, pinned_rate, version, next_at) \
         SELECT r.name, $2, $2, $2, r.parallelism, r.rate, r.period_s, FALSE, FALSE, FALSE, 0, r.due_at \
         FROM {} WHERE TRUE ORDER BY r.name ON CONFLICT (name) DO NOTHING",
        table(conn, Change::COLUMNS)
    );
    let rows = json(&changes);
    on_backend!(conn, |conn| {
        sqlx::query(AssertSqlSafe(sql)).bind(rows).bind(accepted_at.as_millis()).execute(&mut **conn).await?;
    });
    Ok(())
}

/// Changes gates only where it has to: that waits for a claim, and a claim for it.
async fn update(
    conn: &mut Conn<'_>,
    wanted: &BTreeMap<Arc<str>, Wanted<'_>>,
    known: &[KnownRow],
    now: i64,
) -> Result<()> {
    let changes: Vec<Change<'_>> =
        known.iter().filter_map(|row| Change::of(row, &wanted[&*row.name])).collect();
    if changes.is_empty() {
        return Ok(());
    }
    // On Postgres all at once, and in the order of their names.
    let (locked, name) = match conn {
        Backend::Postgres(_) => (
            "JOIN gates g ON g.name = ANY (ARRAY[r.name]) ORDER BY g.name FOR NO KEY UPDATE OF g",
            "ANY (ARRAY[c.name])",
        ),
        Backend::Sqlite(_) => ("", "c.name"),
    };
    let sql = format!(
        "UPDATE gates SET parallelism = CASE WHEN c.changed THEN c.parallelism ELSE gates.parallelism END, \
             rate = CASE WHEN c.changed THEN c.rate ELSE gates.rate END, \
             period_s = CASE WHEN c.changed THEN c.period_s ELSE gates.period_s END, \
             updated_at = CASE WHEN c.changed THEN $2 ELSE gates.updated_at END, \
             version = gates.version + CASE WHEN c.changed THEN 1 ELSE 0 END, \
             next_at = CASE WHEN c.changed THEN $2 ELSE c.due_at END \
         FROM (SELECT r.* FROM {} {locked}) AS c \
         WHERE gates.name = {name} AND (c.changed OR gates.next_at IS NULL OR gates.next_at > c.due_at)",
        table(conn, Change::COLUMNS)
    );
    let rows = json(&changes);
    on_backend!(conn, |conn| {
        sqlx::query(AssertSqlSafe(sql)).bind(rows).bind(now).execute(&mut **conn).await?;
    });
    Ok(())
}

/// Members that join a queue at once.
#[derive(Serialize)]
struct Joining<'a> {
    gate: &'a str,
    count: i64,
}

/// Takes the places of those that join queues now; the last one before them, for each queue.
async fn take_places(
    conn: &mut Conn<'_>,
    wanted: &BTreeMap<Arc<str>, Wanted<'_>>,
    now: Timestamp,
) -> Result<BTreeMap<Arc<str>, i64>> {
    let joining = wanted.iter().filter(|(_, wanted)| wanted.joining > 0);
    let rows: Vec<Joining<'_>> =
        joining.clone().map(|(gate, wanted)| Joining { gate, count: wanted.joining }).collect();
    if rows.is_empty() {
        return Ok(BTreeMap::new());
    }
    let sql = format!(
        "INSERT INTO queue_places (gate, place) SELECT r.gate, $2 + r.count FROM {} WHERE TRUE ORDER BY r.gate \
         ON CONFLICT (gate) DO UPDATE SET place = excluded.place - $2 + \
             CASE WHEN queue_places.place > $2 THEN queue_places.place ELSE $2 END \
         RETURNING gate, place",
        table(conn, &[("gate", "TEXT"), ("count", "BIGINT")])
    );
    // Microseconds; the first place after this one is the first to take.
    let before = now.as_millis() * 1000 - 1;
    let rows = json(&rows);
    let last: Vec<(String, i64)> = on_backend!(conn, |conn| {
        sqlx::query_as(AssertSqlSafe(sql)).bind(rows).bind(before).fetch_all(&mut **conn).await?
    });
    let last: BTreeMap<String, i64> = last.into_iter().collect();
    let first = |(gate, wanted): (&Arc<str>, &Wanted<'_>)| {
        Some((Arc::clone(gate), last.get(&**gate)? - wanted.joining))
    };
    Ok(joining.filter_map(first).collect())
}
