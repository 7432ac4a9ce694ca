//! What the crate takes for granted about the kernel and the C library, one trial per fact.
//!
//! `kernel-notes.md` says why each fact matters and what the crate does without it. A trial that
//! fails means that the fact does not hold on this machine, not that the crate has a bug.
//!
//! Nothing here sleeps for "long enough". Who sleeps on a futex word is *counted* ([`support::queued`]),
//! and whatever the kernel does for a dying process is done before that process can be reaped, so
//! that "nobody was woken" and "the word was left alone" are exact statements. The only durations
//! are hang guards.
//!
//! The trials use real processes, forked from a test process whose other threads, if any, only
//! sleep: [`main`] therefore runs them one after the other. Mappings are leaked on purpose (the
//! references to their words are `'static`), and no name is left in any file system.

#![allow(unsafe_code)]
#![allow(
    clippy::disallowed_types,
    reason = "these words belong to the kernel facts, not to the crate's own state"
)]

mod futex_call;
mod io_uring;
mod membarrier;
mod memory;
mod ofd_lock;
mod robust_list;
mod support;

use libtest_mimic::{Arguments, Trial};

use self::io_uring::ring_missing;
use membarrier::membarrier_missing;
use support::{robust_list_missing, skip};

fn main() {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let mut trials = Vec::new();
    macro_rules! trials {
        ($module:ident: $($name:ident)+) => {
            $(trials.push(Trial::ignorable_test(
                concat!(stringify!($module), "::", stringify!($name)),
                $module::$name,
            ));)+
        };
        ($module:ident unless $missing:ident: $($name:ident)+) => {
            $(trials.push(Trial::ignorable_test(
                concat!(stringify!($module), "::", stringify!($name)),
                || $missing().map_or_else($module::$name, skip),
            ));)+
        };
    }
    trials! { robust_list unless robust_list_missing:
        head_is_registered
        foreign_node_coexists_with_robust_mutexes
        robust_mutex_clears_pending
        unmapping_a_linked_node_is_fatal
        dying_thread_marks_its_word
        killed_process_marks_its_word
        own_tid_is_that_of_its_own_pid_namespace
        death_wakes_exactly_one_waiter
        death_wakes_nobody_without_the_waiters_bit
        pending_relays_a_wake
        pending_on_own_tid_is_a_false_death
        fork_empties_the_robust_list
        execve_from_the_leader_marks_its_word
        execve_from_another_thread_does_not_mark_its_word
        bad_node_ends_the_walk
        truncated_or_read_only_word_is_not_marked
        walk_is_bounded
    }
    trials! { ofd_lock:
        belongs_to_a_description
        ends_with_a_killed_process
        ends_with_execve
        survives_in_a_forked_child
    }
    trials! { futex_call:
        signals
        stop_and_continue_are_invisible
        waitv_checks_every_word
        waitv_is_woken_through_any_word
        waitv_names_one_of_several_woken_words
        timeouts_are_absolute
        shared_keys_are_file_and_offset
        word_beyond_the_end_of_file_faults
        shared_flag_works_on_private_memory
    }
    trials! { io_uring unless ring_missing:
        waits_for_words_that_processes_share
        tells_at_once_what_has_changed_or_is_no_memory
        request_is_read_when_it_is_submitted
        linked_timeout_cancels_the_wait
        cancellation_cancels_the_wait
        end_of_the_submitting_thread_cancels_the_wait
        killed_process_takes_its_wake_along
        woken_request_uses_up_the_wakes_of_its_other_words
        relative_timeout_is_right_in_a_time_namespace
    }
    trials! { membarrier unless membarrier_missing:
        takes_no_privilege
        fences_other_processes
    }
    trials! { memory:
        fallocate_reserves_memory
        dontfork_mapping_is_absent_in_the_child
    }
    libtest_mimic::run(&arguments, trials).exit();
}
