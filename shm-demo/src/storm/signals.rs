//! The signals of the storm: which there are, what their handlers do, and how
//! they are sent.
#![allow(unsafe_code)]

use super::ground::Ground;
use clap::ValueEnum;
use heirlock::Segment;
use libc::c_int;
use std::sync::OnceLock;
use std::sync::atomic::Ordering::Relaxed;
use std::{io, mem, ptr};

/// Whether the kernel restarts the system calls that a handler interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Restart {
    Never,
    Always,
    /// After every other kind of signal.
    Mixed,
}

/// How many kinds of signals there are.
const KINDS: usize = 7;

/// Ordinary signals, of which one at a time is pending, and real-time ones,
/// which queue. The last one cancels.
fn kinds() -> [c_int; KINDS] {
    let queued = libc::SIGRTMIN();
    [libc::SIGUSR1, libc::SIGUSR2, libc::SIGALRM, queued, queued + 1, queued + 2, queued + 3]
}

/// A signal to send.
#[derive(Clone, Copy)]
pub(crate) struct Kind(c_int);

impl Kind {
    /// One in sixteen cancels.
    pub(crate) fn random() -> Self {
        let kinds = kinds();
        let at = if fastrand::u8(..16) == 0 { KINDS - 1 } else { fastrand::usize(..KINDS - 1) };
        Self(kinds[at])
    }

    /// Whether the kernel keeps each of several.
    pub(crate) fn queues(self) -> bool {
        is_queued(self.0)
    }
}

fn is_queued(signal: c_int) -> bool {
    // The kernel's first real-time signal, whatever the C library calls its own.
    signal >= 32
}

/// Sends a signal to a thread of the process `pid`, which the caller must not
/// have reaped: then it hits that process, or nobody.
pub(crate) fn send(pid: i32, tid: u64, kind: Kind) -> io::Result<()> {
    let tid = c_int::try_from(tid).map_err(io::Error::other)?;
    // SAFETY: no pointers; it touches no memory of this process.
    let done = unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, kind.0) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Where a worker's handlers count.
struct Station {
    ground: &'static Segment<Ground>,
    slot: usize,
    cancels: c_int,
}

static STATION: OnceLock<Station> = OnceLock::new();

/// Installs the handlers of the worker in place `slot`.
pub(crate) fn install(
    ground: &'static Segment<Ground>,
    slot: usize,
    restart: Restart,
) -> io::Result<()> {
    let kinds = kinds();
    STATION.get_or_init(|| Station { ground, slot, cancels: kinds[KINDS - 1] });
    for (at, signal) in kinds.into_iter().enumerate() {
        let restarts = match restart {
            Restart::Never => false,
            Restart::Always => true,
            Restart::Mixed => at % 2 == 1,
        };
        // SAFETY: all zero bytes are a `sigaction`: no flags, the default
        // handler, an empty mask (`sigemptyset` says it properly).
        let mut action: libc::sigaction = unsafe { mem::zeroed() };
        action.sa_sigaction = on_signal as extern "C" fn(c_int) as libc::sighandler_t;
        action.sa_flags = if restarts { libc::SA_RESTART } else { 0 };
        // SAFETY: `action` is a `sigaction` of which both calls read or write no
        // more than the type has, and no old one is asked for. The handler is a
        // function of one argument, as the flags (without SA_SIGINFO) say, and
        // does what a handler may: see there.
        let done = unsafe {
            libc::sigemptyset(&raw mut action.sa_mask);
            libc::sigaction(signal, &raw const action, ptr::null_mut())
        };
        if done != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Async-signal-safe: it looks at a cell that was filled before the first
/// handler was installed, adds to atomics and cancels, which is safe; it leaves
/// `errno` alone, allocates nothing and cannot panic (the slot was an index when
/// the worker arrived).
extern "C" fn on_signal(signal: c_int) {
    let Some(station) = STATION.get() else { return };
    let Some(place) = station.ground.places.get(station.slot) else { return };
    place.handlers.fetch_add(1, Relaxed);
    if is_queued(signal) {
        place.queued_handlers.fetch_add(1, Relaxed);
    }
    if signal == station.cancels {
        place.token.canceller().cancel();
    }
}
