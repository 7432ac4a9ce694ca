//! The same promises where a sandbox, or the kernel, refuses a system call.

use crate::kit::sandbox::Refusal;
use crate::kit::{Stage, Test};
use crate::{condvar, condvar_death, death, interruption, order};

pub(crate) const TESTS: &[Test] = &[
    ("order_is_kept_without_futex_waitv_eperm", || play(order::CORE, WAITV)),
    ("order_is_kept_without_futex_waitv_enosys", || play(order::CORE, WAITV_UNKNOWN)),
    ("order_is_kept_without_get_robust_list", || play(order::CORE, ROBUST_LIST)),
    ("order_is_kept_without_membarrier", || play(order::CORE, MEMBARRIER)),
    ("order_is_kept_where_some_are_refused_membarrier", || play(order::CORE, UNFENCED)),
    ("order_is_kept_among_differently_sandboxed_processes", || play(order::CORE, MIXED)),
    ("the_dead_are_inherited_from_without_futex_waitv_eperm", || play(death::CORE, WAITV)),
    ("the_dead_are_inherited_from_without_futex_waitv_enosys", || play(death::CORE, WAITV_UNKNOWN)),
    ("the_dead_are_inherited_from_without_get_robust_list", || play(death::CORE, ROBUST_LIST)),
    ("the_dead_are_inherited_from_without_membarrier", || play(death::CORE, MEMBARRIER)),
    ("the_dead_are_inherited_from_where_some_are_refused_membarrier", || {
        play(death::CORE, UNFENCED);
    }),
    ("the_dead_are_inherited_from_by_differently_sandboxed_processes", || play(death::CORE, MIXED)),
    ("waits_are_interrupted_without_futex_waitv", || play(interruption::CORE, WAITV)),
    ("waits_are_interrupted_in_differently_sandboxed_processes", || {
        play(interruption::CORE, MIXED);
    }),
    ("waiters_are_notified_in_order_without_futex_waitv_eperm", || play(condvar::CORE, WAITV)),
    ("notifications_of_the_dead_pass_on_without_futex_waitv_eperm", || {
        play(condvar_death::CORE, WAITV)
    }),
    ("waiters_are_notified_in_order_without_get_robust_list", || play(condvar::CORE, ROBUST_LIST)),
    ("notifications_of_the_dead_pass_on_without_get_robust_list", || {
        play(condvar_death::CORE, ROBUST_LIST)
    }),
    ("waiters_are_notified_in_order_where_some_are_refused_membarrier", || {
        play(condvar::CORE, UNFENCED)
    }),
    ("notifications_of_the_dead_pass_on_where_some_are_refused_membarrier", || {
        play(condvar_death::CORE, UNFENCED)
    }),
    ("waiters_are_notified_in_order_among_differently_sandboxed_processes", || {
        play(condvar::CORE, MIXED)
    }),
    ("notifications_of_the_dead_pass_on_among_differently_sandboxed_processes", || {
        play(condvar_death::CORE, MIXED)
    }),
];

const WAITV: &[Option<Refusal>] = &[Some(Refusal::WAITV)];
const WAITV_UNKNOWN: &[Option<Refusal>] = &[Some(Refusal::WAITV_UNKNOWN)];
const ROBUST_LIST: &[Option<Refusal>] = &[Some(Refusal::ROBUST_LIST)];
const MEMBARRIER: &[Option<Refusal>] = &[Some(Refusal::MEMBARRIER)];
const UNFENCED: &[Option<Refusal>] = &[None, Some(Refusal::MEMBARRIER), None];
/// Three are prime to the numbers of puppets in most tests, so that all parts
/// come to be played in all sandboxes.
const MIXED: &[Option<Refusal>] =
    &[Some(Refusal::ROBUST_LIST), None, Some(Refusal::WAITV), None, Some(Refusal::ROBUST_LIST)];

fn play(tests: &[fn(&Stage)], sandboxes: &'static [Option<Refusal>]) {
    for test in tests {
        test(&Stage::sandboxed(sandboxes));
    }
}
