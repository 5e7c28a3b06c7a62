//! Answers as JSON, and the memory for all that are on their way.
//!
//! How long an answer stays in memory is up to its client, so what is large takes a share of the memory, which it holds
//! until the last byte was sent or the connection is gone. What takes long to make is made beside the tasks that answer
//! everything else; pages of searches by turns, since each is in memory meanwhile.

use std::io::{self, Write};
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};
use http::header::CONTENT_TYPE;
use http::{HeaderValue, StatusCode};
use serde::ser::{Serialize, SerializeMap as _, Serializer};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::PIECE_BYTES;
use super::error::ApiError;
use super::wire::Shown;
use crate::operations::{self, memory::kib};

/// Answers up to this size take no share: there are at most as many as connections, and few more on HTTP/2.
const SMALL: usize = 8 << 10;
/// How long a larger one waits for its share.
const SHARE_WAIT: Duration = Duration::from_secs(10);
/// How long a search waits for its turn.
const TURN_WAIT: Duration = Duration::from_secs(10);
/// Searches at once at least, so that one that takes long doesn't keep all others waiting.
const LEAST_TURNS: usize = 2;

/// The memory for large answers.
pub(super) struct AnswerMemory {
    /// All of it, in KiB.
    size: u32,
    free: Arc<Semaphore>,
    /// How much may wait for a share: while it does, what the answer is made of is in memory.
    waiting: Semaphore,
    /// Searches whose pages may be read and made at once.
    turns: Arc<Semaphore>,
}

/// A search's turn, until it is dropped.
pub(super) struct Turn {
    _permit: OwnedSemaphorePermit,
}

/// A part of the memory, until it is dropped.
pub(super) struct Share(Option<OwnedSemaphorePermit>);

impl Share {
    /// For an answer that is small.
    pub(super) const fn none() -> Self {
        Self(None)
    }
}

impl AnswerMemory {
    /// Memory of that many bytes.
    pub(super) fn new(bytes: usize) -> Self {
        let size = kib(bytes);
        let free = Arc::new(Semaphore::new(size as usize));
        let turns = available_parallelism().map_or(LEAST_TURNS, |cores| cores.get().max(LEAST_TURNS));
        Self {
            size,
            free,
            waiting: Semaphore::new(size.div_ceil(4) as usize),
            turns: Arc::new(Semaphore::new(turns)),
        }
    }

    /// An answer about one thing, which may be large.
    pub(super) async fn json(
        &self,
        status: StatusCode,
        body: &(impl Serialize + Sync),
    ) -> Result<Response, ApiError> {
        match Measured::of(body)? {
            Measured::Small(bytes) => Ok(response(status, bytes)),
            Measured::Large(length) => json(status, body, length, self.share(length).await?),
        }
    }

    /// Waits for the turn of a search. It begins before the search and ends when [`AnswerMemory::list`] has measured its
    /// page.
    pub(super) async fn turn(&self) -> Result<Turn, ApiError> {
        let turn = Arc::clone(&self.turns).acquire_owned();
        let full = || ApiError::unavailable("too many searches are under way");
        let turn = tokio::time::timeout(TURN_WAIT, turn).await.map_err(|_| full())?;
        turn.map(|permit| Turn { _permit: permit })
            .map_err(|_| ApiError::unavailable("the server is stopping"))
    }

    /// An answer with many things, made in a thread for that; of a search with its turn, which ends before the answer
    /// waits for its share. Until it has one there is only what it is made of, since JSON can take six times as much.
    pub(super) async fn list(
        &self,
        status: StatusCode,
        turn: Option<Turn>,
        body: impl Serialize + Send + 'static,
    ) -> Result<Response, ApiError> {
        let measured = beside(move || {
            let measured = Measured::of(&body)?;
            drop(turn);
            Ok((measured, body))
        });
        let (length, body) = match measured.await? {
            (Measured::Small(bytes), _) => return Ok(response(status, bytes)),
            (Measured::Large(length), body) => (length, body),
        };
        let share = self.share(length).await?;
        beside(move || json(status, &body, length, share)).await
    }

