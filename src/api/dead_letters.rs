//! `/v2/dlq`: the dead-letter queue.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::response::Response;
use http::{HeaderMap, StatusCode};
use serde_json::{Map, Value, json};

use super::answers::{Each, Page};
use super::body::Upload;
use super::error::ApiError;
use super::headers::{self, Due, Kind, Publish};
use super::query::{Query, invalid_cursor};
use super::routes::Call;
use super::{Api, PAGE_BYTES, answers, filter, wire};
use crate::domain::excerpt::Excerpt;
use crate::domain::id::{DeadLetterId, MessageId};
use crate::domain::message::{CallbackSpec, Headers, Message, Options};
use crate::domain::outcome::Ids as _;
use crate::domain::time::Timestamp;
use crate::engine::ids::FreshIds;
use crate::store::{Accept, DeadLetter, DeadLetterFilter, LetterPlace, Missing, Order};

/// Dead letters in one page of the list.
const PAGE: usize = 100;
/// Dead letters that one call deletes or retries, unless it says how many; and at most.
const BULK: usize = 100;
const MAX_BULK: usize = 10_000;
/// After how long a retry by filters says how far it has come.
const BULK_TIME: Duration = Duration::from_secs(5);
/// Dead letters in one transaction.
const STEP: usize = 100;
/// Bytes of bodies that a retry by ids holds, since it is all or nothing.
const MAX_RETRY: usize = 128 << 20;

/// Bytes of the answer for one that was retried.
const RETRIED: usize = 64;

/// What says which ones.
const SELECTING: [&str; 3] = ["dlqIds", "messageId", "responseStatus"];
/// Accepted, and change nothing.
const IGNORED: [&str; 3] = ["api", "source", "trimBody"];

/// Which dead letters a call is about.
enum Selection {
    /// Each once.
    Ids(Vec<DeadLetterId>),
    Matching {
        filter: Box<DeadLetterFilter>,
        order: Order,
        after: Option<LetterPlace>,
        count: usize,
    },
}

impl Api {
    pub(super) async fn list_dead_letters(&self, call: Call<'_>) -> Result<Response, ApiError> {
        let query = Query::parse(call.query);
        known(&query)?;
        let (filter, order, after) = (read_filter(&query)?, read_order(&query)?, read_after(&query)?);
        let count = query.count(PAGE, PAGE)?;
        let turn = self.answers.turn().await?;
        let page =
            self.engine.store().dead_letters(&filter, order, after.as_ref(), count, PAGE_BYTES).await?;
        let cursor = page.next.map(|(_, id)| id.as_str().to_owned());
        let page = Page { names: &["messages"], items: Each(page.items, wire::dead_letter), cursor };
        self.answers.list(StatusCode::OK, Some(turn), page).await
    }

    pub(super) async fn get_dead_letter(&self, call: Call<'_>) -> Result<Response, ApiError> {
        let id = &call.name;
        let found = self.engine.store().dead_letter(&DeadLetterId::new(id)).await?;
        let letter = wire::dead_letter(&found.ok_or_else(|| unknown(id))?);
        self.answers.json(StatusCode::OK, &letter).await
    }

    pub(super) async fn delete_dead_letter(&self, call: Call<'_>) -> Result<Response, ApiError> {
        let id = &call.name;
        let deleted = self.engine.store().delete_dead_letters(&[DeadLetterId::new(id)]).await?;
        if deleted == 0 {
            return Err(unknown(id));
        }
        super::json(StatusCode::OK, &json!({ "deleted": deleted }))
    }

    /// Deletes the given ids, those that exist; or else what matches the filters, a part of it at a time.
    pub(super) async fn delete_dead_letters(&self, call: Call<'_>) -> Result<Response, ApiError> {
        let store = self.engine.store();
        let mut cursor = None;
        let ids = match self.selection(Query::parse(call.query), call.trailing_slash, call.upload).await? {
            Selection::Ids(ids) => ids,
            Selection::Matching { filter, order, after, count } => {
                let page = store.dead_letter_places(&filter, order, after.as_ref(), count).await?;
                cursor = page.next.map(|(_, id)| id);
                page.items.into_iter().map(|(_, id)| id).collect()
            }
        };
        let mut deleted = 0;
        for step in ids.chunks(STEP) {
            deleted += store.delete_dead_letters(step).await?;
        }
        let mut answer = Map::new();
        answer.insert("deleted".to_owned(), deleted.into());
        put_cursor(&mut answer, cursor.as_ref());
        super::json(StatusCode::OK, &answer)
    }

