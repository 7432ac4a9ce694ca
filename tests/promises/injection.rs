//! The kernel's futex calls fail: each ends in a retry or in a clear error.
//!
//! `strace` makes every `n`th futex call of a process fail with a given error,
//! without executing it.

use crate::kit::{Process, Role, TempPath, Test, skip};
use heirlock::{CancelToken, LockError, LockOptions, Mutex, Segment};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use zerocopy::FromBytes;

pub(crate) const TESTS: &[Test] = &[
    ("injected_eintr_is_retried", || survives("EINTR")),
    ("injected_eagain_is_retried", || survives("EAGAIN")),
    ("injected_enomem_is_retried", || survives("ENOMEM")),
    // Nothing that the kernel says today.
    ("injected_nonsense_is_retried", || survives("EUCLEAN")),
    ("injected_efault_is_a_clear_error_and_the_others_go_on", efault),
];

pub(crate) const ROLES: &[Role] = &[("hammer", hammer)];

#[derive(FromBytes)]
#[repr(C)]
struct Shared {
    lock: Mutex<u64>,
    token: CancelToken,
    _padding: u32,
}

/// How many processes contend.
const PROCESSES: usize = 3;

/// `hammer PATH ROUNDS`: acquires the lock that many times, in each way there
/// is, or ends with what went wrong. Says how often it failed for good.
fn hammer(args: &[String]) {
    set_pdeathsig(Signal::SIGKILL).expect("PR_SET_PDEATHSIG");
    let segment: Segment<Shared> = Segment::open(&args[0]).expect("open");
    let rounds: u64 = args[1].parse().expect("a number");
    let mut acquired = 0;
    let mut round = 0;
    while acquired < rounds {
        round += 1;
        let options = match round % 4 {
            0 => LockOptions::new(),
            1 => LockOptions::new().timeout(Duration::from_millis(5)),
            2 => LockOptions::new().cancel(&segment.token),
            _ => LockOptions::new().interruptible(true),
        };
        match segment.lock.lock_with(&options) {
            Ok(mut total) => {
                let before = *total;
                // Long enough for the others to queue and sleep.
                let start = Instant::now();
                while start.elapsed() < Duration::from_micros(200) {
                    std::hint::spin_loop();
                }
                *total = before + 1;
                acquired += 1;
            }
            Err(LockError::TimedOut | LockError::Interrupted) => {}
            Err(error) => {
                println!("{acquired} {error}");
                return;
            }
        }
    }
    println!("{acquired}");
}

/// What a hammer did.
struct Done {
    /// What it printed.
    said: String,
    /// How many of its calls failed by injection.
    injected: usize,
    calls: usize,
}

/// Hammers in processes whose every third futex call fails with `error`, on
/// which `with_error` decides; returns what each did.
fn contend(
    error: &str,
    rounds: u64,
    with_error: fn(usize) -> bool,
) -> (Segment<Shared>, Vec<Done>) {
    if !Command::new("strace").arg("-V").stdout(Stdio::null()).status().is_ok_and(|s| s.success()) {
        skip("strace is not installed");
    }
    let path = TempPath::new();
    let segment: Segment<Shared> = Segment::create(&path).expect("create");
    // They start together.
    let gate = segment.lock.lock();
    let mut running = Vec::new();
    for number in 0..PROCESSES {
        let log = TempPath::new();
        let role = Process::command("hammer", &[path.to_str().unwrap(), &rounds.to_string()]);
        let mut command = Command::new("strace");
        command.args(["-qq", "-e", "trace=futex,futex_waitv", "-e", "signal=none", "-o"]);
        command.arg(log.as_os_str());
        if with_error(number) {
            let every = format!("inject=futex,futex_waitv:error={error}:when={}+3", number + 1);
            command.args(["-e", &every]);
        }
        command.arg(role.get_program()).args(role.get_args()).stdout(Stdio::piped());
        running.push((Process::from_command(&mut command), log));
    }
    crate::kit::until("all are queued", || {
        heirlock::queue(&segment.lock).is_some_and(|queue| queue.len() == PROCESSES)
            || running.iter_mut().any(|(process, _)| process.has_ended())
    });
    drop(gate);
    let done = running.into_iter().map(|(mut process, log)| {
        let said = process.output();
        let log = std::fs::read_to_string(&log).expect("strace's log");
        Done { said, injected: log.matches("(INJECTED)").count(), calls: log.lines().count() }
    });
    let done = done.collect();
    (segment, done)
}

fn survives(error: &str) {
    const ROUNDS: u64 = 300;
    let (segment, all) = contend(error, ROUNDS, |_| true);
    let mut injected = 0;
    for Done { said, injected: here, calls } in all {
        assert_eq!(said.trim(), ROUNDS.to_string(), "{error}: {here} of {calls} calls");
        injected += here;
    }
    assert_eq!(*segment.lock.lock(), ROUNDS * PROCESSES as u64);
    assert_eq!(heirlock::queue(&segment.lock), Some(vec![]));
    eprintln!("{error}: {injected} calls failed");
    assert!(injected >= 100, "{error}: only {injected} calls failed");
}

/// As if its file were truncated, which the kernel says so, for one of them.
fn efault() {
    const ROUNDS: u64 = 100;
    let (segment, all) = contend("EFAULT", ROUNDS, |number| number == 0);
    let mut total = 0;
    for (number, Done { said, injected, .. }) in all.iter().enumerate() {
        let (acquired, error) = said.trim().split_once(' ').unwrap_or((said.trim(), ""));
        let acquired: u64 = acquired.parse().expect("a number");
        total += acquired;
        if number == 0 {
            assert!(*injected > 0 && acquired < ROUNDS, "{said}");
            assert!(error.contains("its file was truncated"), "{said}");
        } else {
            assert_eq!((acquired, error), (ROUNDS, ""), "the others go on");
        }
    }
    assert_eq!(*segment.lock.lock(), total);
    assert_eq!(heirlock::queue(&segment.lock), Some(vec![]), "it has left the queue");
}
