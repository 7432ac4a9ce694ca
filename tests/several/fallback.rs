//! The same futures where io_uring is refused, and `futex_waitv` as well.

use crate::futures;
use crate::kit::sandbox::Refusal;
use crate::kit::{Process, Role, Test};
use heirlock::future::{Backend, backend};

pub(crate) const TESTS: &[Test] = &[
    ("futures_wait_in_the_ring_of_the_helper_if_there_is_one", as_it_is),
    ("futures_do_without_io_uring_where_it_is_forbidden", forbidden),
    ("futures_do_without_io_uring_where_it_is_unknown", unknown),
    ("futures_do_without_futex_waitv_as_well", without_waitv),
];

pub(crate) const ROLES: &[Role] =
    &[("futures", play), ("futures_without_waitv", play_without_waitv)];

/// All of them, and lock_any, in a process of the role.
fn play(args: &[String]) {
    assert_eq!(backend(), Backend::Futex);
    #[cfg(feature = "io-uring")]
    {
        let refused = heirlock::uring::refused().expect("io_uring is refused");
        assert_eq!(refused.raw_os_error(), args[0].parse().ok());
        let error = io_uring::IoUring::new(2).map(drop).expect_err("a ring is refused");
        assert_eq!(error.raw_os_error(), refused.raw_os_error());
    }
    let _ = args;
    for (name, test) in futures::TESTS {
        eprintln!("{name}, without a ring");
        test();
    }
    crate::select::one_of_sixty_four();
}

/// Seccomp filters add up, across exec too.
fn play_without_waitv(args: &[String]) {
    let mut command = Process::command("futures", &[&args[0]]);
    Refusal::WAITV.impose(&mut command);
    assert!(Process::from_command(&mut command).succeeds());
}

fn refused(role: &str, refusal: Refusal, errno: i32) {
    refusal.require();
    let mut command = Process::command(role, &[&errno.to_string()]);
    refusal.impose(&mut command);
    assert!(Process::from_command(&mut command).succeeds(), "a future failed there");
}

fn as_it_is() {
    #[cfg(feature = "io-uring")]
    if heirlock::uring::refused().is_none() {
        assert_eq!(backend(), Backend::IoUring);
        return;
    }
    assert_eq!(backend(), Backend::Futex);
}

fn forbidden() {
    refused("futures", Refusal::IO_URING, libc::EPERM);
}

fn unknown() {
    refused("futures", Refusal::IO_URING_UNKNOWN, libc::ENOSYS);
}

fn without_waitv() {
    refused("futures_without_waitv", Refusal::IO_URING, libc::EPERM);
}
