//! Waiting for locks in rings, without a thread that sleeps.

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
