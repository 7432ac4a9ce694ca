//! Waiting without a thread that sleeps: in rings, as futures, for any of several locks.

#[path = "../kit/mod.rs"]
mod kit;

#[cfg(feature = "io-uring")]
mod acquire;
#[cfg(feature = "io-uring")]
mod actor;
#[cfg(feature = "io-uring")]
mod deaths;
#[cfg(feature = "io-uring")]
mod drops;
#[cfg(feature = "io-uring")]
mod rings;

fn main() {
    kit::run(
        &[
            #[cfg(feature = "io-uring")]
            acquire::TESTS,
            #[cfg(feature = "io-uring")]
            drops::TESTS,
            #[cfg(feature = "io-uring")]
            deaths::TESTS,
        ],
        &[
            #[cfg(feature = "io-uring")]
            actor::ROLES,
        ]
        .concat(),
        2 * kit::HANG,
    )
}
