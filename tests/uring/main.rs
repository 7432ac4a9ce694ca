//! Waiting without a thread that sleeps: in rings, as futures, for any of several locks.

#[path = "../kit/mod.rs"]
mod kit;

mod acquire;
mod actor;
mod deaths;
mod drops;
mod rings;

fn main() {
    kit::run(
        &[acquire::TESTS, drops::TESTS, deaths::TESTS],
        &[actor::ROLES].concat(),
        2 * kit::HANG,
    )
}
