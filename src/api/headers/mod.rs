//! The headers that say what a publish, an enqueue, a batch item or a schedule wants.
//!
//! Pure: names and bytes in, one [`Publish`] or the error for the user out. `fields` sorts the fields by what they
//! configure, `config` reads what messages and callbacks share, and this file reads what is the message's alone.

mod config;
mod fields;
#[cfg(test)]
mod tests;

use std::time::Duration;

use self::config::{Config, invalid, read_with};
pub(super) use self::config::{read_bool, read_count, read_period};
pub use self::fields::MAX_FIELDS;
use self::fields::{Family, Field, is_never_forwarded};
pub use crate::domain::deduplication::{Deduplication, content_key, id_key};
use crate::domain::duration::{self, DurationError};
use crate::domain::excerpt::Excerpt;
use crate::domain::id::{is_name, is_path_step};
use crate::domain::message::{Headers, Method, Options};
use crate::domain::time::Timestamp;

/// What the headers belong to. Those that mean nothing there are ignored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// `POST /v2/publish/…`
    Publish,
    /// `POST /v2/enqueue/…`; the queue is in the path.
    Enqueue,
    /// The `headers` of an item of `POST /v2/batch`.
    BatchItem,
    /// `POST /v2/schedules/…`
    Schedule,
}

/// The operator's limits on what headers may ask for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Retries of a message that names none.
    pub default_retries: u32,
    /// The most retries; `None`: no limit.
    pub max_retries: Option<u32>,
    /// The longest delay; `None`: no limit.
    pub max_delay: Option<Duration>,
    /// The longest flow-control key, in bytes.
    pub max_flow_control_key: usize,
    /// The longest flow-control period, in whole seconds.
    pub max_flow_control_period: Duration,
}

/// When a message is due.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Due {
    /// At once.
    Now,
    /// That long after it is accepted; for a schedule, after each slot. Never zero.
    After(Duration),
    /// At that time, which lies after the `now` of [`parse`].
    At(Timestamp),
}

/// What the headers say. Destination and body come from elsewhere.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Publish {
    /// The method of the delivery.
    pub method: Method,
    /// The delivery's headers: `Content-Type`, if any, and the forwarded ones.
    pub headers: Headers,
    /// Attempts after the first; the default filled in.
    pub retries: u32,
    /// When it is due.
    pub due: Due,
    /// Labels in order; not empty, no commas.
    pub labels: Vec<String>,
    /// How it is delivered.
    pub options: Options,
    /// What makes a repeat of it; `None`: nothing does. Always `None` for schedules.
    pub deduplication: Option<Deduplication>,
    /// The queue to join; always `None` for [`Kind::Enqueue`].
    pub queue: Option<String>,
    /// The schedule to create or replace; only with [`Kind::Publish`] and [`Kind::Schedule`].
    pub schedule_id: Option<String>,
    /// The schedule's cron expression, unread; only with [`Kind::Publish`], where it makes the request a schedule's,
    /// and [`Kind::Schedule`].
    pub cron: Option<String>,
    /// Bytes of the headers that say all this.
    pub size: usize,
}

/// Why headers were refused. The texts are fit for the user.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HeaderError {
    /// A malformed request: the header as the user wrote it, what is wrong with it and what is allowed.
    #[error("invalid header {}: {problem}", Excerpt(.header))]
    Invalid {
        /// The header or query parameter, as written.
        header: String,
        /// What is wrong.
        problem: String,
    },
    /// A malformed request: more headers than a message may have.
    #[error("more than {limit} headers")]
    TooMany {
        /// The most that are allowed.
        limit: usize,
    },
    /// A malformed request: longer headers than a message may have.
    #[error("headers of more than {limit} bytes together")]
    TooLarge {
        /// The most that is allowed.
        limit: usize,
    },
    /// A quota: more retries than the operator allows.
    #[error("quota maxRetries exceeded, current limit: {limit}")]
    MaxRetries {
        /// The most that are allowed.
        limit: u32,
    },
    /// A quota: a longer delay than the operator allows.
    #[error("quota maxDelay exceeded, current limit: {limit_s}")]
    MaxDelay {
        /// The longest that is allowed, in seconds.
        limit_s: u64,
    },
}

impl HeaderError {
    /// Whether a quota is exceeded; else the request is malformed.
    pub const fn is_quota(&self) -> bool {
        matches!(self, Self::MaxRetries { .. } | Self::MaxDelay { .. })
    }
}

