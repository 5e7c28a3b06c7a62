//! `POST /v2/publish/{destination}` and `POST /v2/enqueue/{queue}/{destination}`, and what they share with the items of
//! a batch: a destination and headers make a [`Draft`], a draft and a body make messages.

use std::sync::Arc;

use axum::response::Response;
use bytes::Bytes;
use http::StatusCode;
use http::request::Parts;
use serde::Serialize;

use super::body::Upload;
use super::error::ApiError;
use super::headers::{self, Deduplication, Due, Kind, Publish, content_key, id_key};
use super::{Api, Peer, caller, json};
use crate::domain::destination::{self, Destination, DestinationError, Origin, validate_url};
use crate::domain::message::{CallbackSpec, Message, Options};
use crate::domain::outcome::Ids as _;
use crate::domain::template::{Target, Template};
use crate::domain::time::Timestamp;
use crate::engine::ids::FreshIds;
use crate::engine::ingest::NewMessage;
use crate::store::{self, Accepted};

/// Messages that one request may make: as many are stored within a second or two, while others wait.
pub(super) const MAX_MESSAGES: usize = 50_000;

/// What is to be published, checked; only its body is missing.
pub(super) struct Draft {
    recipient: Recipient,
    publish: Publish,
}

struct Recipient {
    target: Target,
    /// What deliveries there are limited by.
    lane: Arc<str>,
}

/// The messages of one request, which are stored together.
pub(super) struct Messages {
    created_at: Timestamp,
    caller_ip: Option<String>,
    new: Vec<NewMessage>,
}

impl Messages {
    pub(super) fn created_at(&self) -> Timestamp {
        self.created_at
    }
}

/// The answer for one message.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Published<'a> {
    message_id: &'a str,
    /// Not of a repeat: the first message may have gone elsewhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<&'a str>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    deduplicated: bool,
}

impl<'a> Published<'a> {
    pub(super) fn new((message, accepted): &'a (Arc<Message>, Accepted)) -> Self {
        match accepted {
            Accepted::Stored => {
                Self { message_id: message.id.as_str(), url: Some(&message.url), deduplicated: false }
            }
            Accepted::Duplicate(first) => Self { message_id: first.as_str(), url: None, deduplicated: true },
        }
    }
}

impl Api {
    /// Publishes what one request says, through that queue if there is one in the path.
    pub(super) async fn publish(
        &self,
        queue: Option<&str>,
        rest: &str,
        parts: &Parts,
        upload: &mut Upload,
    ) -> Result<Response, ApiError> {
        let queue = queue
            .map(headers::read_name)
            .transpose()
            .map_err(|problem| ApiError::bad_request(format!("invalid queue in the path: {problem}")))?;
        let kind = if queue.is_some() { Kind::Enqueue } else { Kind::Publish };
        let parsed = destination::parse(rest)?;
        let fields = parts.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
        let now = self.engine.now();
        let mut publish = headers::parse(kind, fields, &parsed.params, &self.settings.headers, now)?;
        publish.queue = queue.or(publish.queue);
        let draft = self.draft(parsed.destination, publish)?;
        let received = self.read_body(upload, self.settings.max_message, "the message").await?;
        let mut messages = self.messages(parts);
        self.add(&mut messages, draft, received.body.clone());
        let stored = self.store(messages).await?;
        let answers: Vec<_> = stored.iter().map(Published::new).collect();
        let repeated = answers.iter().all(|answer| answer.deduplicated);
        let status = if repeated { StatusCode::ACCEPTED } else { StatusCode::OK };
        json(status, &answers.first())
    }

    /// Checks where something is to go, and its headers beyond their form.
    pub(super) fn draft(&self, destination: Destination, publish: Publish) -> Result<Draft, ApiError> {
        refuse_unsupported(&publish)?;
        let recipient = match destination {
            Destination::Url(url) => self.recipient(Target::url(url))?,
            Destination::Group(name) => return Err(DestinationError::UnknownGroup(name).into()),
            Destination::Api(_) => {
                return Err(ApiError::bad_request(
                    "api/llm is not available: no language model is configured",
                ));
            }
        };
        self.check_callbacks(&publish.options)?;
        Ok(Draft { recipient, publish })
    }

