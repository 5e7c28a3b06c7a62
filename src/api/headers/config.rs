//! Reads what one family of fields says: the options that a message and its callbacks share.

use std::fmt::Display;
use std::time::Duration;

use super::fields::{Family, Field, check_name, is_never_forwarded};
use super::{HeaderError, Limits};
use crate::domain::destination;
use crate::domain::duration::{self, DurationError};
use crate::domain::excerpt::Excerpt;
use crate::domain::id::is_path_step;
use crate::domain::message::{FlowControl, Headers, Method};
use crate::domain::publish::{CallbackOverrides, OptionOverrides};
use crate::domain::redact;
use crate::domain::retry_delay::Expression;
use crate::domain::time::Timestamp;

/// Retries beyond this do not fit the 32-bit integers that SDKs read them into.
const MAX_RETRIES: u32 = i32::MAX.unsigned_abs();

/// Timeouts are kept in milliseconds, and zero of them would mean none.
const MIN_TIMEOUT: Duration = Duration::from_millis(1);

/// Words after `Upstash-` that we know. For a callback any other word is a header of its request.
const KNOWN: [&str; 16] = [
    "method",
    "delay",
    "not-before",
    "retries",
    "retry-delay",
    "timeout",
    "header-forward",
    "deduplication-id",
    "content-based-deduplication",
    "label",
    "flow-control-key",
    "flow-control-value",
    "redact-fields",
    "cron",
    "schedule-id",
    "queue-name",
];

/// The settings that a message and a callback have in common, as far as they are given.
pub(super) struct Config {
    pub(super) method: Option<Method>,
    pub(super) retries: Option<u32>,
    pub(super) delay: Option<Duration>,
    pub(super) labels: Option<Vec<String>>,
    /// Forwarded headers, in order.
    pub(super) headers: Headers,
    pub(super) options: OptionOverrides,
}

/// Reads a family with its callbacks. `now` is what delays are counted from.
pub(super) fn read(family: &Family<'_>, limits: &Limits, now: Timestamp) -> Result<Config, HeaderError> {
    let options = OptionOverrides {
        timeout: read_with(family, "timeout", duration::parse)?
            .map(|timeout| if timeout.is_zero() { timeout } else { timeout.max(MIN_TIMEOUT) }),
        retry_delay: read_with(family, "retry-delay", |text| {
            Expression::parse(text).map(|_| text.to_owned())
        })?,
        callback: read_callback(family.callback.as_deref(), limits, now)?,
        failure_callback: read_callback(family.failure_callback.as_deref(), limits, now)?,
        redact: read_with(family, "redact-fields", redact::parse)?.unwrap_or_default(),
        flow_control: read_flow_control(family, limits)?,
    };
    Ok(Config {
        method: read_with(family, "method", read_method)?,
        retries: read_retries(family, limits)?,
        delay: read_delay(family, limits, now)?,
        labels: read_labels(family),
        headers: read_forwarded(family)?,
        options,
    })
}

/// Reads one field; the error names it.
pub(super) fn read_with<T, E: Display>(
    family: &Family<'_>,
    name: &str,
    read: impl FnOnce(&str) -> Result<T, E>,
) -> Result<Option<T>, HeaderError> {
    let Some(field) = family.get(name) else { return Ok(None) };
    read(&field.value).map(Some).map_err(|problem| invalid(field, problem))
}

/// The error for a field with a value that cannot be used.
pub(super) fn invalid(field: &Field<'_>, problem: impl Display) -> HeaderError {
    HeaderError::Invalid { header: field.written.to_owned(), problem: problem.to_string() }
}

/// Reads `true` or `false` in any case; Python writes `True`.
pub(in crate::api) fn read_bool(text: &str) -> Result<bool, String> {
    if text.eq_ignore_ascii_case("true") {
        Ok(true)
    } else if text.eq_ignore_ascii_case("false") {
        Ok(false)
    } else {
        Err(format!("{:?} is neither true nor false", Excerpt(text)))
    }
}

/// Refuses a delay beyond the server's limit.
pub(super) fn check_delay(delay: Duration, limits: &Limits) -> Result<(), HeaderError> {
    match limits.max_delay {
        Some(max) if delay > max => Err(HeaderError::MaxDelay { limit_s: max.as_secs() }),
        _ => Ok(()),
    }
}

fn read_method(text: &str) -> Result<Method, String> {
    Method::parse(text).ok_or_else(|| {
        let allowed = Method::ALL.map(Method::as_str).join(", ");
        format!("unknown method {:?}; allowed are {allowed}", Excerpt(text))
    })
}

fn read_retries(family: &Family<'_>, limits: &Limits) -> Result<Option<u32>, HeaderError> {
    let read = |text: &str| match text.parse() {
        Ok(retries) if retries <= MAX_RETRIES && !text.starts_with('+') => Ok(retries),
        _ => Err(format!("{:?} is not an integer from 0 to {MAX_RETRIES}", Excerpt(text))),
    };
    let retries = read_with(family, "retries", read)?;
    match (retries, limits.max_retries) {
        (Some(retries), Some(limit)) if retries > limit => Err(HeaderError::MaxRetries { limit }),
        _ => Ok(retries),
    }
}

fn read_delay(family: &Family<'_>, limits: &Limits, now: Timestamp) -> Result<Option<Duration>, HeaderError> {
    let read = |text: &str| match duration::parse(text) {
        Ok(delay) if now.after(delay) <= Timestamp::LAST => Ok(delay),
        Ok(_) | Err(DurationError::TooLong) => Err(format!(
            "{:?} ends after the year 9999; a delay is a duration such as 10s or 1d, and a Unix time in seconds belongs \
             into Upstash-Not-Before",
            Excerpt(text)
        )),
        Err(error) => Err(error.to_string()),
    };
    let delay = read_with(family, "delay", read)?;
    if let Some(delay) = delay {
        check_delay(delay, limits)?;
    }
    Ok(delay)
}

