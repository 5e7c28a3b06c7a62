//! Entering runs, which is a part of accepting messages: it begins runs, recognises repeated submissions, refuses those of
//! runs that have ended, and appends entries.

use std::collections::{BTreeSet, HashMap};

use super::{Appended, Begun, HeldRow, INSERT_ENTRIES, INSERT_RUNS, advance, appended, begun, entries, hold};
use crate::domain::id::{InstanceId, MessageId};
use crate::domain::run::{CallType, NewEntry, NewRun, Part, RunState, Trigger};
use crate::store::sql::codec;
use crate::store::sql::gates::entering::Conn;
use crate::store::sql::query::Query;
use crate::store::{Accept, Accepted, OnRun, Refusal, Result, StoreError};

/// A message of a batch that begins a run.
struct Begins<'a> {
    index: usize,
    accept: &'a Accept,
    part: &'a Part,
    new: &'a NewRun,
}

/// A message of a batch that appends to one.
struct Appends<'a> {
    index: usize,
    accept: &'a Accept,
    instance: &'a InstanceId,
    entry: &'a NewEntry,
}

/// Lets messages into their runs, in the transaction that stores them: what else becomes of each; `None`: it is to be
/// stored.
pub(in crate::store::sql) async fn enter(
    conn: &mut Conn<'_>,
    batch: &[&Accept],
) -> Result<Vec<Option<Accepted>>> {
    let (mut begins, mut appends, mut configures) = (Vec::new(), Vec::new(), Vec::new());
    for (index, &accept) in batch.iter().enumerate() {
        let Some(part) = &accept.message.run else { continue };
        match &accept.on_run {
            Some(OnRun::Begin(new)) => begins.push(Begins { index, accept, part, new }),
            Some(OnRun::Append(entry)) => {
                appends.push(Appends { index, accept, instance: &part.instance, entry });
            }
            Some(OnRun::Configure(trigger)) => configures.push((accept, &part.instance, &**trigger)),
            None => {}
        }
    }
    let mut results = vec![None; batch.len()];
    let invokers = begins.iter().filter_map(|begin| begin.new.invoker.as_ref());
    let invokers: BTreeSet<&str> = invokers.map(|invoker| invoker.instance.as_str()).collect();
    let mut wanted: BTreeSet<&str> = appends.iter().map(|append| append.instance.as_str()).collect();
    wanted.extend(&invokers);
    wanted.extend(configures.iter().map(|(_, instance, _)| instance.as_str()));
    let mut held = HashMap::new();
    if !wanted.is_empty() {
        let wanted: Vec<&str> = wanted.into_iter().collect();
        let rows = hold(conn, &wanted).await?.into_iter();
        held = rows
            .filter(|row| row.state == RunState::Started.as_str())
            .map(|row| (row.instance.clone(), row))
            .collect();
    }
    let ended = |accept: &&Accept| match (&accept.message.run, &accept.on_run) {
        (Some(part), Some(on_run)) => on_run.needs_live_run() && !held.contains_key(part.instance.as_str()),
        _ => false,
    };
    let refused: BTreeSet<usize> =
        batch.iter().copied().filter(|accept| ended(accept)).map(|accept| accept.request).collect();
    if !refused.is_empty() {
        for (accept, result) in batch.iter().zip(&mut results) {
            if refused.contains(&accept.request) {
                *result = Some(Accepted::Refused(Refusal::RunEnded));
            }
        }
        begins.retain(|begin| !refused.contains(&begin.accept.request));
        appends.retain(|append| !refused.contains(&append.accept.request));
        configures.retain(|(accept, _, _)| !refused.contains(&accept.request));
    }
    begin(conn, &begins, &held, &mut results).await?;
    let mut known = known(conn, &appends).await?;
    let mut rows: Vec<Appended<'_>> = Vec::new();
    for Begins { index, accept, part, new } in &begins {
        if results[*index].is_none() {
            rows.push(Appended {
                instance: part.instance.as_str(),
                position: 0,
                message: accept.message.id.as_str(),
                created_at: accept.message.created_at,
                call_type: CallType::Step,
                key: None,
                body: &new.payload,
            });
        }
    }
    let mut grown = BTreeSet::new();
    for Appends { index, accept, instance, entry } in &appends {
        // The others are refused already.
        let Some(run) = held.get_mut(instance.as_str()) else { continue };
        if let Some(key) = &entry.key {
            let place = (instance.as_str().to_owned(), key.clone());
            if let Some(first) = known.get(&place) {
                results[*index] = Some(Accepted::Duplicate(first.clone()));
                continue;
            }
            known.insert(place, accept.message.id.clone());
        }
        let (id, created_at) = (&accept.message.id, accept.message.created_at);
        rows.push(appended(instance, run.next_position, id, created_at, entry));
        run.next_position += 1;
        grown.insert(run.instance.clone());
    }
    INSERT_ENTRIES.run(conn, &entries(), &rows).await?;
    let grown: Vec<HeldRow> = grown.iter().filter_map(|instance| held.remove(instance)).collect();
    advance(conn, &grown).await?;
    for (_, instance, trigger) in configures {
        configure(conn, instance, trigger).await?;
    }
    Ok(results)
}

