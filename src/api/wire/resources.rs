//! The JSON of schedules, URL groups, queues and flow-control keys.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::{Body, CallbackHeaders, Caller, Delivery, HeaderMap, Labels, Shown};
use crate::domain::time::Timestamp;
use crate::domain::url_group::UrlGroup;
use crate::operations::schedules::ScheduleState;
use crate::store::gates::{FlowKey, Queue};
use crate::store::schedules::Progress;

/// A schedule.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ScheduleJson<'a> {
    schedule_id: &'a str,
    cron: &'a str,
    destination: &'a str,
    method: &'a str,
    created_at: i64,
    retries: u32,
    is_paused: bool,
    next_schedule_time: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    header: Option<HeaderMap<'a>>,
    #[serde(flatten)]
    body: Body<'a>,
    /// In seconds, as `timeout`.
    #[serde(skip_serializing_if = "Option::is_none")]
    delay: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    queue_name: Option<&'a str>,
    #[serde(flatten)]
    caller: Caller<'a>,
    #[serde(flatten)]
    labels: Labels<'a>,
    #[serde(flatten)]
    options: Delivery<'a>,
    #[serde(flatten)]
    callbacks: CallbackHeaders<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_schedule_time: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_schedule_states: Option<BTreeMap<&'a str, &'static str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

impl Shown for ScheduleState {
    fn shown(&self) -> impl Serialize {
        let Self { schedule, progress } = self;
        let template = &schedule.template;
        let last = schedule.last_firing.as_ref();
        let states = progress.iter().map(|(id, progress)| (id.as_str(), progress_name(*progress)));
        ScheduleJson {
            schedule_id: schedule.id.as_str(),
            cron: &schedule.cron,
            destination: &schedule.destination,
            method: template.method.as_str(),
            created_at: schedule.created_at.as_millis(),
            retries: template.max_retries,
            is_paused: schedule.paused,
            next_schedule_time: schedule.next_at.as_millis(),
            header: HeaderMap::redacted(&template.headers, &template.options.redact),
            body: Body::of(&template.body, &template.options.redact),
            delay: schedule.delay.map(whole_seconds),
            timeout: template.options.timeout.map(whole_seconds),
            queue_name: template.queue.as_deref(),
            caller: Caller::of(template.caller_ip.as_deref()),
            labels: Labels::of(&template.labels),
            options: Delivery::of(&template.options),
            callbacks: CallbackHeaders::of(&template.options),
            last_schedule_time: last.map(|firing| firing.occurrence.as_millis()),
            last_schedule_states: last.map(|_| states.collect()),
            error: last.and_then(|firing| firing.error.as_deref()),
        }
    }
}

/// The only words that there are for it: a client fails on any other.
const fn progress_name(progress: Progress) -> &'static str {
    match progress {
        Progress::Waiting => "IN_PROGRESS",
        Progress::Delivered => "SUCCESS",
        Progress::Failed => "FAIL",
    }
}

/// Seconds, a part of one counted as a whole.
fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

/// A URL group.
impl Shown for UrlGroup {
    fn shown(&self) -> impl Serialize {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Group<'a> {
            name: &'a str,
            created_at: i64,
            updated_at: i64,
            endpoints: Vec<EndpointJson<'a>>,
            #[serde(skip_serializing_if = "Option::is_none")]
            headers: Option<HeaderMap<'a>>,
        }
        #[derive(Serialize)]
        struct EndpointJson<'a> {
            #[serde(skip_serializing_if = "Option::is_none")]
            name: Option<&'a str>,
            url: &'a str,
        }
        let endpoints = self.endpoints.iter();
        let endpoint = endpoints.map(|one| EndpointJson { name: one.name.as_deref(), url: &one.url });
        Group {
            name: &self.name,
            created_at: self.created_at.as_millis(),
            updated_at: self.updated_at.as_millis(),
            endpoints: endpoint.collect(),
            headers: (!self.headers.is_empty()).then(|| HeaderMap::plain(&self.headers)),
        }
    }
}

/// A queue.
impl Shown for Queue {
    fn shown(&self) -> impl Serialize {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct QueueJson<'a> {
            name: &'a str,
            parallelism: u32,
            created_at: i64,
            updated_at: i64,
            paused: bool,
            lag: u64,
        }
        QueueJson {
            name: &self.name,
            parallelism: self.parallelism,
            created_at: self.created_at.as_millis(),
            updated_at: self.updated_at.as_millis(),
            paused: self.paused,
            lag: self.lag,
        }
    }
}

/// A flow-control key, as it is at that time.
impl Shown for (FlowKey, Timestamp) {
    fn shown(&self) -> impl Serialize {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct FlowKeyJson<'a> {
            flow_control_key: &'a str,
            wait_list_size: u64,
            parallelism_max: u32,
            parallelism_count: u64,
            rate_max: u32,
            rate_count: u32,
            rate_period: u32,
            /// In seconds.
            rate_period_start: i64,
            is_paused: bool,
            is_pinned_parallelism: bool,
            is_pinned_rate: bool,
        }
        let (key, now) = self;
        let rate = key.control.limits.rate;
        let window_start = rate.map(|rate| key.starts.window_start(rate, *now).unwrap_or(*now));
        FlowKeyJson {
            flow_control_key: &key.key,
            wait_list_size: key.waiting,
            parallelism_max: key.control.limits.parallelism.unwrap_or(0),
            parallelism_count: key.in_flight,
            rate_max: rate.map_or(0, |rate| rate.count),
            rate_count: rate.map_or(0, |rate| key.starts.count(rate, *now)),
            rate_period: rate.map_or(0, |rate| rate.period_s),
            rate_period_start: window_start.map_or(0, Timestamp::as_secs),
            is_paused: key.control.paused,
            is_pinned_parallelism: key.control.pinned_parallelism,
            is_pinned_rate: key.control.pinned_rate,
        }
    }
}
