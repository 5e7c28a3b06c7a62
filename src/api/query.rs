//! Query parameters of lists.

use std::fmt::Display;

use percent_encoding::percent_decode_str;
use serde_json::{Map, Value};

use super::error::ApiError;
use super::headers::read_bool;
use crate::domain::time::Timestamp;
use crate::store::Order;

/// Values of one filter: each row is compared with all of them.
pub(super) const MAX_VALUES: usize = 100;
/// Bytes of one filter's values together.
const MAX_FILTER: usize = 128 << 10;

/// A query's parameters, decoded, in order; repeated ones repeated.
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn parse(query: &str) -> Self {
        let decode = |text: &str| {
            let spaces = text.replace('+', " ");
            percent_decode_str(&spaces).decode_utf8_lossy().into_owned()
        };
        Self(
            query
                .split('&')
                .filter(|part| !part.is_empty())
                .map(|part| {
                    let (name, value) = part.split_once('=').unwrap_or((part, ""));
                    (decode(name), decode(value))
                })
                .collect(),
        )
    }

    /// Refuses parameters that are not in `known`, since a misspelt filter must not mean "all", and values that no id,
    /// cursor or name has: not every database can be asked for them.
    pub(super) fn only(&self, known: &[&str]) -> Result<(), ApiError> {
        for (name, value) in &self.0 {
            if name.eq_ignore_ascii_case("qstash_token") {
                continue;
            }
            if !known.contains(&name.as_str()) {
                let text = if known.is_empty() {
                    format!("unknown parameter `{name}`; none is allowed here")
                } else {
                    format!("unknown parameter `{name}`; allowed: {}", known.join(", "))
                };
                return Err(ApiError::bad_request(text));
            }
            if value.contains(char::is_control) {
                return Err(ApiError::bad_request(format!(
                    "invalid {name} {value:?}: it contains a control character"
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
        let invalid = |problem: &dyn Display| {
            ApiError::bad_request(format!("the body must be JSON like {{\"{ids}\":[\"…\"]}}: {problem}"))
        };
        let fields = match serde_json::from_slice(body).map_err(|error| invalid(&error))? {
            Value::Object(fields) => fields,
            list @ Value::Array(_) => Map::from_iter([(ids.to_owned(), list)]),
            _ => return Err(invalid(&"it is neither an object nor a list")),
        };
        for (name, value) in fields {
            let values = match value {
                Value::Array(values) if !values.is_empty() => values,
                Value::Array(_) | Value::Null => vec![Value::String(String::new())],
                value => vec![value],
            };
            for value in values {
                let text = match value {
                    Value::String(text) => text,
                    Value::Number(number) if name != ids => number.to_string(),
                    _ => return Err(invalid(&format_args!("{name} has a value that is no text"))),
                };
                self.0.push((name.clone(), text));
            }
        }
        Ok(())
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

    /// Takes out the parameters that stand in for `Upstash-*` headers, names in lower case.
    pub(super) fn take_options(&mut self) -> Vec<(String, String)> {
        let (options, others) = std::mem::take(&mut self.0).into_iter().partition(|(name, _)| {
            name.get(..8).is_some_and(|prefix| prefix.eq_ignore_ascii_case("upstash-"))
        });
        self.0 = others;
        let options: Vec<(String, String)> = options;
        options.into_iter().map(|(name, value)| (name.to_ascii_lowercase(), value)).collect()
    }

    /// To how many bytes bodies are cut; `None`, also written as -1: not at all.
    pub(super) fn trim_body(&self) -> Result<Option<usize>, ApiError> {
        match self.get("trimBody") {
            None | Some("-1") => Ok(None),
            Some(text) => text.parse().map(Some).map_err(|_| {
                ApiError::bad_request(format!(
                    "invalid trimBody `{text}`: a number of bytes is allowed, or -1"
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

    /// The same as [`Self::list`] for texts that may hold commas themselves: the whole values, and their parts.
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
            _ => Err(ApiError::bad_request(format!("invalid count `{text}`: allowed are 1 to {max}"))),
        }
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
                "invalid order `{other}`: earliestFirst and latestFirst are allowed"
            ))),
        }
    }
}

/// 400 for a cursor that was never issued.
pub(super) fn invalid_cursor(text: &str) -> ApiError {
    ApiError::bad_request(format!("invalid cursor `{text}`: pass back the cursor of the previous page"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(query: &str, expected: Result<usize, &str>) {
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
        check("", Ok(0));
        check(&format!("a={}", joined(100)), Ok(100));
        check(&repeated(100), Ok(100));
        check(&format!("a={}&c={}", joined(100), joined(100)), Ok(100));
        check(&format!("a={},,,", joined(100)), Ok(100));
        let too_many = Err("a and b has 101 values: at most 100 are allowed in one filter");
        check(&format!("a={}", joined(101)), too_many);
        check(&repeated(101), too_many);
        check(&format!("a={}&b={}", joined(50), joined(51)), too_many);
        let long = |size: usize| format!("a={}&b={}", "x".repeat(size - 7), "y".repeat(7));
        check(&long(MAX_FILTER), Ok(2));
        check(&long(MAX_FILTER + 1), Err("131073 bytes: at most 131072 are allowed"));
    }
}
