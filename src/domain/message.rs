//! A message and its delivery options. Immutable once accepted.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use super::id::MessageId;
use super::run::Part;
use super::signature::body_sha256;
use super::time::Timestamp;

/// The methods a message may be delivered with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Method {
    Get,
    #[default]
    Post,
    Put,
    Patch,
    Delete,
}

impl Method {
    /// All of them, in the order that error texts list them.
    pub const ALL: [Self; 5] = [Self::Get, Self::Post, Self::Put, Self::Patch, Self::Delete];

    /// The method as RFC 9110 spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
        }
    }

    /// Reads a method in any case; `None` for one that is not allowed.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|method| method.as_str().eq_ignore_ascii_case(text))
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Header fields in the order they came; names in canonical form (`X-Api-Key`), repeated names repeated.
///
/// Values are bytes without control characters other than tab (RFC 9110, 5.5); [`header_text`] is how they are shown.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Headers(pub Vec<(String, Vec<u8>)>);

impl Headers {
    /// No fields.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The fields in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_slice()))
    }

    /// The fields in order, values as text.
    pub fn texts(&self) -> impl Iterator<Item = (&str, Cow<'_, str>)> {
        self.iter().map(|(name, value)| (name, header_text(value)))
    }

    /// Appends a field; the name is brought into canonical form.
    pub fn append(&mut self, name: &str, value: impl Into<Vec<u8>>) {
        self.0.push((canonical_name(name), value.into()));
    }

    /// Removes every field of that name, in any case.
    pub fn remove(&mut self, name: &str) {
        self.0.retain(|(have, _)| !have.eq_ignore_ascii_case(name));
    }

    /// The first value of that name, in any case, as text.
    pub fn get(&self, name: &str) -> Option<Cow<'_, str>> {
        self.texts().find(|(have, _)| have.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// Bytes that the fields take in memory, roughly.
    pub fn size(&self) -> usize {
        self.0.iter().map(|(name, value)| name.len() + value.len() + 48).sum()
    }
}

/// A header value as text: UTF-8 where it is valid, else Latin-1, as header values once were (RFC 9110, 5.5).
pub fn header_text(value: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(value) {
        Ok(text) => Cow::Borrowed(text),
        Err(_) => Cow::Owned(value.iter().map(|byte| char::from(*byte)).collect()),
    }
}

/// Go's MIME form of a header name: each part between dashes capitalised, the rest lower case.
///
/// A name with a character outside RFC 9110's token set is left as it is, as Go does.
pub fn canonical_name(name: &str) -> String {
    if !name.bytes().all(is_token_byte) {
        return name.to_owned();
    }
    let mut start_of_part = true;
    name.chars()
        .map(|c| {
            let c = if start_of_part { c.to_ascii_uppercase() } else { c.to_ascii_lowercase() };
            start_of_part = c == '-';
            c
        })
        .collect()
}

/// Whether a byte may stand in a header name (RFC 9110, 5.6.2).
pub const fn is_token_byte(byte: u8) -> bool {
    matches!(
        byte,
        b'!' | b'#'
            | b'$'
            | b'%'
            | b'&'
            | b'\''
            | b'*'
            | b'+'
            | b'-'
            | b'.'
            | b'^'
            | b'_'
            | b'`'
            | b'|'
            | b'~'
    ) || byte.is_ascii_alphanumeric()
}

/// Which parts of a message the API hides.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Redact {
    /// The body.
    pub body: bool,
    /// All headers.
    pub all_headers: bool,
    /// Single headers, canonical names.
    pub headers: Vec<String>,
}

impl Redact {
    /// Whether nothing is hidden.
    pub fn is_none(&self) -> bool {
        !self.body && !self.all_headers && self.headers.is_empty()
    }

    /// Hides what another one hides as well.
    pub fn add(&mut self, other: &Self) {
        self.body |= other.body;
        self.all_headers |= other.all_headers;
        for name in &other.headers {
            if !self.headers.contains(name) {
                self.headers.push(name.clone());
            }
        }
    }

    /// Hides what another one hides, of a message whose body holds a copy of what that is about.
    pub fn add_of_source(&mut self, source: &Self) {
        self.add(source);
        self.body |= !source.is_none();
    }

    /// Whether the header of that (canonical) name is hidden.
    pub fn hides_header(&self, name: &str) -> bool {
        self.all_headers || self.headers.iter().any(|have| have == name)
    }
}

/// Limits that messages share through a key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FlowControl {
    /// The key; free text.
    pub key: String,
    /// At most that many attempts at once; `None`: no limit.
    pub parallelism: Option<u32>,
    /// At most that many attempts started in a period; `None`: no limit.
    pub rate: Option<u32>,
    /// The period of `rate`, whole seconds, at least 1.
    pub period_s: u32,
}

/// As `Upstash-Flow-Control-Value` has it: `parallelism=2,rate=5,period=60`.
impl fmt::Display for FlowControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parallelism = self.parallelism.map(|count| format!("parallelism={count}"));
        let rate = self.rate.map(|count| format!("rate={count},period={}", self.period_s));
        let parts: Vec<String> = parallelism.into_iter().chain(rate).collect();
        f.write_str(&parts.join(","))
    }
}

/// How a message is delivered, beyond where to and what. Callbacks have the same options.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Options {
    /// Limit for one attempt; `None`: the server's maximum.
    pub timeout: Option<Duration>,
    /// The expression that gives the delay before a retry; `None`: back-off.
    pub retry_delay: Option<String>,
    /// A message to send after every attempt.
    pub callback: Option<Box<CallbackSpec>>,
    /// A message to send after the final failure.
    pub failure_callback: Option<Box<CallbackSpec>>,
    /// What the API hides.
    pub redact: Redact,
    /// Limits shared through a key.
    pub flow_control: Option<FlowControl>,
    /// `llm` for messages to the configured language model.
    pub api: Option<String>,
}

