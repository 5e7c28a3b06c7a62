//! `/v2/topics`: URL groups, by the name that the wire still has for them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use axum::response::Response;
use http::StatusCode;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, SeqAccess, Visitor};
use serde_json::json;

use super::answers::Each;
use super::batch::Fields;
use super::body::Upload;
use super::error::{ApiError, json_problem};
use super::routes::Call;
use super::{Api, headers, json, wire};
use crate::domain::destination::{Destination, DestinationError, parse_literal};
use crate::domain::excerpt::Excerpt;
use crate::domain::url_group::{Endpoint, EndpointKey, UrlGroup};
use crate::store::url_groups::Upserted;

/// What a body with endpoints looks like.
const ENDPOINTS: &str = r#"{"endpoints":[{"url":"https://example.com","name":"first"}]}"#;
/// And one with headers.
const HEADERS: &str = r#"{"headers":{"X-Name":"value","X-Other":["one","two"]}}"#;
/// Bytes of an endpoint's name, which is sent as a header.
const MAX_ENDPOINT_NAME: usize = 256;

/// Endpoints in one request; a group can't have more.
const MAX_ENDPOINTS: usize = 1000;

/// Groups that one request has asked for.
pub(super) type Groups = BTreeMap<String, UrlGroup>;

#[derive(Deserialize)]
struct EndpointsBody {
    #[serde(deserialize_with = "read_list")]
    endpoints: Vec<EndpointBody>,
}

#[derive(Deserialize)]
struct EndpointBody {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    url: Option<String>,
}

impl EndpointBody {
    fn name(&mut self) -> Option<String> {
        self.name.take().filter(|name| !name.is_empty())
    }
}

/// Reads a list of endpoints; one that is too long is refused before it is read to its end.
fn read_list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<EndpointBody>, D::Error> {
    struct List;
    impl<'de> Visitor<'de> for List {
        type Value = Vec<EndpointBody>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of endpoints")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut endpoints = Vec::new();
            while let Some(endpoint) = list.next_element()? {
                if endpoints.len() == MAX_ENDPOINTS {
                    return Err(A::Error::custom(format_args!("more than {MAX_ENDPOINTS} endpoints")));
                }
                endpoints.push(endpoint);
            }
            Ok(endpoints)
        }
    }
    deserializer.deserialize_seq(List)
}

/// A body that has the headers in a member, perhaps beside others.
#[derive(Deserialize)]
struct NamedHeaders<'a> {
    #[serde(borrow, default)]
    headers: Option<Fields<'a>>,
}

/// Reads headers that are the body, or a member of it.
fn read_headers(body: &[u8]) -> serde_json::Result<Fields<'_>> {
    match serde_json::from_slice(body)? {
        NamedHeaders { headers: Some(fields) } => Ok(fields),
        NamedHeaders { headers: None } => serde_json::from_slice(body),
    }
}

impl Api {
    pub(super) async fn list_url_groups(&self, _call: Call<'_>) -> Result<Response, ApiError> {
        let groups = self.engine.store().url_groups().await?;
        self.answers.list(StatusCode::OK, None, Each(groups, wire::url_group)).await
    }

    pub(super) async fn get_url_group(&self, call: Call<'_>) -> Result<Response, ApiError> {
        let name = &call.name;
        let group = self.engine.store().url_group(name).await?;
        let group = wire::url_group(&group.ok_or_else(|| unknown(name))?);
        self.answers.json(StatusCode::OK, &group).await
    }

    pub(super) async fn upsert_endpoints(&self, call: Call<'_>) -> Result<Response, ApiError> {
        let name = headers::read_name(&call.name)
            .map_err(|problem| ApiError::bad_request(format!("invalid URL group: {problem}")))?;
        let mut endpoints = Vec::new();
        for (index, mut given) in self.read_endpoints(call.upload).await?.into_iter().enumerate() {
            let of_endpoint = |error: ApiError| error.of(format_args!("endpoint {index}"));
            let name = given.name();
            if let Some(name) = &name {
                check_endpoint_name(name).map_err(of_endpoint)?;
            }
            let url = self.read_endpoint_url(&given.url.unwrap_or_default()).map_err(of_endpoint)?;
            endpoints.push(Endpoint { name, url });
        }
        let limits = self.settings.url_groups;
        let upserted =
            self.engine.store().upsert_endpoints(&name, &endpoints, limits, self.engine.now()).await?;
        match upserted {
            Upserted::Stored => json(StatusCode::OK, &json!({})),
            Upserted::TooManyGroups => {
                Err(ApiError::quota("maxUrlGroups", limits.groups.unwrap_or_default()))
            }
            Upserted::TooManyEndpoints => Err(ApiError::quota("maxEndpointsPerGroup", limits.endpoints)),
        }
    }

    /// A URL that messages may be sent to. Names are checked when they are connected to.
    fn read_endpoint_url(&self, text: &str) -> Result<String, ApiError> {
        let Destination::Url(url) = parse_literal(text)? else {
            return Err(DestinationError::InvalidScheme.into());
        };
        self.check_destination(&url)?;
        Ok(url)
    }

