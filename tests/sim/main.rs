//! Whole nodes on the model store, in a time of their own: workloads and faults that follow from a seed, and a checker
//! that holds the promises against what came of them. docs/simulation.md says more.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

mod checker;
mod destinations;
mod dice;
mod history;
mod link;
mod node;
mod plan;
mod run;

use std::ops::Range;

use homing::mutation::{Mutation, plant};

use crate::checker::Violation;

/// Makes the run of a seed; what it broke.
fn violation(seed: u64) -> Option<Violation> {
    checker::check(&run::run(seed)).err()
}

/// Makes the runs of seeds; panics at the first one that breaks a promise, with its history.
fn check(seeds: Range<u64>) {
    for seed in seeds {
        if let Some(Violation { what, history }) = violation(seed) {
            panic!(
                "seed {seed}: {what}\n{history}\nseed {seed}: {what}\nTo see it again:\n  \
                 HOMING_SIM_SEED={seed} cargo nextest run --workspace --test sim replay --no-capture\n"
            );
        }
    }
}

/// The seeds of each part, so that parts run side by side.
const SEEDS: u64 = 1_250;

macro_rules! parts {
    ($($name:ident = $number:literal),+) => {
        $(#[test]
        fn $name() {
            check($number * SEEDS..($number + 1) * SEEDS);
        })+
    };
}

mod promises_hold {
    use super::{SEEDS, check};

    parts! {
        part_1 = 0, part_2 = 1, part_3 = 2, part_4 = 3, part_5 = 4, part_6 = 5, part_7 = 6, part_8 = 7
    }
}

/// Replays the run that `HOMING_SIM_SEED` names, and prints all of its history.
#[test]
fn replay() {
    let Ok(seed) = std::env::var("HOMING_SIM_SEED") else { return };
    let seed: u64 = seed.parse().unwrap();
    let outcome = run::run(seed);
    println!("{}", history::story(&outcome.events, &[]));
    println!("lasted {:?}, {} messages", outcome.lasted, outcome.stories.len());
    check(seed..seed + 1);
}

#[test]
fn a_seed_repeats_its_history() {
    for seed in 0..40 {
        let (one, other) = (run::run(seed), run::run(seed));
        let differ = one.events.iter().zip(&other.events).position(|(one, other)| one != other);
        if let Some(at) = differ {
            panic!("seed {seed}: {} and {} at {at}", one.events[at], other.events[at]);
        }
        assert_eq!(one.events.len(), other.events.len(), "seed {seed}");
        assert_eq!(one.stories, other.stories, "seed {seed}");
    }
}

/// Makes the runs of the seeds that `HOMING_SIM_SEEDS` names, such as `10000..50000`.
#[test]
fn more_seeds() {
    let Ok(seeds) = std::env::var("HOMING_SIM_SEEDS") else { return };
    let (from, to) = seeds.split_once("..").expect("a range such as 10000..50000");
    check(from.parse().unwrap()..to.parse().unwrap());
}

/// Plants a bug and makes runs until one of them breaks a promise.
#[expect(clippy::print_stdout, reason = "the table of planted bugs is made from it")]
fn finds(mutation: Mutation) {
    plant(Some(mutation));
    let found = (0..10_000).find_map(|seed| Some((seed, violation(seed)?)));
    plant(None);
    let (seed, Violation { what, .. }) = found.expect("a run shows the bug");
    println!("{mutation:?}: seed {seed}: {what}");
}

macro_rules! planted {
    ($($name:ident = $mutation:ident),+ $(,)?) => {
        mod planted {
            use homing::mutation::Mutation;

            $(#[test]
            fn $name() {
                super::finds(Mutation::$mutation);
            })+
        }
    };
}

planted! {
    a_publish_is_answered_unstored = AnswersUnstored,
    an_outcome_loses_its_callbacks = ForgetsCallbacks,
    a_lost_answer_puts_no_lease_in_doubt = DoubtsNothing,
    a_silent_node_goes_on = TrustsOldLeases,
    a_cancel_misses_what_is_on_its_way = MissesCancels,
    a_node_hears_of_no_cancels = HearsNoCancels,
    what_will_be_due_is_not_told = TellsNothingDue,
    a_duplicate_keeps_its_room = KeepsRoom,
    an_attempt_is_late_for_its_rate = StartsLate,
    a_queue_is_out_of_order = PassesHead,
    a_place_in_a_queue_is_freed_early = FreesPlaceEarly,
    outcomes_ignore_leases = IgnoresLeases,
    a_cancel_comes_before_what_it_ends = TrustsClocks,
    a_schedule_fires_again = FiresAgain,
    an_accept_is_repeated_as_if_it_was_the_first = AcceptsAgain,
}
