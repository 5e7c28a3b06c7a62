//! `/v2/workflows/…`: durable workflows.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::HOST;
use http::{HeaderName, HeaderValue, StatusCode};
use serde::Serialize;
use serde_json::value::RawValue;

use super::error::ApiError;
use super::headers::{Kind, read_bool};
use super::query::Query;
use super::routes::Call;
use super::{Api, answers, caller, json};
use crate::domain::destination::{self, Destination};
use crate::domain::message::{CallbackSpec, canonical_name, header_text};
use crate::domain::publish::Publish;
use crate::domain::run::submission::{Action, Submission};
use crate::domain::run::waiting::Waiter;
use crate::domain::run::{Features, Run};
use crate::operations::events::Notified;
use crate::operations::publish::{Groups, Messages};
use crate::operations::runs::Selection;

/// The scheme and the host by which a client reached a proxy, as that tells them.
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Asks for a first delivery that only asks the SDK there to begin the run once more.
const UNKNOWN_SDK: &str = "upstash-workflow-unknown-sdk";

/// Runs that one call cancels, unless it says how many; and at most.
const CANCELS: usize = 100;
const MAX_CANCELS: usize = 10_000;

/// A run's wait for an event.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WaiterJson<'a> {
    url: &'a str,
    /// In Unix seconds.
    deadline: i64,
    headers: BTreeMap<String, Vec<String>>,
    timeout_url: &'a str,
    timeout_body: Option<()>,
    timeout_headers: Option<&'a RawValue>,
}

impl<'a> WaiterJson<'a> {
    fn new(waiter: &'a Waiter, run: &Run) -> Self {
        let mut headers: BTreeMap<String, Vec<String>> = BTreeMap::new();
        headers.insert("Upstash-Workflow-Runid".to_owned(), vec![run.id.clone()]);
        headers.insert("Upstash-Workflow-Url".to_owned(), vec![run.url.clone()]);
        for (name, value) in waiter.headers.texts() {
            headers.entry(format!("Upstash-Forward-{name}")).or_default().push(value.into_owned());
        }
        Self {
            url: &waiter.url,
            deadline: waiter.deadline.as_secs(),
            headers,
            timeout_url: &waiter.timeout_url,
            timeout_body: None,
            timeout_headers: serde_json::from_str(&waiter.timeout_headers).ok(),
        }
    }
}

/// A run that an event has reached.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct NotifiedJson<'a> {
    waiter: WaiterJson<'a>,
    message_id: &'a str,
    deduplicated: bool,
    workflow_run_id: &'a str,
    workflow_created_at: i64,
}

impl<'a> NotifiedJson<'a> {
    fn new(notified: &'a Notified) -> Self {
        Self {
            waiter: WaiterJson::new(&notified.waiter, &notified.run),
            message_id: notified.message.as_str(),
            deduplicated: false,
            workflow_run_id: &notified.run.id,
            workflow_created_at: notified.run.created_at.as_millis(),
        }
    }
}

/// A request to a webhook, as the endpoint makes one of it again.
#[derive(Serialize)]
struct HookCall<'a> {
    method: &'a str,
    header: BTreeMap<String, Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<String>,
    proto: &'a str,
    host: &'a str,
    url: &'a str,
}

impl Api {
    /// The whole log, for an endpoint whose delivery had none.
    pub(super) async fn get_workflow_run(&self, call: Call<'_>) -> Result<Response, ApiError> {
        let log = self.operations.run_log(&call.name).await?;
        let share = self.answers.share(log.len()).await?;
        Ok(answers::response(StatusCode::OK, share.hold(log)))
    }

