//! `/v2/dlq`: the dead-letter queue.

use std::sync::Arc;

use axum::response::Response;
use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::body::Upload;
use super::error::ApiError;
use super::headers::{self, Kind};
use super::publish::refuse_unsupported;
use super::query::{Query, invalid_cursor};
use super::{Api, PAGE_BYTES, wire};
use crate::domain::id::{DeadLetterId, MessageId};
use crate::domain::outcome::Ids as _;
use crate::domain::time::Timestamp;
use crate::engine::ids::FreshIds;
use crate::store::{Accept, DeadLetter, DeadLetterFilter, Order};

/// Dead letters in one page.
const PAGE: usize = 100;

impl Api {
    pub(super) async fn list_dead_letters(&self, query: &str) -> Result<Response, ApiError> {
        let query = Query::parse(query);
        query.only(&["dlqIds", "messageId", "fromDate", "toDate", "count", "cursor", "order", "trimBody"])?;
        let filter = DeadLetterFilter {
            ids: ids(&query),
            messages: query.list("messageId").into_iter().map(MessageId::new).collect(),
            from: query.time("fromDate")?,
            to: query.time("toDate")?,
        };
        let after = query.get("cursor").map(read_cursor).transpose()?;
        let count = query.count(PAGE, PAGE)?;
        let order = query.order(Order::EarliestFirst)?;
        let page =
            self.engine.store().dead_letters(&filter, order, after.as_ref(), count, PAGE_BYTES).await?;
        let mut answer = Map::new();
        let messages: Vec<Value> = page.items.iter().map(wire::dead_letter).collect();
        answer.insert("messages".to_owned(), messages.into());
        if let Some(last) = page.items.last().filter(|_| page.more) {
            answer.insert("cursor".to_owned(), last.id.as_str().into());
        }
        super::json(StatusCode::OK, &answer)
    }

    pub(super) async fn get_dead_letter(&self, id: &str) -> Result<Response, ApiError> {
        let letter = self.find_dead_letter(id).await?;
        super::json(StatusCode::OK, &wire::dead_letter(&letter))
    }

    async fn find_dead_letter(&self, id: &str) -> Result<DeadLetter, ApiError> {
        let found = self.engine.store().dead_letter(&DeadLetterId::new(id)).await?;
        found.ok_or_else(|| unknown(id))
    }

    pub(super) async fn delete_dead_letter(&self, id: &str) -> Result<Response, ApiError> {
        let deleted = self.engine.store().delete_dead_letters(&[DeadLetterId::new(id)]).await?;
        if deleted == 0 {
            return Err(unknown(id));
        }
        super::json(StatusCode::OK, &json!({ "deleted": deleted }))
    }

    /// Deletes the given ids, from the query or from a JSON body.
    pub(super) async fn delete_dead_letters(
        &self,
        query: &str,
        upload: &mut Upload,
    ) -> Result<Response, ApiError> {
        let query = Query::parse(query);
        query.only(&["dlqIds"])?;
        let mut ids = ids(&query);
        let received = self.read_body(upload, self.settings.max_message, "the body").await?;
        if !received.body.is_empty() {
            let body: IdsBody = serde_json::from_slice(&received.body).map_err(|error| {
                ApiError::bad_request(format!("the body must be JSON like {{\"dlqIds\":[\"…\"]}}: {error}"))
            })?;
            ids.extend(body.dlq_ids.into_iter().map(DeadLetterId::new));
        } else if ids.is_empty() {
            return Err(no_ids());
        }
        let deleted = self.engine.store().delete_dead_letters(&ids).await?;
        super::json(StatusCode::OK, &json!({ "deleted": deleted }))
    }

    pub(super) async fn retry_dead_letter(
        &self,
        id: &str,
        query: &str,
        fields: &HeaderMap,
    ) -> Result<Response, ApiError> {
        let retried = self.retry(&[DeadLetterId::new(id)], query, fields).await?;
        super::json(StatusCode::CREATED, &retried.first())
    }

    /// Retries the given ids, all or none.
    pub(super) async fn retry_dead_letters(
        &self,
        query: &str,
        fields: &HeaderMap,
    ) -> Result<Response, ApiError> {
        let ids = ids(&Query::parse(query));
        if ids.is_empty() {
            return Err(no_ids());
        }
        let retried = self.retry(&ids, query, fields).await?;
        super::json(StatusCode::CREATED, &json!({ "responses": retried }))
    }