    /// A list that the contract has as one array, read by pages of `count` items after one that `read` names. The whole of it
    /// is sent page by page, with one share, as one of them is in memory at a time.
    pub(super) async fn array<T, R>(
        &self,
        part: Part,
        count: usize,
        read: impl Fn(Option<String>, usize) -> R + Send + Sync + 'static,
    ) -> Result<Response, ApiError>
    where
        T: Shown + Send + Sync + 'static,
        R: Future<Output = operations::Result<(Vec<T>, Option<String>)>> + Send,
    {
        if let Part::Page { after, count } = part {
            let (items, _) = read(after, count).await?;
            return self.list(StatusCode::OK, None, Each(items)).await;
        }
        let (items, next) = read(None, count).await?;
        let first = piece(None, &items, next.as_ref()).map_err(|error| unwritable(&error))?;
        let size = if next.is_some() { first.len().max(PIECE_BYTES) } else { first.len() };
        let share = self.share(size).await?;
        if next.is_none() {
            return Ok(response(StatusCode::OK, share.hold(first)));
        }
        let (read, share) = (Arc::new(read), Arc::new(share));
        let others = stream::try_unfold(next, move |after| {
            let (read, share) = (Arc::clone(&read), Arc::clone(&share));
            async move {
                let _held = share;
                let Some(after) = after else { return Ok(None) };
                let (items, next) = read(Some(after.clone()), count).await.inspect_err(|error| {
                    tracing::warn!(error = error as &dyn std::error::Error, "a list breaks off");
                })?;
                Ok::<_, axum::BoxError>(Some((piece(Some(&after), &items, next.as_ref())?, next)))
            }
        });
        Ok(response(StatusCode::OK, Body::from_stream(stream::iter([Ok(first)]).chain(others))))
    }

    /// A share for an answer of that size. What is larger than all of the memory takes all of it.
    pub(super) async fn share(&self, bytes: usize) -> Result<Share, ApiError> {
        if bytes <= SMALL {
            return Ok(Share::none());
        }
        let permits = kib(bytes).min(self.size);
        if let Ok(share) = Arc::clone(&self.free).try_acquire_many_owned(permits) {
            return Ok(Share(Some(share)));
        }
        let full = || ApiError::unavailable("too many large answers are being read at once");
        let turn = permits.min(self.size.div_ceil(4));
        let _turn = self.waiting.try_acquire_many(turn).map_err(|_| full())?;
        let share = Arc::clone(&self.free).acquire_many_owned(permits);
        let share = tokio::time::timeout(SHARE_WAIT, share).await.map_err(|_| full())?;
        share.map(|share| Share(Some(share))).map_err(|_| ApiError::unavailable("the server is stopping"))
    }
}

impl Share {
    /// The bytes, which hold the share from now on.
    pub(super) fn hold(self, bytes: impl AsRef<[u8]> + Send + Into<Bytes> + 'static) -> Bytes {
        match self.0 {
            Some(_) => Bytes::from_owner(Shared { bytes, _share: self }),
            None => bytes.into(),
        }
    }
}

/// An answer of about that length, which keeps its share until it is sent.
pub(super) fn json(
    status: StatusCode,
    body: &impl Serialize,
    length: usize,
    share: Share,
) -> Result<Response, ApiError> {
    let mut bytes = Vec::with_capacity(length);
    write(&mut bytes, body)?;
    Ok(response(status, share.hold(bytes)))
}

/// Makes something that takes long in a thread for that.
async fn beside<T: Send + 'static>(
    make: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(make).await.map_err(|error| ApiError::task_failed(&error))?
}

fn write(to: impl Write, body: &impl Serialize) -> Result<(), ApiError> {
    serde_json::to_writer(to, body).map_err(|error| unwritable(&error))
}

pub(super) fn unwritable(error: &serde_json::Error) -> ApiError {
    tracing::error!(%error, "an answer could not be written as JSON");
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal error")
}

/// A piece of an array: the items after that one, of which `next` is the last one if more follow.
fn piece<T: Shown>(
    after: Option<&String>,
    items: &[T],
    next: Option<&String>,
) -> serde_json::Result<Vec<u8>> {
    let mut text = Vec::from(if after.is_none() { "[" } else { "" });
    for (index, item) in items.iter().enumerate() {
        if index > 0 || after.is_some() {
            text.push(b',');
        }
        serde_json::to_writer(&mut text, &item.shown())?;
    }
    if next.is_none() {
        text.push(b']');
    }
    Ok(text)
}

/// A body as JSON: a small one is written already, of a larger one only the length is known.
enum Measured {
    Small(Vec<u8>),
    Large(usize),
}

impl Measured {
    fn of(body: &impl Serialize) -> Result<Self, ApiError> {
        let mut start = Start { bytes: Vec::new(), length: 0 };
        write(&mut start, body)?;
        Ok(if start.length <= SMALL { Self::Small(start.bytes) } else { Self::Large(start.length) })
    }
}

/// Keeps the bytes of a small answer, and only counts those of a larger one.
struct Start {
    bytes: Vec<u8>,
    length: usize,
}

