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

/// Headers as JSON, see [`fields`]; `None` for none.
pub(super) fn write_headers(headers: &Headers) -> Option<String> {
    if headers.is_empty() {
        return None;
    }
    let mut json = Vec::with_capacity(128);
    fields::serialize(headers, &mut serde_json::Serializer::new(&mut json)).expect("texts are valid JSON");
    Some(String::from_utf8(json).expect("JSON is UTF-8"))
}

pub(super) fn read_headers(text: Option<&str>, table: &'static str, id: &str) -> Result<Headers> {
    parse_headers(text).ok_or_else(|| StoreError::Corrupt { table, column: "headers", id: id.to_owned() })
}

/// Headers as [`write_headers`] has written them; `None` for anything else.
pub(super) fn parse_headers(text: Option<&str>) -> Option<Headers> {
    let Some(text) = text else { return Some(Headers::new()) };
    let mut json = serde_json::Deserializer::from_str(text);
    let headers = fields::deserialize(&mut json).ok()?;
    json.end().ok()?;
    Some(headers)
}

/// Header fields as JSON `[[name, value], …]`. A value that is not UTF-8 is written as the Latin-1 text that it is
/// shown as, and marked: `[name, value, "latin1"]`.
mod fields {
    use std::borrow::Cow;
    use std::fmt;

    use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};
    use serde::ser::{Serialize, Serializer};

    use crate::domain::message::{Headers, header_text};

    const LATIN1: &str = "latin1";

    pub(super) fn serialize<S: Serializer>(headers: &Headers, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(headers.iter().map(|(name, value)| Written { name, value }))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Headers, D::Error> {
        let fields: Vec<Read> = Vec::deserialize(deserializer)?;
        Ok(Headers(fields.into_iter().map(|Read(name, value)| (name, value)).collect()))
    }

    struct Written<'a> {
        name: &'a str,
        value: &'a [u8],
    }

    impl Serialize for Written<'_> {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            match header_text(self.value) {
                Cow::Borrowed(text) => (self.name, text).serialize(serializer),
                Cow::Owned(text) => (self.name, text, LATIN1).serialize(serializer),
            }
        }
    }

    struct Read(String, Vec<u8>);

    impl<'de> Deserialize<'de> for Read {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct Field;
            impl<'de> Visitor<'de> for Field {
                type Value = Read;

                fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    f.write_str("a name and a value")
                }

                fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Read, A::Error> {
                    let missing = || A::Error::custom("a field has no value");
                    let name = parts.next_element()?.ok_or_else(missing)?;
                    let value: String = parts.next_element()?.ok_or_else(missing)?;
                    let value = match parts.next_element::<Cow<'_, str>>()?.as_deref() {
                        None => Some(value.into_bytes()),
                        Some(LATIN1) => value.chars().map(|c| u8::try_from(c).ok()).collect(),
                        Some(_) => None,
                    };
                    let value =
                        value.ok_or_else(|| A::Error::custom("a value is not what it is marked as"))?;
                    Ok(Read(name, value))
                }
            }
            deserializer.deserialize_seq(Field)
        }
    }
}

/// Options as JSON; `None` when all have their defaults.
pub(super) fn write_options(options: &Options) -> Option<String> {
    (*options != Options::default()).then(|| json(&OptionsRow::from(options)))
}

/// Options as [`write_options`] has written them; `None` for anything else.
pub(super) fn parse_options(text: Option<&str>) -> Option<Options> {
    let Some(text) = text else { return Some(Options::default()) };
    serde_json::from_str::<OptionsRow>(text).ok().map(Options::from)
}

/// The starts that a rate counts, as JSON `[[first, last, count], …]`; `None` for none.
pub(super) fn write_starts(starts: &Starts) -> Option<String> {
    let bursts: Vec<(i64, i64, u32)> = starts
        .bursts()
        .iter()
        .map(|burst| (burst.first.as_millis(), burst.last.as_millis(), burst.count))
        .collect();
    (!bursts.is_empty()).then(|| json(&bursts))
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
    #[serde(default, skip_serializing_if = "Headers::is_empty", with = "fields")]
    headers: Headers,
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
            headers: spec.headers.clone(),
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
            headers: row.headers,
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
    fn headers_survive() {
        let headers = Headers(vec![
            ("X-A".to_owned(), b"plain \"quoted\"".to_vec()),
            ("X-B".to_owned(), "J\u{f6}rg".into()),
            ("X-B".to_owned(), b"J\xf6rg \xc3\xb6 \x80\xff".to_vec()),
            ("X-C".to_owned(), Vec::new()),
        ]);
        let text = write_headers(&headers).unwrap();
        assert_eq!(parse_headers(Some(&text)).unwrap(), headers);
        assert_eq!(write_headers(&Headers::new()), None);
        assert_eq!(parse_headers(None).unwrap(), Headers::new());
    }

    #[test]
    fn stored_headers_are_read() {
        let read = |text| parse_headers(Some(text)).map(|headers| headers.0);
        let field = |value: &[u8]| Some(vec![("X-A".to_owned(), value.to_vec())]);
        assert_eq!(read(r#"[["X-A","J\u00f6rg"]]"#), field("J\u{f6}rg".as_bytes()));
        assert_eq!(read(r#"[["X-A","J\u00f6rg","latin1"]]"#), field(b"J\xf6rg"));
        for corrupt in [
            "",
            "{}",
            r#"[["X-A"]]"#,
            r#"[["X-A",1]]"#,
            r#"[["X-A","\u0100","latin1"]]"#,
            r#"[["X-A","1","utf16"]]"#,
            r#"[["X-A","1","latin1",1]]"#,
            r#"[["X-A","1"]] x"#,
        ] {
            assert_eq!(read(corrupt), None, "{corrupt}");
        }
    }

    #[test]
    fn options_survive() {
        let spec = CallbackSpec {
            url: "https://e.com/cb?x=1".into(),
            method: Method::Put,
            headers: Headers(vec![("X-A".into(), b"1 \xf6".to_vec())]),
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
        assert_eq!(parse_options(Some(&text)).unwrap(), options);
        assert_eq!(write_options(&Options::default()), None);
        assert!(parse_options(Some("{")).is_none());
    }
}
