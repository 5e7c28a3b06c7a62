//! Query parameters of lists.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Unexpected, Visitor};

use super::answers::Part;
use super::error::{ApiError, json_problem};
use super::headers::read_bool;
use crate::domain::destination::decode_param;
use crate::domain::excerpt::Excerpt;
use crate::domain::time::Timestamp;
use crate::operations::publish::MAX_MESSAGES;
use crate::store::Order;

/// Parameters that a query and a body may have together; as many as the messages of one request.
const MAX_PARAMETERS: usize = MAX_MESSAGES;
/// Values of one filter: each row is compared with all of them.
pub(super) const MAX_VALUES: usize = 100;
/// Items in one page of a list that the contract has as one array; and at most.
const PAGE: usize = 100;
const MAX_PAGE: usize = 1000;
/// Bytes of one filter's values together.
const MAX_FILTER: usize = 128 << 10;

/// A query's parameters, decoded, in order; repeated ones repeated.
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn parse(query: &str) -> Self {
        Self(pairs(query).map(|(name, value)| (text(name), text(value))).collect())
    }

    /// Reads a query without the parameters that stand in for `Upstash-*` headers, and those: names in lower case,
    /// values as bytes.
    pub(super) fn parse_with_options(query: &str) -> (Self, Vec<(String, Vec<u8>)>) {
        let (mut others, mut options) = (Vec::new(), Vec::new());
        for (name, value) in pairs(query) {
            let name = text(name);
            if name.get(..8).is_some_and(|prefix| prefix.eq_ignore_ascii_case("upstash-")) {
                options.push((name.to_ascii_lowercase(), decode_param(value)));
            } else {
                others.push((name, text(value)));
            }
        }
        (Self(others), options)
    }

    /// Refuses parameters that are not in `known`, since a misspelt filter must not mean "all", and values that no id,
    /// cursor or name has: not every database can be asked for them.
    pub(super) fn only(&self, known: &[&str]) -> Result<(), ApiError> {
        for (name, value) in &self.0 {
            if name.eq_ignore_ascii_case("qstash_token") {
                continue;
            }
            if !known.contains(&name.as_str()) {
                let name = Excerpt(name);
                let text = if known.is_empty() {
                    format!("unknown parameter `{name}`; none is allowed here")
                } else {
                    format!("unknown parameter `{name}`; allowed: {}", known.join(", "))
                };
                return Err(ApiError::bad_request(text));
            }
            if value.contains(char::is_control) {
                return Err(ApiError::bad_request(format!(
                    "invalid {name} {:?}: it contains a control character",
                    Excerpt(value)
                )));
            }
        }
        Ok(())
    }

    /// Adds what a JSON body says: an object of the same names, or a bare list, which are `ids`. An empty body says
    /// nothing. A list that is empty is there all the same: it must not mean "all".
    pub(super) fn add_body(&mut self, body: &[u8], ids: &str) -> Result<(), ApiError> {
        if body.trim_ascii().is_empty() {
            return Ok(());
        }
        let mut json = serde_json::Deserializer::from_slice(body);
        let read = json.deserialize_any(Body { query: self, ids }).and_then(|()| json.end());
        read.map_err(|problem| {
            ApiError::bad_request(format!(
                "the body must be JSON like {{\"{ids}\":[\"…\"]}}: {}",
                json_problem(&problem)
            ))
        })
    }

    /// Refuses a path with a trailing slash when none of the parameters is there: it is what an empty id leaves, and must
    /// not mean "all".
    pub(super) fn refuse_bare(&self, trailing_slash: bool, selecting: &[&str]) -> Result<(), ApiError> {
        if trailing_slash && !selecting.iter().any(|name| self.has(name)) {
            return Err(ApiError::bad_request(
                "an id must follow the slash; for all, leave the slash out, or give a filter or a count",
            ));
        }
        Ok(())
    }

    /// Whether a parameter is there, with or without a value.
    pub(super) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(have, _)| have == name)
    }

    /// To how many bytes bodies are cut; `None`, also written as -1: not at all.
    pub(super) fn trim_body(&self) -> Result<Option<usize>, ApiError> {
        match self.get("trimBody") {
            None | Some("-1") => Ok(None),
            Some(text) => text.parse().map(Some).map_err(|_| {
                ApiError::bad_request(format!(
                    "invalid trimBody `{}`: a number of bytes is allowed, or -1",
                    Excerpt(text)
                ))
            }),
        }
    }

    /// The last value of a parameter; an empty one counts as absent.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .rev()
            .find(|(have, _)| have == name)
            .map(|(_, value)| value.as_str())
            .filter(|value| !value.is_empty())
    }

    /// All values of a parameter: repeated, comma-joined, or both.
    pub(super) fn list(&self, name: &str) -> Vec<&str> {
        self.0
            .iter()
            .filter(|(have, _)| have == name)
            .flat_map(|(_, value)| value.split(','))
            .map(str::trim)
            .filter(|value| !value.is_empty())
            .collect()
    }

    /// The values of a filter, which may have several names: at most [`MAX_VALUES`], and [`MAX_FILTER`] bytes.
    pub(super) fn filter(&self, names: &[&str]) -> Result<Vec<&str>, ApiError> {
        let values: Vec<&str> = names.iter().flat_map(|name| self.list(name)).collect();
        let size: usize = values.iter().map(|value| value.len()).sum();
        let name = names.join(" and ");
        if values.len() > MAX_VALUES {
            let count = values.len();
            return Err(ApiError::bad_request(format!(
                "{name} has {count} values: at most {MAX_VALUES} are allowed in one filter"
            )));
        }
        if size > MAX_FILTER {
            return Err(ApiError::bad_request(format!(
                "the values of {name} have {size} bytes: at most {MAX_FILTER} are allowed in one filter"
            )));
        }
        Ok(values)
    }

    /// All values of a parameter whose texts may hold commas themselves: the whole values, and their parts.
    pub(super) fn texts(&self, name: &str) -> Vec<String> {
        let mut texts: Vec<String> = self.list(name).into_iter().map(str::to_owned).collect();
        let wholes = self.0.iter().filter(|(have, value)| have == name && value.contains(','));
        texts.extend(wholes.map(|(_, value)| value.clone()));
        texts
    }

    /// A number from 1; above `max` it is `max`, absent `default`.
    pub(super) fn count(&self, default: usize, max: usize) -> Result<usize, ApiError> {
        let Some(text) = self.get("count") else { return Ok(default) };
        match text.parse::<usize>() {
            Ok(count) if count >= 1 => Ok(count.min(max)),
            _ => {
                let text = Excerpt(text);
                Err(ApiError::bad_request(format!("invalid count `{text}`: allowed are 1 to {max}")))
            }
        }
    }

    /// The part of a list that the contract has as one array: with a count or a cursor, which is the last item's name, a
    /// page of it.
    pub(super) fn part(&self) -> Result<Part, ApiError> {
        if !self.has("count") && !self.has("cursor") {
            return Ok(Part::All);
        }
        let count = self.count(PAGE, MAX_PAGE)?;
        Ok(Part::Page { after: self.get("cursor").map(str::to_owned), count })
    }

    /// `true` or `false` in any case.
    pub(super) fn flag(&self, name: &str) -> Result<Option<bool>, ApiError> {
        self.get(name)
            .map(|text| {
                read_bool(text).map_err(|problem| ApiError::bad_request(format!("invalid {name}: {problem}")))
            })
            .transpose()
    }

    /// A time in Unix milliseconds.
    pub(super) fn time(&self, name: &str) -> Result<Option<Timestamp>, ApiError> {
        self.get(name)
            .map(|text| {
                text.parse().map(Timestamp::from_millis).map_err(|_| {
                    let text = Excerpt(text);
                    ApiError::bad_request(format!("invalid {name} `{text}`: Unix milliseconds are allowed"))
                })
            })
            .transpose()
    }

    pub(super) fn order(&self, default: Order) -> Result<Order, ApiError> {
        match self.get("order") {
            None => Ok(default),
            Some("earliestFirst") => Ok(Order::EarliestFirst),
            Some("latestFirst") => Ok(Order::LatestFirst),
            Some(other) => Err(ApiError::bad_request(format!(
                "invalid order `{}`: earliestFirst and latestFirst are allowed",
                Excerpt(other)
            ))),
        }
    }
}

