//! `/v2/dlq`: the dead-letter queue.

use std::collections::HashSet;
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
use crate::domain::message::{CallbackSpec, Headers, Options};
use crate::domain::outcome::Ids as _;
use crate::domain::time::Timestamp;
use crate::engine::ids::FreshIds;
use crate::store::{Accept, DeadLetter, DeadLetterFilter, Order};

/// Dead letters in one page.
const PAGE: usize = 100;
/// The last three are accepted and change nothing.
const LIST_PARAMETERS: [&str; 10] =
    ["dlqIds", "messageId", "fromDate", "toDate", "count", "cursor", "order", "api", "source", "trimBody"];

impl Api {
    pub(super) async fn list_dead_letters(&self, query: &str) -> Result<Response, ApiError> {
        let query = Query::parse(query);
        query.only(&LIST_PARAMETERS)?;
        let filter = DeadLetterFilter {
            ids: ids(query.list("dlqIds")),
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
        let mut given = query.list("dlqIds");
        let received = self.read_body(upload, self.settings.max_message, "the body").await?;
        let body: IdsBody;
        if !received.body.is_empty() {
            body = serde_json::from_slice(&received.body).map_err(|error| {
                ApiError::bad_request(format!("the body must be JSON like {{\"dlqIds\":[\"…\"]}}: {error}"))
            })?;
            given.extend(body.dlq_ids.iter().map(String::as_str));
        } else if given.is_empty() {
            return Err(no_ids());
        }
        let ids = ids(given);
        let deleted = self.engine.store().delete_dead_letters(&ids).await?;
        super::json(StatusCode::OK, &json!({ "deleted": deleted }))
    }

    pub(super) async fn retry_dead_letter(
        &self,
        id: &str,
        query: &str,
        fields: &HeaderMap,
    ) -> Result<Response, ApiError> {
        let mut query = Query::parse(query);
        let params = query.take_options();
        query.only(&[])?;
        let retried = self.retry(&[DeadLetterId::new(id)], &params, fields).await?;
        super::json(StatusCode::CREATED, &retried.first())
    }

    /// Retries the given ids, all or none.
    pub(super) async fn retry_dead_letters(
        &self,
        query: &str,
        fields: &HeaderMap,
    ) -> Result<Response, ApiError> {
        let mut query = Query::parse(query);
        let params = query.take_options();
        query.only(&["dlqIds"])?;
        let ids = ids(query.list("dlqIds"));
        if ids.is_empty() {
            return Err(no_ids());
        }
        let retried = self.retry(&ids, &params, fields).await?;
        super::json(StatusCode::CREATED, &json!({ "responses": retried }))
    }

    async fn retry(
        &self,
        ids: &[DeadLetterId],
        params: &[(String, String)],
        fields: &HeaderMap,
    ) -> Result<Vec<Value>, ApiError> {
        let mut replacements = Vec::with_capacity(ids.len());
        for id in ids {
            let letter = self.find_dead_letter(id.as_str()).await?;
            replacements.push((id.clone(), self.replacement(letter, params, fields)?));
        }
        if !self.engine.store().retry_dead_letters(&replacements).await? {
            return Err(ApiError::not_found("some of the dead letters are gone; none was retried"));
        }
        for (_, accept) in &replacements {
            self.engine.note_waiting(&accept.message);
        }
        Ok(replacements
            .iter()
            .map(|(_, accept)| json!({ "messageId": accept.message.id.as_str() }))
            .collect())
    }

    /// The new message for a dead letter: the same, changed by the configuration headers of the retry.
    fn replacement(
        &self,
        letter: DeadLetter,
        params: &[(String, String)],
        fields: &HeaderMap,
    ) -> Result<Accept, ApiError> {
        let now = self.engine.now();
        let mut message = letter.message;
        message.id = FreshIds.message(now);
        message.created_at = now;
        message.due_at = now;
        // So that settings of a callback can be changed without repeating its URL. What the retry says comes later and wins.
        let mut with_urls = callback_urls("upstash", &message.options);
        with_urls.extend_from_slice(params);
        let publish = headers::parse(Kind::Publish, pairs(fields), &with_urls, &self.settings.headers, now)?;
        refuse_unsupported(&publish)?;
        let given = Given { fields, params };
        if given.has("upstash-method") {
            message.method = publish.method;
        }
        if given.has("upstash-retries") {
            message.max_retries = publish.retries;
        }
        if given.has("upstash-delay") || given.has("upstash-not-before") {
            message.due_at = match publish.due {
                headers::Due::Now => now,
                headers::Due::After(delay) => now.after(delay),
                headers::Due::At(time) => time.clamp(now, Timestamp::MAX),
            };
        }
        if given.has("upstash-queue-name") {
            message.queue = publish.queue;
        }
        if given.has("upstash-label") {
            message.labels = publish.labels;
        }
        let mut overrides = publish.headers;
        if !given.has("upstash-forward-content-type") {
            // The retry's own.
            overrides.remove("content-type");
        }
        replace(&mut message.headers, overrides);
        merge_options(&mut message.options, publish.options, "upstash", &given);
        let origin = self.check_destinations(&message.url, &message.options)?;
        Ok(Accept {
            message: Arc::new(message),
            lane: Arc::from(origin.to_string()),
            lease: None,
            deduplication: None,
        })
    }
}

/// What a retry says itself.
struct Given<'a> {
    fields: &'a HeaderMap,
    params: &'a [(String, String)],
}

