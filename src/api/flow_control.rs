//! `/v2/flowControl` and `/v2/globalParallelism`.

use std::sync::Arc;

use axum::response::Response;
use http::StatusCode;
use serde_json::json;

use super::error::ApiError;
use super::headers::{read_count, read_period};
use super::query::Query;
use super::routes::Call;
use super::wire::Shown as _;
use super::{Api, LISTED, json};
use crate::domain::gate::{FlowChange, Limits, Rate};

impl Api {
    pub(super) async fn list_flow_keys(&self, call: Call<'_>) -> Result<Response, ApiError> {
        let query = Query::parse(call.query);
        query.only(&["search", "count", "cursor"])?;
        let (part, search) = (query.part()?, query.get("search").unwrap_or_default().to_owned());
        let operations = Arc::clone(&self.operations);
        let page = move |after: Option<String>, count| {
            let (operations, search) = (Arc::clone(&operations), search.clone());
            async move {
                let (page, now) = operations.flow_keys(&search, after.as_deref(), count).await?;
                let next = page.items.last().filter(|_| page.more).map(|key| key.key.clone());
                Ok((page.items.into_iter().map(|key| (key, now)).collect(), next))
            }
        };
        self.answers.array(part, LISTED, page).await
    }

    pub(super) async fn get_flow_key(&self, call: Call<'_>) -> Result<Response, ApiError> {
        let key = self.operations.flow_key(&call.name).await?;
        json(StatusCode::OK, &key.shown())
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
        self.operations.change_flow_key(key, change).await?;
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

    pub(super) fn get_parallelism(&self) -> Result<Response, ApiError> {
        let (running, most) = self.operations.parallelism();
        json(StatusCode::OK, &json!({ "parallelismMax": most, "parallelismCount": running }))
    }
}
