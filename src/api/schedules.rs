//! `/v2/schedules`: creating, listing, pausing and deleting schedules.

use std::collections::HashMap;
use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderValue, StatusCode};
use serde_json::json;

use super::body::Upload;
use super::error::ApiError;
use super::headers::{self, Due, Kind};
use super::{Api, wire};
use crate::domain::cron::{Cron, CronError};
use crate::domain::destination::{self, Destination};
use crate::domain::excerpt::Excerpt;
use crate::domain::id::{MessageId, ScheduleId};
use crate::domain::template::Template;
use crate::engine::schedules::{group, targets};
use crate::store::schedules::{Progress, Schedule};
use crate::store::{self, Store};

/// Schedules read at once for a list, and bytes of their bodies. The list has no pages, so it is sent piece by piece.
const PIECE: usize = 100;
const PIECE_BYTES: usize = 1 << 20;

impl Api {
    /// Creates a schedule, or replaces the one whose id is given.
    pub(super) async fn create_schedule(
        &self,
        rest: &str,
        parts: &Parts,
        upload: &mut Upload,
    ) -> Result<Response, ApiError> {
        let parsed = destination::parse(rest)?;
        let fields = parts.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
        let limits = &self.settings.headers;
        let mut publish = headers::parse(Kind::Schedule, fields, &parsed.params, limits, self.engine.now())?;
        let text =
            publish.cron.ok_or_else(|| ApiError::bad_request("the header Upstash-Cron is required"))?;
        let cron = Cron::parse(&text).map_err(|error| invalid_cron(&error))?;
        let destination = match parsed.destination {
            Destination::Api(name) => {
                publish.options.api = Some(name);
                Destination::Url(self.llm_url()?)
            }
            other => other,
        };
        let written = destination.to_string();
        let group = group(&**self.engine.store(), &destination).await?;
        for target in targets(destination, group.as_ref())? {
            self.check_destinations(&target.url, &publish.options)?;
        }
        let received = self.read_body(upload, self.settings.max_message, "the message").await?;
        let now = self.engine.now();
        let id = match publish.schedule_id {
            Some(name) => ScheduleId::new(name),
            None => ScheduleId::generate(now, self.engine.chance().random()),
        };
        let mut template = Template::new(
            publish.method,
            publish.headers,
            received.body.clone(),
            publish.retries,
            publish.labels,
            publish.options,
        );
        template.caller_ip = self.caller_ip(parts);
        template.queue = publish.queue;
        template.schedule_id = Some(id.as_str().to_owned());
        let schedule = Schedule {
            id: id.clone(),
            generation: self.engine.chance().random(),
            cron: text,
            destination: written,
            template,
            delay: match publish.due {
                Due::After(delay) => Some(delay),
                Due::Now | Due::At(_) => None,
            },
            created_at: now,
            paused: false,
            next_at: cron.next_after(now).ok_or_else(|| invalid_cron(&CronError::Never))?,
            last_firing: None,
        };
        self.put_schedule(schedule).await?;
        super::json(StatusCode::OK, &json!({ "scheduleId": id.as_str() }))
    }

    /// In a task of its own: a caller that hangs up must not stop it half-way.
    async fn put_schedule(&self, schedule: Schedule) -> Result<(), ApiError> {
        let (engine, max) = (Arc::clone(&self.engine), self.settings.max_schedules);
        let put = tokio::spawn(async move {
            let stored = engine.store().put_schedule(&schedule, max).await;
            engine.note_slot();
            stored
        });
        let stored = put.await.map_err(|error| ApiError::task_failed(&error))??;
        match max {
            Some(max) if !stored => Err(ApiError::quota("maxSchedules", max)),
            _ => Ok(()),
        }
    }

