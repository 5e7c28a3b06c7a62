//! Where a message goes: the forms a destination is written in, and what of it goes onto the wire.
//!
//! A URL is kept exactly as it was published, since receivers compare the signature's `sub` with it literally. Nothing
//! here re-serialises one: parts are cut out of the text, and what cannot be sent as it stands is refused. Which
//! addresses may be connected to is not decided here.

use std::borrow::Cow;
use std::fmt;
use std::net::Ipv6Addr;

use percent_encoding::{percent_decode, percent_decode_str};

use super::id::is_name;

/// A destination as a publisher wrote it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Destination {
    /// An http or https URL that [`validate_url`] accepts, exactly as written.
    Url(String),
    /// The name of a URL group, which may or may not exist.
    Group(String),
    /// `llm`, for `api/llm`.
    Api(String),
}

/// As a batch item has it: what [`parse_literal`] reads.
impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(text) | Self::Group(text) => f.write_str(text),
            Self::Api(name) => write!(f, "api/{name}"),
        }
    }
}

/// A destination and the API's own query parameters, which were written together.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Parsed {
    /// Where to.
    pub destination: Destination,
    /// `qstash_token` and every `upstash-*`, in order: lower-case names, decoded values. Secret; not for logs.
    pub params: Vec<(String, Vec<u8>)>,
}

/// Why a destination was refused. The texts are part of the contract: users search for them.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DestinationError {
    /// Nothing was given.
    #[error("a non-empty destination must be provided")]
    Empty,
    /// Neither a URL nor something that could be a URL group's name.
    #[error("invalid destination url: endpoint has invalid scheme, add http:// or https://")]
    InvalidScheme,
    /// A URL that cannot be sent to; the text says why.
    #[error("invalid destination url: {0}")]
    InvalidUrl(String),
    /// `api/` and a word that we do not know.
    #[error("unknown destination api/{0}: only api/llm is supported")]
    UnknownApi(String),
    /// `api/` and a word that we know, for which nothing is configured.
    #[error("api/{0} is not available: no language model is configured")]
    UnavailableApi(String),
    /// No such URL group; for those who look them up. All other cases are malformed requests.
    #[error("topic {0} not found")]
    UnknownGroup(String),
}

/// Scheme, host and port: what connections are pooled by and fairness is kept between.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Origin {
    /// Whether the scheme is https.
    pub https: bool,
    /// A name or an address in lower case, an IPv6 address in its short form without brackets.
    pub host: String,
    /// The port, with the scheme's default filled in; never 0.
    pub port: u16,
}

/// `https://host:port`, the port always written.
impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.https { "https" } else { "http" };
        if self.host.contains(':') {
            write!(f, "{scheme}://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{scheme}://{}:{}", self.host, self.port)
        }
    }
}

/// What goes onto the wire for a URL.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RequestTarget {
    /// Where to connect.
    pub origin: Origin,
    /// The `Host` header: host and port as written, a default port kept, without user and password.
    pub authority: String,
    /// Path and query as written, at least `/`; the fragment is dropped.
    pub path_and_query: String,
    /// User and password, decoded, for Basic authentication. Secret; not for logs.
    pub userinfo: Option<(String, String)>,
}

/// Reads what follows `/v2/publish/` (or a queue's slash) in the raw, undecoded request target, query included.
///
/// A URL percent-encoded as one segment is decoded once; slashes that a proxy has merged are repaired.
pub fn parse(raw_rest: &str) -> Result<Parsed, DestinationError> {
    let whole = match decode_segment(raw_rest)? {
        Some(decoded) => Cow::Owned(decoded),
        None => Cow::Borrowed(raw_rest),
    };
    let (kept, params) = cut_params(&whole);
    let destination = if is_http(&kept) {
        read_url(&kept)?
    } else {
        let name = kept.split('?').next().unwrap_or_default();
        match api_name(name) {
            Some(api) => read_api(api)?,
            None => read_group(&percent_decode_str(name).decode_utf8_lossy())?,
        }
    };
    Ok(Parsed { destination, params })
}

/// Reads a batch item's destination: given literally, so that a name is not decoded and a query is all the URL's own.
pub fn parse_literal(text: &str) -> Result<Destination, DestinationError> {
    if let Some(decoded) = decode_segment(text)? {
        return read_url(&decoded);
    }
    if is_http(text) {
        return read_url(text);
    }
    match api_name(text) {
        Some(api) => read_api(api),
        None => read_group(text),
    }
}

