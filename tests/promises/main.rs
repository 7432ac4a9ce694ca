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

fn main() {
    kit::run(
        &[
            order::TESTS,
            death::TESTS,
            identity::TESTS,
            guard::TESTS,
            interruption::TESTS,
            injection::TESTS,
            fallback::TESTS,
        ],
        &[identity::ROLES, injection::ROLES].concat(),
        4 * kit::HANG,
    )
}
