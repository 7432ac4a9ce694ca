//! Waiting for locks in rings, without a thread that sleeps.

#[path = "../kit/mod.rs"]
mod kit;

mod acquire;
mod actor;
mod deaths;
mod drops;
mod guards;
mod rings;

fn main() {
    kit::run(
        &[acquire::TESTS, drops::TESTS, deaths::TESTS, guards::TESTS],
        actor::ROLES,
        2 * kit::HANG,
    )
}
