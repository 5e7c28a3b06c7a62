//! `/v2/topics`: URL groups, by the name that the wire still has for them.

use std::fmt;
use std::sync::Arc;

use axum::response::Response;
use http::StatusCode;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, SeqAccess, Visitor};
use serde_json::json;

use super::batch::Fields;
use super::body::Upload;
use super::error::{ApiError, json_problem};
use super::query::Query;
use super::routes::Call;
use super::wire::Shown as _;
use super::{Api, LISTED, PIECE_BYTES, headers, json};
use crate::domain::destination::{Destination, DestinationError, parse_literal};
use crate::domain::id::Name;
use crate::domain::url_group::{Endpoint, EndpointKey};

/// A body with endpoints, for error texts.
const ENDPOINTS: &str = r#"{"endpoints":[{"url":"https://example.com","name":"first"}]}"#;
/// A body with headers, for error texts.
const HEADERS: &str = r#"{"headers":{"X-Name":"value","X-Other":["one","two"]}}"#;
/// Endpoints in one request; a group can't have more.
const MAX_ENDPOINTS: usize = 1000;

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
    pub(super) async fn list_url_groups(&self, call: Call<'_>) -> Result<Response, ApiError> {
        let part = Query::parse(call.query).part()?;
        let operations = Arc::clone(&self.operations);
        let page = move |after: Option<String>, count| {
            let operations = Arc::clone(&operations);
            async move {
                let page = operations.url_groups(after.as_deref(), count, PIECE_BYTES).await?;
                let next = page.items.last().filter(|_| page.more).map(|group| group.name.clone());
                Ok((page.items, next))
            }
        };
        self.answers.array(part, LISTED, page).await
    }

    pub(super) async fn get_url_group(&self, call: Call<'_>) -> Result<Response, ApiError> {
        let group = self.operations.url_group(&call.name).await?;
        self.answers.json(StatusCode::OK, &group.shown()).await
    }

    pub(super) async fn upsert_endpoints(&self, call: Call<'_>) -> Result<Response, ApiError> {
        let name = Name::read(&call.name)
            .map_err(|problem| ApiError::bad_request(format!("invalid URL group: {problem}")))?;
        let given = self.read_endpoints(call.upload).await?.into_iter().enumerate();
        let endpoint = |(index, mut given): (usize, EndpointBody)| {
            match parse_literal(given.url.as_deref().unwrap_or_default()) {
                Ok(Destination::Url(url)) => Ok(Endpoint { name: given.name(), url }),
                Ok(_) => Err(DestinationError::InvalidScheme),
                Err(error) => Err(error),
            }
            .map_err(|error| ApiError::from(error).of(format_args!("endpoint {index}")))
        };
        let endpoints: Vec<Endpoint> = given.map(endpoint).collect::<Result<_, _>>()?;
        self.operations.upsert_endpoints(&name, &endpoints).await?;
        json(StatusCode::OK, &json!({}))
    }

    pub(super) async fn remove_endpoints(&self, call: Call<'_>) -> Result<Response, ApiError> {
        let given = self.read_endpoints(call.upload).await?.into_iter().enumerate();
        let key = |(index, mut given): (usize, EndpointBody)| match (
            given.name(),
            given.url.filter(|url| !url.is_empty()),
        ) {
            (Some(name), _) => Ok(EndpointKey::Name(name)),
            (None, Some(url)) => Ok(EndpointKey::Url(match parse_literal(&url) {
                Ok(Destination::Url(url)) => url,
                _ => url,
            })),
            (None, None) => {
                let error = ApiError::bad_request("a name or a url must be given");
                Err(error.of(format_args!("endpoint {index}")))
            }
        };
        let keys: Vec<EndpointKey> = given.map(key).collect::<Result<_, _>>()?;
        self.operations.remove_endpoints(&call.name, &keys).await?;
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
        let received = self.read_body(call.upload, self.settings.max_message, "the body").await?;
        let Fields(fields) = read_headers(&received.body).map_err(|error| {
            ApiError::bad_request(format!("the body must be JSON like {HEADERS}: {error}"))
        })?;
        let fields = fields.iter().map(|(name, value)| (&**name, value.as_bytes()));
        let headers = headers::parse_plain(fields)?;
        self.operations.set_url_group_headers(&call.name, &headers).await?;
        json(StatusCode::OK, &json!({}))
    }

    pub(super) async fn delete_url_group(&self, call: Call<'_>) -> Result<Response, ApiError> {
        self.operations.delete_url_group(&call.name).await?;
        json(StatusCode::OK, &json!({}))
    }
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
