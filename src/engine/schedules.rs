//! Fires schedules at their occurrences.
//!
//! Every node sleeps until the earliest occurrence and then tries to fire what is due; the store lets one of them. The next
//! occurrence is the first one after now, so that those which passed while nobody was there are made up for once, not once
//! each.

use std::sync::Arc;
use std::time::Duration;

use super::backoff;
use super::ids::FreshIds;
use super::observer::Happened;
use super::shared::Shared;
use crate::clock::pause;
use crate::domain::cron::Cron;
use crate::domain::destination::{Destination, DestinationError, parse_literal, validate_url};
use crate::domain::outcome::Ids as _;
use crate::domain::template::Target;
use crate::domain::time::Timestamp;
use crate::domain::url_group::{UrlGroup, targets};
use crate::store::schedules::{Firing, Schedule};
use crate::store::{Accept, Result, StoreError};

/// Schedules read at once, and bytes of their bodies.
const BATCH: usize = 64;
const BATCH_BYTES: usize = 16 << 20;

pub(super) async fn run(shared: Arc<Shared>) {
    let mut backoff = backoff::fetching();
    while !shared.draining.is_cancelled() {
        match fire_due(&shared).await {
            Ok(wait) => {
                backoff.reset();
                tokio::select! {
                    biased;
                    () = shared.draining.cancelled() => return,
                    () = pause(wait) => {}
                    () = shared.wakeups.schedules.notified() => {}
                }
            }
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "schedules could not be run; trying again"
                );
                backoff.wait(&shared.draining).await;
            }
        }
    }
}

/// Fires what is due. How long nothing will be due, as far as this node can know.
async fn fire_due(shared: &Shared) -> Result<Duration> {
    let next = shared.store.next_occurrence().await?;
    let sweep = shared.node.sweep();
    match next.due_at {
        None => return Ok(sweep),
        Some(due_at) if due_at > next.now => return Ok(due_at.since(next.now).min(sweep)),
        Some(_) => {}
    }
    let mut due = shared.store.due_schedules(next.now, BATCH, BATCH_BYTES).await?;
    // Other nodes have read the same ones; in another order they seldom try the same at the same time.
    shared.chance.shuffle(&mut due);
    let mut result = Ok(Duration::ZERO);
    for schedule in &due {
        if shared.draining.is_cancelled() {
            break;
        }
        match fire(shared, schedule, next.now).await {
            Ok(()) => {}
            Err(error) if error.is_transient() => return Err(error),
            // One that the store refuses must not hold up the others.
            Err(error) => result = Err(error),
        }
    }
    result
}

/// Fires a schedule whose occurrence has come, unless another node has.
async fn fire(shared: &Shared, schedule: &Schedule, now: Timestamp) -> Result<()> {
    let destination = parse_literal(&schedule.destination).ok();
    let group = match destination.as_ref().and_then(Destination::group) {
        Some(name) => shared.store.url_group(name).await?,
        None => None,
    };
    let mut firing = plan(schedule, group.as_ref(), now, &mut FreshIds(shared.chance.clone()));
    let mut fired = shared.store.fire(&firing).await;
    if let Err(error @ StoreError::TooManyQueues(_)) = &fired {
        firing.outcome = Err(error.to_string());
        fired = shared.store.fire(&firing).await;
    }
    // After a fault it may have taken effect all the same; a needless wake-up costs a query.
    if !matches!(fired, Ok(false)) {
        for accept in firing.outcome.iter().flatten() {
            shared.wakeups.waits(&accept.message);
        }
    }
    if matches!(fired, Ok(true)) {
        let (schedule, occurrence) = (&schedule.id, schedule.next_at);
        shared.tell(Happened::Fired { schedule, occurrence, outcome: &firing.outcome });
    }
    if let (Ok(true), Err(error)) = (&fired, &firing.outcome) {
        tracing::warn!(schedule.id = %schedule.id, error, "a schedule's run could not publish");
    }
    fired.map(|_| ())
}

/// The firing of a schedule whose occurrence has come.
fn plan(schedule: &Schedule, group: Option<&UrlGroup>, now: Timestamp, ids: &mut FreshIds) -> Firing {
    let (next_at, outcome) = match Cron::parse(&schedule.cron) {
        Ok(cron) => {
            let accepts = accepts(schedule, group, now, ids).map_err(|error| error.to_string());
            (cron.next_after(now).unwrap_or(Timestamp::MAX), accepts)
        }
        // The version that accepted it knew more.
        Err(error) => (Timestamp::MAX, Err(format!("invalid cron: {error}"))),
    };
    Firing {
        id: schedule.id.clone(),
        generation: schedule.generation,
        occurrence: schedule.next_at,
        next_at,
        outcome,
    }
}