    pub(super) async fn retry_dead_letter(&self, call: Call<'_>) -> Result<Response, ApiError> {
        let (query, params) = Query::parse_with_options(call.query);
        query.only(&[])?;
        let retry = Retry { fields: &call.parts.headers, params: &params };
        let retried = self.retry_each(&[DeadLetterId::new(call.name)], &retry).await?;
        super::json(StatusCode::CREATED, &retried.first())
    }

    /// Retries the given ids, all or none; or else what matches the filters, a part of it at a time.
    pub(super) async fn retry_dead_letters(&self, call: Call<'_>) -> Result<Response, ApiError> {
        let (query, params) = Query::parse_with_options(call.query);
        let retry = Retry { fields: &call.parts.headers, params: &params };
        self.check_retry(&retry)?;
        let mut answer = Map::new();
        let selection = self.selection(query, call.trailing_slash, call.upload).await?;
        let count = match &selection {
            Selection::Ids(ids) => ids.len(),
            Selection::Matching { count, .. } => *count,
        };
        // Before anything is retried: afterwards there must be an answer.
        let size = count.saturating_mul(RETRIED);
        let share = self.receipts.share(size).await?;
        let retried = match selection {
            Selection::Ids(ids) => self.retry_each(&ids, &retry).await?,
            Selection::Matching { filter, order, after, count } => {
                let (retried, cursor) = self.retry_matching(&filter, order, after, count, &retry).await?;
                put_cursor(&mut answer, cursor.as_ref());
                retried
            }
        };
        answer.insert("responses".to_owned(), retried.into());
        answers::json(StatusCode::CREATED, &answer, size, share)
    }

    /// Reads which dead letters, from the query and from a JSON body.
    async fn selection(
        &self,
        mut query: Query,
        trailing_slash: bool,
        upload: &mut Upload,
    ) -> Result<Selection, ApiError> {
        let received = self.read_body(upload, self.settings.max_message, "the body").await?;
        query.add_body(&received.body, "dlqIds")?;
        known(&query)?;
        let filters = [&SELECTING[1..], &filter::COMMON].concat();
        query.refuse_bare(trailing_slash, &[&["dlqIds", "count"], &filters[..]].concat())?;
        filter::refuse_empty(&query, &filters)?;
        if !query.has("dlqIds") {
            return Ok(Selection::Matching {
                filter: Box::new(read_filter(&query)?),
                order: read_order(&query)?,
                after: read_after(&query)?,
                count: query.count(BULK, MAX_BULK)?,
            });
        }
        if let Some(name) = filters.iter().find(|name| query.has(name)) {
            return Err(ApiError::bad_request(format!("{name} can't be given beside dlqIds")));
        }
        let mut seen = HashSet::new();
        let ids = query.list("dlqIds").into_iter().filter(|text| seen.insert(*text));
        Ok(Selection::Ids(ids.map(DeadLetterId::new).collect()))
    }

    /// Retries all of these or none.
    async fn retry_each(&self, ids: &[DeadLetterId], retry: &Retry<'_>) -> Result<Vec<Value>, ApiError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let store = self.engine.store();
        let mut replacements = HashMap::with_capacity(ids.len());
        let mut bytes = 0;
        for step in ids.chunks(STEP) {
            let filter = DeadLetterFilter { ids: step.to_vec(), ..DeadLetterFilter::default() };
            let mut after = None;
            loop {
                let order = Order::EarliestFirst;
                let page = store.dead_letters(&filter, order, after.as_ref(), STEP, PAGE_BYTES).await?;
                after = page.next;
                for letter in page.items {
                    bytes += letter.message.size();
                    let id = letter.id.clone();
                    replacements.insert(id, self.replacement(letter, retry)?);
                }
                if bytes > MAX_RETRY {
                    return Err(ApiError::too_large("what these dead letters hold together", MAX_RETRY));
                }
                if after.is_none() {
                    break;
                }
            }
        }
        let mut batch = Vec::with_capacity(ids.len());
        for id in ids {
            let replacement = replacements.remove(id).ok_or_else(|| unknown(id.as_str()))?;
            batch.push((id.clone(), replacement));
        }
        let replaced = store.retry_dead_letters(&batch, Missing::Refuse).await?;
        if replaced.contains(&false) {
            return Err(ApiError::not_found("some of the dead letters are gone; none was retried"));
        }
        Ok(self.retried(&batch, &replaced))
    }

