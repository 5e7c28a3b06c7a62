//! Random calls about schedules and URL groups.

use homing::domain::id::{MessageId, ScheduleId};
use homing::domain::message::Headers;
use homing::domain::url_group::{Endpoint, EndpointKey};
use homing::store::schedules::{Firing, Schedule};
use homing::store::url_groups::UrlGroupLimits;
use homing::store::{Accept, Store};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use super::{LANES, Run, Through, through};
use crate::schedules::{full_schedule, run, schedule};
use crate::support::{ANY_SIZE, time, waiting};
use crate::url_groups::endpoint;

const SCHEDULES: [&str; 3] = ["s", "S", "a.1"];
const GROUPS: [&str; 3] = ["g", "G", "g.1"];
const ENDPOINTS: [&str; 4] = ["", "a", "A", "First endpoint"];
const URLS: [&str; 3] = ["https://a.example/?x=\"1\"", "https://b.example", "https://c.example/ä"];

#[derive(Clone, Debug)]
pub(super) enum ScheduleCall {
    /// The slot has just come, or comes soon.
    Put {
        which: usize,
        full: bool,
        paused: bool,
        slot: i64,
        max: Option<u32>,
    },
    Pause {
        which: usize,
    },
    /// Of a schedule as it was seen some time ago.
    Resume {
        seen: Index,
        slot: i64,
    },
    Delete {
        which: usize,
    },
    List {
        count: usize,
        max_bytes: usize,
    },
    Due {
        count: usize,
        max_bytes: usize,
    },
    /// Of a slot as it was seen some time ago; `None`: a run that can't publish.
    Fire {
        seen: Index,
        slot: i64,
        messages: Option<Vec<(usize, bool, Through)>>,
    },
}

#[derive(Clone, Debug)]
pub(super) enum GroupCall {
    /// Endpoints by the places of their names and URLs.
    Upsert {
        which: usize,
        endpoints: Vec<(usize, usize)>,
        groups: Option<u32>,
        most: usize,
    },
    /// By name, or else by URL.
    Remove {
        which: usize,
        keys: Vec<(bool, usize)>,
    },
    Headers {
        which: usize,
        count: usize,
    },
    Delete {
        which: usize,
    },
}

pub(super) fn schedule_call() -> impl Strategy<Value = ScheduleCall> {
    let which = || 0..SCHEDULES.len();
    let slot = || 0..2_i64;
    let bytes = || prop::sample::select(vec![1, 4, ANY_SIZE]);
    let message = (0..LANES.len(), prop::bool::weighted(0.2), through());
    prop_oneof![
        6 => (which(), any::<bool>(), prop::bool::weighted(0.4), slot(), prop::option::of(1..4_u32))
            .prop_map(|(which, full, paused, slot, max)| ScheduleCall::Put { which, full, paused, slot, max }),
        2 => which().prop_map(|which| ScheduleCall::Pause { which }),
        4 => (any::<Index>(), slot()).prop_map(|(seen, slot)| ScheduleCall::Resume { seen, slot }),
        1 => which().prop_map(|which| ScheduleCall::Delete { which }),
        1 => (1..4_usize, bytes()).prop_map(|(count, max_bytes)| ScheduleCall::List { count, max_bytes }),
        3 => (1..4_usize, bytes()).prop_map(|(count, max_bytes)| ScheduleCall::Due { count, max_bytes }),
        8 => (any::<Index>(), slot(), prop::option::weighted(0.8, vec(message, 0..4)))
            .prop_map(|(seen, slot, messages)| ScheduleCall::Fire { seen, slot, messages }),
    ]
}

pub(super) fn group_call() -> impl Strategy<Value = GroupCall> {
    let which = || 0..GROUPS.len();
    prop_oneof![
        5 => (
            which(),
            vec((0..ENDPOINTS.len(), 0..URLS.len()), 1..4),
            prop::option::of(1..4_u32),
            1..5_usize,
        )
            .prop_map(|(which, endpoints, groups, most)| GroupCall::Upsert { which, endpoints, groups, most }),
        3 => (which(), vec((any::<bool>(), 0..3_usize), 1..3))
            .prop_map(|(which, keys)| GroupCall::Remove { which, keys }),
        1 => (which(), 0..3_usize).prop_map(|(which, count)| GroupCall::Headers { which, count }),
        1 => which().prop_map(|which| GroupCall::Delete { which }),
    ]
}

impl Run {
    /// One of few, so that other generations have the same.
    fn slot(&self, later: i64) -> i64 {
        const APART: i64 = 20_000;
        (self.now / APART + later) * APART
    }

    /// One as it was lately.
    fn seen_schedule(&self, index: Index) -> Option<Schedule> {
        let recent = &self.schedules[self.schedules.len().saturating_sub(6)..];
        (!recent.is_empty()).then(|| index.get(recent).clone())
    }

    pub(super) async fn step_of_schedules(&mut self, calls: Vec<ScheduleCall>) {
        for call in calls {
            self.step_of_schedule(call).await;
            self.show_schedules().await;
        }
        let first = ScheduleId::new(SCHEDULES[0]);
        same!(self, |store| store.schedule(&first).await.unwrap());
        let ids: Vec<&MessageId> = self.messages.iter().rev().take(20).collect();
        same!(self, |store| {
            let mut progress = store.progress(&ids).await.unwrap();
            progress.sort_by(|a, b| a.0.cmp(&b.0));
            progress
        });
    }

