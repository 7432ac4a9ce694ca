//! Waiting for locks in rings, without a thread that sleeps.
//!
//! What liburing tests of waiting for futexes (test/futex.c, futex-kill.c, fifo-futex-poll.c),
//! and where it is tested here:
//!
//! * `test`: a wait against a wake against a cancellation, in rings without flags, with
//!   SQPOLL, SINGLE_ISSUER | DEFER_TASKRUN, and COOP_TASKRUN, each of the two with
//!   IOSQE_ASYNC and without: `wait_against_wake_against_cancel`. Of one word
//!   (IORING_OP_FUTEX_WAIT): the crate does not, it always waits for several.
//! * `register_sync_cancel`: `cancelling_the_request_gives_up_the_place_in_the_queue`.
//! * `test_order`: `one_wake_ends_one_wait`, and in a queue of many
//!   `many_in_flight_for_one_lock_are_served_in_their_order`. The wake is a system call: the
//!   crate has none by a ring (IORING_OP_FUTEX_WAKE), as who releases has no ring.
//! * `test_multi_wake`: one death ends the waits of all who watch the dead, in
//!   `kill_storm` `a_ring_that_is_told_of_a_death_tells_the_others`; one token those that have
//!   it, in `a_token_ends_all_waits_in_a_ring_that_have_it`.
//! * `test_wake_zero`: the crate never wakes nobody on purpose.
//! * `test_invalid`: an entry of zeros is refused, which is how a request that was given up is
//!   made to wait for nothing: `dropped_before_it_is_submitted_it_disturbs_nobody`, and
//!   `kernel_facts` `tells_at_once_what_has_changed_or_is_no_memory`. Wrong flags and masks:
//!   those are constants here.
//! * futex-kill: who is killed, or ends, with waits in flight, with IOSQE_ASYNC and without,
//!   in each kind of ring: `the_waits_of_a_killed_process_are_stepped_over`,
//!   `what_an_acquisition_or_a_future_held_is_inherited`; a ring that is closed:
//!   `a_ring_may_be_closed_with_acquisitions_in_flight`. With words of a process alone
//!   (FUTEX2_PRIVATE): the crate has none.
//! * fifo-futex-poll: a wait that fails at once, and then another request in its place:
//!   `dropped_before_it_is_submitted_it_disturbs_nobody`, whose ring goes on with waits. A
//!   poll of a pipe is not the crate's.

#[path = "../kit/mod.rs"]
mod kit;

mod acquire;
mod actor;
mod again;
mod deaths;
mod drops;
mod guards;
mod rings;

fn main() {
    kit::run(
        &[acquire::TESTS, drops::TESTS, deaths::TESTS, guards::TESTS, again::TESTS],
        &[actor::ROLES, again::ROLES].concat(),
        2 * kit::HANG,
    )
}