    /// A run's end: by its endpoint, whose function has returned, or by a user, who cancels it.
    pub(super) async fn end_workflow_run(&self, call: Call<'_>) -> Result<Response, ApiError> {
        let query = Query::parse(call.query);
        query.only(&["cancel"])?;
        let cancel =
            query.get("cancel").map(read_bool).transpose().map_err(|problem| {
                ApiError::bad_request(format!("invalid query parameter cancel: {problem}"))
            })?;
        if cancel == Some(false) {
            let received = self.read_body(call.upload, self.settings.max_message, "the result").await?;
            let created_at = call.parts.headers.get("upstash-workflow-createdat");
            let created_at =
                created_at.and_then(|value| value.to_str().ok()?.parse().ok()).filter(|ms| *ms > 0);
            self.operations.finish_run(&call.name, created_at, received.body.clone()).await?;
        } else {
            self.operations.cancel_run(&call.name).await?;
        }
        json(StatusCode::OK, &serde_json::json!({}))
    }

    pub(super) async fn wait_for_event(&self, call: Call<'_>) -> Result<Response, ApiError> {
        let wait = async {
            let publish = self.read_headers(Kind::Publish, &call, &[])?;
            let submission = publish.submission.ok_or_else(|| {
                ApiError::bad_request("Upstash-Workflow-RunId is missing: the run that waits")
            })?;
            let received = self.read_body(call.upload, self.settings.max_message, "the wait").await?;
            let (run_id, created_at) = (&submission.run_id, submission.created_at);
            let wait = self.operations.wait_for_event(
                run_id,
                created_at,
                &call.name,
                &publish.headers,
                &received.body,
            );
            Ok::<_, ApiError>(wait.await?)
        };
        wait.await.map_err(ApiError::of_workflow)?;
        json(StatusCode::OK, &serde_json::json!({}))
    }

    pub(super) async fn notify(&self, call: Call<'_>) -> Result<Response, ApiError> {
        let received = self.read_body(call.upload, self.settings.max_message, "the event").await?;
        let notified = self.operations.notify(&call.name, &received.body).await?;
        let shown: Vec<_> = notified.iter().map(NotifiedJson::new).collect();
        self.answers.json(StatusCode::CREATED, &shown).await
    }

    pub(super) async fn notify_run(&self, call: Call<'_>) -> Result<Response, ApiError> {
        let received = self.read_body(call.upload, self.settings.max_message, "the event").await?;
        let run_id = call.names_before.first().map_or("", String::as_str);
        let notified = self.operations.notify_run(run_id, &call.name, &received.body).await?;
        let shown: Vec<_> = notified.iter().map(NotifiedJson::new).collect();
        self.answers.json(StatusCode::CREATED, &shown).await
    }

    pub(super) async fn list_waiters(&self, call: Call<'_>) -> Result<Response, ApiError> {
        let waiters = self.operations.waiters(&call.name).await?;
        let waiters: Vec<_> = waiters.iter().map(|(waiter, run)| WaiterJson::new(waiter, run)).collect();
        self.answers.json(StatusCode::OK, &waiters).await
    }

