//! What messages are made from: all that a publish, a batch item or a schedule says, apart from where each goes and when.

use bytes::Bytes;

use super::id::MessageId;
use super::message::{Headers, Message, Method, Options, texts_size};
use super::signature::body_sha256;
use super::time::Timestamp;

/// Where one message of a [`Template`] goes: a URL, or one endpoint of a URL group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    /// http or https, exactly as published or as the group has it.
    pub url: String,
    /// The group's name.
    pub url_group: Option<String>,
    /// The endpoint's name within its group.
    pub endpoint: Option<String>,
}

impl Target {
    /// A URL of its own.
    pub const fn url(url: String) -> Self {
        Self { url, url_group: None, endpoint: None }
    }
}

/// The common part of the messages of one publish, or of all occurrences of a schedule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Template {
    pub method: Method,
    pub headers: Headers,
    pub body: Bytes,
    /// SHA-256 of `body`.
    pub body_sha256: [u8; 32],
    pub max_retries: u32,
    pub caller_ip: Option<String>,
    pub labels: Vec<String>,
    pub queue: Option<String>,
    pub schedule_id: Option<String>,
    pub options: Options,
}

impl Template {
    /// The parts that every template has; the others are empty.
    pub fn new(
        method: Method,
        headers: Headers,
        body: Bytes,
        max_retries: u32,
        labels: Vec<String>,
        options: Options,
    ) -> Self {
        Self {
            method,
            headers,
            body_sha256: body_sha256(&body),
            body,
            max_retries,
            caller_ip: None,
            labels,
            queue: None,
            schedule_id: None,
            options,
        }
    }

    /// Bytes that each of its messages takes in memory, roughly: its URL and the body, which they share, not counted.
    pub fn size(&self) -> usize {
        512 + self.headers.size() + texts_size(&self.labels) + self.options.size()
    }

    /// The message to one target, accepted at `created_at` and due at `due_at` (not before the acceptance).
    pub fn message(
        &self,
        id: MessageId,
        target: Target,
        created_at: Timestamp,
        due_at: Timestamp,
    ) -> Message {
        self.clone().into_message(id, target, created_at, due_at)
    }

    /// The only message of a template.
    pub fn into_message(
        self,
        id: MessageId,
        target: Target,
        created_at: Timestamp,
        due_at: Timestamp,
    ) -> Message {
        Message {
            id,
            created_at,
            due_at: due_at.max(created_at),
            method: self.method,
            url: target.url,
            headers: self.headers,
            body: self.body,
            body_sha256: self.body_sha256,
            max_retries: self.max_retries,
            caller_ip: self.caller_ip,
            labels: self.labels,
            queue: self.queue,
            url_group: target.url_group,
            endpoint: target.endpoint,
            schedule_id: self.schedule_id,
            source_id: None,
            run: None,
            options: self.options,
        }
    }
}