    /// Retries the next `count` that match, those that are still there, as far as it comes in some seconds; and where to
    /// go on. A dead letter whose destination is not allowed any more stays what it is.
    async fn retry_matching(
        &self,
        filter: &DeadLetterFilter,
        order: Order,
        mut after: Option<LetterPlace>,
        count: usize,
        retry: &Retry<'_>,
    ) -> Result<(Vec<Value>, Option<DeadLetterId>), ApiError> {
        let store = self.engine.store();
        let mut retried = Vec::new();
        let mut left = count;
        let started = Instant::now();
        while left > 0 {
            let page = store.dead_letters(filter, order, after.as_ref(), left.min(STEP), PAGE_BYTES).await?;
            left -= page.items.len();
            after = page.next;
            let batch: Vec<(DeadLetterId, Accept)> = page
                .items
                .into_iter()
                .filter_map(|letter| Some((letter.id.clone(), self.replacement(letter, retry).ok()?)))
                .collect();
            let replaced = store.retry_dead_letters(&batch, Missing::Skip).await?;
            retried.extend(self.retried(&batch, &replaced));
            if after.is_none() {
                return Ok((retried, None));
            }
            if started.elapsed() >= BULK_TIME {
                break;
            }
        }
        Ok((retried, after.map(|(_, id)| id)))
    }

    /// The answers for what was replaced, of which the engine is told.
    fn retried(&self, batch: &[(DeadLetterId, Accept)], replaced: &[bool]) -> Vec<Value> {
        let messages = batch.iter().zip(replaced).filter(|(_, replaced)| **replaced);
        messages
            .map(|((_, accept), _)| {
                self.engine.note_waiting(&accept.message);
                json!({ "messageId": accept.message.id.as_str() })
            })
            .collect()
    }

    /// Refuses what a retry must not say, whatever it is about.
    fn check_retry(&self, retry: &Retry<'_>) -> Result<(), ApiError> {
        let Options { callback, failure_callback, .. } = self.overrides(&[], retry)?.options;
        [callback, failure_callback].iter().flatten().try_for_each(|spec| self.check_callback(spec))
    }

    /// What a retry says, of a message whose callbacks have these URLs.
    fn overrides(&self, urls: &[(String, Vec<u8>)], retry: &Retry<'_>) -> Result<Publish, ApiError> {
        let params = [urls, retry.params].concat();
        let fields = retry.fields.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
        let now = self.engine.now();
        let publish = headers::parse(Kind::Publish, fields, &params, &self.settings.headers, now)?;
        Ok(publish)
    }

    /// The new message for a dead letter: the same, changed by the configuration headers of the retry.
    fn replacement(&self, letter: DeadLetter, retry: &Retry<'_>) -> Result<Accept, ApiError> {
        // So that settings of a callback can be changed without repeating its URL. What the retry says comes later and wins.
        let urls = callback_urls("upstash", &letter.message.options);
        let now = self.engine.now();
        let mut message = letter.message;
        message.id = FreshIds.message(now);
        override_message(&mut message, self.overrides(&urls, retry)?, retry, now);
        let origin = self.check_destinations(&message.url, &message.options)?;
        Ok(Accept {
            message: Arc::new(message),
            lane: Arc::from(origin.to_string()),
            lease: None,
            deduplication: None,
        })
    }
}