    /// Takes a call to a webhook as an event for the run in its path. The path is a secret, so that nothing else is asked for,
    /// and nothing said of what is wrong with it.
    pub(super) async fn call_hook(&self, call: Call<'_>) -> Result<Response, ApiError> {
        let received = self.read_body(call.upload, self.settings.max_message, "the request").await?;
        let mut header: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (name, value) in &call.parts.headers {
            let value = header_text(value.as_bytes()).into_owned();
            header.entry(canonical_name(name.as_str())).or_default().push(value);
        }
        let (proto, host) = self.reached_by(&call);
        let hook = HookCall {
            method: call.parts.method.as_str(),
            header,
            body: (!received.body.is_empty()).then(|| STANDARD.encode(&received.body)),
            proto: &proto,
            host: &host,
            url: call.parts.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str),
        };
        let data = Bytes::from(serde_json::to_vec(&hook).map_err(|error| answers::unwritable(&error))?);
        let run_id = call.names_before.last().map_or("", String::as_str);
        self.operations.notify_run(run_id, &call.name, &data).await.map_err(|error| match ApiError::from(
            error,
        ) {
            error if error.status() == StatusCode::NOT_FOUND => ApiError::not_found("no such endpoint"),
            error => error,
        })?;
        json(StatusCode::OK, &serde_json::json!({}))
    }

    /// The scheme and the host by which a client reached this server.
    fn reached_by(&self, call: &Call<'_>) -> (String, String) {
        if let Some((proto, host)) = self.settings.public_url.as_deref().and_then(|url| url.split_once("://"))
        {
            let host = host.split('/').next().unwrap_or(host);
            return (proto.to_owned(), host.to_owned());
        }
        let text = |name: &HeaderName| {
            let value = call.parts.headers.get(name)?.to_str().ok()?;
            value.split(',').next().map(|first| first.trim().to_owned()).filter(|text| !text.is_empty())
        };
        let is_trusted = caller::is_trusted(call.parts, &self.settings.trusted_proxies);
        let told = |name: &HeaderName| if is_trusted { text(name) } else { None };
        let authority = call.parts.uri.authority().map(ToString::to_string);
        let host = told(&FORWARDED_HOST).or_else(|| text(&HOST)).or(authority);
        (told(&FORWARDED_PROTO).unwrap_or_else(|| "http".to_owned()), host.unwrap_or_default())
    }

    /// Cancels runs: those that are named, or those that match.
    pub(super) async fn cancel_workflow_runs(&self, call: Call<'_>) -> Result<Response, ApiError> {
        let mut query = Query::parse(call.query);
        let received = self.read_body(call.upload, self.settings.max_message, "the body").await?;
        let has_body = !received.body.trim_ascii().is_empty();
        query.add_body(&received.body, "workflowRunIds")?;
        let filters = ["workflowUrl", "label", "fromDate", "toDate", "callerIp", "flowControlKey"];
        query.only(&[&filters[..], &["workflowRunIds", "workflowUrlExactMatch", "count"]].concat())?;
        super::filter::refuse_empty(&query, &filters)?;
        if !has_body && call.query.is_empty() {
            return Err(ApiError::bad_request(
                "say which runs: workflowRunIds, or a filter; for all of them send the body {}",
            ));
        }
        let count = query.count(CANCELS, MAX_CANCELS)?;
        let cancelled = if query.has("workflowRunIds") {
            let ids: Vec<String> = query.list("workflowRunIds").into_iter().map(str::to_owned).collect();
            self.operations.cancel_runs(Selection::Ids(ids), count).await?
        } else {
            let exact = query.get("workflowUrlExactMatch").map(read_bool).transpose();
            let exact = exact.map_err(|problem| {
                ApiError::bad_request(format!("invalid workflowUrlExactMatch: {problem}"))
            })?;
            let filter = super::workflow_log::read_filter(&query, exact == Some(true))?;
            self.operations.cancel_runs(Selection::Matching(Box::new(filter)), count).await?
        };
        json(StatusCode::OK, &serde_json::json!({ "cancelled": cancelled }))
    }

    /// Begins a run by plain HTTP. Its first delivery asks the SDK there to begin it once more, with what that can do.
    pub(super) async fn trigger(&self, call: Call<'_>) -> Result<Response, ApiError> {
        let trigger = async {
            let parsed = destination::parse(&call.rest)?;
            let publish = self.read_headers(Kind::Publish, &call, &parsed.params)?;
            let unknown_sdk = call.parts.headers.get(UNKNOWN_SDK).map(HeaderValue::as_bytes) == Some(b"true");
            let publish =
                triggering(publish, &parsed.destination, &self.operations.fresh_run_id(), unknown_sdk)?;
            let draft = self.operations.draft(parsed.destination, publish, &mut Groups::default()).await?;
            let received = self.read_body(call.upload, self.settings.max_message, "the payload").await?;
            let mut messages = self.operations.messages(self.caller_ip(call.parts), received.body.len());
            self.operations.add(&mut messages, draft, received.body.clone()).await?;
            Ok::<_, ApiError>(self.operations.trigger(messages).await?)
        };
        let begun = trigger.await.map_err(ApiError::of_workflow)?;
        json(StatusCode::OK, &begun.iter().map(TriggeredJson::new).next())
    }

    /// Begins runs by plain HTTP, all or none.
    pub(super) async fn batch_trigger(&self, call: Call<'_>) -> Result<Response, ApiError> {
        let trigger = async {
            let mut received = self.read_body(call.upload, self.settings.max_batch, "the batch").await?;
            let body = std::mem::take(&mut received.body);
            let mut messages = self.operations.messages(self.caller_ip(call.parts), body.len());
            for (index, item) in super::batch::items(&body)?.into_iter().enumerate() {
                let added = self.add_trigger(&mut messages, item).await;
                added.map_err(|error| error.of(format_args!("item {index}")))?;
            }
            Ok::<_, ApiError>(self.operations.trigger(messages).await?)
        };
        let begun = trigger.await.map_err(ApiError::of_workflow)?;
        let begun: Vec<_> = begun.iter().map(TriggeredJson::new).collect();
        self.answers.json(StatusCode::CREATED, &begun).await
    }

    async fn add_trigger(&self, messages: &mut Messages, item: &RawValue) -> Result<(), ApiError> {
        let item = super::batch::read_item(item)?;
        let destination = destination::parse_literal(&item.destination)?;
        let publish = self.read_item(&item, messages, None)?;
        let unknown_sdk = item.header(UNKNOWN_SDK) == Some("true");
        let publish = triggering(publish, &destination, &self.operations.fresh_run_id(), unknown_sdk)?;
        let draft = self.operations.draft(destination, publish, &mut Groups::default()).await?;
        self.operations.add(messages, draft, Bytes::from(item.body.into_owned())).await?;
        Ok(())
    }
}

