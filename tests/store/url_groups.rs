//! Scenarios of URL groups. Each runs on every store.

use futures_util::future::join_all;
use homing::domain::message::Headers;
use homing::domain::url_group::{Endpoint, EndpointKey, UrlGroup};
use homing::store::url_groups::{Upserted, UrlGroupLimits};

use crate::support::{ANY_SIZE, START, World, time};

const LIMITS: UrlGroupLimits = UrlGroupLimits { groups: None, endpoints: 100 };

pub(crate) fn endpoint(name: &str, url: &str) -> Endpoint {
    Endpoint { name: (!name.is_empty()).then(|| name.to_owned()), url: url.to_owned() }
}

async fn upsert(world: &World, name: &str, endpoints: &[(&str, &str)], at: i64) -> Upserted {
    let endpoints: Vec<_> = endpoints.iter().map(|(name, url)| endpoint(name, url)).collect();
    world.store.upsert_endpoints(name, &endpoints, LIMITS, time(START + at)).await.unwrap()
}

async fn find(world: &World, name: &str) -> Option<UrlGroup> {
    world.store.url_group(name).await.unwrap()
}

async fn names(world: &World) -> Vec<String> {
    world
        .store
        .url_groups(None, 100, ANY_SIZE)
        .await
        .unwrap()
        .items
        .into_iter()
        .map(|group| group.name)
        .collect()
}

pub(crate) async fn a_group_is_made_with_its_first_endpoints(world: World) {
    assert_eq!(find(&world, "g").await, None);
    assert!(names(&world).await.is_empty());
    let endpoints = [("First endpoint", "https://a.example/?x=\"1\""), ("", "https://b.example")];
    assert_eq!(upsert(&world, "g", &endpoints, 0).await, Upserted::Stored);
    let mut expected = UrlGroup::new("g".to_owned(), time(START));
    expected.endpoints = endpoints.iter().map(|(name, url)| endpoint(name, url)).collect();
    assert_eq!(find(&world, "g").await.as_ref(), Some(&expected));
    // Names have their case.
    assert_eq!(find(&world, "G").await, None);
    for name in ["b", "a", "B", "a.1", "a-1"] {
        upsert(&world, name, &endpoints, 1).await;
    }
    assert_eq!(names(&world).await, ["B", "a", "a-1", "a.1", "b", "g"]);
    assert_eq!(world.store.url_groups(None, 100, ANY_SIZE).await.unwrap().items[5], expected);
}

pub(crate) async fn endpoints_are_changed_and_added(world: World) {
    upsert(&world, "g", &[("a", "https://a"), ("b", "https://b")], 0).await;
    let changes = [("a", "https://c"), ("n", "https://b"), ("", "https://d"), ("", "https://d")];
    assert_eq!(upsert(&world, "g", &changes, 5).await, Upserted::Stored);
    let group = find(&world, "g").await.unwrap();
    let expected = [endpoint("a", "https://c"), endpoint("n", "https://b"), endpoint("", "https://d")];
    assert_eq!(group.endpoints, expected);
    assert_eq!((group.created_at, group.updated_at), (time(START), time(START + 5)));
    // Every change is a later one, whatever the clock says.
    upsert(&world, "g", &changes, 5).await;
    assert_eq!(find(&world, "g").await.unwrap().updated_at, time(START + 6));
}

pub(crate) async fn a_group_goes_with_its_last_endpoint(world: World) {
    upsert(&world, "g", &[("a", "https://a"), ("b", "https://b"), ("", "https://c")], 0).await;
    let by_name = |name: &str| EndpointKey::Name(name.to_owned());
    let by_url = |url: &str| EndpointKey::Url(url.to_owned());
    let remove = async |name: &str, keys: &[EndpointKey]| {
        world.store.remove_endpoints(name, keys, time(START + 9)).await.unwrap()
    };
    assert!(!remove("h", &[by_name("a")]).await);
    // Unknown ones are no change.
    assert!(remove("g", &[by_name("x"), by_url("https://x")]).await);
    assert_eq!(find(&world, "g").await.unwrap().updated_at, time(START));
    assert!(remove("g", &[by_url("https://a"), by_name("b")]).await);
    let group = find(&world, "g").await.unwrap();
    assert_eq!(group.endpoints, [endpoint("", "https://c")]);
    assert_eq!(group.updated_at, time(START + 9));
    assert!(remove("g", &[by_url("https://c")]).await);
    assert_eq!(find(&world, "g").await, None);
    assert!(!remove("g", &[by_url("https://c")]).await);
    // A new one has nothing of the old one.
    upsert(&world, "g", &[("", "https://a")], 20).await;
    assert_eq!(find(&world, "g").await.unwrap().created_at, time(START + 20));
    world.store.delete_url_group("g").await.unwrap();
    world.store.delete_url_group("g").await.unwrap();
    assert!(names(&world).await.is_empty());
}