/// Checks that a URL can be sent to, and says where that would connect.
///
/// The scheme is http or https; the host is not empty; there are no spaces, control or non-ASCII characters, which the
/// publisher has to percent-encode, since only they know in which form the receiver verifies the signature.
pub fn validate_url(url: &str) -> Result<Origin, DestinationError> {
    split(url).map(|parts| parts.origin)
}

/// Takes a URL apart for sending. Errs exactly where [`validate_url`] does.
pub fn request_target(url: &str) -> Result<RequestTarget, DestinationError> {
    let parts = split(url)?;
    let userinfo = parts.userinfo.filter(|text| !text.is_empty()).map(|text| {
        let (user, password) = text.split_once(':').unwrap_or((text, ""));
        let decode = |text| percent_decode_str(text).decode_utf8_lossy().into_owned();
        (decode(user), decode(password))
    });
    let rest = parts.rest.split('#').next().unwrap_or_default();
    let slash = if rest.starts_with('/') { "" } else { "/" };
    Ok(RequestTarget {
        origin: parts.origin,
        authority: parts.authority.to_owned(),
        path_and_query: format!("{slash}{rest}"),
        userinfo,
    })
}

/// Where a URL connects to, and its path as written, at least `/`, without the query. Errs exactly where
/// [`validate_url`] does.
pub fn origin_and_path(url: &str) -> Result<(Origin, &str), DestinationError> {
    let parts = split(url)?;
    let path = parts.rest.split(['?', '#']).next().unwrap_or_default();
    Ok((parts.origin, if path.is_empty() { "/" } else { path }))
}

/// Reads a host as [`Origin`] has it, and the port behind it, if any.
pub fn host_and_port(text: &str) -> Result<(String, Option<u16>), DestinationError> {
    let (host, port) = split_port(text)?;
    Ok((read_host(host)?, port.map(read_port).transpose()?))
}

/// A URL's parts, borrowed from its text.
struct Parts<'a> {
    origin: Origin,
    userinfo: Option<&'a str>,
    /// Host and port.
    authority: &'a str,
    /// Path, query and fragment.
    rest: &'a str,
}

fn split(url: &str) -> Result<Parts<'_>, DestinationError> {
    if let Some(c) = url.chars().find(|c| !c.is_ascii_graphic()) {
        let what = match c {
            ' ' => "a space",
            c if c.is_control() => "a control character",
            _ => "a non-ASCII character",
        };
        return Err(invalid(&format!("it contains {what}, which must be percent-encoded")));
    }
    let (scheme, after) = url.split_once("://").ok_or(DestinationError::InvalidScheme)?;
    let https = if scheme.eq_ignore_ascii_case("https") {
        true
    } else if scheme.eq_ignore_ascii_case("http") {
        false
    } else {
        return Err(DestinationError::InvalidScheme);
    };
    let (full_authority, rest) = after.split_at(after.find(['/', '?', '#']).unwrap_or(after.len()));
    let (userinfo, authority) = match full_authority.rsplit_once('@') {
        Some((userinfo, authority)) => (Some(userinfo), authority),
        None => (None, full_authority),
    };
    let (host, port) = split_port(authority)?;
    let port = match port {
        Some(text) => read_port(text)?,
        None if https => 443,
        None => 80,
    };
    let origin = Origin { https, host: read_host(host)?, port };
    // What hyper would refuse to send must not be accepted.
    if url.parse::<http::Uri>().is_err() {
        return Err(invalid("it contains a character that must be percent-encoded, or it is too long"));
    }
    Ok(Parts { origin, userinfo, authority, rest })
}

fn split_port(authority: &str) -> Result<(&str, Option<&str>), DestinationError> {
    // Colons inside brackets belong to an IPv6 address.
    let host_end = authority.rfind(']').map_or(0, |bracket| bracket + 1);
    match authority[host_end..].split_once(':') {
        Some((name, port)) => Ok((&authority[..host_end + name.len()], Some(port))),
        None if authority.is_empty() => Err(invalid("it has no host")),
        None => Ok((authority, None)),
    }
}