/// The messages of a firing. They are never repeats of one another, whatever deduplication says about publishes.
fn accepts(
    schedule: &Schedule,
    group: Option<&UrlGroup>,
    now: Timestamp,
    ids: &mut FreshIds,
) -> Result<Vec<Accept>, DestinationError> {
    let mut template = schedule.template.clone();
    if let Some(group) = group {
        group.add_headers(&mut template.headers);
    }
    let due_at = now.after(schedule.delay.unwrap_or_default());
    let accept = |target: Target| {
        let lane = validate_url(&target.url)?.lane();
        let message = template.message(ids.message(now), target, now, due_at);
        Ok(Accept::waiting(Arc::new(message), lane))
    };
    targets(parse_literal(&schedule.destination)?, group)?.into_iter().map(accept).collect()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::chance::Chance;
    use crate::domain::id::ScheduleId;
    use crate::domain::message::{Headers, Method, Options};
    use crate::domain::template::Template;

    const OCCURRENCE: i64 = 1_790_000_040_000;

    fn schedule(destination: &str) -> Schedule {
        let labels = vec!["l".to_owned()];
        let body = Bytes::from_static(b"hi");
        let mut template = Template::new(Method::Put, Headers::new(), body, 7, labels, Options::default());
        template.schedule_id = Some("s".to_owned());
        template.queue = Some("q".to_owned());
        Schedule {
            id: ScheduleId::new("s"),
            generation: 3,
            cron: "* * * * *".to_owned(),
            destination: destination.to_owned(),
            template,
            delay: None,
            created_at: Timestamp::from_millis(0),
            paused: false,
            next_at: Timestamp::from_millis(OCCURRENCE),
            last_firing: None,
        }
    }

    fn planned(schedule: &Schedule, now: Timestamp) -> Firing {
        plan(schedule, None, now, &mut FreshIds(Chance::seeded(1)))
    }

    #[test]
    fn a_firing_makes_the_message_of_its_template() {
        let schedule = schedule("https://Example.com/a?b");
        let now = Timestamp::from_millis(OCCURRENCE + 3);
        let firing = planned(&schedule, now);
        assert_eq!((firing.generation, firing.occurrence), (3, schedule.next_at));
        assert_eq!(firing.next_at, Timestamp::from_millis(OCCURRENCE + 60_000));
        let [accept] = &firing.outcome.unwrap()[..] else { panic!("one message") };
        assert_eq!((&*accept.lane, accept.lease), ("https://example.com:443", None));
        assert_eq!(accept.deduplication, None);
        let message = &*accept.message;
        assert_eq!((message.created_at, message.due_at), (now, now));
        let target = Target::url("https://Example.com/a?b".to_owned());
        assert_eq!(*message, schedule.template.message(message.id.clone(), target, now, now));
    }

    #[test]
    fn a_delay_counts_from_the_firing() {
        let schedule = Schedule { delay: Some(Duration::from_secs(90)), ..schedule("http://e.com") };
        let firing = planned(&schedule, Timestamp::from_millis(OCCURRENCE + 3));
        let message = &firing.outcome.unwrap()[0].message;
        assert_eq!(message.due_at, Timestamp::from_millis(OCCURRENCE + 90_003));
        assert_eq!(firing.next_at, Timestamp::from_millis(OCCURRENCE + 60_000));
    }

    #[test]
    fn missed_occurrences_are_made_up_for_once() {
        let firing = planned(&schedule("http://e.com"), Timestamp::from_millis(OCCURRENCE + 600_000));
        assert_eq!(firing.outcome.unwrap().len(), 1);
        assert_eq!(firing.next_at, Timestamp::from_millis(OCCURRENCE + 660_000));
    }

    #[test]
    fn what_can_not_be_published_is_an_error_of_the_firing() {
        let now = Timestamp::from_millis(OCCURRENCE);
        for (destination, expected) in [
            ("a-group", "topic a-group not found"),
            ("api/llm", "api/llm is not available: no language model is configured"),
            ("ftp://e.com", "invalid destination url: endpoint has invalid scheme, add http:// or https://"),
        ] {
            let firing = planned(&schedule(destination), now);
            assert_eq!(firing.outcome.unwrap_err(), expected);
            assert_eq!(firing.next_at, Timestamp::from_millis(OCCURRENCE + 60_000));
        }
        let firing = planned(&Schedule { cron: "@fortnightly".to_owned(), ..schedule("http://e.com") }, now);
        assert!(firing.outcome.unwrap_err().starts_with("invalid cron: unknown word"));
        assert_eq!(firing.next_at, Timestamp::MAX);
    }
}
