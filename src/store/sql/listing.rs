//! Lists by pages: each page is one statement, which counts what its rows have in groups.

use async_trait::async_trait;

use super::gates::control_columns;
use super::gates::keys::FlowRow;
use super::gates::queues::QueueRow;
use super::query::Query;
use super::{LIST_DEADLINE, SqlStore, url_groups, within};
use crate::domain::time::Timestamp;
use crate::domain::url_group::UrlGroup;
use crate::store::gates::{FlowKey, Queue};
use crate::store::listing::Listing;
use crate::store::{Page, Result};

/// One more than that many, by which it is seen whether more follow.
fn one_more(count: usize) -> i64 {
    i64::try_from(count.saturating_add(1)).unwrap_or(i64::MAX)
}

fn page<T>(mut items: Vec<T>, count: usize) -> Page<T> {
    let more = items.len() > count;
    items.truncate(count);
    Page { items, more }
}

#[async_trait]
impl Listing for SqlStore {
    async fn queues(&self, after: Option<&str>, count: usize) -> Result<Page<Queue>> {
        within(LIST_DEADLINE, async {
            let pools = self.readers();
            let mut query = Query::new(&pools);
            query
                .sql(
                    "WITH page AS (SELECT name, created_at, updated_at, parallelism, paused FROM gates \
                     WHERE name < 'q;' AND name > ",
                )
                .text(&format!("q:{}", after.unwrap_or_default()))
                .sql(" ORDER BY name LIMIT ")
                .number(one_more(count))
                // A message in flight has its own slot.
                .sql(
                    ") SELECT page.*, COALESCE(w.members, 0) + COALESCE(h.members, 0) AS lag FROM page \
                     LEFT JOIN (SELECT gate, COUNT(*) AS members FROM deliveries \
                         WHERE gate IN (SELECT name FROM page) AND node = 0 GROUP BY gate) AS w ON w.gate = name \
                     LEFT JOIN (SELECT slot, COUNT(*) AS members FROM deliveries \
                         WHERE slot IN (SELECT name FROM page) AND gate = slot AND node <> 0 GROUP BY slot) AS h \
                         ON h.slot = name \
                     ORDER BY name",
                );
            let rows: Vec<QueueRow> = query.fetch(&pools).await?;
            Ok(page(rows.into_iter().map(QueueRow::into_queue).collect(), count))
        })
        .await
    }

    async fn flow_keys(
        &self,
        containing: &str,
        after: Option<&str>,
        count: usize,
        now: Timestamp,
    ) -> Result<Page<FlowKey>> {
        within(LIST_DEADLINE, async {
            let pools = self.readers();
            let mut query = Query::new(&pools);
            query
                .sql("WITH page AS (SELECT name, ")
                .sql(control_columns!())
                .sql(", starts FROM gates WHERE name < 'f;' AND name > ")
                .text(&format!("f:{}", after.unwrap_or_default()))
                .sql(" AND ")
                .contains("SUBSTR(name, 3)", containing)
                .sql(" ORDER BY name LIMIT ")
                .number(one_more(count))
                .sql(
                    ") SELECT page.*, COALESCE(d.waiting, 0) AS waiting, COALESCE(d.in_flight, 0) AS in_flight \
                     FROM page LEFT JOIN (SELECT flow, COUNT(*) FILTER (WHERE node = 0 AND due_at <= ",
                )
                .number(now.as_millis())
                .sql(
                    ") AS waiting, COUNT(*) FILTER (WHERE node > 0) AS in_flight FROM deliveries \
                     WHERE flow IN (SELECT name FROM page) GROUP BY flow) AS d ON d.flow = name ORDER BY name",
                );
            let rows: Vec<FlowRow> = query.fetch(&pools).await?;
            let keys = rows.into_iter().map(|row| row.into_key(now)).collect::<Result<_>>()?;
            Ok(page(keys, count))
        })
        .await
    }

    async fn url_groups(
        &self,
        after: Option<&str>,
        count: usize,
        max_bytes: usize,
    ) -> Result<Page<UrlGroup>> {
        within(LIST_DEADLINE, async {
            let pools = self.readers();
            let mut query = Query::new(&pools);
            query
                .sql(
                    "SELECT * FROM (SELECT page.*, COUNT(*) OVER () AS found, \
                         SUM(size) OVER (ORDER BY name) - size AS size_before FROM ( \
                         SELECT name, created_at, updated_at, headers, endpoints, \
                             LENGTH(endpoints) + COALESCE(LENGTH(headers), 0) AS size \
                         FROM url_groups WHERE name > ",
                )
                .text(after.unwrap_or_default())
                .sql(" ORDER BY name LIMIT ")
                .number(one_more(count))
                .sql(") AS page) AS sized WHERE size_before < ")
                .number(i64::try_from(max_bytes).unwrap_or(i64::MAX))
                .sql(" ORDER BY name");
            let rows: Vec<url_groups::FoundRow> = query.fetch(&pools).await?;
            let found = rows.first().map_or(0, |row| row.found);
            let mut items = rows.into_iter().map(|row| row.group.read()).collect::<Result<Vec<_>>>()?;
            items.truncate(count);
            Ok(Page { more: found > i64::try_from(items.len()).unwrap_or(i64::MAX), items })
        })
        .await
    }
}