fn read_port(text: &str) -> Result<u16, DestinationError> {
    let digits_only = text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(port) if digits_only && port > 0 => Ok(port),
        _ => Err(invalid(&format!("invalid port {text:?}, it must be a number from 1 to 65535"))),
    }
}

fn read_host(text: &str) -> Result<String, DestinationError> {
    if text.is_empty() {
        return Err(invalid("it has no host"));
    }
    if let Some(address) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        let address: Ipv6Addr =
            address.parse().map_err(|_| invalid(&format!("invalid IPv6 address [{address}]")))?;
        return Ok(address.to_string());
    }
    if text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_')) {
        Ok(text.to_ascii_lowercase())
    } else {
        Err(invalid(&format!("invalid host {text:?}")))
    }
}

fn invalid(why: &str) -> DestinationError {
    DestinationError::InvalidUrl(why.to_owned())
}

/// Whether a raw destination is meant as a URL, and not as a name: it begins as one, perhaps percent-encoded.
pub fn is_url(raw: &str) -> bool {
    is_http(raw) || is_encoded_http(raw)
}

/// Whether a text starts `http:/` or `https:/`. The second slash may have been lost in a proxy.
fn is_http(text: &str) -> bool {
    starts_with_ignore_case(text, "http:/") || starts_with_ignore_case(text, "https:/")
}

fn is_encoded_http(text: &str) -> bool {
    starts_with_ignore_case(text, "http%3a") || starts_with_ignore_case(text, "https%3a")
}

fn starts_with_ignore_case(text: &str, prefix: &str) -> bool {
    text.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}

fn read_url(text: &str) -> Result<Destination, DestinationError> {
    let url = match text.split_once(":/") {
        Some((scheme, rest)) if !rest.starts_with('/') => format!("{scheme}://{rest}"),
        _ => text.to_owned(),
    };
    validate_url(&url)?;
    Ok(Destination::Url(url))
}

/// Decodes a URL that was percent-encoded as one segment, up to its first raw `?`; `None` when this is not one.
fn decode_segment(text: &str) -> Result<Option<String>, DestinationError> {
    if !is_encoded_http(text) {
        return Ok(None);
    }
    let (encoded, query) = match text.split_once('?') {
        Some((encoded, query)) => (encoded, Some(query)),
        None => (text, None),
    };
    let decoded = percent_decode_str(encoded).decode_utf8().map_err(|_| invalid("it is not UTF-8"))?;
    Ok(Some(match query {
        Some(query) => {
            let joint = if decoded.contains('?') { '&' } else { '?' };
            format!("{decoded}{joint}{query}")
        }
        None => decoded.into_owned(),
    }))
}

fn api_name(text: &str) -> Option<&str> {
    starts_with_ignore_case(text, "api/").then(|| &text["api/".len()..])
}

fn read_api(name: &str) -> Result<Destination, DestinationError> {
    match name {
        "llm" => Ok(Destination::Api(name.to_owned())),
        _ => Err(DestinationError::UnknownApi(name.to_owned())),
    }
}

fn read_group(name: &str) -> Result<Destination, DestinationError> {
    match name {
        "" => Err(DestinationError::Empty),
        name if is_name(name) => Ok(Destination::Group(name.to_owned())),
        _ => Err(DestinationError::InvalidScheme),
    }
}

/// Cuts the API's own parameters out of the query behind the first `?`, and leaves the rest as it is.
fn cut_params(text: &str) -> (Cow<'_, str>, Vec<(String, Vec<u8>)>) {
    let Some((path, query)) = text.split_once('?') else { return (Cow::Borrowed(text), Vec::new()) };
    let mut kept = String::with_capacity(text.len());
    kept.push_str(path);
    let mut joint = '?';
    let mut params = Vec::new();
    for param in query.split('&') {
        let (name, value) = param.split_once('=').unwrap_or((param, ""));
        // Decoded, so that an escape in its name does not carry a token to the destination.
        let name = String::from_utf8_lossy(&decode_param(name)).to_ascii_lowercase();
        if name == "qstash_token" || name.starts_with("upstash-") {
            params.push((name, decode_param(value)));
        } else {
            kept.push(joint);
            kept.push_str(param);
            joint = '&';
        }
    }
    if params.is_empty() { (Cow::Borrowed(text), params) } else { (Cow::Owned(kept), params) }
}

