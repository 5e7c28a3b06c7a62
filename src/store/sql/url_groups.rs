//! The table `url_groups`. A group is one row, so that a publish to it reads one.

use async_trait::async_trait;

use super::tx::Tx;
use super::{Backend, DEADLINE, SqlStore, codec, within};
use crate::domain::message::Headers;
use crate::domain::time::Timestamp;
use crate::domain::url_group::{Endpoint, EndpointKey, UrlGroup};
use crate::store::url_groups::{Upserted, UrlGroupLimits, UrlGroups};
use crate::store::{Result, StoreError};

#[derive(sqlx::FromRow)]
pub(super) struct GroupRow {
    name: String,
    created_at: i64,
    updated_at: i64,
    headers: Option<String>,
    endpoints: String,
}

/// A group of a page, and how many the page could have.
#[derive(sqlx::FromRow)]
pub(super) struct FoundRow {
    #[sqlx(flatten)]
    pub(super) group: GroupRow,
    pub(super) found: i64,
}

impl GroupRow {
    pub(super) fn read(self) -> Result<UrlGroup> {
        let table = "url_groups";
        let headers = codec::read_headers(self.headers.as_deref(), table, &self.name)?;
        let endpoints: Vec<(String, Option<String>)> = serde_json::from_str(&self.endpoints)
            .map_err(|_| StoreError::Corrupt { table, column: "endpoints", id: self.name.clone() })?;
        Ok(UrlGroup {
            name: self.name,
            created_at: Timestamp::from_millis(self.created_at),
            updated_at: Timestamp::from_millis(self.updated_at),
            headers,
            endpoints: endpoints.into_iter().map(|(url, name)| Endpoint { name, url }).collect(),
        })
    }
}

const ONE: &str = "SELECT name, created_at, updated_at, headers, endpoints FROM url_groups WHERE name = $1";

impl SqlStore {
    /// Changes groups. Changes are rare and come one after the other, so that each sees all earlier ones and none is lost;
    /// nobody who reads waits for them.
    async fn change_groups<T>(&self, change: impl AsyncFnOnce(&mut Tx) -> Result<T>) -> Result<T> {
        self.write(DEADLINE, async |tx| {
            // SQLite has one writer.
            if let Backend::Postgres(tx) = &mut tx.on {
                sqlx::query("LOCK TABLE url_groups IN SHARE ROW EXCLUSIVE MODE").execute(&mut **tx).await?;
            }
            change(tx).await
        })
        .await
    }
}

async fn find(tx: &mut Tx, name: &str) -> Result<Option<UrlGroup>> {
    let row: Option<GroupRow> =
        on_backend!(&mut tx.on, |tx| sqlx::query_as(ONE).bind(name).fetch_optional(&mut **tx).await?);
    row.map(GroupRow::read).transpose()
}

async fn count(tx: &mut Tx) -> Result<i64> {
    let sql = "SELECT COUNT(*) FROM url_groups";
    Ok(on_backend!(&mut tx.on, |tx| sqlx::query_scalar(sql).fetch_one(&mut **tx).await?))
}

async fn write(tx: &mut Tx, group: &UrlGroup) -> Result<()> {
    let sql = "INSERT INTO url_groups (name, created_at, updated_at, headers, endpoints) \
         VALUES ($1, $2, $3, $4, $5) \
         ON CONFLICT (name) DO UPDATE SET updated_at = excluded.updated_at, headers = excluded.headers, \
         endpoints = excluded.endpoints";
    let endpoints: Vec<_> = group.endpoints.iter().map(|endpoint| (&endpoint.url, &endpoint.name)).collect();
    let endpoints = super::codec::json(&endpoints);
    on_backend!(&mut tx.on, |tx| {
        sqlx::query(sql)
            .bind(group.name.as_str())
            .bind(group.created_at.as_millis())
            .bind(group.updated_at.as_millis())
            .bind(codec::write_headers(&group.headers))
            .bind(endpoints)
            .execute(&mut **tx)
            .await?;
    });
    Ok(())
}

async fn delete(tx: &mut Tx, name: &str) -> Result<()> {
    let sql = "DELETE FROM url_groups WHERE name = $1";
    on_backend!(&mut tx.on, |tx| {
        sqlx::query(sql).bind(name).execute(&mut **tx).await?;
    });
    Ok(())
}

#[async_trait]
impl UrlGroups for SqlStore {
    async fn url_group(&self, name: &str) -> Result<Option<UrlGroup>> {
        within(DEADLINE, async {
            let row: Option<GroupRow> = on_backend!(self.readers(), |pool| {
                sqlx::query_as(ONE).bind(name).fetch_optional(pool).await?
            });
            row.map(GroupRow::read).transpose()
        })
        .await
    }

    async fn upsert_endpoints(
        &self,
        name: &str,
        endpoints: &[Endpoint],
        limits: UrlGroupLimits,
        now: Timestamp,
    ) -> Result<Upserted> {
        self.change_groups(async |tx| {
            let mut group = if let Some(mut group) = find(tx, name).await? {
                group.touch(now);
                group
            } else {
                if let Some(limit) = limits.groups
                    && count(tx).await? >= i64::from(limit)
                {
                    return Ok(Upserted::TooManyGroups);
                }
                UrlGroup::new(name.to_owned(), now)
            };
            if !group.upsert_all(endpoints, limits.endpoints) {
                return Ok(Upserted::TooManyEndpoints);
            }
            write(tx, &group).await?;
            Ok(Upserted::Stored)
        })
        .await
    }

    async fn remove_endpoints(&self, name: &str, keys: &[EndpointKey], now: Timestamp) -> Result<bool> {
        self.change_groups(async |tx| {
            let Some(mut group) = find(tx, name).await? else { return Ok(false) };
            let before = group.endpoints.len();
            for key in keys {
                group.remove(key);
            }
            if group.endpoints.len() == before {
                return Ok(true);
            }
            group.touch(now);
            if group.endpoints.is_empty() {
                delete(tx, name).await?;
            } else {
                write(tx, &group).await?;
            }
            Ok(true)
        })
        .await
    }

    async fn set_url_group_headers(&self, name: &str, headers: &Headers, now: Timestamp) -> Result<bool> {
        self.change_groups(async |tx| {
            let Some(mut group) = find(tx, name).await? else { return Ok(false) };
            group.headers = headers.clone();
            group.touch(now);
            write(tx, &group).await?;
            Ok(true)
        })
        .await
    }

    async fn delete_url_group(&self, name: &str) -> Result<()> {
        self.change_groups(async |tx| delete(tx, name).await).await
    }
}
