//! Lists of runs, and the conditions of their filter.

use std::collections::HashSet;

use sqlx::{PgPool, SqlitePool};

use super::{COLUMNS, RunRow};
use crate::domain::id::InstanceId;
use crate::domain::run::{Run, Told};
use crate::store::Result;
use crate::store::runs::{RunFilter, RunPage, RunPlace};
use crate::store::sql::Backend;
use crate::store::sql::query::Query;

#[derive(sqlx::FromRow)]
struct InstanceRow {
    instance: String,
}

pub(super) async fn page(
    pools: &Backend<&PgPool, &SqlitePool>,
    filter: &RunFilter,
    after: Option<&RunPlace>,
    count: usize,
) -> Result<RunPage> {
    let mut query = Query::new(pools);
    query.sql("SELECT ").sql(COLUMNS).sql(" FROM runs r WHERE 1 = 1");
    if let Some((time, instance)) = after {
        query.sql(" AND (r.created_at, r.instance) < (").number(time.as_millis());
        query.sql(", ").text(instance.as_str()).sql(")");
    }
    conditions(&mut query, filter);
    query.sql(" ORDER BY r.created_at DESC, r.instance DESC LIMIT ");
    query.number(i64::try_from(count.saturating_add(1)).unwrap_or(i64::MAX));
    let mut rows: Vec<RunRow> = query.fetch(pools).await?;
    let more = rows.len() > count;
    rows.truncate(count);
    let items: Vec<Run> = rows.into_iter().map(RunRow::into_run).collect::<Result<_>>()?;
    let next = items.last().filter(|_| more).map(|run| (run.created_at, run.instance.clone()));
    Ok(RunPage { items, next })
}

/// Those of the instances whose runs match.
pub(in crate::store::sql) async fn matching(
    pools: &Backend<&PgPool, &SqlitePool>,
    instances: &[&str],
    filter: &RunFilter,
) -> Result<HashSet<String>> {
    let mut query = Query::new(pools);
    query.sql("SELECT r.instance FROM runs r WHERE r.instance ").one_of(instances);
    conditions(&mut query, filter);
    let rows: Vec<InstanceRow> = query.fetch(pools).await?;
    Ok(rows.into_iter().map(|row| row.instance).collect())
}

/// The runs that a run has invoked.
pub(super) async fn children(pools: &Backend<&PgPool, &SqlitePool>, parent: &InstanceId) -> Result<Vec<Run>> {
    let mut query = Query::new(pools);
    query.sql("SELECT ").sql(COLUMNS).sql(" FROM runs r WHERE r.invoker_instance = ").text(parent.as_str());
    query.sql(" ORDER BY r.invoker_step");
    let rows: Vec<RunRow> = query.fetch(pools).await?;
    rows.into_iter().map(RunRow::into_run).collect()
}

/// Appends the conditions of a filter on the runs `r`.
fn conditions(query: &mut Query, filter: &RunFilter) {
    let states: Vec<String> = filter.states.iter().map(|state| state.as_str().to_owned()).collect();
    let instances: Vec<String> = filter.instances.iter().map(|one| one.as_str().to_owned()).collect();
    for (column, values) in [
        (" AND r.instance ", &instances),
        (" AND r.run_id ", &filter.ids),
        (" AND r.url ", &filter.urls),
        (" AND r.state ", &states),
        (" AND r.flow_key ", &filter.flow_keys),
        (" AND r.caller_ip ", &filter.caller_ips),
    ] {
        if !values.is_empty() {
            query.sql(column).one_of(values);
        }
    }
    if let Some(prefix) = &filter.url_prefix {
        let length = i64::from(i32::try_from(prefix.chars().count()).unwrap_or(i32::MAX));
        query.sql(" AND SUBSTR(r.url, 1, CAST(").number(length).sql(" AS INTEGER)) = ").text(prefix);
    }
    any(query, &filter.begun, |query, (id, at)| {
        query.sql("r.run_id = ").text(id).sql(" AND r.created_at = ").number(at.as_millis());
    });
    any(query, &filter.labels, |query, label| {
        query.contains("',' || r.labels || ','", &format!(",{label},"));
    });
    any(query, &filter.told, |query, told| {
        query.sql("r.failure_message IS NOT NULL AND r.failure_told ");
        match told.map(Told::as_str) {
            None => query.sql("IS NULL"),
            Some(text) => query.sql("= ").text(text),
        };
    });
    if let Some(from) = filter.from {
        query.sql(" AND r.created_at >= ").number(from.as_millis());
    }
    if let Some(to) = filter.to {
        query.sql(" AND r.created_at <= ").number(to.as_millis());
    }
}

/// Appends that one of these conditions holds, if there are any.
fn any<T>(query: &mut Query, values: &[T], condition: impl Fn(&mut Query, &T)) {
    for (index, value) in values.iter().enumerate() {
        query.sql(if index == 0 { " AND (" } else { " OR " });
        condition(query, value);
    }
    if !values.is_empty() {
        query.sql(")");
    }
}