/// Makes a dead letter's message one that is accepted now, and changes what the retry names.
fn override_message(message: &mut Message, publish: Publish, retry: &Retry<'_>, now: Timestamp) {
    message.created_at = now;
    message.due_at = match publish.due {
        Due::Now => now,
        Due::After(delay) => now.after(delay),
        Due::At(time) => time.clamp(now, Timestamp::MAX),
    };
    if retry.has("upstash-method") {
        message.method = publish.method;
    }
    if retry.has("upstash-retries") {
        message.max_retries = publish.retries;
    }
    if retry.has("upstash-label") {
        message.labels = publish.labels;
    }
    if retry.has("upstash-queue-name") {
        message.queue = publish.queue;
    }
    let mut headers = publish.headers;
    if !retry.has("upstash-forward-content-type") {
        // The retry's own.
        headers.remove("content-type");
    }
    replace(&mut message.headers, headers);
    merge_options(&mut message.options, publish.options, "upstash", retry);
}

/// What a retry says: its headers, and the parameters that stand in for headers.
struct Retry<'a> {
    fields: &'a HeaderMap,
    params: &'a [(String, Vec<u8>)],
}

impl Retry<'_> {
    /// Whether it has a header of that (lower-case) name, which is not empty.
    fn has(&self, name: &str) -> bool {
        self.fields.get_all(name).iter().any(|value| !value.as_bytes().trim_ascii().is_empty())
            || self.params.iter().any(|(have, value)| have == name && !value.trim_ascii().is_empty())
    }
}

