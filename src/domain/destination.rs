//! Where a message goes: the forms a destination is written in, and what of it goes onto the wire.
//!
//! A URL is kept as it was published, since receivers compare the signature's `sub` with it literally. Nothing here
//! re-serialises one: parts are cut out of the text, and only characters that a request line can't carry are
//! percent-encoded. A host keeps its letters beyond ASCII; DNS, TLS, `Host` and the address policy get its `xn--` form.
//! Which addresses may be connected to is not decided here.

use std::borrow::Cow;
use std::fmt;
use std::net::Ipv6Addr;
use std::sync::Arc;

use idna::uts46::{AsciiDenyList, DnsLength, Hyphens, Uts46, verify_dns_length};
use percent_encoding::{AsciiSet, percent_decode, percent_decode_str, utf8_percent_encode};

use super::excerpt::Excerpt;
use super::id::is_name;

/// The longest URL that the library for URIs (`http`) reads, in bytes.
const MAX_URL: usize = u16::MAX as usize - 1;

/// Characters of a path that the library for URIs (`http`) refuses. It lets some pass that RFC 3986 doesn't know, such as `{`
/// and `|`, and those go out as they came.
const PATH: &AsciiSet = &AsciiSet::EMPTY.add(b' ').add(b'<').add(b'>').add(b'`');
/// Characters of a query that the library for URIs (`http`) refuses.
const QUERY: &AsciiSet = &AsciiSet::EMPTY.add(b' ').add(b'"').add(b'<').add(b'>');

/// A destination as a publisher wrote it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Destination {
    /// An http or https URL as [`read_url`] makes it.
    Url(String),
    /// The name of a URL group, which may or may not exist.
    Group(String),
    /// `llm`, for `api/llm`.
    Api(String),
}

impl Destination {
    /// The URL group that it names, if it does.
    pub fn group(&self) -> Option<&str> {
        match self {
            Self::Group(name) => Some(name),
            Self::Url(_) | Self::Api(_) => None,
        }
    }
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
    #[error("unknown destination api/{}: only api/llm is supported", Excerpt(.0))]
    UnknownApi(String),
    /// `api/` and a word that we know, for which nothing is configured.
    #[error("api/{0} is not available: no language model is configured")]
    UnavailableApi(String),
    /// No such URL group; for those who look them up. All other cases are malformed requests.
    #[error("topic {} not found", Excerpt(.0))]
    UnknownGroup(String),
}

/// Scheme, host and port: what connections are pooled by and fairness is kept between.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Origin {
    /// Whether the scheme is https.
    pub https: bool,
    /// A name or an address in lower case, a name beyond ASCII in its `xn--` form, an IPv6 address in its short form
    /// without brackets.
    pub host: String,
    /// The port, with the scheme's default filled in; never 0.
    pub port: u16,
}

impl Origin {
    /// The name of the lane in which deliveries to this origin share a node's slots.
    pub fn lane(&self) -> Arc<str> {
        Arc::from(self.to_string())
    }
}

