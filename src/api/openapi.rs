//! `GET /openapi.json`: the API's description, for people and for tools that test or generate clients.
//!
//! It is written by hand in `openapi.json`. The tests here hold it to the route table in both directions; that answers
//! conform to it is tested from outside, by requests made from it.

use std::sync::LazyLock;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::HeaderValue;
use http::header::CONTENT_TYPE;

/// The document, with this version in the place of the file's.
static DOCUMENT: LazyLock<Bytes> = LazyLock::new(|| {
    let version = concat!(r#""version": ""#, env!("CARGO_PKG_VERSION"), '"');
    Bytes::from(include_str!("openapi.json").replacen(r#""version": "0.0.0""#, version, 1))
});

/// The answer. All of them are the same bytes in memory.
pub(super) fn document() -> Response {
    let mut response = Response::new(Body::from(DOCUMENT.clone()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use http::Method;
    use serde_json::Value;

    use super::*;
    use crate::api::routes::{self, Access, find};

    fn parsed() -> Value {
        serde_json::from_slice(&DOCUMENT).unwrap()
    }

    /// Method, path and operation of all that is documented.
    fn documented(document: &Value) -> Vec<(Method, &str, &Value)> {
        let paths = document["paths"].as_object().unwrap();
        let methods = paths.iter().flat_map(|(path, item)| {
            let operations = item.as_object().unwrap().iter();
            operations.map(|(method, operation)| (method.to_uppercase(), path.as_str(), operation))
        });
        methods.map(|(method, path, operation)| (method.parse().unwrap(), path, operation)).collect()
    }

    fn id(operation: &Value) -> &str {
        operation["operationId"].as_str().unwrap()
    }

    /// The path with the parameters' examples in it.
    fn example(document: &Value, path: &str, operation: &Value) -> String {
        let mut target = path.to_owned();
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            let parameter = match parameter["$ref"].as_str() {
                Some(pointer) => document.pointer(&pointer[1..]).unwrap(),
                None => parameter,
            };
            if parameter["in"] == "path" {
                let name = format!("{{{}}}", parameter["name"].as_str().unwrap());
                assert!(target.contains(&name), "{path} has no {name}");
                target = target.replace(&name, parameter["example"].as_str().unwrap());
            }
        }
        assert!(!target.contains('{'), "{target}: a parameter is not documented");
        target
    }

    #[test]
    fn the_document_and_the_routes_are_the_same_set() {
        let document = parsed();
        let documented = documented(&document);
        let in_document: BTreeSet<&str> = documented.iter().map(|(_, _, operation)| id(operation)).collect();
        assert_eq!(in_document.len(), documented.len(), "an operationId is there twice");
        let in_routes: BTreeSet<&str> = routes::ids().collect();
        let unrouted: Vec<_> = in_document.difference(&in_routes).collect();
        let undocumented: Vec<_> = in_routes.difference(&in_document).collect();
        assert!(
            unrouted.is_empty() && undocumented.is_empty(),
            "documented, but no route: {unrouted:?}; a route, but not documented: {undocumented:?}"
        );
    }

    #[test]
    fn every_documented_path_is_routed_to_its_operation() {
        let document = parsed();
        let mut wrong = Vec::new();
        for (method, path, operation) in documented(&document) {
            let target = example(&document, path, operation);
            match find(&method, &target).map(|found| found.handler) {
                Ok(handler) if handler.id == id(operation) => {
                    let public = operation["security"].as_array().is_some_and(Vec::is_empty);
                    assert_eq!(handler.access == Access::Public, public, "{method} {path}: security");
                    let writes = operation["responses"].get("403").is_some();
                    let may_write = matches!(handler.access, Access::Full | Access::Publish);
                    assert_eq!(may_write, writes, "{method} {path}: 403");
                }
                other => wrong.push(format!("{method} {target}: {:?}", other.map(|handler| handler.id))),
            }
        }
        assert!(wrong.is_empty(), "documented, but routed elsewhere:\n{}", wrong.join("\n"));
    }

    #[test]
    fn every_reference_points_at_something() {
        fn check(document: &Value, value: &Value) {
            if let Some(pointer) = value.get("$ref").and_then(Value::as_str) {
                assert!(document.pointer(&pointer[1..]).is_some(), "{pointer} points at nothing");
            }
            let inner: Vec<&Value> = match value {
                Value::Array(items) => items.iter().collect(),
                Value::Object(fields) => fields.values().collect(),
                _ => Vec::new(),
            };
            for value in inner {
                check(document, value);
            }
        }
        let document = parsed();
        check(&document, &document);
        assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    }
}
