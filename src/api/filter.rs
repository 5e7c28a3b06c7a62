//! The parameters that say which messages, which bulk cancelling, the dead letters and the log have in common.

use std::collections::BTreeSet;

use super::error::ApiError;
use super::query::Query;
use crate::domain::destination::{path_spellings, spellings};
use crate::domain::excerpt::Excerpt;
use crate::domain::filter::{Host, MessageFilter};

/// Parameters that lists of messages, dead letters and the log have in common.
pub(super) const COMMON: [&str; 11] = [
    "url",
    "topicName",
    "urlGroup",
    "queueName",
    "label",
    "flowControlKey",
    "scheduleId",
    "callerIp",
    "callerIP",
    "fromDate",
    "toDate",
];
/// Parameters on parts of the URL, which lists of dead letters don't have.
pub(super) const PARTS: [&str; 2] = ["host", "path"];

/// Reads them; the dates mean something else to each list.
pub(super) fn read(query: &Query) -> Result<MessageFilter, ApiError> {
    let list = |names: &[&str]| Ok::<_, ApiError>(owned(&query.filter(names)?));
    let texts = |name: &str| {
        query.filter(&[name])?;
        Ok::<_, ApiError>(query.texts(name))
    };
    Ok(MessageFilter {
        urls: texts("url")?.iter().flat_map(|url| spellings(url)).collect(),
        hosts: hosts(query)?,
        paths: paths(query)?,
        labels: list(&["label"])?,
        url_groups: url_groups(query)?,
        queues: list(&["queueName"])?,
        schedule_ids: list(&["scheduleId"])?,
        flow_keys: texts("flowControlKey")?,
        caller_ips: list(&["callerIp", "callerIP"])?,
    })
}

/// Reads the hosts of URLs.
pub(super) fn hosts(query: &Query) -> Result<Vec<Host>, ApiError> {
    let host = |text: &str| {
        Host::parse(text).ok_or_else(|| {
            let text = Excerpt(text);
            ApiError::bad_request(format!("invalid host `{text}`: a host, or host:port, is allowed"))
        })
    };
    query.filter(&["host"])?.into_iter().map(host).collect()
}

/// Reads the paths of URLs.
pub(super) fn paths(query: &Query) -> Result<Vec<String>, ApiError> {
    query.filter(&["path"])?;
    Ok(query.texts("path").iter().flat_map(|path| path_spellings(path)).collect())
}

fn owned(values: &[&str]) -> Vec<String> {
    values.iter().map(|value| (*value).to_owned()).collect()
}

/// The URL groups, under either of their names; old clients send both with one value.
fn url_groups(query: &Query) -> Result<Vec<String>, ApiError> {
    let list = |name: &str| query.filter(&[name]).map(|values| owned(&values).into_iter().collect());
    let (topics, groups): (BTreeSet<String>, BTreeSet<String>) = (list("topicName")?, list("urlGroup")?);
    if !topics.is_empty() && !groups.is_empty() && topics != groups {
        let text = "topicName and urlGroup are one filter, and their values differ: give one of them";
        return Err(ApiError::bad_request(text));
    }
    Ok((if topics.is_empty() { groups } else { topics }).into_iter().collect())
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