    fn recipient(&self, target: Target) -> Result<Recipient, ApiError> {
        let origin = self.check_destination(&target.url)?;
        Ok(Recipient { target, lane: Arc::from(origin.to_string()) })
    }

    /// Checks the literal addresses of a destination and its callbacks; names are checked when they are connected to.
    pub(super) fn check_destinations(&self, url: &str, options: &Options) -> Result<Origin, ApiError> {
        let origin = self.check_destination(url)?;
        self.check_callbacks(options)?;
        Ok(origin)
    }

    fn check_destination(&self, url: &str) -> Result<Origin, ApiError> {
        let origin = validate_url(url)?;
        self.policy
            .check_literal(&origin.host)
            .map_err(|refusal| ApiError::bad_request(format!("invalid destination url: {refusal}")))?;
        Ok(origin)
    }

    fn check_callbacks(&self, options: &Options) -> Result<(), ApiError> {
        let callbacks = [&options.callback, &options.failure_callback];
        callbacks.into_iter().flatten().try_for_each(|spec| self.check_callback(spec))
    }

    fn check_callback(&self, spec: &CallbackSpec) -> Result<(), ApiError> {
        let origin = validate_url(&spec.url)?;
        self.policy
            .check_literal(&origin.host)
            .map_err(|refusal| ApiError::bad_request(format!("invalid callback url: {refusal}")))?;
        self.check_callbacks(&spec.options)
    }

    /// No messages yet, of this request and accepted now.
    pub(super) fn messages(&self, parts: &Parts) -> Messages {
        let caller_ip = parts
            .extensions
            .get::<Peer>()
            .map(|peer| caller::address(peer.0, &parts.headers, &self.settings.trusted_proxies).to_string());
        Messages { created_at: self.engine.now(), caller_ip, new: Vec::with_capacity(1) }
    }

    /// Adds what a draft and its body come to.
    pub(super) fn add(&self, messages: &mut Messages, draft: Draft, body: Bytes) {
        let Draft { recipient, publish } = draft;
        let created_at = messages.created_at;
        let due_at = match publish.due {
            Due::Now => created_at,
            Due::After(delay) => created_at.after(delay),
            Due::At(time) => time.clamp(created_at, Timestamp::MAX),
        };
        let mut template = Template::new(
            publish.method,
            publish.headers,
            body,
            publish.retries,
            publish.labels,
            publish.options,
        );
        template.caller_ip.clone_from(&messages.caller_ip);
        template.queue = publish.queue;
        let key = publish.deduplication.map(|deduplication| match deduplication {
            Deduplication::Id(id) => id_key(&id, None),
            Deduplication::Content => {
                content_key(&recipient.target.url, template.method, &template.headers, &template.body)
            }
        });
        let id = FreshIds.message(created_at);
        messages.new.push(NewMessage {
            message: Arc::new(template.into_message(id, recipient.target, created_at, due_at)),
            lane: recipient.lane,
            deduplication: key.map(|key| store::Deduplication {
                key,
                expires_at: created_at.after(self.settings.deduplication_window),
            }),
        });
    }

    /// Stores messages, all or none: each with what became of it.
    pub(super) async fn store(&self, messages: Messages) -> Result<Vec<(Arc<Message>, Accepted)>, ApiError> {
        let sent: Vec<_> = messages.new.iter().map(|new| Arc::clone(&new.message)).collect();
        let accepted = self.engine.ingest().publish(messages.new).await?;
        Ok(sent.into_iter().zip(accepted).collect())
    }
}

/// What would be accepted and then not honoured is refused instead.
pub(super) fn refuse_unsupported(publish: &Publish) -> Result<(), ApiError> {
    if publish.cron.is_none() {
        return Ok(());
    }
    Err(ApiError::bad_request("invalid header Upstash-Cron: this server does not support it yet"))
}
