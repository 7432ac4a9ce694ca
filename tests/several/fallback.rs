//! The same where io_uring is refused, and `futex_waitv` as well.

use crate::clerk::{Scene, name_of_backend};
use crate::kit::sandbox::Refusal;
use crate::kit::{Process, Role, Test};
use crate::{any, futures, moves};
use std::time::Instant;

pub(crate) const TESTS: &[Test] = &[
    ("futures_wait_in_the_ring_of_the_helper_if_there_is_one", as_it_is),
    ("futures_do_without_io_uring_eperm", || play_futures(EPERM)),
    ("futures_do_without_io_uring_enosys", || play_futures(ENOSYS)),
    ("futures_do_without_io_uring_and_futex_waitv", || play_futures(NEITHER)),
    ("any_of_many_does_without_io_uring_eperm", || play_any(EPERM)),
    ("any_of_many_does_without_io_uring_enosys", || play_any(ENOSYS)),
    ("any_of_many_does_without_io_uring_and_futex_waitv", || play_any(NEITHER)),
];

pub(crate) const ROLES: &[Role] = &[("moves_without", moves_without)];

const EPERM: &[Refusal] = &[Refusal::IO_URING];
const ENOSYS: &[Refusal] = &[Refusal::IO_URING_UNKNOWN];
const NEITHER: &[Refusal] = &[Refusal::IO_URING, Refusal::WAITV];

fn as_it_is() {
    #[cfg(feature = "io-uring")]
    let ring = heirlock::uring::refused().is_none();
    #[cfg(not(feature = "io-uring"))]
    let ring = false;
    assert_eq!(name_of_backend(), if ring { "IoUring" } else { "Futex" });
}

fn play_any(refusals: &'static [Refusal]) {
    refusals.iter().for_each(Refusal::require);
    for test in any::CORE {
        for any in ["any", "any-async"] {
            test(&Scene::sandboxed(refusals), any);
        }
    }
}

fn play_futures(refusals: &'static [Refusal]) {
    refusals.iter().for_each(Refusal::require);
    for test in futures::CORE {
        test(&Scene::sandboxed(refusals));
    }
    let error = refusals[0].error().to_string();
    let mut command = Process::command("moves_without", &[&error]);
    refusals.iter().for_each(|refusal| refusal.impose(&mut command));
    assert!(Process::from_command(&mut command).succeeds());
}

/// The tests of one process, in one that is in the sandbox. What they assert ends it.
fn moves_without(args: &[String]) {
    assert_eq!(name_of_backend(), "Futex");
    #[cfg(feature = "io-uring")]
    {
        let error = heirlock::uring::refused().and_then(|error| error.raw_os_error());
        assert_eq!(error, Some(args[0].parse().expect("an error")));
        let ring = io_uring::IoUring::new(2).map(drop).map_err(|error| error.raw_os_error());
        assert_eq!(ring, Err(error), "that is why");
    }
    for (name, test) in moves::TESTS {
        let begin = Instant::now();
        test();
        println!("  {name} ({:?}), without error {}", begin.elapsed(), args[0]);
    }
}