/// The lane of a URL: that of its origin. A message to a URL that can't be read fails at its attempt, with the reason; its
/// lane only has to be one.
pub fn lane(url: &str) -> Arc<str> {
    validate_url(url).map_or_else(|_| Arc::from("invalid"), |origin| origin.lane())
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
    /// The `Host` header: host and port as written, a default port kept, without user and password; a name beyond ASCII
    /// in its `xn--` form.
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
        Destination::Url(read_url(&kept)?)
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
/// Blanks around it don't count, as in the URL Standard.
pub fn parse_literal(text: &str) -> Result<Destination, DestinationError> {
    let text = text.trim_matches(' ');
    if let Some(decoded) = decode_segment(text)? {
        return read_url(&decoded).map(Destination::Url);
    }
    if is_http(text) {
        return read_url(text).map(Destination::Url);
    }
    match api_name(text) {
        Some(api) => read_api(api),
        None => read_group(text),
    }
}

/// Reads a URL in the form in which it is stored, signed and shown: slashes that a proxy has merged are repaired, and
/// what a request line can't carry is percent-encoded, the host excepted. All else stays as written.
///
/// The scheme is http or https, the host is not empty, and there are no control characters.
pub fn read_url(text: &str) -> Result<String, DestinationError> {
    if text.contains(char::is_control) {
        return Err(invalid("it contains a control character, which must be percent-encoded"));
    }
    let text = text.trim_matches(' ');
    let repaired = match text.split_once(":/") {
        Some((scheme, rest)) if !rest.starts_with('/') => Cow::Owned(format!("{scheme}://{rest}")),
        _ => Cow::Borrowed(text),
    };
    let url = match cut(&repaired) {
        Some(cut) => cut.encoded(),
        None => repaired.into_owned(),
    };
    validate_url(&url)?;
    Ok(url)
}

/// The forms in which a URL may be stored that a filter names: as written, as [`read_url`] makes it, and with the host's
/// letters beyond ASCII percent-encoded, as an HTTP client puts them into a path, or not.
pub fn spellings(url: &str) -> Vec<String> {
    let mut forms = vec![url.to_owned()];
    let Some(cut) = cut(url) else { return forms };
    let escaped = utf8_percent_encode(cut.host, PATH).to_string();
    let plain = percent_decode_str(cut.host).decode_utf8().unwrap_or(Cow::Borrowed(cut.host));
    for host in [cut.host, &escaped, &plain] {
        let form = Cut { host, ..cut }.encoded();
        if !forms.contains(&form) {
            forms.push(form);
        }
    }
    forms
}

/// The forms in which the path of a URL may be stored that a filter names: as written, and as [`read_url`] makes it.
pub fn path_spellings(path: &str) -> Vec<String> {
    let encoded = utf8_percent_encode(path, PATH).to_string();
    if encoded == path { vec![encoded] } else { vec![path.to_owned(), encoded] }
}

/// Checks that a URL can be sent to as it stands, and says where that would connect. What [`read_url`] returns can.
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
        authority: parts.authority.into_owned(),
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
    let (host, port) = split_port(text);
    Ok((read_host(host)?, port.strip_prefix(':').map(read_port).transpose()?))
}

/// A URL's text, cut where its parts begin and end, whatever is in them.
#[derive(Clone, Copy)]
struct Cut<'a> {
    scheme: &'a str,
    userinfo: Option<&'a str>,
    host: &'a str,
    /// With its colon, if there is one.
    port: &'a str,
    /// Path, query and fragment.
    rest: &'a str,
}

impl Cut<'_> {
    /// The text again, with what a request line can't carry percent-encoded. Escapes that are there stay what they are.
    fn encoded(&self) -> String {
        let Self { scheme, userinfo, host, port, rest } = self;
        let (path, query) = rest.split_at(rest.find(['?', '#']).unwrap_or(rest.len()));
        let (path, query) = (utf8_percent_encode(path, PATH), utf8_percent_encode(query, QUERY));
        match userinfo {
            Some(userinfo) => {
                let userinfo = utf8_percent_encode(userinfo, QUERY);
                format!("{scheme}://{userinfo}@{host}{port}{path}{query}")
            }
            None => format!("{scheme}://{host}{port}{path}{query}"),
        }
    }
}

/// Cuts a text that has a scheme.
fn cut(url: &str) -> Option<Cut<'_>> {
    let (scheme, after) = url.split_once("://")?;
    let (authority, rest) = after.split_at(after.find(['/', '?', '#']).unwrap_or(after.len()));
    let (userinfo, authority) = match authority.rsplit_once('@') {
        Some((userinfo, authority)) => (Some(userinfo), authority),
        None => (None, authority),
    };
    let (host, port) = split_port(authority);
    Some(Cut { scheme, userinfo, host, port, rest })
}

/// A URL's parts, checked.
struct Parts<'a> {
    origin: Origin,
    userinfo: Option<&'a str>,
    /// Host and port, in ASCII.
    authority: Cow<'a, str>,
    /// Path, query and fragment.
    rest: &'a str,
}