/// Gives a run another trigger.
async fn configure(conn: &mut Conn<'_>, instance: &InstanceId, trigger: &Trigger) -> Result<()> {
    let sql = "UPDATE runs SET headers = $1, max_retries = $2, features = $3, options = $4, flow_key = $5 \
               WHERE instance = $6";
    let flow = trigger.options.flow_control.as_ref();
    on_backend!(conn, |conn| {
        sqlx::query(sql)
            .bind(codec::write_headers(&trigger.headers))
            .bind(i64::from(trigger.max_retries))
            .bind(trigger.features.list())
            .bind(codec::write_options(&trigger.options))
            .bind(flow.map(|flow| flow.key.as_str()))
            .bind(instance.as_str())
            .execute(&mut **conn)
            .await?;
    });
    Ok(())
}

#[derive(sqlx::FromRow)]
struct KeyRow {
    instance: String,
    step_key: String,
    message_id: String,
}

/// The entries that have the keys of these already.
async fn known(conn: &mut Conn<'_>, appends: &[Appends<'_>]) -> Result<HashMap<(String, String), MessageId>> {
    let instances: BTreeSet<&str> = appends.iter().map(|append| append.instance.as_str()).collect();
    let keys: BTreeSet<&str> = appends.iter().filter_map(|append| append.entry.key.as_deref()).collect();
    if keys.is_empty() {
        return Ok(HashMap::new());
    }
    let mut query = Query::new(conn);
    query
        .sql("SELECT instance, step_key, message_id FROM run_entries WHERE instance ")
        .one_of(&instances.into_iter().collect::<Vec<_>>())
        .sql(" AND step_key ")
        .one_of(&keys.into_iter().collect::<Vec<_>>());
    let rows: Vec<KeyRow> = query.fetch_on(conn).await?;
    let known = |row: KeyRow| ((row.instance, row.step_key), MessageId::new(row.message_id));
    Ok(rows.into_iter().map(known).collect())
}

#[derive(sqlx::FromRow)]
struct LiveRow {
    instance: String,
    run_id: String,
    invoker_instance: Option<String>,
    invoker_step: Option<i64>,
}

impl LiveRow {
    fn invoker(&self) -> Option<(&str, i64)> {
        self.invoker_instance.as_deref().zip(self.invoker_step)
    }
}

/// The run that invokes a new one, and the step that does.
fn invoker(new: &NewRun) -> Option<(&str, i64)> {
    let invoker = new.invoker.as_ref()?;
    Some((invoker.instance.as_str(), i64::try_from(invoker.step_id).unwrap_or(i64::MAX)))
}

/// Begins runs, unless they are there already.
async fn begin(
    conn: &mut Conn<'_>,
    begins: &[Begins<'_>],
    held: &HashMap<String, HeldRow>,
    results: &mut [Option<Accepted>],
) -> Result<()> {
    let mut open: Vec<&Begins<'_>> = Vec::new();
    for begin in begins {
        match invoker(begin.new) {
            Some((parent, _)) if !held.contains_key(parent) => {
                results[begin.index] = Some(Accepted::Refused(Refusal::RunEnded));
            }
            _ => open.push(begin),
        }
    }
    // One that has the id may end between the two statements.
    for _ in 0..4 {
        if open.is_empty() {
            return Ok(());
        }
        let rows: Vec<Begun<'_>> = open
            .iter()
            .map(|begin| Begun {
                instance: begin.part.instance.as_str(),
                created_at: begin.accept.message.created_at,
                new: begin.new,
            })
            .collect();
        INSERT_RUNS.run(conn, &begun(), &rows).await?;
        let (by_id, by_invoker) = (live(conn, &open).await?, invoked(conn, &open).await?);
        open.retain(|begin| {
            let own = begin.part.instance.as_str();
            let wanted = invoker(begin.new);
            if wanted.is_some()
                && let Some(first) = by_invoker.iter().find(|row| row.invoker() == wanted)
            {
                let repeats = first.instance != own;
                let first = MessageId::new(first.instance.as_str());
                results[begin.index] = repeats.then_some(Accepted::Duplicate(first));
                return false;
            }
            let Some(row) = by_id.iter().find(|row| row.run_id == begin.new.id) else { return true };
            if row.instance != own {
                results[begin.index] = Some(if row.invoker() == wanted {
                    Accepted::Duplicate(MessageId::new(row.instance.as_str()))
                } else {
                    Accepted::Refused(Refusal::RunIdTaken)
                });
            }
            false
        });
    }
    Err(StoreError::Contended)
}

/// The live runs of these ids.
async fn live(conn: &mut Conn<'_>, begins: &[&Begins<'_>]) -> Result<Vec<LiveRow>> {
    let ids: Vec<&str> = begins.iter().map(|begin| begin.new.id.as_str()).collect();
    let mut query = Query::new(conn);
    query
        .sql("SELECT instance, run_id, invoker_instance, invoker_step FROM runs WHERE state = 'RUN_STARTED' AND run_id ")
        .one_of(&ids);
    query.fetch_on(conn).await
}

/// The runs that were begun by the same steps.
async fn invoked(conn: &mut Conn<'_>, begins: &[&Begins<'_>]) -> Result<Vec<LiveRow>> {
    let parents: Vec<&str> =
        begins.iter().filter_map(|begin| invoker(begin.new)).map(|(instance, _)| instance).collect();
    if parents.is_empty() {
        return Ok(Vec::new());
    }
    let mut query = Query::new(conn);
    query
        .sql("SELECT instance, run_id, invoker_instance, invoker_step FROM runs WHERE invoker_instance ")
        .one_of(&parents);
    query.fetch_on(conn).await
}