/// A run that was begun by plain HTTP.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct TriggeredJson<'a> {
    workflow_run_id: &'a str,
    workflow_created_at: i64,
    /// A live run had the id.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    deduplicated: bool,
}

impl<'a> TriggeredJson<'a> {
    fn new((run, is_new): &'a (Arc<Run>, bool)) -> Self {
        Self {
            workflow_run_id: &run.id,
            workflow_created_at: run.created_at.as_millis(),
            deduplicated: !is_new,
        }
    }
}

/// What is to be published where a run is triggered by plain HTTP: its failure is told to its own endpoint, unless somebody
/// else is named.
fn triggering(
    mut publish: Publish,
    destination: &Destination,
    fresh_id: &str,
    unknown_sdk: bool,
) -> Result<Publish, ApiError> {
    let Destination::Url(url) = destination else {
        return Err(ApiError::bad_request("a workflow is triggered at a URL"));
    };
    let refused = [
        (publish.options.callback.is_some(), "Upstash-Callback"),
        (publish.queue.is_some(), "Upstash-Queue-Name"),
        (publish.cron.is_some(), "Upstash-Cron"),
        (publish.schedule_id.is_some(), "Upstash-Schedule-Id"),
        (publish.deduplication.is_some(), "Upstash-Deduplication-Id"),
    ];
    if let Some((_, name)) = refused.into_iter().find(|(is_there, _)| *is_there) {
        return Err(ApiError::bad_request(format!("{name} means nothing to a workflow's trigger")));
    }
    let run_id = publish.submission.map_or_else(|| fresh_id.to_owned(), |submission| submission.run_id);
    publish.submission = Some(Submission {
        run_id,
        url: None,
        action: Action::Begin,
        features: if unknown_sdk {
            Features { unknown_sdk, ..Features::default() }
        } else {
            Features {
                detect_trigger: true,
                detect_sdk: true,
                trigger_on_config: true,
                ..Features::default()
            }
        },
        created_at: None,
    });
    publish.headers.append("Upstash-Workflow-Sdk-Version", "1");
    if unknown_sdk {
        publish.headers.append(UNKNOWN_SDK, "true");
    }
    let told = publish
        .options
        .failure_callback
        .get_or_insert_with(|| Box::new(CallbackSpec { url: url.clone(), ..CallbackSpec::default() }));
    for name in ["Upstash-Workflow-Is-Failure", "Upstash-Workflow-Failure-Callback"] {
        told.headers.append(name, "true");
    }
    Ok(publish)
}
