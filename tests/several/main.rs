//! Futures, with io_uring and where it is refused; and several locks at once.

#[path = "../kit/mod.rs"]
mod kit;

mod fallback;
mod futures;
mod select;

fn main() {
    kit::run(
        &[futures::TESTS, select::TESTS, fallback::TESTS],
        &[fallback::ROLES, select::ROLES].concat(),
        2 * kit::HANG,
    )
}
