//! The parameters that say which messages, which bulk cancelling, the dead letters and the log have in common.

use super::error::ApiError;
use super::query::Query;
use crate::domain::filter::{Host, MessageFilter};

/// What the dead letters know as well.
pub(super) const COMMON: [&str; 10] = [
    "url",
    "topicName",
    "queueName",
    "label",
    "flowControlKey",
    "scheduleId",
    "callerIp",
    "callerIP",
    "fromDate",
    "toDate",
];
/// What they don't.
pub(super) const PARTS: [&str; 2] = ["host", "path"];

/// Reads them; the dates mean something else to each list.
pub(super) fn read(query: &Query) -> Result<MessageFilter, ApiError> {
    let list = |names: &[&str]| Ok::<_, ApiError>(owned(&query.filter(names)?));
    let texts = |name: &str| {
        query.filter(&[name])?;
        Ok::<_, ApiError>(query.texts(name))
    };
    let host = |text: &str| {
        Host::parse(text).ok_or_else(|| {
            ApiError::bad_request(format!("invalid host `{text}`: a host, or host:port, is allowed"))
        })
    };
    Ok(MessageFilter {
        urls: texts("url")?,
        hosts: query.filter(&["host"])?.into_iter().map(host).collect::<Result<_, _>>()?,
        paths: texts("path")?,
        labels: list(&["label"])?,
        url_groups: list(&["topicName"])?,
        queues: list(&["queueName"])?,
        schedule_ids: list(&["scheduleId"])?,
        flow_keys: texts("flowControlKey")?,
        caller_ips: list(&["callerIp", "callerIP"])?,
    })
}

fn owned(values: &[&str]) -> Vec<String> {
    values.iter().map(|value| (*value).to_owned()).collect()
}

/// Refuses parameters that are there without a value: what is to be cancelled, deleted or retried must not become "all"
/// because a variable was empty.
pub(super) fn refuse_empty(query: &Query, names: &[&str]) -> Result<(), ApiError> {
    match names.iter().find(|name| query.has(name) && query.list(name).is_empty()) {
        Some(name) => {
            Err(ApiError::bad_request(format!("{name} is empty: leave it out, or give it a value")))
        }
        None => Ok(()),
    }
}
