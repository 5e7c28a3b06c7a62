//! The headers that say what a publish, an enqueue, a batch item or a schedule wants.
//!
//! Pure: names and bytes in, one [`Publish`], [`Overrides`] or the error for the user out. `fields` sorts the fields by what they
//! configure, `config` reads what messages and callbacks share, and this file reads what is the message's alone.

mod config;
mod fields;
#[cfg(test)]
mod tests;
mod workflow;

use std::time::Duration;

use self::config::{Config, invalid, read_with};
pub(super) use self::config::{read_bool, read_count, read_period};
pub use self::fields::MAX_FIELDS;
use self::fields::{Family, Field, is_never_forwarded};
pub(super) use self::workflow::is_of_workflow;
pub use crate::domain::deduplication::{Deduplication, content_key, id_key};
use crate::domain::duration::{self, DurationError};
use crate::domain::excerpt::Excerpt;
use crate::domain::id::Name;
use crate::domain::message::{Headers, Options};
pub use crate::domain::publish::{Due, Overrides, Publish};
use crate::domain::time::Timestamp;

/// The request or item that headers belong to. Headers that mean nothing there are ignored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// `POST /v2/publish/…`; with `Upstash-Cron` the same as `Schedule`.
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

/// Why headers were refused. The texts are fit for the user.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HeaderError {
    /// A malformed request: the header as the user wrote it, what is wrong with it and what is allowed.
    #[error("invalid header {}: {problem}", Excerpt(.header))]
    Invalid {
        /// The header or query parameter, as written.
        header: String,
        /// The problem, and the allowed values.
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
/// Values that are read here are UTF-8, or else Latin-1; forwarded ones stay the bytes that were sent. Control characters other
/// than tab are refused.
pub fn parse<'a>(
    kind: Kind,
    headers: impl IntoIterator<Item = (&'a str, &'a [u8])>,
    params: &'a [(String, Vec<u8>)],
    limits: &Limits,
    now: Timestamp,
) -> Result<Publish, HeaderError> {
    let fields = fields::collect(headers, params)?;
    let mut family = Family::sort(&fields);
    // The settings of a callback that nobody asks for are not even read.
    family.drop_callbacks_without_url();
    let kind = match kind {
        Kind::Publish if family.get("cron").is_some() => Kind::Schedule,
        kind => kind,
    };
    let said = read(kind, &fields, &family, limits, now)?;
    let Overrides { due, method, retries, labels, queue, headers, options: overrides } = said.overrides;
    let mut options = Options::default();
    overrides.apply(&mut options);
    let submission = if kind == Kind::Schedule { None } else { workflow::read(&family, &fields)? };
    if submission.is_some() {
        // A run's callbacks don't take their retries from what they are about.
        for spec in [&mut options.callback, &mut options.failure_callback].into_iter().flatten() {
            spec.retries.get_or_insert(limits.default_retries);
        }
    }
    Ok(Publish {
        method: method.unwrap_or_default(),
        headers,
        retries: retries.unwrap_or(limits.default_retries),
        due,
        labels: labels.unwrap_or_default(),
        options,
        deduplication: said.deduplication,
        queue,
        schedule_id: said.schedule_id,
        cron: said.cron,
        submission,
        size: fields::size(&fields),
    })
}

/// Reads the headers of a request that publishes a message once more, otherwise as [`parse`] does. They change what they
/// name; the content type is the request's own, unless it is forwarded.
pub fn parse_overrides<'a>(
    headers: impl IntoIterator<Item = (&'a str, &'a [u8])>,
    params: &'a [(String, Vec<u8>)],
    limits: &Limits,
    now: Timestamp,
) -> Result<Overrides, HeaderError> {
    let fields = fields::collect(headers, params)?;
    let family = Family::sort(&fields);
    let mut overrides = read(Kind::Publish, &fields, &family, limits, now)?.overrides;
    let forwarded = family.config.iter().filter(|(name, _)| *name == "forward-content-type");
    if forwarded.map(|(_, field)| field).all(|field| field.value.is_empty()) {
        overrides.headers.remove("content-type");
    }
    Ok(overrides)
}

/// Everything that the headers of a message say.
struct Said {
    overrides: Overrides,
    deduplication: Option<Deduplication>,
    schedule_id: Option<String>,
    cron: Option<String>,
}

fn read(
    kind: Kind,
    fields: &[Field<'_>],
    family: &Family<'_>,
    limits: &Limits,
    now: Timestamp,
) -> Result<Said, HeaderError> {
    let config = config::read(family, limits, now)?;
    let is_schedule = kind == Kind::Schedule;
    let makes_schedule = matches!(kind, Kind::Publish | Kind::Schedule);
    Ok(Said {
        overrides: Overrides {
            due: read_due(family, &config, is_schedule, limits, now)?,
            method: config.method,
            retries: config.retries,
            labels: config.labels,
            headers: delivery_headers(kind, fields, family, config.headers)?,
            options: config.options,
            queue: if kind == Kind::Enqueue { None } else { read_with(family, "queue-name", read_name)? },
        },
        deduplication: if is_schedule { None } else { read_deduplication(family)? },
        schedule_id: if makes_schedule { read_with(family, "schedule-id", read_name)? } else { None },
        cron: family.get("cron").filter(|_| makes_schedule).map(|field| field.value.to_string()),
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

fn read_due(
    family: &Family<'_>,
    config: &Config,
    is_schedule: bool,
    limits: &Limits,
    now: Timestamp,
) -> Result<Due, HeaderError> {
    let not_before = family.get("not-before").filter(|_| !is_schedule);
    let Some(field) = not_before else {
        let delay = config.delay.filter(|delay| !delay.is_zero());
        return Ok(delay.map_or(Due::Now, Due::After));
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
fn read_name(text: &str) -> Result<String, String> {
    Name::read(text).map(Name::into_string)
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