/// A query's name or value, decoded: bytes, as what is forwarded need not be UTF-8.
pub fn decode_param(text: &str) -> Vec<u8> {
    percent_decode(text.replace('+', " ").as_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(raw: &str, expected: &str, params: &[(&str, &str)]) {
        let parsed = parse(raw).unwrap();
        let destination = match parsed.destination {
            Destination::Url(url) => url,
            Destination::Group(name) => format!("group {name}"),
            Destination::Api(name) => format!("api {name}"),
        };
        assert_eq!(destination, expected);
        let got: Vec<_> =
            parsed.params.iter().map(|(name, value)| (name.as_str(), value.as_slice())).collect();
        let params: Vec<_> = params.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
        assert_eq!(got, params);
    }

    #[track_caller]
    fn check_error(raw: &str, expected: &str) {
        assert_eq!(parse(raw).unwrap_err().to_string(), expected);
    }

    const SCHEME: &str = "invalid destination url: endpoint has invalid scheme, add http:// or https://";

    #[test]
    fn urls_are_kept_as_written() {
        for url in [
            "http://example.com",
            "https://e.com/p?a=1&b=2",
            "https://e.com/a//b/../c?u=https://z.com/?a=1",
            "HTTPS://User:p%40w@E.com:443/x%2Fy",
            "https://e.com/?",
            "https://e.com/?a&&b=",
            "http://[2001:DB8::1]:8080/x",
            "https://e.com/{a}|b",
        ] {
            check(url, url, &[]);
            assert_eq!(parse_literal(url), Ok(Destination::Url(url.to_owned())));
        }
    }

    #[test]
    fn other_forms() {
        check("http%3A%2F%2Fe.com%2Fa%2520b", "http://e.com/a%20b", &[]);
        check("https%3a%2f%2Fe.com%2F?b=2", "https://e.com/?b=2", &[]);
        check(
            "https%3A%2F%2Fe.com%2F%3Fa=1?b=2&upstash-retries=1",
            "https://e.com/?a=1&b=2",
            &[("upstash-retries", "1")],
        );
        check("https:/e.com/x", "https://e.com/x", &[]);
        check("http:/e.com?u=http:/x", "http://e.com?u=http:/x", &[]);
        check("api/llm", "api llm", &[]);
        check(
            "api/llm?upstash-callback=https%3A%2F%2Fe.com",
            "api llm",
            &[("upstash-callback", "https://e.com")],
        );
        check("my-group", "group my-group", &[]);
        check("api", "group api", &[]);
        check("https", "group https", &[]);
        check("example.com?a=1", "group example.com", &[]);
        check("my%2Dgroup", "group my-group", &[]);
    }

    #[test]
    fn api_parameters_are_cut_out() {
        let token = ("qstash_token", "t+=");
        check("https://e.com/?qstash_token=t%2B%3D", "https://e.com/", &[token]);
        check("https://e.com/?qstash_token=t%2B%3D&a=%20+1", "https://e.com/?a=%20+1", &[token]);
        check("https://e.com/?a=1&qstash%5Ftoken=t%2B%3D", "https://e.com/?a=1", &[token]);
        check(
            "https://e.com/?a=1&Upstash-Delay=1+m&b=2&upstash-x",
            "https://e.com/?a=1&b=2",
            &[("upstash-delay", "1 m"), ("upstash-x", "")],
        );
        check(
            "https://e.com/?u=https://z.com/?upstash-x=1&b",
            "https://e.com/?u=https://z.com/?upstash-x=1&b",
            &[],
        );
        check("https%3A%2F%2Fe.com%3Fqstash_token%3Dt%2B%253D", "https://e.com", &[("qstash_token", "t =")]);
        assert_eq!(
            parse_literal("https://e.com/?upstash-delay=1"),
            Ok(Destination::Url("https://e.com/?upstash-delay=1".to_owned())),
        );
    }

    #[test]
    fn refused() {
        for empty in ["", "?", "?a=1", "?qstash_token=x"] {
            check_error(empty, "a non-empty destination must be provided");
        }
        for other in [
            "undefined/hook",
            "ftp://e.com",
            "e.com/hook",
            "v2/publish/https://e.com",
            "/https://e.com",
            "ftp%3A%2F%2Fe.com",
            "a%2Fb",
            "a%FFb",
            "https:",
            "mailto:x",
        ] {
            check_error(other, SCHEME);
        }
        check_error("api/email", "unknown destination api/email: only api/llm is supported");
        check_error("https:/", "invalid destination url: it has no host");
        check_error("https://", "invalid destination url: it has no host");
        check_error("https://:80/", "invalid destination url: it has no host");
        check_error("https://u@/", "invalid destination url: it has no host");
        check_error("https://?a", "invalid destination url: it has no host");
        for port in ["", "0", "65536", "+80", "x"] {
            check_error(
                &format!("http://e.com:{port}/"),
                &format!(
                    "invalid destination url: invalid port {port:?}, it must be a number from 1 to 65535"
                ),
            );
        }
        check_error("https://e%2Ecom/", "invalid destination url: invalid host \"e%2Ecom\"");
        check_error("https://[x", "invalid destination url: invalid host \"[x\"");
        check_error("https://[::g]/", "invalid destination url: invalid IPv6 address [::g]");
        check_error("https://[::1]x/", "invalid destination url: invalid host \"[::1]x\"");
        for (url, what) in [
            ("https%3A//e.com/a%20b", "a space"),
            ("https%3A//e.com/a%0Db", "a control character"),
            ("https://e.com/caf\u{e9}", "a non-ASCII character"),
        ] {
            check_error(
                url,
                &format!("invalid destination url: it contains {what}, which must be percent-encoded"),
            );
        }
        check_error(
            "https://e.com/a>b",
            "invalid destination url: it contains a character that must be percent-encoded, or it is too long",
        );
        check_error("https%3A%2F%2Fe.com%2F%FF", "invalid destination url: it is not UTF-8");
    }

    #[test]
    fn origins() {
        for (url, expected) in [
            ("https://E.com/x", "https://e.com:443"),
            ("http://u:p@e.com", "http://e.com:80"),
            ("HTTP://e.com:8080?x", "http://e.com:8080"),
            ("http://[0:0::1]", "http://[::1]:80"),
            ("http://[::1]:81/", "http://[::1]:81"),
        ] {
            assert_eq!(validate_url(url).unwrap().to_string(), expected);
        }
    }

    #[test]
    fn request_targets() {
        for (url, authority, path, userinfo) in [
            ("http://example.com", "example.com", "/", None),
            ("https://E.com:443/a/../b?x=1#f?g", "E.com:443", "/a/../b?x=1", None),
            ("https://e.com?x", "e.com", "/?x", None),
            ("https://e.com#x", "e.com", "/", None),
            ("https://u%40v:p%3Aw:z@[::1]:9/", "[::1]:9", "/", Some(("u@v", "p:w:z"))),
            ("https://u@e.com", "e.com", "/", Some(("u", ""))),
            ("https://@e.com", "e.com", "/", None),
        ] {
            let target = request_target(url).unwrap();
            assert_eq!((target.authority.as_str(), target.path_and_query.as_str()), (authority, path));
            let got = target.userinfo.as_ref().map(|(user, password)| (user.as_str(), password.as_str()));
            assert_eq!(got, userinfo);
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_accepts_only_sendable_urls(text in "(https?:/{1,2}|http%3A%2F%2F)?\\PC{0,40}") {
            if let Ok(Parsed { destination: Destination::Url(url), .. }) = parse(&text) {
                let target = request_target(&url).unwrap();
                prop_assert!(target.path_and_query.starts_with('/'));
                prop_assert!(target.path_and_query.parse::<http::uri::PathAndQuery>().is_ok());
                prop_assert!(http::HeaderValue::from_str(&target.authority).is_ok());
            }
        }

        #[test]
        fn a_url_without_api_parameters_is_unchanged(
            path in "(/[a-zA-Z0-9%._~-]{0,8}){0,4}",
            query in proptest::option::of("[a-z]{1,3}(=[a-z/:?%]{0,4})?(&[a-z]{0,3}){0,3}"),
        ) {
            let query = query.map_or(String::new(), |query| format!("?{query}"));
            let url = format!("https://e.com{path}{query}");
            prop_assert_eq!(parse(&url), Ok(Parsed { destination: Destination::Url(url), params: Vec::new() }));
        }
    }
}
