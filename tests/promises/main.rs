//! The promises of the README, each kept by real processes.

#[path = "../kit/mod.rs"]
mod kit;

mod death;
mod fallback;
mod guard;
mod identity;
mod injection;
mod interruption;
mod order;
mod parking;
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
            parking::TESTS,
            injection::TESTS,
            fallback::TESTS,
        ],
        &[identity::ROLES, injection::ROLES, policy::ROLES, patience::ROLES, parking::ROLES]
            .concat(),
        4 * kit::HANG,
    )
}
