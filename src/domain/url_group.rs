//! URL groups: names that stand for several destinations. A message to a group becomes one for each of its endpoints.

use std::time::Duration;

use super::destination::{Destination, DestinationError};
use super::message::Headers;
use super::template::Target;
use super::time::Timestamp;

/// A destination of a group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoint {
    /// Unique in its group; text without control characters.
    pub name: Option<String>,
    /// http or https, exactly as given.
    pub url: String,
}

/// Which endpoints are meant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum EndpointKey {
    /// The one of that name.
    Name(String),
    /// Those with that URL.
    Url(String),
}

/// A URL group. One without endpoints is gone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UrlGroup {
    pub name: String,
    pub created_at: Timestamp,
    /// Later with every change.
    pub updated_at: Timestamp,
    /// For messages that have no headers of these names.
    pub headers: Headers,
    /// In the order of their coming.
    pub endpoints: Vec<Endpoint>,
}

impl UrlGroup {
    /// A group that still lacks its endpoints.
    pub const fn new(name: String, now: Timestamp) -> Self {
        Self { name, created_at: now, updated_at: now, headers: Headers::new(), endpoints: Vec::new() }
    }

    /// Changes the URL of the endpoint with the new one's name, else the name of the one with its URL, else adds it. A
    /// new one without a name leaves the old one's.
    pub fn upsert(&mut self, new: Endpoint) {
        let named =
            new.name.as_ref().and_then(|_| self.endpoints.iter().position(|have| have.name == new.name));
        let found = named.or_else(|| self.endpoints.iter().position(|have| have.url == new.url));
        match found.map(|index| &mut self.endpoints[index]) {
            Some(have) => {
                have.url = new.url;
                have.name = new.name.or(have.name.take());
            }
            None => self.endpoints.push(new),
        }
    }

    /// The same with several, in their order; false, with some of them done, when the group would grow beyond `limit`.
    pub fn upsert_all(&mut self, new: &[Endpoint], limit: usize) -> bool {
        let before = self.endpoints.len();
        new.iter().all(|endpoint| {
            self.upsert(endpoint.clone());
            self.endpoints.len() <= limit.max(before)
        })
    }

    /// Removes endpoints; none, if there are none.
    pub fn remove(&mut self, key: &EndpointKey) {
        self.endpoints.retain(|have| match key {
            EndpointKey::Name(name) => have.name.as_ref() != Some(name),
            EndpointKey::Url(url) => have.url != *url,
        });
    }

    /// Notes a change.
    pub fn touch(&mut self, now: Timestamp) {
        self.updated_at = now.max(self.updated_at.after(Duration::from_millis(1)));
    }

    /// Gives a message the group's headers, but for those that it has itself.
    pub fn add_headers(&self, headers: &mut Headers) {
        let own = headers.0.len();
        for (name, value) in self.headers.iter() {
            if !headers.0[..own].iter().any(|(have, _)| have == name) {
                headers.append(name, value);
            }
        }
    }

    /// Where the messages to the group go.
    pub fn targets(&self) -> impl Iterator<Item = Target> {
        self.endpoints.iter().map(|endpoint| Target {
            url: endpoint.url.clone(),
            url_group: Some(self.name.clone()),
            endpoint: endpoint.name.clone(),
        })
    }
}