    async fn retry(
        &self,
        ids: &[DeadLetterId],
        query: &str,
        fields: &HeaderMap,
    ) -> Result<Vec<Value>, ApiError> {
        let mut replacements = Vec::with_capacity(ids.len());
        for id in ids {
            let letter = self.find_dead_letter(id.as_str()).await?;
            replacements.push((id.clone(), self.replacement(letter, query, fields)?));
        }
        if !self.engine.store().retry_dead_letters(&replacements).await? {
            return Err(ApiError::not_found("some of the dead letters are gone; none was retried"));
        }
        for (_, accept) in &replacements {
            self.engine.note_due(accept.message.due_at);
        }
        Ok(replacements
            .iter()
            .map(|(_, accept)| json!({ "messageId": accept.message.id.as_str() }))
            .collect())
    }

    /// The new message for a dead letter: the same, changed by the configuration headers of the retry.
    fn replacement(&self, letter: DeadLetter, query: &str, fields: &HeaderMap) -> Result<Accept, ApiError> {
        let now = self.engine.now();
        let mut message = letter.message;
        message.id = FreshIds.message(now);
        message.created_at = now;
        message.due_at = now;
        let params: Vec<(String, String)> = Query::parse(query)
            .into_pairs()
            .into_iter()
            .map(|(name, value)| (name.to_ascii_lowercase(), value))
            .filter(|(name, _)| name.starts_with("upstash-"))
            .collect();
        let publish = headers::parse(Kind::Publish, pairs(fields), &params, &self.settings.headers, now)?;
        refuse_unsupported(&publish)?;
        let given =
            |header: &str| fields.contains_key(header) || params.iter().any(|(name, _)| name == header);
        if given("upstash-method") {
            message.method = publish.method;
        }
        if given("upstash-retries") {
            message.max_retries = publish.retries;
        }
        if given("upstash-delay") || given("upstash-not-before") {
            message.due_at = match publish.due {
                headers::Due::Now => now,
                headers::Due::After(delay) => now.after(delay),
                headers::Due::At(time) => time.clamp(now, Timestamp::MAX),
            };
        }
        if given("upstash-label") {
            message.labels = publish.labels;
        }
        for (name, value) in publish.headers.iter() {
            if name.eq_ignore_ascii_case("content-type") && !given("upstash-forward-content-type") {
                continue;
            }
            message.headers.remove(name);
            message.headers.append(name, value);
        }
        let (old, new) = (&mut message.options, publish.options);
        old.timeout = new.timeout.or(old.timeout);
        old.retry_delay = new.retry_delay.or_else(|| old.retry_delay.take());
        old.callback = new.callback.or_else(|| old.callback.take());
        old.failure_callback = new.failure_callback.or_else(|| old.failure_callback.take());
        if !new.redact.is_none() {
            old.redact = new.redact;
        }
        let origin = self.check_destinations(&message.url, &message.options)?;
        Ok(Accept {
            message: Arc::new(message),
            lane: Arc::from(origin.to_string()),
            lease: None,
            deduplication: None,
        })
    }
}

fn pairs(fields: &HeaderMap) -> impl Iterator<Item = (&str, &[u8])> {
    fields.iter().map(|(name, value)| (name.as_str(), value.as_bytes()))
}

#[derive(Deserialize)]
struct IdsBody {
    #[serde(rename = "dlqIds")]
    dlq_ids: Vec<String>,
}

fn ids(query: &Query) -> Vec<DeadLetterId> {
    query.list("dlqIds").into_iter().map(DeadLetterId::new).collect()
}

fn unknown(id: &str) -> ApiError {
    ApiError::not_found(format!("dead letter {id} not found"))
}

fn no_ids() -> ApiError {
    ApiError::bad_request("dlqIds must be given")
}

/// A dead letter's id, which begins with the time it was made.
fn read_cursor(text: &str) -> Result<(Timestamp, DeadLetterId), ApiError> {
    let ms = text.split('-').next().and_then(|ms| ms.parse().ok()).ok_or_else(|| invalid_cursor(text))?;
    Ok((Timestamp::from_millis(ms), DeadLetterId::new(text)))
}