impl Given<'_> {
    /// Whether it has a header of that (lower-case) name, which is not empty.
    fn has(&self, name: &str) -> bool {
        self.fields.get_all(name).iter().any(|value| !value.as_bytes().trim_ascii().is_empty())
            || self.params.iter().any(|(have, value)| have == name && !value.trim().is_empty())
    }
}

/// The URLs of callbacks, as the headers that set them.
fn callback_urls(prefix: &str, options: &Options) -> Vec<(String, String)> {
    let callbacks = [("callback", &options.callback), ("failure-callback", &options.failure_callback)];
    let mut urls = Vec::new();
    for (word, spec) in callbacks {
        if let Some(spec) = spec {
            let name = format!("{prefix}-{word}");
            urls.extend(callback_urls(&name, &spec.options));
            urls.push((name, spec.url.clone()));
        }
    }
    urls
}

/// Puts headers in the place of those with the same names.
fn replace(headers: &mut Headers, new: Headers) {
    for (name, _) in new.iter() {
        headers.remove(name);
    }
    headers.0.extend(new.0);
}

/// Changes what is given under the prefix, and nothing else.
fn merge_options(old: &mut Options, new: Options, prefix: &str, given: &Given<'_>) {
    let has = |word: &str| given.has(&format!("{prefix}-{word}"));
    if has("timeout") {
        old.timeout = new.timeout;
    }
    if has("retry-delay") {
        old.retry_delay = new.retry_delay;
    }
    if has("flow-control-key") {
        old.flow_control = new.flow_control;
    }
    if has("redact-fields") {
        old.redact = new.redact;
    }
    merge_callback(&mut old.callback, new.callback, &format!("{prefix}-callback"), given);
    merge_callback(
        &mut old.failure_callback,
        new.failure_callback,
        &format!("{prefix}-failure-callback"),
        given,
    );
}

fn merge_callback(
    old: &mut Option<Box<CallbackSpec>>,
    new: Option<Box<CallbackSpec>>,
    prefix: &str,
    given: &Given<'_>,
) {
    let Some(new) = new else { return };
    let Some(old) = old else {
        *old = Some(new);
        return;
    };
    let has = |word: &str| given.has(&format!("{prefix}-{word}"));
    old.url = new.url;
    if has("method") {
        old.method = new.method;
    }
    if has("retries") {
        old.retries = new.retries;
    }
    if has("delay") {
        old.delay = new.delay;
    }
    if has("label") {
        old.labels = new.labels;
    }
    replace(&mut old.headers, new.headers);
    merge_options(&mut old.options, new.options, prefix, given);
}

fn pairs(fields: &HeaderMap) -> impl Iterator<Item = (&str, &[u8])> {
    fields.iter().map(|(name, value)| (name.as_str(), value.as_bytes()))
}

#[derive(Deserialize)]
struct IdsBody {
    #[serde(rename = "dlqIds")]
    dlq_ids: Vec<String>,
}

/// Each id once, in order.
fn ids(texts: Vec<&str>) -> Vec<DeadLetterId> {
    let mut seen = HashSet::new();
    texts.into_iter().filter(|text| seen.insert(*text)).map(DeadLetterId::new).collect()
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
