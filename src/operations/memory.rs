//! The memory that requests share, with what is made of them until it is stored.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{OperationError, Result};

/// How long a share is waited for.
const WAIT: Duration = Duration::from_secs(10);

/// The memory for requests.
pub struct RequestMemory {
    size: usize,
    free: Arc<Semaphore>,
}

/// A part of the memory, until it is dropped.
pub struct Share(OwnedSemaphorePermit);

impl Share {
    /// Makes another part one with this one.
    pub(crate) fn merge(&mut self, other: Self) {
        self.0.merge(other.0);
    }
}

/// Permits for that many bytes: one for each KiB.
pub(crate) fn kib(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX).min(1 << 28)
}

impl RequestMemory {
    /// Memory of that many bytes.
    pub(super) fn new(bytes: usize) -> Self {
        Self { size: bytes, free: Arc::new(Semaphore::new(kib(bytes) as usize)) }
    }

    /// The whole memory, in bytes.
    pub(super) const fn size(&self) -> usize {
        self.size
    }

    /// Waits for a share.
    pub async fn share(&self, bytes: usize) -> Result<Share> {
        let share = Arc::clone(&self.free).acquire_many_owned(kib(bytes));
        let share = tokio::time::timeout(WAIT, share).await.map_err(|_| crowded())?;
        share.map(Share).map_err(|_| OperationError::Busy("the server is stopping"))
    }

    /// A share if it is free: for a request that has one already, as has whoever might give one back.
    pub(super) fn share_now(&self, bytes: usize) -> Result<Share> {
        Arc::clone(&self.free).try_acquire_many_owned(kib(bytes)).map(Share).map_err(|_| crowded())
    }
}

const fn crowded() -> OperationError {
    OperationError::Busy("too many large requests at once")
}