    pub(super) async fn list_schedules(&self) -> Result<Response, ApiError> {
        let store = Arc::clone(self.engine.store());
        let (first, next) = piece(&*store, None).await?;
        // One share for all pieces, as one of them is in memory at a time.
        let size = if next.is_some() { first.len().max(PIECE_BYTES) } else { first.len() };
        let share = self.answers.share(size).await?;
        let body = if next.is_none() {
            Body::from(share.hold(first))
        } else {
            let others = stream::try_unfold(next, move |after| {
                let store = Arc::clone(&store);
                let _held = &share;
                async move {
                    let Some(after) = after else { return Ok(None) };
                    let piece = piece(&*store, Some(&after)).await;
                    piece.map(Some).inspect_err(|error| {
                        tracing::warn!(error = error as &dyn std::error::Error, "a list breaks off");
                    })
                }
            });
            Body::from_stream(stream::iter([Ok(first)]).chain(others))
        };
        let mut response = Response::new(body);
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Ok(response)
    }

    pub(super) async fn get_schedule(&self, id: &str) -> Result<Response, ApiError> {
        let schedule = self.find_schedule(id).await?;
        let progress = progress(&**self.engine.store(), std::slice::from_ref(&schedule)).await?;
        self.answers.json(StatusCode::OK, &wire::schedule(&schedule, &progress)).await
    }

    async fn find_schedule(&self, id: &str) -> Result<Schedule, ApiError> {
        let found = self.engine.store().schedule(&ScheduleId::new(id)).await?;
        found.ok_or_else(|| unknown(id))
    }

    pub(super) async fn delete_schedule(&self, id: &str) -> Result<Response, ApiError> {
        self.engine.store().delete_schedule(&ScheduleId::new(id)).await?;
        super::json(StatusCode::OK, &json!({}))
    }

    pub(super) async fn pause_schedule(&self, id: &str) -> Result<Response, ApiError> {
        if !self.engine.store().pause_schedule(&ScheduleId::new(id)).await? {
            return Err(unknown(id));
        }
        super::json(StatusCode::OK, &json!({}))
    }

    /// Goes on with the first slot after now: what passed meanwhile is not made up for.
    pub(super) async fn resume_schedule(&self, id: &str) -> Result<Response, ApiError> {
        let schedule = self.find_schedule(id).await?;
        if schedule.paused {
            let cron = Cron::parse(&schedule.cron).map_err(|error| invalid_cron(&error))?;
            let next_at =
                cron.next_after(self.engine.now()).ok_or_else(|| invalid_cron(&CronError::Never))?;
            self.engine.store().resume_schedule(&schedule.id, schedule.generation, next_at).await?;
            self.engine.note_slot();
        }
        super::json(StatusCode::OK, &json!({}))
    }
}

/// The next schedules as a piece of a JSON array, and after which the next piece begins; `None` at the end.
async fn piece(store: &dyn Store, after: Option<&ScheduleId>) -> store::Result<(Bytes, Option<ScheduleId>)> {
    let page = store.schedules(after, PIECE, PIECE_BYTES).await?;
    let progress = progress(store, &page.items).await?;
    let mut text = String::new();
    for (index, schedule) in page.items.iter().enumerate() {
        if index > 0 || after.is_some() {
            text.push(',');
        }
        text.push_str(&wire::schedule(schedule, &progress).to_string());
    }
    if after.is_none() {
        text.insert(0, '[');
    }
    if !page.more {
        text.push(']');
    }
    let next = page.items.last().filter(|_| page.more).map(|schedule| schedule.id.clone());
    Ok((Bytes::from(text), next))
}

/// How far the messages of the schedules' last runs have come.
async fn progress(store: &dyn Store, schedules: &[Schedule]) -> store::Result<HashMap<MessageId, Progress>> {
    let runs = schedules.iter().filter_map(|schedule| schedule.last_firing.as_ref());
    let ids: Vec<&MessageId> = runs.flat_map(|run| &run.messages).collect();
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    Ok(store.progress(&ids).await?.into_iter().collect())
}

fn invalid_cron(error: &CronError) -> ApiError {
    ApiError::bad_request(format!("invalid header Upstash-Cron: {error}"))
}

fn unknown(id: &str) -> ApiError {
    ApiError::not_found(format!("schedule {} not found", Excerpt(id)))
}
