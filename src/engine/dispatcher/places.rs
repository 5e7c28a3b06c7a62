//! How lanes share what a node has: slots, and room for deliveries.
//!
//! Dynamic thresholds: a lane may have as much as is still free, so that one busy lane gets half. That alone leaves nothing
//! to others where many lanes hang, each of which keeps what it got. So a lane that has not answered lately (a stranger)
//! gets one place, and more only of the first quarter, and all strangers together leave an eighth to the lanes that have
//! answered. Of these, too, each gets only one place of the last sixteenth.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

/// The part of places of which a stranger may have several; and the part that strangers leave to the others.
const FOR_STRANGERS: usize = 4;
pub(super) const NOT_FOR_STRANGERS: usize = 8;
/// The part of places of which a lane that has answered lately may have only one.
const FOR_FIRST: usize = 16;
/// How long a lane is known for an answer: from once to twice this.
pub(super) const LATELY: Duration = Duration::from_mins(1);
/// Lanes that are known for an answer, twice: beyond, it is forgotten sooner.
pub(super) const MAX_KNOWN: usize = 8192;

/// Places that lanes share: slots, or room for deliveries.
#[derive(Clone, Copy)]
pub(super) struct Places {
    pub(super) all: usize,
    pub(super) used: usize,
    /// Places that strangers use.
    pub(super) strange: usize,
}

impl Places {
    pub(super) fn free(self) -> usize {
        self.all.saturating_sub(self.used)
    }

    /// Whether a lane that has `own` of them may have one more.
    pub(super) fn fits(self, own: usize, standing: Standing) -> bool {
        match standing {
            Standing::Known => {
                own < self.free().saturating_sub(self.all / FOR_FIRST) || (own == 0 && self.free() > 0)
            }
            Standing::Strange => self.fits_strangers() && (own == 0 || own < self.for_strangers()),
        }
    }

    /// Whether any stranger may have one.
    pub(super) fn fits_strangers(self) -> bool {
        self.free() > 0 && self.strange < self.all - self.all / NOT_FOR_STRANGERS
    }

    /// The free ones of the part of which a stranger may have several.
    pub(super) fn for_strangers(self) -> usize {
        (self.all / FOR_STRANGERS).saturating_sub(self.strange).min(self.free())
    }
}

/// Whether a lane has answered lately.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Standing {
    Known,
    #[default]
    Strange,
}

/// Lanes that have answered lately.
pub(super) struct Answered {
    since: Instant,
    lately: HashSet<Arc<str>>,
    before: HashSet<Arc<str>>,
}

impl Default for Answered {
    fn default() -> Self {
        Self { since: Instant::now(), lately: HashSet::new(), before: HashSet::new() }
    }
}

impl Answered {
    /// Takes note of an answer.
    pub(super) fn note(&mut self, lane: &Arc<str>) {
        self.forget(MAX_KNOWN);
        if !self.lately.contains(lane) {
            self.lately.insert(Arc::clone(lane));
        }
    }

    /// Whether a lane has answered lately.
    pub(super) fn standing(&mut self, lane: &Arc<str>) -> Standing {
        self.forget(usize::MAX);
        if self.lately.contains(lane) || self.before.contains(lane) {
            Standing::Known
        } else {
            Standing::Strange
        }
    }

    /// Forgets answers of long ago, and the older ones when there are this many.
    fn forget(&mut self, most: usize) {
        let elapsed = self.since.elapsed();
        if elapsed >= 2 * LATELY {
            *self = Self::default();
        } else if elapsed >= LATELY || self.lately.len() >= most {
            self.before = std::mem::take(&mut self.lately);
            self.since = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::pause;

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_forgotten() {
        let mut answered = Answered::default();
        let lane: Arc<str> = Arc::from("a");
        answered.note(&lane);
        pause(LATELY).await;
        assert_eq!(answered.standing(&lane), Standing::Known);
        pause(LATELY).await;
        assert_eq!(answered.standing(&lane), Standing::Strange);
        for number in 0..3 * MAX_KNOWN {
            answered.note(&Arc::from(number.to_string()));
        }
        assert!(answered.lately.len() + answered.before.len() <= 2 * MAX_KNOWN);
        answered.note(&lane);
        pause(2 * LATELY).await;
        assert_eq!(answered.standing(&lane), Standing::Strange, "also where nothing was asked meanwhile");
    }
}