/// Adds a JSON body's members to a query while they are read, so that a long list takes no memory before it is refused.
struct Body<'a> {
    query: &'a mut Query,
    ids: &'a str,
}

impl<'de> Visitor<'de> for Body<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object or a list")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<(), A::Error> {
        while let Some(name) = object.next_key::<String>()? {
            object.next_value_seed(Values {
                query: self.query,
                name: &name,
                ids: self.ids,
                in_list: false,
            })?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<(), A::Error> {
        Values { query: self.query, name: self.ids, ids: self.ids, in_list: false }.visit_seq(list)
    }
}

/// Adds a member's value, or each of its values.
struct Values<'a> {
    query: &'a mut Query,
    name: &'a str,
    ids: &'a str,
    in_list: bool,
}

impl Values<'_> {
    fn push<E: Error>(self, value: impl Into<String>) -> Result<(), E> {
        if self.query.0.len() == MAX_PARAMETERS {
            return Err(E::custom(format_args!("it holds more than {MAX_PARAMETERS} values")));
        }
        self.query.0.push((self.name.to_owned(), value.into()));
        Ok(())
    }

    fn push_number<E: Error>(self, number: impl fmt::Display) -> Result<(), E> {
        if self.name == self.ids {
            return Err(E::custom(format_args!("{} has a value that is no text", self.name)));
        }
        self.push(number.to_string())
    }
}

