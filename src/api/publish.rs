//! `POST /v2/publish/{destination}`.

use std::sync::Arc;

use axum::response::Response;
use http::StatusCode;
use http::request::Parts;
use serde::Serialize;

use super::body::Upload;
use super::error::ApiError;
use super::headers::{self, Deduplication, Due, Kind, Publish, content_key, id_key};
use super::{Api, Peer, caller, json};
use crate::domain::destination::{self, Destination, DestinationError, Origin, validate_url};
use crate::domain::message::{CallbackSpec, Options};
use crate::domain::outcome::Ids as _;
use crate::domain::template::{Target, Template};
use crate::domain::time::Timestamp;
use crate::engine::ids::FreshIds;
use crate::engine::ingest::NewMessage;
use crate::store::{self, Accepted};

/// The answer for one message to a URL.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Published<'a> {
    message_id: &'a str,
    /// Not of a repeat: the first message may have gone elsewhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<&'a str>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    deduplicated: bool,
}

impl Api {
    pub(super) async fn publish(
        &self,
        rest: &str,
        parts: &Parts,
        upload: &mut Upload,
    ) -> Result<Response, ApiError> {
        let parsed = destination::parse(rest)?;
        let url = match parsed.destination {
            Destination::Url(url) => url,
            Destination::Group(name) => return Err(DestinationError::UnknownGroup(name).into()),
            Destination::Api(_) => {
                return Err(ApiError::bad_request(
                    "api/llm is not available: no language model is configured",
                ));
            }
        };
        let now = self.engine.now();
        let fields = parts.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
        let publish = headers::parse(Kind::Publish, fields, &parsed.params, &self.settings.headers, now)?;
        refuse_unsupported(&publish)?;
        if let Some(queue) = &publish.queue {
            self.check_queue(queue).await?;
        }
        let origin = self.check_destinations(&url, &publish.options)?;
        let received = self.read_body(upload, self.settings.max_message, "the message").await?;
        let caller_ip = parts
            .extensions
            .get::<Peer>()
            .map(|peer| caller::address(peer.0, &parts.headers, &self.settings.trusted_proxies).to_string());
        let new = self.new_message(url, &origin, publish, received.body.clone(), caller_ip);
        let message = Arc::clone(&new.message);
        let accepted = self.engine.ingest().publish(vec![new]).await?;
        let (status, id, deduplicated) = match accepted.first() {
            Some(Accepted::Duplicate(first)) => (StatusCode::ACCEPTED, first, true),
            _ => (StatusCode::OK, &message.id, false),
        };
        let url = (!deduplicated).then_some(message.url.as_str());
        json(status, &Published { message_id: id.as_str(), url, deduplicated })
    }

    /// Checks literal addresses of the destination and its callbacks; names are checked when they are connected to.
    pub(super) fn check_destinations(&self, url: &str, options: &Options) -> Result<Origin, ApiError> {
        let origin = validate_url(url)?;
        self.policy
            .check_literal(&origin.host)
            .map_err(|refusal| ApiError::bad_request(format!("invalid destination url: {refusal}")))?;
        for spec in [&options.callback, &options.failure_callback].into_iter().flatten() {
            self.check_callback(spec)?;
        }
        Ok(origin)
    }

    fn check_callback(&self, spec: &CallbackSpec) -> Result<(), ApiError> {
        let origin = validate_url(&spec.url)?;
        self.policy
            .check_literal(&origin.host)
            .map_err(|refusal| ApiError::bad_request(format!("invalid callback url: {refusal}")))?;
        [&spec.options.callback, &spec.options.failure_callback]
            .into_iter()
            .flatten()
            .try_for_each(|nested| self.check_callback(nested))
    }

    fn new_message(
        &self,
        url: String,
        origin: &Origin,
        publish: Publish,
        body: bytes::Bytes,
        caller_ip: Option<String>,
    ) -> NewMessage {
        let created_at = self.engine.now();
        let due_at = match publish.due {
            Due::Now => created_at,
            Due::After(delay) => created_at.after(delay),
            Due::At(time) => time.clamp(created_at, Timestamp::MAX),
        };
        let key = match publish.deduplication {
            None => None,
            Some(Deduplication::Id(id)) => Some(id_key(&id, None)),
            Some(Deduplication::Content) => Some(content_key(&url, publish.method, &publish.headers, &body)),
        };
        let mut template = Template::new(
            publish.method,
            publish.headers,
            body,
            publish.retries,
            publish.labels,
            publish.options,
        );
        template.caller_ip = caller_ip;
        template.queue = publish.queue;
        let id = FreshIds.message(created_at);
        let message = template.message(id, Target::url(url), created_at, due_at);
        NewMessage {
            message: Arc::new(message),
            lane: Arc::from(origin.to_string()),
            deduplication: key.map(|key| store::Deduplication {
                key,
                expires_at: created_at.after(self.settings.deduplication_window),
            }),
        }
    }
}

/// What would be accepted and then not honoured is refused instead.
pub(super) fn refuse_unsupported(publish: &Publish) -> Result<(), ApiError> {
    if publish.cron.is_none() {
        return Ok(());
    }
    let header = "Upstash-Cron";
    Err(ApiError::bad_request(format!("invalid header {header}: this server does not support it yet")))
}
