//! The promises of the README, each kept by real processes.

#[path = "../kit/mod.rs"]
mod kit;

mod order;

fn main() {
    kit::run(&[order::TESTS], &[], 4 * kit::HANG)
}