pub(crate) async fn a_group_has_headers(world: World) {
    let headers = Headers(vec![("X-A".to_owned(), "\u{fc}".into()), ("X-A".to_owned(), vec![b'\xfc'])]);
    let set = async |headers: &Headers| {
        world.store.set_url_group_headers("g", headers, time(START + 5)).await.unwrap()
    };
    assert!(!set(&headers).await);
    assert_eq!(find(&world, "g").await, None);
    upsert(&world, "g", &[("", "https://a")], 0).await;
    assert!(set(&headers).await);
    let group = find(&world, "g").await.unwrap();
    assert_eq!((&group.headers, group.updated_at), (&headers, time(START + 5)));
    // Endpoints come and go without changing them.
    upsert(&world, "g", &[("", "https://b")], 6).await;
    assert_eq!(find(&world, "g").await.unwrap().headers, headers);
    assert!(set(&Headers::new()).await);
    assert_eq!(find(&world, "g").await.unwrap().headers, Headers::new());
}

pub(crate) async fn groups_and_endpoints_have_limits(world: World) {
    let limits = UrlGroupLimits { groups: Some(2), endpoints: 3 };
    let upsert = async |name: &str, urls: std::ops::Range<u32>| {
        let endpoints: Vec<_> = urls.map(|number| endpoint("", &format!("https://{number}"))).collect();
        world.store.upsert_endpoints(name, &endpoints, limits, time(START)).await.unwrap()
    };
    assert_eq!(upsert("a", 0..3).await, Upserted::Stored);
    assert_eq!(upsert("a", 2..4).await, Upserted::TooManyEndpoints);
    assert_eq!(upsert("b", 0..4).await, Upserted::TooManyEndpoints);
    assert_eq!(find(&world, "a").await.unwrap().endpoints.len(), 3);
    assert_eq!(upsert("b", 0..1).await, Upserted::Stored);
    assert_eq!(upsert("c", 0..1).await, Upserted::TooManyGroups);
    assert_eq!(upsert("b", 0..3).await, Upserted::Stored);
    assert_eq!(names(&world).await, ["a", "b"]);
    world.store.delete_url_group("a").await.unwrap();
    assert_eq!(upsert("c", 0..1).await, Upserted::Stored);
}

pub(crate) async fn changes_at_once_are_all_made(world: World) {
    let limits = UrlGroupLimits { groups: Some(3), endpoints: 40 };
    let add = async |group: String, number: u32| {
        let endpoints = [endpoint(&number.to_string(), &format!("https://{number}"))];
        world.store.upsert_endpoints(&group, &endpoints, limits, time(START)).await.unwrap()
    };
    // Forty for the first, and one for each of many, of which there is room for two more.
    let first = join_all((0..40).map(|number| add("first".to_owned(), number)));
    let others = join_all((0..10).map(|number| add(format!("other-{number}"), number)));
    let (first, others) = tokio::join!(first, others);
    let stored = |results: &[Upserted]| results.iter().filter(|result| **result == Upserted::Stored).count();
    let groups = names(&world).await;
    assert_eq!(groups.len(), 3);
    assert_eq!(stored(&others), groups.iter().filter(|name| name.starts_with("other")).count());
    let endpoints = find(&world, "first").await.map_or(0, |group| group.endpoints.len());
    assert_eq!(stored(&first), endpoints);
    assert!(endpoints == 40 || endpoints == 0, "once the group is there, all find room in it");
}