    async fn step_of_schedule(&mut self, call: ScheduleCall) {
        match call {
            ScheduleCall::Put { which, full, paused, slot, max } => {
                self.made += 1;
                let id = SCHEDULES[which];
                let schedule = Schedule {
                    generation: self.made,
                    paused,
                    next_at: time(self.slot(slot)),
                    ..if full { full_schedule(id) } else { schedule(id, 0) }
                };
                same!(self, |store| store.put_schedule(&schedule, max).await.unwrap());
            }
            ScheduleCall::Pause { which } => {
                let id = ScheduleId::new(SCHEDULES[which]);
                same!(self, |store| store.pause_schedule(&id).await.unwrap());
            }
            ScheduleCall::Resume { seen, slot } => {
                let Some(seen) = self.seen_schedule(seen) else { return };
                let slot = time(self.slot(slot));
                same!(self, |store| store.resume_schedule(&seen.id, seen.generation, slot).await.unwrap());
            }
            ScheduleCall::Delete { which } => {
                let id = ScheduleId::new(SCHEDULES[which]);
                same!(self, |store| store.delete_schedule(&id).await.unwrap());
            }
            ScheduleCall::List { count, max_bytes } => self.walk_schedules(count, max_bytes).await,
            ScheduleCall::Due { count, max_bytes } => {
                let now = time(self.now);
                same!(self, |store| store.due_schedules(now, count, max_bytes).await.unwrap());
            }
            ScheduleCall::Fire { seen, slot, messages } => {
                let Some(seen) = self.seen_schedule(seen) else { return };
                self.fire(&seen, slot, messages).await;
            }
        }
    }

    async fn fire(&mut self, seen: &Schedule, slot: i64, messages: Option<Vec<(usize, bool, Through)>>) {
        let next_at = self.slot(slot);
        let later = time(self.now + 3000);
        let outcome = match messages {
            None => Err(format!("there is no group at {next_at}")),
            Some(messages) => Ok(messages
                .into_iter()
                .map(|(lane, is_delayed, through)| {
                    let mut message = through.of(self.message());
                    message.schedule_id = Some(seen.id.as_str().to_owned());
                    if is_delayed {
                        message.due_at = later;
                    }
                    waiting(message, LANES[lane])
                })
                .collect::<Vec<Accept>>()),
        };
        let run = Firing { outcome, ..run(seen, next_at, &[]) };
        same!(self, |store| store.fire(&run).await.unwrap());
    }

    /// All schedules as they are now, which later calls may remember.
    async fn show_schedules(&mut self) {
        let all = same!(self, |store| store.schedules(None, 1000, ANY_SIZE).await.unwrap());
        for schedule in all.items {
            if !self.schedules.contains(&schedule) {
                self.schedules.push(schedule);
            }
        }
        same!(self, |store| store.next_occurrence().await.unwrap().due_at);
    }

    pub(super) async fn walk_schedules(&self, count: usize, max_bytes: usize) {
        let mut after = None;
        loop {
            let page = same!(self, |store| store.schedules(after.as_ref(), count, max_bytes).await.unwrap());
            let Some(last) = page.items.last().filter(|_| page.more) else { return };
            after = Some(last.id.clone());
        }
    }

    pub(super) async fn step_of_group(&self, call: GroupCall) {
        let now = time(self.now);
        match call {
            GroupCall::Upsert { which, endpoints, groups, most } => {
                let endpoints: Vec<Endpoint> =
                    endpoints.into_iter().map(|(name, url)| endpoint(ENDPOINTS[name], URLS[url])).collect();
                let limits = UrlGroupLimits { groups, endpoints: most };
                let name = GROUPS[which];
                same!(self, |store| store.upsert_endpoints(name, &endpoints, limits, now).await.unwrap());
            }
            GroupCall::Remove { which, keys } => {
                let key = |(by_name, index): (bool, usize)| {
                    if by_name {
                        EndpointKey::Name(ENDPOINTS[index + 1].to_owned())
                    } else {
                        EndpointKey::Url(URLS[index].to_owned())
                    }
                };
                let keys: Vec<EndpointKey> = keys.into_iter().map(key).collect();
                same!(self, |store| store.remove_endpoints(GROUPS[which], &keys, now).await.unwrap());
            }
            GroupCall::Headers { which, count } => {
                let header = |index| ("X-Ä".to_owned(), format!("{index} {}", self.made).into_bytes());
                let headers = Headers((0..count).map(header).collect());
                same!(self, |store| store.set_url_group_headers(GROUPS[which], &headers, now).await.unwrap());
            }
            GroupCall::Delete { which } => {
                same!(self, |store| store.delete_url_group(GROUPS[which]).await.unwrap());
            }
        }
        self.show_groups().await;
    }

    pub(super) async fn show_groups(&self) {
        same!(self, |store| store.url_groups(Some("G"), 2, ANY_SIZE).await.unwrap());
        same!(self, |store| store.url_group(GROUPS[0]).await.unwrap());
    }
}