fn split(url: &str) -> Result<Parts<'_>, DestinationError> {
    let Some(Cut { scheme, userinfo, host, port, rest }) = cut(url) else {
        return Err(DestinationError::InvalidScheme);
    };
    let https = if scheme.eq_ignore_ascii_case("https") {
        true
    } else if scheme.eq_ignore_ascii_case("http") {
        false
    } else {
        return Err(DestinationError::InvalidScheme);
    };
    let name = read_host(host)?;
    let number = match port.strip_prefix(':') {
        Some(text) => read_port(text)?,
        None if https => 443,
        None => 80,
    };
    if let Some(c) = userinfo.unwrap_or_default().chars().chain(rest.chars()).find(|c| !c.is_ascii_graphic())
    {
        let what = match c {
            ' ' => "a space",
            c if c.is_control() => "a control character",
            _ => "a non-ASCII character",
        };
        return Err(invalid(&format!("it contains {what}, which must be percent-encoded")));
    }
    if url.len() > MAX_URL {
        return Err(invalid(&format!("it is longer than {MAX_URL} bytes")));
    }
    // What can't be sent must not be accepted.
    if !rest.is_empty() && rest.parse::<http::uri::PathAndQuery>().is_err() {
        return Err(invalid("it contains a character that must be percent-encoded"));
    }
    let authority = if is_plain(host) || host.starts_with('[') {
        Cow::Borrowed(&url[url.len() - rest.len() - port.len() - host.len()..url.len() - rest.len()])
    } else {
        Cow::Owned(format!("{name}{port}"))
    };
    Ok(Parts { origin: Origin { https, host: name, port: number }, userinfo, authority, rest })
}

/// Host, and port with its colon.
fn split_port(authority: &str) -> (&str, &str) {
    // Colons inside brackets belong to an IPv6 address.
    let host_end = authority.rfind(']').map_or(0, |bracket| bracket + 1);
    let colon = authority[host_end..].find(':').map_or(authority.len(), |at| host_end + at);
    authority.split_at(colon)
}

fn read_port(text: &str) -> Result<u16, DestinationError> {
    let digits_only = text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(port) if digits_only && port > 0 => Ok(port),
        _ => {
            let text = Excerpt(text);
            Err(invalid(&format!("invalid port {text:?}, it must be a number from 1 to 65535")))
        }
    }
}

/// Reads a host as [`Origin`] has it.
fn read_host(text: &str) -> Result<String, DestinationError> {
    if text.is_empty() {
        return Err(invalid("it has no host"));
    }
    if let Some(address) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        let address: Ipv6Addr =
            address.parse().map_err(|_| invalid(&format!("invalid IPv6 address [{}]", Excerpt(address))))?;
        return Ok(address.to_string());
    }
    if is_plain(text) {
        return Ok(text.to_ascii_lowercase());
    }
    host_to_ascii(text).map_err(|why| invalid(&format!("invalid host {:?}{why}", Excerpt(text))))
}

/// Whether a host needs no conversion: it has only characters of host names.
fn is_plain(host: &str) -> bool {
    host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'))
}

