//! `/v2/flowControl` and `/v2/globalParallelism`.

use axum::response::Response;
use http::StatusCode;
use serde_json::{Value, json};

use super::answers::Each;
use super::error::ApiError;
use super::headers::{read_count, read_period};
use super::query::Query;
use super::routes::Call;
use super::{Api, json};
use crate::domain::excerpt::Excerpt;
use crate::domain::gate::{FlowChange, Limits, Rate};
use crate::domain::id::is_path_step;
use crate::domain::time::Timestamp;
use crate::store::gates::FlowKey;

impl Api {
    pub(super) async fn list_flow_keys(&self, call: Call<'_>) -> Result<Response, ApiError> {
        let query = Query::parse(call.query);
        query.only(&["search"])?;
        let now = self.engine.now();
        let keys = self.engine.store().flow_keys(query.get("search").unwrap_or_default(), now).await?;
        let keys = Each(keys, move |key: &FlowKey| shown(key, now));
        self.answers.list(StatusCode::OK, None, keys).await
    }

    pub(super) async fn get_flow_key(&self, call: Call<'_>) -> Result<Response, ApiError> {
        let key = &call.name;
        self.check_key(key)?;
        let now = self.engine.now();
        let found = self.engine.store().flow_key(key, now).await?.ok_or_else(|| unknown(key))?;
        json(StatusCode::OK, &shown(&found, now))
    }

    pub(super) async fn pause_flow_key(&self, call: Call<'_>) -> Result<Response, ApiError> {
        self.change_flow_key(&call.name, &FlowChange::Pause).await
    }

    pub(super) async fn resume_flow_key(&self, call: Call<'_>) -> Result<Response, ApiError> {
        self.change_flow_key(&call.name, &FlowChange::Resume).await
    }

    pub(super) async fn reset_flow_rate(&self, call: Call<'_>) -> Result<Response, ApiError> {
        self.change_flow_key(&call.name, &FlowChange::ResetRate).await
    }

    async fn change_flow_key(&self, key: &str, change: &FlowChange) -> Result<Response, ApiError> {
        self.check_key(key)?;
        // A key that has such a name from before can still be resumed, but none is made.
        if is_path_step(key) && matches!(change, FlowChange::Pause | FlowChange::Pin(_)) {
            return Err(ApiError::bad_request(format!(
                "the flow-control key {key:?} can't be used: clients and proxies resolve it as a step of a path"
            )));
        }
        if !self.engine.store().change_flow_key(key, change, self.engine.now()).await? {
            return Err(unknown(key));
        }
        // Queues may wait for it too.
        self.engine.gates_changed();
        json(StatusCode::OK, &json!({}))
    }

    pub(super) async fn pin_flow_key(&self, call: Call<'_>) -> Result<Response, ApiError> {
        let query = Query::parse(call.query);
        query.only(&["parallelism", "rate", "period"])?;
        let invalid = |name: &str| {
            let name = name.to_owned();
            move |problem: String| ApiError::bad_request(format!("invalid {name}: {problem}"))
        };
        let count = |name: &str| -> Result<Option<u32>, ApiError> {
            query.get(name).map(|text| read_count(name, text).map_err(invalid(name))).transpose()
        };
        let (parallelism, rate) = (count("parallelism")?, count("rate")?);
        let period_s = query
            .get("period")
            .map(|text| read_period(text, &self.settings.headers).map_err(invalid("period")))
            .transpose()?;
        if parallelism.is_none() && rate.is_none() {
            return Err(ApiError::bad_request("at least one of parallelism and rate must be given"));
        }
        if period_s.is_some() && rate.is_none() {
            return Err(ApiError::bad_request("invalid period: it belongs to a rate, which is not given"));
        }
        let rate = rate.map(|count| Rate { count, period_s: period_s.unwrap_or(1) });
        self.change_flow_key(&call.name, &FlowChange::Pin(Limits { parallelism, rate })).await
    }

    pub(super) async fn unpin_flow_key(&self, call: Call<'_>) -> Result<Response, ApiError> {
        let query = Query::parse(call.query);
        query.only(&["parallelism", "rate"])?;
        let (parallelism, rate) = (query.flag("parallelism")?, query.flag("rate")?);
        if parallelism.is_none() && rate.is_none() {
            return Err(ApiError::bad_request(
                "at least one of parallelism=true and rate=true must be given",
            ));
        }
        let named = |flag: Option<bool>| flag.unwrap_or(false);
        let change = FlowChange::Unpin { parallelism: named(parallelism), rate: named(rate) };
        self.change_flow_key(&call.name, &change).await
    }

    pub(super) async fn get_parallelism(&self, _call: Call<'_>) -> Result<Response, ApiError> {
        let (running, most) = self.engine.parallelism();
        json(StatusCode::OK, &json!({ "parallelismMax": most, "parallelismCount": running }))
    }

    fn check_key(&self, key: &str) -> Result<(), ApiError> {
        let max = self.settings.headers.max_flow_control_key;
        if key.is_empty() {
            Err(ApiError::bad_request("a flow-control key must be given"))
        } else if key.len() > max {
            Err(ApiError::bad_request(format!("the flow-control key is longer than {max} bytes")))
        } else if key.contains(|c: char| c.is_control() && c != '\t') {
            Err(ApiError::bad_request("the flow-control key contains a control character"))
        } else {
            Ok(())
        }
    }
}

fn shown(key: &FlowKey, now: Timestamp) -> Value {
    let limits = key.control.limits;
    let window_start = limits.rate.map(|rate| key.starts.window_start(rate, now).unwrap_or(now));
    json!({
        "flowControlKey": key.key,
        "waitListSize": key.waiting,
        "parallelismMax": limits.parallelism.unwrap_or(0),
        "parallelismCount": key.in_flight,
        "rateMax": limits.rate.map_or(0, |rate| rate.count),
        "rateCount": limits.rate.map_or(0, |rate| key.starts.count(rate, now)),
        "ratePeriod": limits.rate.map_or(0, |rate| rate.period_s),
        "ratePeriodStart": window_start.map_or(0, Timestamp::as_secs),
        "isPaused": key.control.paused,
        "isPinnedParallelism": key.control.pinned_parallelism,
        "isPinnedRate": key.control.pinned_rate,
    })
}

fn unknown(key: &str) -> ApiError {
    ApiError::not_found(format!("flow-control key {} not found", Excerpt(key)))
}