impl Options {
    /// Bytes that they take in memory beside themselves, roughly.
    pub fn size(&self) -> usize {
        let callbacks = [&self.callback, &self.failure_callback];
        let callbacks: usize = callbacks.into_iter().flatten().map(|spec| spec.size()).sum();
        let texts = [self.retry_delay.as_ref(), self.flow_control.as_ref().map(|flow| &flow.key)];
        let texts: usize = texts.into_iter().flatten().map(String::len).sum();
        callbacks + texts + texts_size(&self.redact.headers)
    }
}

/// Bytes that texts take in memory, roughly.
pub(super) fn texts_size(texts: &[String]) -> usize {
    texts.iter().map(|text| text.len() + 32).sum()
}

/// How the message of a callback is made: `Upstash-Callback` with its whole family.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CallbackSpec {
    /// Where to; http or https.
    pub url: String,
    /// The method.
    pub method: Method,
    /// Headers for the callback request, canonical names. `Content-Type` here overrides JSON's.
    pub headers: Headers,
    /// Retries; `None`: as many as the source message has.
    pub retries: Option<u32>,
    /// How long after the outcome it is due.
    pub delay: Option<Duration>,
    /// Labels.
    pub labels: Vec<String>,
    /// Timeout, retry delay, flow control; a nested callback one level deep.
    pub options: Options,
}

impl CallbackSpec {
    fn size(&self) -> usize {
        512 + self.url.len() + self.headers.size() + texts_size(&self.labels) + self.options.size()
    }
}

/// One request to be made to one destination.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    pub id: MessageId,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When its first attempt is due: `created_at` without a delay.
    pub due_at: Timestamp,
    pub method: Method,
    /// The destination exactly as published; also the signature's `sub`.
    pub url: String,
    /// `Content-Type` (if any) and the forwarded headers; nothing else.
    pub headers: Headers,
    pub body: Bytes,
    /// SHA-256 of the body, taken at acceptance.
    pub body_sha256: [u8; 32],
    /// Attempts = 1 + retries.
    pub max_retries: u32,
    /// The publisher's address, as text.
    pub caller_ip: Option<String>,
    pub labels: Vec<String>,
    /// The queue that it is a member of.
    pub queue: Option<String>,
    /// The URL group it was published to.
    pub url_group: Option<String>,
    /// The name of its endpoint in that group.
    pub endpoint: Option<String>,
    /// The schedule that made it.
    pub schedule_id: Option<String>,
    /// The message whose outcome made this one, for callbacks.
    pub source_id: Option<MessageId>,
    /// The workflow run that it belongs to, and what it is there.
    pub run: Option<Part>,
    pub options: Options,
}

impl Message {
    /// A message that only has a URL and a body: sent by POST, due when it is created, never sent again.
    pub fn plain(id: MessageId, created_at: Timestamp, url: &str, body: Bytes) -> Self {
        Self {
            id,
            created_at,
            due_at: created_at,
            method: Method::Post,
            url: url.to_owned(),
            headers: Headers::new(),
            body_sha256: body_sha256(&body),
            body,
            max_retries: 0,
            caller_ip: None,
            labels: Vec::new(),
            queue: None,
            url_group: None,
            endpoint: None,
            schedule_id: None,
            source_id: None,
            run: None,
            options: Options::default(),
        }
    }

    /// Bytes that it takes in memory, roughly: what the bounds on memory count.
    pub fn size(&self) -> usize {
        let options = texts_size(&self.labels) + self.options.size();
        let log = self.run.as_ref().map_or(0, |part| part.log_size);
        512 + self.url.len() + self.body.len() + log + self.headers.size() + options
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_names_are_canonical() {
        for (given, expected) in [
            ("x-api-key", "X-Api-Key"),
            ("ETAG", "Etag"),
            ("www-authenticate", "Www-Authenticate"),
            ("bypass-tunnel-reminder", "Bypass-Tunnel-Reminder"),
            ("x--y", "X--Y"),
            ("a b", "a b"),
        ] {
            assert_eq!(canonical_name(given), expected);
        }
    }

    #[test]
    fn header_values_are_text_of_one_of_two_kinds() {
        for (value, expected) in [
            (&b"a"[..], "a"),
            (b"", ""),
            (b"\xc3\xb6", "\u{f6}"),
            (b"\xf6", "\u{f6}"),
            (b"\xf6\xc3\xb6", "\u{f6}\u{c3}\u{b6}"),
        ] {
            assert_eq!(header_text(value), expected);
        }
    }

    #[test]
    fn hiding_more_hides_no_less() {
        let named = |names: &[&str]| Redact {
            headers: names.iter().map(|name| (*name).to_owned()).collect(),
            ..Redact::default()
        };
        let mut redact = named(&["A", "B"]);
        redact.add(&named(&["B", "C"]));
        redact.add(&Redact { body: true, ..Redact::default() });
        redact.add(&Redact::default());
        assert_eq!(redact, Redact { body: true, ..named(&["A", "B", "C"]) });
        redact.add(&Redact { all_headers: true, ..Redact::default() });
        assert!(redact.body && redact.hides_header("D"));
    }

    #[test]
    fn methods_are_read_in_any_case() {
        assert_eq!(Method::parse("patch"), Some(Method::Patch));
        assert_eq!(Method::parse("HEAD"), None);
    }
}