impl Write for Start {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.length += bytes.len();
        if self.length <= SMALL {
            self.bytes.extend_from_slice(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The part of a list that is asked for; the contract has the list as one array.
pub(super) enum Part {
    All,
    /// At most so many items after that one.
    Page {
        after: Option<String>,
        count: usize,
    },
}

/// The items of a list. Only one of them is shown at a time, since that takes several times its memory.
pub(super) struct Each<T>(pub(super) Vec<T>);

impl<T: Shown> Serialize for Each<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(Shown::shown))
    }
}

/// A page of a list.
pub(super) struct Page<T> {
    /// Under each of them the page has the same items.
    pub(super) names: &'static [&'static str],
    pub(super) items: Each<T>,
    /// Where the next page begins; `None` after the last one.
    pub(super) cursor: Option<String>,
}

impl<T: Shown> Serialize for Page<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for name in self.names {
            map.serialize_entry(name, &self.items)?;
        }
        if let Some(cursor) = &self.cursor {
            map.serialize_entry("cursor", cursor)?;
        }
        map.end()
    }
}

pub(super) fn response(status: StatusCode, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The bytes of an answer with their share of the memory.
struct Shared<T> {
    bytes: T,
    _share: Share,
}

impl<T: AsRef<[u8]>> AsRef<[u8]> for Shared<T> {
    fn as_ref(&self) -> &[u8] {
        self.bytes.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    /// An item of that size.
    impl Shown for usize {
        fn shown(&self) -> impl Serialize {
            "x".repeat(*self)
        }
    }

    async fn text(response: Response) -> String {
        String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
    }

    #[tokio::test]
    async fn large_answers_hold_memory_until_they_are_dropped() {
        let memory = AnswerMemory::new(64 << 10);
        let large = "x".repeat(40 << 10);
        let first = memory.json(StatusCode::OK, &large).await.unwrap();
        assert_eq!(memory.free.available_permits(), 64 - 41, "with the quotes one KiB is begun");
        // There is no room for another one, nor to wait for it.
        let waiting = memory.waiting.try_acquire_many(16).unwrap();
        let error = memory.json(StatusCode::OK, &large).await.unwrap_err().into_response();
        assert_eq!(error.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(error.headers().contains_key("retry-after"));
        drop(waiting);
        // Small ones need none.
        let small = memory.json(StatusCode::OK, &"x").await.unwrap();
        assert_eq!(text(small).await, "\"x\"");
        let body = first.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, format!("\"{large}\""));
        let part = body.slice(..10);
        drop(body);
        assert_eq!(memory.free.available_permits(), 64 - 41, "a part of it is all of it");
        drop(part);
        assert_eq!(memory.free.available_permits(), 64);
    }

    #[tokio::test]
    async fn a_share_is_waited_for() {
        let memory = Arc::new(AnswerMemory::new(64 << 10));
        let all = memory.share(60 << 10).await.unwrap();
        let waits = tokio::spawn({
            let memory = Arc::clone(&memory);
            async move { memory.json(StatusCode::OK, &"x".repeat(10 << 10)).await }
        });
        while memory.waiting.available_permits() == 16 {
            tokio::task::yield_now().await;
        }
        drop(all);
        assert_eq!(waits.await.unwrap().unwrap().status(), StatusCode::OK);
    }

    #[tokio::test]
    async fn pages_are_made_by_turns_and_wait_without_one() {
        let memory = Arc::new(AnswerMemory::new(64 << 10));
        let turns = memory.turns.available_permits();
        assert!(turns >= LEAST_TURNS);
        let all = memory.share(64 << 10).await.unwrap();
        let page = |length: usize| Page {
            names: &["logs", "events"],
            items: Each(vec![length, 1]),
            cursor: Some("1-2".to_owned()),
        };
        let turn = memory.turn().await.unwrap();
        assert_eq!(memory.turns.available_permits(), turns - 1);
        let waits = tokio::spawn({
            let memory = Arc::clone(&memory);
            async move { memory.list(StatusCode::OK, Some(turn), page(5 << 10)).await }
        });
        while memory.waiting.available_permits() == 16 {
            tokio::task::yield_now().await;
        }
        assert_eq!(memory.turns.available_permits(), turns);
        drop(all);
        assert_eq!(waits.await.unwrap().unwrap().status(), StatusCode::OK);
        let small = memory.list(StatusCode::OK, None, page(2)).await.unwrap();
        assert_eq!(text(small).await, r#"{"logs":["xx","x"],"events":["xx","x"],"cursor":"1-2"}"#);
    }

    #[tokio::test]
    async fn what_is_larger_than_the_memory_takes_all_of_it() {
        let memory = AnswerMemory::new(16 << 10);
        let answer = memory.json(StatusCode::OK, &"x".repeat(40 << 10)).await.unwrap();
        assert_eq!(memory.free.available_permits(), 0);
        drop(answer);
        assert_eq!(memory.free.available_permits(), 16);
    }
}
