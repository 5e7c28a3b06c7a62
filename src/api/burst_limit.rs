//! The limit on requests in a second, to this node, but for those that bring messages. Clients tell it from the limit on
//! messages in a day by the names of the headers alone, so neither answer may have the other's.

use std::sync::{Mutex, PoisonError};

use super::Api;
use super::error::{ApiError, RateLimit};
use super::routes::Access;
use crate::domain::time::Timestamp;

impl Api {
    /// Counts a request, unless it brings messages or is for anyone to make.
    pub(super) fn count_request(&self, access: Access) -> Result<(), ApiError> {
        match (&self.burst_limit, access) {
            (Some(limit), Access::Read | Access::Full) => limit.take(self.operations.now()),
            _ => Ok(()),
        }
    }
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
