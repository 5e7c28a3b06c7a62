//! One suite over the `Store` trait, on the in-memory model, SQLite and Postgres, so that a difference between any two of
//! them shows.
//!
//! [`suite`], [`gates`], [`runs`], [`run_history`], [`lists`], [`listing`] and [`filters`] hold the scenarios, each run on all three; [`differential`] applies
//! random calls to the model and to a real store and compares; [`concurrency`] lets two nodes work on one Postgres;
//! [`plans`] looks at how Postgres does it, [`files`] at SQLite's files. [`homing::store::model`] is the oracle.
//! Whatever is due was due years ago or will be in decades, so that no test depends on a clock.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]
#![allow(
    clippy::disallowed_methods,
    reason = "the bans are about the server, and real databases take real time"
)]

mod concurrency;
mod differential;
mod files;
mod filters;
mod gates;
mod listing;
mod lists;
mod plans;
#[path = "../common/postgres.rs"]
#[allow(dead_code, reason = "the black-box tests need all of it")]
mod postgres;
mod run_history;
mod runs;
mod schedules;
mod suite;
mod support;
mod url_groups;

/// A test on each of the three stores for each scenario.
macro_rules! on_all_stores {
    ($module:ident: $($scenario:ident),+ $(,)?) => {
        $(mod $scenario {
            use crate::support::{Engine, on};

            #[tokio::test]
            async fn model() {
                on(Engine::Model, crate::$module::$scenario).await;
            }

            #[tokio::test]
            async fn sqlite() {
                on(Engine::Sqlite, crate::$module::$scenario).await;
            }

            #[tokio::test]
            async fn postgres() {
                on(Engine::Postgres, crate::$module::$scenario).await;
            }
        })+
    };
}

on_all_stores! { suite:
    messages_are_read_back_unchanged,
    accepted_messages_wait_or_are_leased,
    a_repeat_stores_nothing_twice,
    a_repeat_does_not_resurrect_what_is_finished,
    a_key_admits_one_message_until_it_expires,
    a_key_admits_one_message_of_a_batch,
    the_own_repeat_is_not_a_duplicate,
    equal_keys_at_once_store_one_message,
    claims_come_in_order_and_within_counts,
    claims_are_bounded_in_bytes,
    a_lane_named_twice_is_claimed_once,
    future_messages_are_not_claimed,
    every_due_lane_comes_up,
    the_earliest_due_time_is_told,
    a_delivered_message_is_done,
    a_retry_waits_again_with_its_claims_reset,
    a_failure_leaves_a_dead_letter,
    callbacks_are_stored_with_the_outcome,
    a_stranger_finishes_nothing,
    one_batch_may_name_a_message_twice,
    large_batches_are_stored_whole,
    a_batch_of_many_bytes_is_stored_whole_or_not_at_all,
    a_released_delivery_is_not_counted_as_claimed,
    starts_of_attempts_are_counted,
    rejoining_leaves_namesakes_alone,
    reconciling_frees_all_but_the_live_leases,
    a_namesake_takes_the_leases_at_once,
    a_silent_node_is_taken_over,
    leases_of_a_node_that_is_gone_are_freed,
    a_node_that_signs_off_frees_its_leases,
    a_waiting_message_is_cancelled,
    a_leased_message_is_cancelled_after_its_attempt,
    a_cancel_does_not_undo_a_delivery,
    a_cancelled_message_that_is_given_back_ends_unattempted,
    ids_are_only_text,
}