/// The URLs of callbacks, as the headers that set them.
fn callback_urls(prefix: &str, options: &Options) -> Vec<(String, Vec<u8>)> {
    let callbacks = [("callback", &options.callback), ("failure-callback", &options.failure_callback)];
    let mut urls = Vec::new();
    for (word, spec) in callbacks {
        if let Some(spec) = spec {
            let name = format!("{prefix}-{word}");
            urls.extend(callback_urls(&name, &spec.options));
            urls.push((name, spec.url.clone().into_bytes()));
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
fn merge_options(old: &mut Options, new: Options, prefix: &str, retry: &Retry<'_>) {
    let has = |word: &str| retry.has(&format!("{prefix}-{word}"));
    if has("timeout") {
        old.timeout = new.timeout;
    }
    if has("retry-delay") {
        old.retry_delay = new.retry_delay;
    }
    // More may be hidden than was, never less.
    old.redact.add(&new.redact);
    if has("flow-control-key") {
        old.flow_control = new.flow_control;
    }
    merge_callback(&mut old.callback, new.callback, &format!("{prefix}-callback"), retry);
    merge_callback(
        &mut old.failure_callback,
        new.failure_callback,
        &format!("{prefix}-failure-callback"),
        retry,
    );
}

fn merge_callback(
    old: &mut Option<Box<CallbackSpec>>,
    new: Option<Box<CallbackSpec>>,
    prefix: &str,
    retry: &Retry<'_>,
) {
    let Some(new) = new else { return };
    let Some(old) = old else {
        *old = Some(new);
        return;
    };
    let has = |word: &str| retry.has(&format!("{prefix}-{word}"));
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
    merge_options(&mut old.options, new.options, prefix, retry);
}

/// Refuses what is not known here.
fn known(query: &Query) -> Result<(), ApiError> {
    query.only(&[&SELECTING[..], &filter::COMMON, &["count", "cursor", "order"], &IGNORED].concat())
}

fn read_filter(query: &Query) -> Result<DeadLetterFilter, ApiError> {
    let status = |text: &str| {
        text.parse().map_err(|_| {
            ApiError::bad_request(format!(
                "invalid responseStatus `{}`: a status is allowed, or 0 for none",
                Excerpt(text)
            ))
        })
    };
    Ok(DeadLetterFilter {
        messages: query.filter(&["messageId"])?.into_iter().map(MessageId::new).collect(),
        ids: query.filter(&["dlqIds"])?.into_iter().map(DeadLetterId::new).collect(),
        matching: filter::read(query)?,
        statuses: query.filter(&["responseStatus"])?.into_iter().map(status).collect::<Result<_, _>>()?,
        from: query.time("fromDate")?,
        to: query.time("toDate")?,
    })
}

fn read_order(query: &Query) -> Result<Order, ApiError> {
    query.order(Order::EarliestFirst)
}

/// A cursor is a dead letter's id, which begins with the time it was made.
fn read_after(query: &Query) -> Result<Option<LetterPlace>, ApiError> {
    let read = |text: &str| {
        let ms = text.split('-').next().and_then(|ms| ms.parse().ok());
        let ms = ms.ok_or_else(|| invalid_cursor(text))?;
        Ok((Timestamp::from_millis(ms), DeadLetterId::new(text)))
    };
    query.get("cursor").map(read).transpose()
}

fn put_cursor(answer: &mut Map<String, Value>, last: Option<&DeadLetterId>) {
    if let Some(last) = last {
        answer.insert("cursor".to_owned(), last.as_str().into());
    }
}

fn unknown(id: &str) -> ApiError {
    ApiError::not_found(format!("dead letter {} not found", Excerpt(id)))
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;
    use crate::api::headers::Limits;
    use crate::domain::message::{FlowControl, Method};
    use crate::domain::template::{Target, Template};

    /// The message with the overrides of a retry.
    fn overridden(old: &Message, fields: &[(&str, &str)], params: &[(&str, &str)]) -> Message {
        let limits = Limits {
            default_retries: 3,
            max_retries: None,
            max_delay: None,
            max_flow_control_key: 512,
            max_flow_control_period: std::time::Duration::from_hours(7 * 24),
        };
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            let name: HeaderName = name.parse().expect("a name");
            map.append(name, HeaderValue::from_str(value).expect("a value"));
        }
        let params: Vec<(String, Vec<u8>)> =
            params.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())).collect();
        let mut all = callback_urls("upstash", &old.options);
        all.extend_from_slice(&params);
        let now = Timestamp::from_millis(1_760_000_000_000);
        let pairs = map.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
        let publish = headers::parse(Kind::Publish, pairs, &all, &limits, now).expect("valid headers");
        let mut message = old.clone();
        override_message(&mut message, publish, &Retry { fields: &map, params: &params }, now);
        message
    }

    fn flow_control(key: &str, parallelism: Option<u32>, rate: Option<u32>, period_s: u32) -> FlowControl {
        FlowControl { key: key.to_owned(), parallelism, rate, period_s }
    }

    #[test]
    fn a_retry_overrides_what_it_names() {
        let callback = CallbackSpec {
            url: "https://cb.example".to_owned(),
            options: Options {
                flow_control: Some(flow_control("c", Some(1), None, 1)),
                ..Options::default()
            },
            ..CallbackSpec::default()
        };
        let options = Options {
            flow_control: Some(flow_control("k", None, Some(5), 60)),
            callback: Some(Box::new(callback)),
            retry_delay: Some("1000".to_owned()),
            ..Options::default()
        };
        let mut template =
            Template::new(Method::Put, Headers::new(), bytes::Bytes::new(), 7, vec!["l".to_owned()], options);
        template.queue = Some("q".to_owned());
        let long_ago = Timestamp::from_millis(1_000_000_000_000);
        let target = Target::url("https://e.com".to_owned());
        let old = template.message(MessageId::new("msg_1"), target, long_ago, long_ago);

        let now = Timestamp::from_millis(1_760_000_000_000);
        let same = Message { created_at: now, due_at: now, ..old.clone() };
        assert_eq!(overridden(&old, &[("content-type", "text/plain")], &[]), same);

        let new = overridden(
            &old,
            &[
                ("Upstash-Queue-Name", "other"),
                ("Upstash-Flow-Control-Key", "k2"),
                ("Upstash-Flow-Control-Value", "parallelism=2"),
                ("Upstash-Callback-Flow-Control-Key", "c2"),
            ],
            &[
                ("upstash-callback-flow-control-value", "rate=3, period=1m"),
                ("upstash-delay", "5s"),
                ("upstash-retries", "0"),
            ],
        );
        assert_eq!(new.queue.as_deref(), Some("other"));
        assert_eq!(new.options.flow_control, Some(flow_control("k2", Some(2), None, 1)));
        let callback = new.options.callback.expect("it stays");
        assert_eq!(callback.url, "https://cb.example");
        assert_eq!(callback.options.flow_control, Some(flow_control("c2", None, Some(3), 60)));
        assert_eq!((new.max_retries, new.method, new.labels), (0, Method::Put, vec!["l".to_owned()]));
        assert_eq!(new.due_at.since(new.created_at).as_secs(), 5);
        assert_eq!(new.options.retry_delay.as_deref(), Some("1000"));
    }
}