/// Where the messages to a destination go: one for a URL, one for each endpoint of a URL group. `group` is the one that
/// [`Destination::group`] names, if it exists.
pub fn targets(destination: Destination, group: Option<&UrlGroup>) -> Result<Vec<Target>, DestinationError> {
    match destination {
        Destination::Url(url) => Ok(vec![Target::url(url)]),
        Destination::Group(name) => match group {
            Some(group) => Ok(group.targets().collect()),
            None => Err(DestinationError::UnknownGroup(name)),
        },
        Destination::Api(name) => Err(DestinationError::UnavailableApi(name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint((name, url): (&str, &str)) -> Endpoint {
        Endpoint { name: (!name.is_empty()).then(|| name.to_owned()), url: url.to_owned() }
    }

    fn group(endpoints: &[(&str, &str)]) -> UrlGroup {
        let mut group = UrlGroup::new("g".to_owned(), Timestamp::from_millis(1000));
        group.endpoints = endpoints.iter().copied().map(endpoint).collect();
        group
    }

    #[track_caller]
    fn check_upsert(before: &[(&str, &str)], new: (&str, &str), after: &[(&str, &str)]) {
        let mut changed = group(before);
        changed.upsert(endpoint(new));
        assert_eq!(changed, group(after), "{before:?} and {new:?}");
    }

    #[test]
    fn an_endpoint_is_found_by_its_name_and_then_by_its_url() {
        let before = [("a", "https://a"), ("", "https://b"), ("c", "https://c")];
        check_upsert(&[], ("", "https://a"), &[("", "https://a")]);
        check_upsert(&before, ("d", "https://d"), &[before[0], before[1], before[2], ("d", "https://d")]);
        check_upsert(&before, ("", "https://d"), &[before[0], before[1], before[2], ("", "https://d")]);
        check_upsert(&before, ("a", "https://d"), &[("a", "https://d"), before[1], before[2]]);
        check_upsert(&before, ("d", "https://a"), &[("d", "https://a"), before[1], before[2]]);
        check_upsert(&before, ("d", "https://b"), &[before[0], ("d", "https://b"), before[2]]);
        // The name goes first, so that it stays unique.
        check_upsert(&before, ("a", "https://c"), &[("a", "https://c"), before[1], before[2]]);
        // What isn't mentioned stays.
        check_upsert(&before, ("", "https://a"), &before);
        check_upsert(&before, ("a", "https://a"), &before);
    }

    #[test]
    fn a_group_grows_to_its_limit() {
        let new = [("c", "https://c"), ("a", "https://d"), ("d", "https://e")].map(endpoint);
        let before = [("a", "https://a"), ("b", "https://b")];
        assert!(group(&before).upsert_all(&new, 4));
        assert!(!group(&before).upsert_all(&new, 3));
        // What has outgrown a lower limit may change, but not grow.
        assert!(group(&before).upsert_all(&new[1..2], 1));
        assert!(!group(&before).upsert_all(&new[..1], 1));
    }

    #[test]
    fn endpoints_are_removed_by_name_or_url() {
        let before = [("a", "https://a"), ("", "https://b"), ("c", "https://a")];
        for (key, after) in [
            (EndpointKey::Name("a".to_owned()), &before[1..]),
            (EndpointKey::Name("https://b".to_owned()), &before[..]),
            (EndpointKey::Url("https://a".to_owned()), &before[1..2]),
            (EndpointKey::Url("https://b".to_owned()), &[before[0], before[2]]),
            (EndpointKey::Url("a".to_owned()), &before[..]),
        ] {
            let mut changed = group(&before);
            changed.remove(&key);
            assert_eq!(changed, group(after), "{key:?}");
        }
    }

    #[test]
    fn every_change_is_later() {
        let mut group = group(&[]);
        for (now, updated_at) in [(500, 1001), (1001, 1002), (5000, 5000)] {
            group.touch(Timestamp::from_millis(now));
            assert_eq!(group.updated_at, Timestamp::from_millis(updated_at));
        }
    }

    #[test]
    fn a_messages_own_headers_win() {
        let headers = |fields: &[(&str, &str)]| {
            let mut headers = Headers::new();
            for (name, value) in fields {
                headers.append(name, *value);
            }
            headers
        };
        let mut group = group(&[]);
        group.headers = headers(&[("X-A", "1"), ("X-A", "2"), ("X-B", "3")]);
        let mut own = headers(&[("x-b", "own"), ("X-C", "4")]);
        group.add_headers(&mut own);
        assert_eq!(own, headers(&[("X-B", "own"), ("X-C", "4"), ("X-A", "1"), ("X-A", "2")]));
    }
}