/// Reads a message's headers. `params` are the `upstash-*` query parameters, lower case, which stand in for absent
/// headers; others among them are ignored. `now` is what `Upstash-Not-Before` is compared with.
///
/// What is read here is UTF-8, or else Latin-1; what is forwarded stays the bytes that were sent. Control characters other
/// than tab are refused.
pub fn parse<'a>(
    kind: Kind,
    headers: impl IntoIterator<Item = (&'a str, &'a [u8])>,
    params: &'a [(String, Vec<u8>)],
    limits: &Limits,
    now: Timestamp,
) -> Result<Publish, HeaderError> {
    let fields = fields::collect(headers, params)?;
    let family = Family::sort(&fields);
    refuse_workflows(&family)?;
    let config = config::read(&family, limits, now)?;
    let is_schedule = kind == Kind::Schedule;
    let makes_schedule = matches!(kind, Kind::Publish | Kind::Schedule);
    Ok(Publish {
        method: config.method,
        due: read_due(&family, &config, is_schedule, limits, now)?,
        headers: delivery_headers(kind, &fields, &family, config.headers)?,
        retries: config.retries.unwrap_or(limits.default_retries),
        labels: config.labels,
        options: config.options,
        deduplication: if is_schedule { None } else { read_deduplication(&family)? },
        queue: if kind == Kind::Enqueue { None } else { read_with(&family, "queue-name", read_name)? },
        schedule_id: if makes_schedule { read_with(&family, "schedule-id", read_name)? } else { None },
        cron: family.get("cron").filter(|_| makes_schedule).map(|field| field.value.to_string()),
        size: fields::size(&fields),
    })
}

/// Reads headers that stand for themselves, such as a URL group's; those that are never forwarded are dropped.
pub fn parse_plain<'a>(
    headers: impl IntoIterator<Item = (&'a str, &'a [u8])>,
) -> Result<Headers, HeaderError> {
    let mut plain = Headers::new();
    for field in fields::collect(headers, &[])? {
        fields::check_name(field.written, &field)?;
        config::append(&mut plain, field.written, field.bytes);
    }
    Ok(plain)
}

/// A workflow's step that is delivered as a plain message half works; better that it fails where it is sent.
fn refuse_workflows(family: &Family<'_>) -> Result<(), HeaderError> {
    match family.get("workflow-runid") {
        Some(field) => Err(invalid(field, "workflows are not supported by this server")),
        None => Ok(()),
    }
}

fn read_due(
    family: &Family<'_>,
    config: &Config,
    is_schedule: bool,
    limits: &Limits,
    now: Timestamp,
) -> Result<Due, HeaderError> {
    let not_before = family.get("not-before").filter(|_| !is_schedule);
    let Some(field) = not_before else {
        return Ok(config.delay.map_or(Due::Now, Due::After));
    };
    let refused =
        |why: &str| invalid(field, format!("{:?} is not a Unix time in seconds{why}", Excerpt(&field.value)));
    let is_number = field.value.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let at = match duration::parse(&field.value) {
        Ok(since_epoch) if is_number => Timestamp::from_millis(0).after(since_epoch),
        Err(DurationError::TooLong) if is_number => Timestamp::MAX,
        _ => return Err(refused("")),
    };
    if at > Timestamp::LAST {
        return Err(refused(": it would be after the year 9999"));
    }
    config::check_delay(at.since(now), limits)?;
    Ok(if at > now { Due::At(at) } else { Due::Now })
}

fn read_deduplication(family: &Family<'_>) -> Result<Option<Deduplication>, HeaderError> {
    if let Some(field) = family.get("deduplication-id") {
        return Ok(Some(Deduplication::Id(field.value.to_string())));
    }
    let by_content = read_with(family, "content-based-deduplication", read_bool)?.unwrap_or(false);
    Ok(by_content.then_some(Deduplication::Content))
}

/// Reads the name of a queue, a URL group or a schedule that may have to be made; the error says what is allowed.
pub fn read_name(text: &str) -> Result<String, String> {
    if is_path_step(text) {
        return Err(format!("{text:?} can't be a name: clients and proxies resolve it as a step of a path"));
    }
    if is_name(text) {
        return Ok(text.to_owned());
    }
    let text = Excerpt(text);
    Err(format!("{text:?} is not a name; letters, digits, -, _ and . are allowed, at most 256"))
}

/// The content type, with `Upstash-Header-Forward` all of the request's headers, and over both the forwarded ones.
fn delivery_headers(
    kind: Kind,
    fields: &[Field<'_>],
    family: &Family<'_>,
    forwarded: Headers,
) -> Result<Headers, HeaderError> {
    let all = match kind {
        Kind::Publish | Kind::Enqueue => read_with(family, "header-forward", read_bool)?.unwrap_or(false),
        Kind::BatchItem | Kind::Schedule => false,
    };
    let mut headers = Headers::new();
    for field in fields {
        if field.name == "content-type" || all && is_forwarded_unasked(field, fields) {
            config::append(&mut headers, field.written, field.bytes);
        }
    }
    for (name, _) in forwarded.iter() {
        headers.remove(name);
    }
    headers.0.extend(forwarded.0);
    Ok(headers)
}

/// Whether `Upstash-Header-Forward` extends to a field: not to our own, the connection's or the API token.
fn is_forwarded_unasked(field: &Field<'_>, fields: &[Field<'_>]) -> bool {
    let is_token = field.name == "authorization"
        && field.value.get(..6).is_some_and(|scheme| scheme.eq_ignore_ascii_case("bearer"));
    // `Connection` names further headers of the connection (RFC 9110, 7.6.1).
    let of_connection = fields
        .iter()
        .filter(|other| other.name == "connection")
        .flat_map(|other| other.value.split(','))
        .any(|name| name.trim().eq_ignore_ascii_case(&field.name));
    let of_connection = of_connection || is_never_forwarded(&field.name);
    !is_token && !of_connection && !field.name.starts_with("upstash-")
}
