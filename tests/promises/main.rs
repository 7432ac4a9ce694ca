//! The promises of the README, each kept by real processes.

#[path = "../kit/mod.rs"]
mod kit;

mod deadlock;
mod death;
mod fallback;
mod guard;
mod identity;
mod injection;
mod interruption;
mod order;
mod patience;
mod policy;

fn main() {
    kit::run(
        &[
            order::TESTS,
            policy::TESTS,
            patience::TESTS,
            death::TESTS,
            identity::TESTS,
            guard::TESTS,
            interruption::TESTS,
            injection::TESTS,
            fallback::TESTS,
            deadlock::TESTS,
        ],
        &[identity::ROLES, injection::ROLES, policy::ROLES, patience::ROLES, deadlock::ROLES]
            .concat(),
        4 * kit::HANG,
    )
}