impl<'de> DeserializeSeed<'de> for Values<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Values<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a text or a list of texts as {}", self.name)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        self.push(text)
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<(), E> {
        self.push_number(number)
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<(), E> {
        self.push_number(number)
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<(), E> {
        self.push_number(number)
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        if self.in_list {
            return Err(E::invalid_type(Unexpected::Unit, &self));
        }
        self.push("")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let Self { query, name, ids, in_list } = self;
        if in_list {
            return Err(A::Error::custom(format_args!("{name} has a list in its list")));
        }
        let before = query.0.len();
        while list.next_element_seed(Values { query: &mut *query, name, ids, in_list: true })?.is_some() {}
        if query.0.len() == before {
            Values { query, name, ids, in_list }.push("")?;
        }
        Ok(())
    }
}

/// A query's parameters, undecoded.
fn pairs(query: &str) -> impl Iterator<Item = (&str, &str)> {
    let parts = query.split('&').filter(|part| !part.is_empty());
    parts.map(|part| part.split_once('=').unwrap_or((part, "")))
}

/// A decoded name or value; what is not UTF-8 in it is replaced.
fn text(part: &str) -> String {
    String::from_utf8_lossy(&decode_param(part)).into_owned()
}

/// 400 for a cursor that was never issued.
pub(super) fn invalid_cursor(text: &str) -> ApiError {
    let text = Excerpt(text);
    ApiError::bad_request(format!("invalid cursor `{text}`: pass back the cursor of the previous page"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> Result<Vec<(String, String)>, String> {
        let mut query = Query::parse("a=1");
        let added = query.add_body(body.as_bytes(), "ids");
        added.map(|()| query.0.split_off(1)).map_err(|error| format!("{error:?}"))
    }

    #[track_caller]
    fn check(body: &str, expected: &[(&str, &str)]) {
        let expected: Vec<_> =
            expected.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        assert_eq!(read(body), Ok(expected), "{body}");
    }

    #[track_caller]
    fn check_error(body: &str, expected: &str) {
        let error = read(body).unwrap_err();
        assert!(error.contains(expected) && error.contains("the body must be JSON like"), "{body}: {error}");
    }

    #[test]
    fn bodies() {
        check("", &[]);
        check(" \n", &[]);
        check("{}", &[]);
        check(r#"["a","b"]"#, &[("ids", "a"), ("ids", "b")]);
        check(
            r#"{"ids":["a"],"count":5,"label":["x",-1.5],"url":"u"}"#,
            &[("ids", "a"), ("count", "5"), ("label", "x"), ("label", "-1.5"), ("url", "u")],
        );
        // Empty is not absent.
        check("[]", &[("ids", "")]);
        check(r#"{"ids":[],"label":null}"#, &[("ids", ""), ("label", "")]);
    }

    #[test]
    fn bodies_that_are_refused() {
        check_error("{", "EOF");
        check_error("3", "expected an object or a list");
        check_error(r#""a""#, "expected an object or a list");
        check_error("[1]", "ids has a value that is no text");
        check_error(r#"{"ids":1}"#, "ids has a value that is no text");
        check_error(r#"{"ids":[null]}"#, "expected a text or a list of texts as ids");
        check_error(r#"{"ids":[["a"]]}"#, "ids has a list in its list");
        check_error(r#"{"label":true}"#, "expected a text or a list of texts as label");
        check_error(r#"["a"] x"#, "trailing characters");
    }

    #[test]
    fn a_long_list_is_refused_while_it_is_read() {
        let most = format!("[{}]", vec![r#""a""#; MAX_PARAMETERS - 1].join(","));
        assert_eq!(read(&most).map(|values| values.len()), Ok(MAX_PARAMETERS - 1));
        // What comes behind the first one too many isn't even JSON.
        check_error(&format!("[{}", r#""a","#.repeat(MAX_PARAMETERS)), "it holds more than 50000 values");
    }

    #[test]
    fn parameters_that_stand_in_for_headers_are_bytes() {
        let (query, options) =
            Query::parse_with_options("a=%F6&Upstash-Forward-X=J%F6rg+%C3%B6&upstash-retries=1&b");
        assert_eq!(query.0, [("a".to_owned(), "\u{fffd}".to_owned()), ("b".to_owned(), String::new())]);
        let expected = [("upstash-forward-x", &b"J\xf6rg \xc3\xb6"[..]), ("upstash-retries", b"1")];
        assert_eq!(options, expected.map(|(name, value)| (name.to_owned(), value.to_vec())));
    }

    #[track_caller]
    fn check_filter(query: &str, expected: Result<usize, &str>) {
        let query = Query::parse(query);
        match (query.filter(&["a", "b"]), expected) {
            (Ok(values), Ok(count)) => assert_eq!(values.len(), count),
            (Err(error), Err(part)) => {
                let text = format!("{error:?}");
                assert!(text.contains(part), "{part} in {text}");
            }
            (found, expected) => panic!("{found:?} for {expected:?}"),
        }
    }

    #[test]
    fn a_filter_has_a_limit() {
        let joined = |count: usize| vec!["x"; count].join(",");
        let repeated = |count: usize| vec!["a=x"; count].join("&");
        check_filter("", Ok(0));
        check_filter(&format!("a={}", joined(100)), Ok(100));
        check_filter(&repeated(100), Ok(100));
        check_filter(&format!("a={}&c={}", joined(100), joined(100)), Ok(100));
        check_filter(&format!("a={},,,", joined(100)), Ok(100));
        let too_many = Err("a and b has 101 values: at most 100 are allowed in one filter");
        check_filter(&format!("a={}", joined(101)), too_many);
        check_filter(&repeated(101), too_many);
        check_filter(&format!("a={}&b={}", joined(50), joined(51)), too_many);
        let long = |size: usize| format!("a={}&b={}", "x".repeat(size - 7), "y".repeat(7));
        check_filter(&long(MAX_FILTER), Ok(2));
        check_filter(&long(MAX_FILTER + 1), Err("131073 bytes: at most 131072 are allowed"));
    }
}
