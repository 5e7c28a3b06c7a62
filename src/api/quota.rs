//! Limits on how much the API is used: messages in a day, by all nodes together, and other requests in a second, to this
//! node. Clients tell the two apart by the names of the headers alone, so neither answer may have the other's.

use std::sync::{Mutex, PoisonError};

use super::Api;
use super::error::{ApiError, RateLimit};
use super::routes::Access;
use crate::domain::time::Timestamp;
use crate::engine::ingest::NewMessage;
use crate::store::{Accepted, Store};

const DAY_S: i64 = 24 * 60 * 60;
/// The largest part of a day's messages that a node reserves at once: a hundredth, and no more than this. What it has
/// reserved when it ends is lost to that day.
const CHUNK: u64 = 1000;

impl Api {
    /// Hands messages over to be stored, all or none, if the day's quota allows. The results are in their order.
    pub(super) async fn accept(&self, messages: Vec<NewMessage>) -> Result<Vec<Accepted>, ApiError> {
        let Some(quota) = &self.daily_quota else { return Ok(self.engine.ingest().publish(messages).await?) };
        let (count, now) = (messages.len() as u64, self.engine.now());
        quota.take(&**self.engine.store(), count, now).await?;
        let accepted = self.engine.ingest().publish(messages).await?;
        // Repeats make no message. When the store fails, what became of the messages is unknown, and they count.
        let repeats = accepted.iter().filter(|accepted| matches!(accepted, Accepted::Duplicate(_))).count();
        quota.give_back(repeats as u64, now).await;
        Ok(accepted)
    }

    /// Counts a request, unless it brings messages or is for anyone to make.
    pub(super) fn count_request(&self, access: Access) -> Result<(), ApiError> {
        match (&self.burst_limit, access) {
            (Some(limit), Access::Read | Access::Full) => limit.take(self.engine.now()),
            _ => Ok(()),
        }
    }
}

/// Messages that may be accepted in a day (UTC), by all nodes together.
pub(super) struct DailyQuota {
    limit: u64,
    /// What this node has reserved in the store. Held while it reserves more, so that one does it for all who wait.
    reserved: tokio::sync::Mutex<Reserved>,
}

#[derive(Default)]
struct Reserved {
    day: i64,
    left: u64,
}

impl DailyQuota {
    pub(super) fn new(limit: u64) -> Self {
        Self { limit, reserved: tokio::sync::Mutex::default() }
    }

    /// All or none.
    async fn take(&self, store: &dyn Store, count: u64, now: Timestamp) -> Result<(), ApiError> {
        let day = day(now);
        let mut reserved = self.reserved.lock().await;
        if reserved.day != day {
            *reserved = Reserved { day, left: 0 };
        }
        if reserved.left < count {
            let wanted = (count - reserved.left).max((self.limit / 100).min(CHUNK));
            reserved.left += store.reserve_messages(day, wanted, self.limit).await?;
        }
        let Some(left) = reserved.left.checked_sub(count) else {
            let text = format!(
                "quota max_messages_per_day exceeded: {count} more messages, of {} a day; {} are left",
                self.limit, reserved.left
            );
            return Err(ApiError::rate_limited(
                text,
                RateLimit::Daily,
                self.limit,
                reserved.left,
                (day + 1) * DAY_S,
            ));
        };
        reserved.left = left;
        Ok(())
    }

    async fn give_back(&self, count: u64, taken_at: Timestamp) {
        let mut reserved = self.reserved.lock().await;
        if reserved.day == day(taken_at) {
            reserved.left += count;
        }
    }
}

fn day(now: Timestamp) -> i64 {
    now.as_secs().div_euclid(DAY_S)
}

/// Requests to this node in a second.
pub(super) struct BurstLimit {
    limit: u64,
    /// The second, and how many requests came in it.
    window: Mutex<(i64, u64)>,
}

impl BurstLimit {
    pub(super) fn new(limit: u64) -> Self {
        Self { limit, window: Mutex::default() }
    }

    fn take(&self, now: Timestamp) -> Result<(), ApiError> {
        let second = now.as_secs();
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if window.0 != second {
            *window = (second, 0);
        }
        if window.1 >= self.limit {
            let text = format!("more than {} requests in a second (max_requests_per_second)", self.limit);
            return Err(ApiError::rate_limited(text, RateLimit::Burst, self.limit, 0, second + 1));
        }
        window.1 += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millis(ms)
    }

    #[test]
    fn a_second_admits_so_many_requests() {
        let limit = BurstLimit::new(2);
        for second in [10, 11] {
            assert!(limit.take(at(second * 1000)).is_ok());
            assert!(limit.take(at(second * 1000 + 999)).is_ok());
            let response = limit.take(at(second * 1000 + 999)).unwrap_err().into_response();
            assert_eq!(response.status(), 429);
            let mut headers: Vec<_> = response
                .headers()
                .iter()
                .map(|(name, value)| format!("{name}: {}", value.to_str().expect("text")))
                .collect();
            headers.sort();
            let expected = [
                "burst-ratelimit-limit: 2".to_owned(),
                "burst-ratelimit-remaining: 0".to_owned(),
                format!("burst-ratelimit-reset: {}", second + 1),
                "content-type: application/json".to_owned(),
            ];
            assert_eq!(headers, expected);
        }
    }
}