    pub(super) async fn remove_endpoints(&self, call: Call<'_>) -> Result<Response, ApiError> {
        let name = &call.name;
        let keys: Result<Vec<_>, _> = (self.read_endpoints(call.upload).await?.into_iter().enumerate())
            .map(|(index, mut given)| match (given.name(), given.url.filter(|url| !url.is_empty())) {
                (Some(name), _) => Ok(EndpointKey::Name(name)),
                (None, Some(url)) => Ok(EndpointKey::Url(match parse_literal(&url) {
                    Ok(Destination::Url(url)) => url,
                    _ => url,
                })),
                (None, None) => {
                    let error = ApiError::bad_request("a name or a url must be given");
                    Err(error.of(format_args!("endpoint {index}")))
                }
            })
            .collect();
        if !self.engine.store().remove_endpoints(name, &keys?, self.engine.now()).await? {
            return Err(unknown(name));
        }
        json(StatusCode::OK, &json!({}))
    }

    /// The endpoints in a body; at least one.
    async fn read_endpoints(&self, upload: &mut Upload) -> Result<Vec<EndpointBody>, ApiError> {
        let received = self.read_body(upload, self.settings.max_message, "the body").await?;
        let read: EndpointsBody = serde_json::from_slice(&received.body).map_err(|error| {
            let problem = json_problem(&error);
            ApiError::bad_request(format!("the body must be JSON like {ENDPOINTS}: {problem}"))
        })?;
        if read.endpoints.is_empty() {
            return Err(ApiError::bad_request("at least one endpoint must be given"));
        }
        Ok(read.endpoints)
    }

    pub(super) async fn set_url_group_headers(&self, call: Call<'_>) -> Result<Response, ApiError> {
        let name = &call.name;
        let received = self.read_body(call.upload, self.settings.max_message, "the body").await?;
        let Fields(fields) = read_headers(&received.body).map_err(|error| {
            ApiError::bad_request(format!("the body must be JSON like {HEADERS}: {error}"))
        })?;
        let fields = fields.iter().map(|(name, value)| (&**name, value.as_bytes()));
        let headers = headers::parse_plain(fields)?;
        if !self.engine.store().set_url_group_headers(name, &headers, self.engine.now()).await? {
            return Err(unknown(name));
        }
        json(StatusCode::OK, &json!({}))
    }

    pub(super) async fn delete_url_group(&self, call: Call<'_>) -> Result<Response, ApiError> {
        self.engine.store().delete_url_group(&call.name).await?;
        json(StatusCode::OK, &json!({}))
    }

    /// The group of that name, as it is now; a request that asks twice sees the same. In a task of its own, since a
    /// caller that hangs up must not stop a step of the database half-way.
    pub(super) async fn find_group<'g>(
        &self,
        name: String,
        groups: &'g mut Groups,
    ) -> Result<&'g UrlGroup, ApiError> {
        if !groups.contains_key(&name) {
            let (store, wanted) = (Arc::clone(self.engine.store()), name.clone());
            let group = tokio::spawn(async move { store.url_group(&wanted).await });
            let group = group.await.map_err(|error| ApiError::task_failed(&error))??;
            groups.insert(name.clone(), group.ok_or_else(|| unknown(&name))?);
        }
        Ok(&groups[&name])
    }
}

fn check_endpoint_name(name: &str) -> Result<(), ApiError> {
    if name.len() <= MAX_ENDPOINT_NAME && !name.contains(char::is_control) {
        return Ok(());
    }
    Err(ApiError::bad_request(format!(
        "invalid name {:?}: at most {MAX_ENDPOINT_NAME} bytes without control characters are allowed",
        Excerpt(name)
    )))
}

fn unknown(name: &str) -> ApiError {
    DestinationError::UnknownGroup(name.to_owned()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_stand_alone_or_in_a_member() {
        for (body, expected) in [
            (r#"{"headers":{"X":["1","2"]}}"#, Some(2)),
            (r#"{"name":["g",{"a":1}],"headers":{"X":"1"}}"#, Some(1)),
            (r#"{"X":["1","2"],"Y":"3"}"#, Some(3)),
            (r#"{"headers":{}}"#, Some(0)),
            ("{}", Some(0)),
            (r#"{"headers":"1"}"#, None),
            (r#"{"X":{"Y":"1"}}"#, None),
            ("[]", None),
            ("", None),
        ] {
            let read = read_headers(body.as_bytes()).map(|Fields(fields)| fields.len());
            assert_eq!(read.ok(), expected, "{body}");
        }
    }

    #[test]
    fn a_long_list_of_endpoints_is_refused_while_it_is_read() {
        let read = |body: &str| serde_json::from_str::<EndpointsBody>(body).map(|body| body.endpoints.len());
        let most = format!(r#"{{"endpoints":[{}]}}"#, vec!["{}"; MAX_ENDPOINTS].join(","));
        assert_eq!(read(&most).unwrap(), MAX_ENDPOINTS);
        // What comes behind the first one too many isn't even JSON.
        let error = read(&format!(r#"{{"endpoints":[{}"#, "{},".repeat(MAX_ENDPOINTS + 1))).unwrap_err();
        assert!(error.to_string().starts_with("more than 1000 endpoints"), "{error}");
    }
}