fn read_labels(family: &Family<'_>) -> Option<Vec<String>> {
    let labels = family.get("label")?.value.split(',').map(str::trim);
    Some(labels.filter(|label| !label.is_empty()).map(str::to_owned).collect())
}

/// The headers that a family asks to be put on its request.
fn read_forwarded(family: &Family<'_>) -> Result<Headers, HeaderError> {
    let mut headers = Headers::new();
    for (rest, field) in &family.config {
        if rest.strip_prefix("forward-").is_none() {
            continue;
        }
        // The end of the name as sent: a name outside RFC 9110's characters keeps its case.
        let name = &field.written[field.written.len() - (rest.len() - "forward-".len())..];
        check_name(name, field)?;
        append(&mut headers, name, field.bytes);
    }
    Ok(headers)
}

/// Appends a header unless it must not be forwarded. Only one content type makes sense: the last.
pub(super) fn append(headers: &mut Headers, name: &str, value: &[u8]) {
    if name.eq_ignore_ascii_case("content-type") {
        headers.remove(name);
    }
    if !is_never_forwarded(name) {
        headers.append(name, value);
    }
}

fn read_callback(
    family: Option<&Family<'_>>,
    limits: &Limits,
    now: Timestamp,
) -> Result<Option<Box<CallbackOverrides>>, HeaderError> {
    let Some(family) = family else { return Ok(None) };
    let read_url =
        |field: &Field<'_>| destination::read_url(&field.value).map_err(|problem| invalid(field, problem));
    let url = family.url.map(read_url).transpose()?;
    let config = read(family, limits, now)?;
    let mut headers = config.headers;
    for (word, field) in &family.config {
        // Python's `callback_headers` come without `Forward`.
        if !word.starts_with("forward-") && !is_known(word) && !field.value.is_empty() {
            let name = &field.written[field.written.len() - word.len()..];
            check_name(name, field)?;
            append(&mut headers, name, field.bytes);
        }
    }
    Ok(Some(Box::new(CallbackOverrides {
        url,
        method: config.method,
        headers,
        retries: config.retries,
        delay: config.delay,
        labels: config.labels,
        options: config.options,
    })))
}

fn is_known(word: &str) -> bool {
    KNOWN.contains(&word)
        || word == "feature-set"
        || word.starts_with("telemetry-")
        || word.starts_with("workflow-")
}

fn read_flow_control(family: &Family<'_>, limits: &Limits) -> Result<Option<FlowControl>, HeaderError> {
    let (key, value) = match (family.get("flow-control-key"), family.get("flow-control-value")) {
        (Some(key), Some(value)) => (key, value),
        (None, None) => return Ok(None),
        (Some(key), None) => return Err(invalid(key, "it requires Upstash-Flow-Control-Value beside it")),
        (None, Some(value)) => return Err(invalid(value, "it requires Upstash-Flow-Control-Key beside it")),
    };
    if key.value.len() > limits.max_flow_control_key {
        return Err(invalid(key, format!("it is longer than {} bytes", limits.max_flow_control_key)));
    }
    if is_path_step(&key.value) {
        return Err(invalid(key, "clients and proxies resolve it as a step of a path, so it can't be a key"));
    }
    let mut flow = FlowControl { key: key.value.to_string(), parallelism: None, rate: None, period_s: 1 };
    read_flow_value(&value.value, limits, &mut flow).map_err(|problem| invalid(value, problem))?;
    Ok(Some(flow))
}

fn read_flow_value(text: &str, limits: &Limits, flow: &mut FlowControl) -> Result<(), String> {
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (name, value) =
            part.split_once('=').map_or((part, ""), |(name, value)| (name.trim(), value.trim()));
        match name.to_ascii_lowercase().as_str() {
            "parallelism" => flow.parallelism = Some(read_count(name, value)?),
            "rate" => flow.rate = Some(read_count(name, value)?),
            "period" => flow.period_s = read_period(value, limits)?,
            _ => {
                let name = Excerpt(name);
                return Err(format!("unknown key {name:?}; allowed are parallelism, rate and period"));
            }
        }
    }
    if flow.parallelism.is_none() && flow.rate.is_none() {
        return Err("at least one of parallelism and rate is required".to_owned());
    }
    Ok(())
}

/// Reads how many there may be.
pub(in crate::api) fn read_count(name: &str, value: &str) -> Result<u32, String> {
    match value.parse() {
        Ok(count @ 1..=MAX_RETRIES) if !value.starts_with('+') => Ok(count),
        _ => Err(format!("{} {:?} is not an integer from 1 to {MAX_RETRIES}", Excerpt(name), Excerpt(value))),
    }
}

/// Whole seconds; the parts of one are rounded up, so that a rate is never exceeded.
pub(in crate::api) fn read_period(value: &str, limits: &Limits) -> Result<u32, String> {
    let period = duration::parse(value).map_err(|error| format!("period: {error}"))?;
    let max = limits.max_flow_control_period;
    if period.is_zero() || period > max {
        return Err(format!("period {:?} is not from 1 second to {} seconds", Excerpt(value), max.as_secs()));
    }
    let seconds = period.as_secs() + u64::from(period.subsec_nanos() > 0);
    u32::try_from(seconds).map_err(|_| format!("period {:?} is too long", Excerpt(value)))
}