on_all_stores! { gates:
    a_queue_gives_its_messages_in_order,
    a_queue_has_one_slot_unless_told_otherwise,
    what_waits_at_a_gate_is_claimed_only_there,
    a_retry_keeps_its_slot,
    a_lease_that_is_lost_keeps_its_slot,
    callbacks_keep_the_slot,
    a_slot_goes_to_the_next_message,
    a_slot_is_left_to_a_claim_where_the_next_message_may_not_go,
    slots_are_passed_on_one_by_one_and_not_beyond_the_parallelism,
    a_removed_queue_passes_nothing_on,
    a_callback_of_a_failed_attempt_needs_no_slot_of_its_own,
    a_callback_may_have_a_key_of_its_own,
    a_key_counts_what_is_in_flight,
    starts_are_kept_with_the_gate,
    what_changed_since_the_look_is_not_passed,
    nobody_goes_past_one_that_is_gone,
    both_gates_must_be_as_they_were,
    many_gates_take_one_step,
    repeats_at_gates_store_nothing_twice,
    a_dead_letter_goes_back_through_its_gates,
    queues_are_made_changed_and_listed,
    messages_make_no_more_queues_than_there_may_be,
    a_removed_queue_takes_its_messages_along,
    a_large_queue_is_removed_in_steps,
    keys_follow_their_messages_and_their_users,
    gates_are_looked_at_when_they_are_due,
    a_gate_rests_until_something_is_due,
    idle_keys_go_with_the_log,
}

on_all_stores! { lists:
    the_log_tells_each_story,
    log_pages_follow_each_other,
    log_pages_stay_in_place_under_new_entries,
    log_filters_apply_together,
    log_pages_are_bounded_in_bytes,
    the_log_keeps_the_beginning_of_a_long_answer,
    headers_are_a_part_of_a_pages_bytes,
    a_filter_may_leave_nothing_of_many_dead_letters,
    dead_letters_are_listed_in_pages,
    dead_letters_are_filtered,
    dead_letters_are_deleted_once,
    dead_letters_are_retried_all_or_none,
    many_dead_letters_are_retried_all_or_none,
    signing_keys_are_made_once_and_rotate,
    one_token_is_made_however_many_ask,
    only_what_is_finished_and_old_is_pruned,
    pruning_walks_on,
}

on_all_stores! { listing:
    queues_are_listed_in_pages,
    flow_keys_are_listed_in_pages,
    url_groups_are_listed_in_pages,
    a_message_tells_where_it_stands,
}

on_all_stores! { schedules:
    schedules_are_read_back_unchanged,
    a_schedule_is_replaced_entirely,
    schedules_are_listed_in_pages,
    a_schedule_is_deleted_once,
    a_quota_counts_the_others,
    equal_creations_at_once_keep_the_quota,
    a_paused_schedule_has_no_slot,
    resuming_goes_on_with_another_slot,
    due_schedules_come_in_order,
    a_run_stores_its_messages_and_moves_on,
    a_run_that_was_overtaken_stores_nothing,
    a_run_without_messages_leaves_its_error,
    equal_runs_at_once_fire_once,
    messages_of_a_run_show_how_far_they_are,
    schedule_ids_are_only_text,
}

on_all_stores! { filters:
    the_log_is_filtered_by_its_messages,
    dead_letters_are_filtered_by_their_messages,
    unfinished_messages_are_found,
    many_messages_are_cancelled,
    a_cancel_comes_after_what_it_ends,
    cancels_at_once_count_each_message_once,
    retries_leave_out_what_is_gone,
    a_days_messages_are_reserved_once,
}

on_all_stores! { url_groups:
    a_group_is_made_with_its_first_endpoints,
    endpoints_are_changed_and_added,
    a_group_goes_with_its_last_endpoint,
    a_group_has_headers,
    groups_and_endpoints_have_limits,
    changes_at_once_are_all_made,
}

on_all_stores! { runs:
    a_run_begins_with_its_payload,
    a_live_runs_id_is_taken,
    entries_have_one_order,
    a_repeated_submission_is_recognised,
    a_run_that_has_ended_takes_nothing_more,
    a_run_ends_once_and_drops_its_messages,
    an_invocation_is_made_once,
    a_parent_is_told_once,
    a_wait_ends_once,
    a_deadline_ends_a_wait,
    an_event_is_kept_or_delivered,
}

on_all_stores! { run_history:
    runs_are_listed_and_filtered,
    messages_of_a_run_are_read_with_their_attempts,
    messages_of_runs_are_no_users_messages,
    a_failed_run_leaves_a_dead_letter_of_its_own,
    telling_of_a_failure_is_repeated_and_cancelled,
    a_run_takes_the_place_of_a_failed_one,
    runs_go_with_the_log,
}
