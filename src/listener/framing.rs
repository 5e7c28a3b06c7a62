//! Refuses requests that proxies in front may read differently, where the HTTP library doesn't.
//!
//! A request with `Transfer-Encoding` and `Content-Length` is not seen here: the library takes the former and closes the
//! connection after the answer, as RFC 9112, 6.3 allows.

use http::header::{CONNECTION, HOST, TRANSFER_ENCODING};
use http::{HeaderValue, Request, Version};

use axum::response::Response;

use crate::api::error::ApiError;

/// The answer to a request that is refused.
pub(super) fn refuse<T>(request: &Request<T>) -> Option<Response> {
    let text = problem(request)?;
    let mut response = ApiError::bad_request(text).into_response();
    if request.version() <= Version::HTTP_11 {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Some(response)
}

/// What is wrong, if something is.
fn problem<T>(request: &Request<T>) -> Option<&'static str> {
    let headers = request.headers();
    let hosts = headers.get_all(HOST).iter().count();
    // RFC 9112, 3.2.
    if hosts > 1 {
        return Some("a request has one Host header");
    }
    if hosts == 0 && request.version() == Version::HTTP_11 {
        return Some("the request has no Host header");
    }
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    // RFC 9112, 6.1: no other coding is understood, and chunks aren't put in chunks.
    let plain = codings.next().is_none_or(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"));
    (!plain || codings.next().is_some()).then_some("the only Transfer-Encoding that is understood is chunked")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused() {
        #[track_caller]
        fn check(version: Version, headers: &[(&str, &str)], refused: bool) {
            let mut request = Request::builder().version(version);
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            assert_eq!(problem(&request.body(()).unwrap()).is_some(), refused, "{version:?} {headers:?}");
        }
        let host = ("Host", "x");
        check(Version::HTTP_11, &[host], false);
        check(Version::HTTP_11, &[("Host", "")], false);
        check(Version::HTTP_11, &[], true);
        check(Version::HTTP_11, &[host, host], true);
        check(Version::HTTP_10, &[], false);
        check(Version::HTTP_10, &[host, host], true);
        check(Version::HTTP_2, &[], false);
        check(Version::HTTP_2, &[host, host], true);
        check(Version::HTTP_11, &[host, ("Transfer-Encoding", "chunked")], false);
        check(Version::HTTP_11, &[host, ("Transfer-Encoding", "Chunked")], false);
        for coding in
            ["gzip, chunked", "identity, chunked", "chunked, chunked", "chunked;x=1", "xchunked", ""]
        {
            check(Version::HTTP_11, &[host, ("Transfer-Encoding", coding)], true);
        }
        let twice = [host, ("Transfer-Encoding", "gzip"), ("Transfer-Encoding", "chunked")];
        check(Version::HTTP_11, &twice, true);
    }
}
