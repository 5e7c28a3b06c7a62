//! How the compact columns are written: headers and rarely set options as JSON with short names.
//!
//! The names here are stored: they may be added to, never changed.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::domain::gate::starts::{Burst, Starts};
use crate::domain::message::{CallbackSpec, FlowControl, Headers, Method, Options, Redact};
use crate::domain::time::Timestamp;
use crate::store::{Result, StoreError};

/// Values for one statement, which takes them apart with `json_each`.
pub(super) fn json(values: &impl Serialize) -> String {
    serde_json::to_string(values).expect("text and numbers are valid JSON")
}

/// Headers as JSON `[[name, value], …]`; `None` for none.
pub(super) fn write_headers(headers: &Headers) -> Option<String> {
    (!headers.is_empty()).then(|| serde_json::to_string(&headers.0).expect("text pairs are valid JSON"))
}

pub(super) fn read_headers(text: Option<&str>, table: &'static str, id: &str) -> Result<Headers> {
    match text {
        None => Ok(Headers::new()),
        Some(text) => serde_json::from_str(text).map(Headers).map_err(|_| StoreError::Corrupt {
            table,
            column: "headers",
            id: id.to_owned(),
        }),
    }
}

/// Options as JSON; `None` when all have their defaults.
pub(super) fn write_options(options: &Options) -> Option<String> {
    (*options != Options::default())
        .then(|| serde_json::to_string(&OptionsRow::from(options)).expect("options are valid JSON"))
}

pub(super) fn read_options(text: Option<&str>, table: &'static str, id: &str) -> Result<Options> {
    match text {
        None => Ok(Options::default()),
        Some(text) => serde_json::from_str::<OptionsRow>(text)
            .map(Options::from)
            .map_err(|_| StoreError::Corrupt { table, column: "options", id: id.to_owned() }),
    }
}

/// The starts that a rate counts, as JSON `[[first, last, count], …]`; `None` for none.
pub(super) fn write_starts(starts: &Starts) -> Option<String> {
    let bursts: Vec<(i64, i64, u32)> = starts
        .bursts()
        .iter()
        .map(|burst| (burst.first.as_millis(), burst.last.as_millis(), burst.count))
        .collect();
    (!bursts.is_empty()).then(|| serde_json::to_string(&bursts).expect("numbers are valid JSON"))
}

pub(super) fn read_starts(text: Option<&str>, now: Timestamp, gate: &str) -> Result<Starts> {
    let Some(text) = text else { return Ok(Starts::default()) };
    let bursts: Vec<(i64, i64, u32)> = serde_json::from_str(text).map_err(|_| StoreError::Corrupt {
        table: "gates",
        column: "starts",
        id: gate.to_owned(),
    })?;
    let time = Timestamp::from_millis;
    let burst = |(first, last, count)| Burst { first: time(first), last: time(last), count };
    Ok(Starts::new(bursts.into_iter().map(burst).collect(), now))
}

#[derive(Serialize, Deserialize)]
struct OptionsRow {
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_delay: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    callback: Option<Box<CallbackRow>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure_callback: Option<Box<CallbackRow>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    redact: Option<RedactRow>,
    #[serde(skip_serializing_if = "Option::is_none")]
    flow_control: Option<FlowControlRow>,
    #[serde(skip_serializing_if = "Option::is_none")]
    api: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct CallbackRow {
    url: String,
    method: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    headers: Vec<(String, String)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retries: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delay_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    labels: Vec<String>,
    #[serde(flatten)]
    options: OptionsRow,
}

#[derive(Serialize, Deserialize)]
struct RedactRow {
    body: bool,
    all_headers: bool,
    headers: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct FlowControlRow {
    key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    parallelism: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rate: Option<u32>,
    period_s: u32,
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl From<&Options> for OptionsRow {
    fn from(options: &Options) -> Self {
        Self {
            timeout_ms: options.timeout.map(millis),
            retry_delay: options.retry_delay.clone(),
            callback: options.callback.as_deref().map(|spec| Box::new(spec.into())),
            failure_callback: options.failure_callback.as_deref().map(|spec| Box::new(spec.into())),
            redact: (!options.redact.is_none()).then(|| RedactRow {
                body: options.redact.body,
                all_headers: options.redact.all_headers,
                headers: options.redact.headers.clone(),
            }),
            flow_control: options.flow_control.as_ref().map(|flow| FlowControlRow {
                key: flow.key.clone(),
                parallelism: flow.parallelism,
                rate: flow.rate,
                period_s: flow.period_s,
            }),
            api: options.api.clone(),
        }
    }
}

impl From<OptionsRow> for Options {
    fn from(row: OptionsRow) -> Self {
        Self {
            timeout: row.timeout_ms.map(Duration::from_millis),
            retry_delay: row.retry_delay,
            callback: row.callback.map(|spec| Box::new((*spec).into())),
            failure_callback: row.failure_callback.map(|spec| Box::new((*spec).into())),
            redact: row.redact.map_or_else(Redact::default, |redact| Redact {
                body: redact.body,
                all_headers: redact.all_headers,
                headers: redact.headers,
            }),
            flow_control: row.flow_control.map(|flow| FlowControl {
                key: flow.key,
                parallelism: flow.parallelism,
                rate: flow.rate,
                period_s: flow.period_s,
            }),
            api: row.api,
        }
    }
}

impl From<&CallbackSpec> for CallbackRow {
    fn from(spec: &CallbackSpec) -> Self {
        Self {
            url: spec.url.clone(),
            method: spec.method.as_str().to_owned(),
            headers: spec.headers.0.clone(),
            retries: spec.retries,
            delay_ms: spec.delay.map(millis),
            labels: spec.labels.clone(),
            options: (&spec.options).into(),
        }
    }
}

impl From<CallbackRow> for CallbackSpec {
    fn from(row: CallbackRow) -> Self {
        Self {
            url: row.url,
            method: Method::parse(&row.method).unwrap_or_default(),
            headers: Headers(row.headers),
            retries: row.retries,
            delay: row.delay_ms.map(Duration::from_millis),
            labels: row.labels,
            options: row.options.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_survive() {
        let spec = CallbackSpec {
            url: "https://e.com/cb?x=1".into(),
            method: Method::Put,
            headers: Headers(vec![("X-A".into(), "1".into())]),
            retries: Some(0),
            delay: Some(Duration::from_secs(3)),
            labels: vec!["l".into()],
            options: Options { retry_delay: Some("1000".into()), ..Options::default() },
        };
        let options = Options {
            timeout: Some(Duration::from_millis(1500)),
            retry_delay: Some("pow(2, retried)".into()),
            callback: Some(Box::new(CallbackSpec {
                options: Options { failure_callback: Some(Box::new(spec.clone())), ..Options::default() },
                ..spec.clone()
            })),
            failure_callback: Some(Box::new(spec)),
            redact: Redact { body: true, all_headers: false, headers: vec!["X-B".into()] },
            flow_control: Some(FlowControl {
                key: "k/1".into(),
                parallelism: None,
                rate: Some(7),
                period_s: 60,
            }),
            api: Some("llm".into()),
        };
        let text = write_options(&options).unwrap();
        assert_eq!(read_options(Some(&text), "messages", "id").unwrap(), options);
        assert_eq!(write_options(&Options::default()), None);
        assert!(read_options(Some("{"), "messages", "id").is_err());
    }
}