/// The `xn--` form of a host with letters beyond ASCII, raw or percent-encoded: the URL Standard's "domain to ASCII",
/// which is UTS 46 without transitional processing. What comes of it may be an IPv4 address. The error completes
/// "invalid host …".
pub fn host_to_ascii(text: &str) -> Result<String, &'static str> {
    // An escaped ASCII character has no purpose but to hide what the host is.
    if text.split('%').skip(1).any(|escape| escape.starts_with(|c: char| c < '8')) {
        return Err(": only letters beyond ASCII can be percent-encoded there");
    }
    let Ok(decoded) = percent_decode_str(text).decode_utf8() else {
        return Err(": its escapes are not UTF-8");
    };
    if decoded.is_ascii() {
        return Err("");
    }
    let name = Uts46::new()
        .to_ascii(decoded.as_bytes(), AsciiDenyList::URL, Hyphens::Allow, DnsLength::Ignore)
        .map_err(|_| ": not a domain name by UTS 46, by its characters or their order")?;
    if !verify_dns_length(&name, true) {
        return Err(": a label is empty or has more than 63 bytes as xn--, or the name has more than 253");
    }
    if is_plain(&name) { Ok(name.into_owned()) } else { Err(": it has characters that no host name has") }
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
        check_error("https://[x", "invalid destination url: invalid host \"[x\"");
        check_error("https://[::g]/", "invalid destination url: invalid IPv6 address [::g]");
        check_error("https://[::1]x/", "invalid destination url: invalid host \"[::1]x\"");
        for url in
            ["https%3A//e.com/a%0Db", "https%3A//e.com/a%7F", "https://e.com/\u{85}", "https://e.com/\tx"]
        {
            let text = "it contains a control character, which must be percent-encoded";
            check_error(url, &format!("invalid destination url: {text}"));
        }
        check_error(
            &format!("https://e.com/{}", "\u{fc}".repeat(12_000)),
            "invalid destination url: it is longer than 65534 bytes",
        );
        check_error(
            &format!("https://{}/", "a!".repeat(1000)),
            &format!("invalid destination url: invalid host \"{}\"\u{2026}", "a!".repeat(100)),
        );
        check_error("https%3A%2F%2Fe.com%2F%FF", "invalid destination url: it is not UTF-8");
    }

    #[test]
    fn what_a_request_line_cannot_carry_is_encoded() {
        for (url, expected) in [
            (
                "https://e.com/gr\u{fc}\u{df}e?x=\u{fc} y#\u{fc}",
                "https://e.com/gr%C3%BC%C3%9Fe?x=%C3%BC%20y#%C3%BC",
            ),
            ("https://e.com/a b", "https://e.com/a%20b"),
            ("https://e.com/%C3%BC/%c3%bc/\u{fc}", "https://e.com/%C3%BC/%c3%bc/%C3%BC"),
            ("https://e.com/\u{1f980}", "https://e.com/%F0%9F%A6%80"),
            ("https://e.com/a<b>`c`?<d>\"", "https://e.com/a%3Cb%3E%60c%60?%3Cd%3E%22"),
            // What is not in RFC 3986 but passes goes out as it came.
            ("https://e.com/\"{a}|b\\^?`{c}|", "https://e.com/\"{a}|b\\^?`{c}|"),
            ("https://e.com/%zz%", "https://e.com/%zz%"),
            ("https://j\u{f6}rg:p \u{e4}@e.com/", "https://j%C3%B6rg:p%20%C3%A4@e.com/"),
            ("https://e.com?\u{fc}", "https://e.com?%C3%BC"),
            // The host stays, and what is decided by it with it.
            ("https://M\u{fc}nchen.de/\u{fc}", "https://M\u{fc}nchen.de/%C3%BC"),
        ] {
            assert_eq!(read_url(url).as_deref(), Ok(expected), "{url}");
            assert_eq!(read_url(expected).as_deref(), Ok(expected), "a second time changes nothing");
            check(url, expected, &[]);
            assert_eq!(parse_literal(url), Ok(Destination::Url(expected.to_owned())));
            let encoded = utf8_percent_encode(url, percent_encoding::NON_ALPHANUMERIC).to_string();
            check(&encoded, expected, &[]);
        }
        assert_eq!(parse_literal("  https://e.com/ "), Ok(Destination::Url("https://e.com/".to_owned())));
        check(
            "https%3A%2F%2Fe.com%2F%C3%BC?\u{fc}&upstash-delay=1",
            "https://e.com/%C3%BC?%C3%BC",
            &[("upstash-delay", "1")],
        );
    }

    #[track_caller]
    fn check_host(host: &str, expected: &str) {
        let url = format!("http://u:p@{host}:81/x");
        check(&url, &url, &[]);
        let target = request_target(&url).unwrap();
        assert_eq!((target.origin.host.as_str(), target.authority), (expected, format!("{expected}:81")));
        assert_eq!(host_and_port(host), Ok((expected.to_owned(), None)));
    }

    #[test]
    fn hosts_beyond_ascii() {
        check_host("l\u{fc}calhost.test", "xn--lcalhost-65a.test");
        check_host("l%C3%BCcalhost.test", "xn--lcalhost-65a.test");
        check_host("l%c3%bcCALHOST.test", "xn--lcalhost-65a.test");
        check_host("M\u{dc}NCHEN.de", "xn--mnchen-3ya.de");
        check_host("mu\u{308}nchen.de", "xn--mnchen-3ya.de");
        check_host("stra\u{df}e.de", "xn--strae-oqa.de");
        check_host("\u{4f8b}\u{3048}.\u{30c6}\u{30b9}\u{30c8}", "xn--r8jz45g.xn--zckzah");
        check_host("\u{4f8b}\u{3048}\u{3002}jp", "xn--r8jz45g.jp");
        check_host("\u{1f980}.example", "xn--zs9h.example");
        check_host("a_b-.\u{fc}.example.", "a_b-.xn--tda.example.");
        check_host("\u{ff4c}ocalho\u{17f}t", "localhost");
        check_host("a\u{ad}b", "ab");
        // Addresses in other digits are the addresses.
        check_host("\u{ff11}\u{ff12}\u{ff17}.0.0.1", "127.0.0.1");
        check_host("127\u{3002}0\u{ff0e}0.1", "127.0.0.1");
        check_host("%EF%BC%91%EF%BC%92%EF%BC%97.1", "127.1");
        check_host("\u{ff10}\u{ff58}7f.1", "0x7f.1");
        check_host("\u{2460}69.254.169.254", "169.254.169.254");
    }

    #[test]
    fn hosts_that_are_none() {
        let escapes = ": only letters beyond ASCII can be percent-encoded there";
        let none = ": not a domain name by UTS 46, by its characters or their order";
        let length = ": a label is empty or has more than 63 bytes as xn--, or the name has more than 253";
        for (host, why) in [
            ("e%2Ecom", escapes),
            ("%31%32%37.0.0.1", escapes),
            ("%C3%BC%2Ecom", escapes),
            ("\u{fc}%40e.com", escapes),
            ("%FC.com", ": its escapes are not UTF-8"),
            ("%zz", ""),
            ("%", ""),
            ("\u{fc}%zz", none),
            ("a b", ""),
            ("a!\u{fc}", ": it has characters that no host name has"),
            ("a b\u{fc}", none),
            ("\u{fc}<x", none),
            ("e\u{ff0f}x.com", none),
            ("e\u{ff20}x.com", none),
            ("e\u{ff1a}80.com", none),
            ("\u{ff3b}::1]", ""),
            ("\u{301}a.com", none),
            ("\u{5d0}a.com", none),
            ("\u{fdd0}.com", none),
            ("\u{ad}", length),
            ("\u{fc}..com", length),
            (&format!("{}.de", "\u{fc}".repeat(60)), length),
        ] {
            let error = read_url(&format!("http://{host}/")).unwrap_err().to_string();
            let expected = format!("invalid destination url: invalid host {host:?}{why}");
            if host.contains(':') {
                assert!(error.starts_with("invalid destination url: "), "{error}");
            } else {
                assert_eq!(error, expected);
            }
        }
    }

    #[test]
    fn filters_find_urls_in_every_spelling() {
        for (wanted, stored) in [
            ("http://e.com/gr\u{fc}n", "http://e.com/gr%C3%BCn"),
            ("http://\u{fc}.de/\u{fc}", "http://\u{fc}.de/%C3%BC"),
            ("http://\u{fc}.de/\u{fc}", "http://%C3%BC.de/%C3%BC"),
            ("http://%C3%BC.de/a", "http://\u{fc}.de/a"),
            ("http://%C3%BC.de/a", "http://%C3%BC.de/a"),
        ] {
            assert!(spellings(wanted).iter().any(|form| form == stored), "{wanted}: {:?}", spellings(wanted));
        }
        assert_eq!(spellings("http://e.com/a"), ["http://e.com/a"]);
        assert_eq!(spellings("anything"), ["anything"]);
        assert_eq!(path_spellings("/gr\u{fc}n"), ["/gr\u{fc}n", "/gr%C3%BCn"]);
        assert_eq!(path_spellings("/a"), ["/a"]);
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
                prop_assert!(target.authority.parse::<http::uri::Authority>().is_ok());
                prop_assert_eq!(read_url(&url), Ok(url));
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
