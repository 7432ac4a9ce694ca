//! The promises of the README, each kept by real processes.

#[path = "../kit/mod.rs"]
mod kit;

mod condvar;
mod condvar_death;
mod deadlock;
mod death;
mod fallback;
mod guard;
mod identity;
mod injection;
mod interruption;
mod leaked;
mod lost;
mod order;
mod parking;
mod patience;
mod policy;
mod pthread_condvar;
mod pthread_mutex;
#[cfg(feature = "lock_api")]
mod raw;

fn main() {
    kit::run(
        &[
            order::TESTS,
            policy::TESTS,
            patience::TESTS,
            death::TESTS,
            identity::TESTS,
            guard::TESTS,
            lost::TESTS,
            leaked::TESTS,
            interruption::TESTS,
            parking::TESTS,
            #[cfg(feature = "lock_api")]
            raw::TESTS,
            condvar::TESTS,
            condvar_death::TESTS,
            pthread_condvar::TESTS,
            pthread_mutex::TESTS,
            injection::TESTS,
            fallback::TESTS,
            deadlock::TESTS,
        ],
        &[
            identity::ROLES,
            leaked::ROLES,
            injection::ROLES,
            policy::ROLES,
            patience::ROLES,
            parking::ROLES,
            deadlock::ROLES,
            #[cfg(feature = "lock_api")]
            raw::ROLES,
            condvar::ROLES,
            pthread_condvar::ROLES,
            pthread_mutex::ROLES,
        ]
        .concat(),
        4 * kit::HANG,
    )
}
