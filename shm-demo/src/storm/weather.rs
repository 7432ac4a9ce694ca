//! What befalls the workers during the storm, but for the kills: signals, stops
//! and cancellations.
#![allow(clippy::disallowed_types, reason = "the demo's own words, not the lock's")]

use super::ground::{Ground, THREADS};
use super::signals::{self, Kind};
use crate::crew::Crew;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::sync::Mutex;
use std::sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{Relaxed, SeqCst},
};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How often the sender sends what is due.
const TICK: Duration = Duration::from_millis(1);

/// What is due is forgotten after this long without a chance to send it.
const ARREARS: f64 = 0.1;

/// How many queued signals a worker may have pending. A worker that is stopped, or
/// seldom has its turn, would fill its user's quota.
const PENDING: u64 = 64;

pub(crate) struct Weather<'a> {
    ground: &'a Ground,
    crew: &'a Mutex<Crew>,
    workers: usize,
    over: AtomicBool,
    pub(crate) signals_sent: AtomicU64,
    pub(crate) stops: AtomicU64,
}

/// Ends the storm when it is dropped.
pub(crate) struct Front<'a>(&'a AtomicBool);

impl Drop for Front<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

/// What the sender knows of a worker.
#[derive(Clone, Copy, Default)]
struct Target {
    pid: i32,
    /// How many queued signals it has been sent, or its predecessors have handled.
    queued: u64,
}

impl<'a> Weather<'a> {
    pub(crate) fn new(ground: &'a Ground, crew: &'a Mutex<Crew>, workers: usize) -> Self {
        Self {
            ground,
            crew,
            workers,
            over: AtomicBool::new(false),
            signals_sent: AtomicU64::new(0),
            stops: AtomicU64::new(0),
        }
    }

    /// What ends the storm when it is dropped.
    pub(crate) fn front(&self) -> Front<'_> {
        Front(&self.over)
    }

    fn goes_on(&self) -> bool {
        !self.over.load(SeqCst)
    }

    /// The process in place `slot` now, handed to `act` while nobody can reap it.
    fn with<R>(&self, slot: usize, act: impl FnOnce(i32) -> R) -> Option<R> {
        let crew = self.crew.lock().expect("nobody panics with the crew");
        crew.pid(slot).map(act)
    }

    /// Sends `rate` signals per second, as far as there is time.
    pub(crate) fn send_signals(&self, rate: u32) {
        let rate = f64::from(rate);
        let mut targets = vec![Target::default(); self.workers];
        let (mut due, mut last) = (0.0, Instant::now());
        while self.goes_on() {
            let now = Instant::now();
            due = (due + rate * (now - last).as_secs_f64()).min(rate * ARREARS);
            last = now;
            let mut tries = 2 * due as u64;
            while due >= 1.0 && tries > 0 {
                let sent = self.burst(&mut targets);
                due -= sent as f64;
                tries = tries.saturating_sub(sent.max(1));
                self.signals_sent.fetch_add(sent, Relaxed);
            }
            sleep(TICK);
        }
    }

    /// A thread to send signals to: often one that is inside a wait, where it
    /// matters.
    fn target(&self) -> (usize, usize) {
        let random = || (fastrand::usize(..self.workers), fastrand::usize(..THREADS));
        let waits = |(slot, thread): &(usize, usize)| {
            self.ground.places[*slot].threads[*thread].is_in_a_wait(&self.ground.waits)
        };
        (0..fastrand::u32(0..8)).map(|_| random()).find(waits).unwrap_or_else(random)
    }

    /// Sends a thread one signal, or several at once; says how many.
    fn burst(&self, targets: &mut [Target]) -> u64 {
        let (slot, thread) = self.target();
        let place = &self.ground.places[slot];
        let target = &mut targets[slot];
        let send = |pid| {
            let tid = place.threads[thread].tid.load(SeqCst);
            let handled = place.queued_handlers.load(Relaxed);
            if target.pid != pid {
                *target = Target { pid, queued: handled };
            }
            if tid == 0 || target.queued.saturating_sub(handled) > PENDING {
                return 0;
            }
            let size = if fastrand::u8(..8) == 0 { fastrand::u64(2..8) } else { 1 };
            (0..size)
                .filter(|_| {
                    let kind = Kind::random();
                    let sent = signals::send(pid, tid, kind).is_ok();
                    target.queued += u64::from(sent && kind.queues());
                    sent
                })
                .count() as u64
        };
        self.with(slot, send).unwrap_or(0)
    }

    /// Stops workers for a few milliseconds each.
    pub(crate) fn stop_workers(&self) {
        while self.goes_on() {
            sleep(Duration::from_millis(fastrand::u64(5..60)));
            let slot = fastrand::usize(..self.workers);
            let signal = |pid, signal| kill(Pid::from_raw(pid), signal).is_ok();
            let stop = |pid| signal(pid, Signal::SIGSTOP).then_some(pid);
            let Some(Some(stopped)) = self.with(slot, stop) else { continue };
            self.stops.fetch_add(1, Relaxed);
            sleep(Duration::from_millis(fastrand::u64(1..6)));
            // It may have been killed and replaced by now.
            self.with(slot, |pid| pid == stopped && signal(pid, Signal::SIGCONT));
        }
    }

    /// Cancels the waits of one worker after the other, besides those that the
    /// workers' own handlers cancel.
    pub(crate) fn cancel_waits(&self) {
        while self.goes_on() {
            sleep(Duration::from_millis(fastrand::u64(1..20)));
            self.ground.places[fastrand::usize(..self.workers)].token.canceller().cancel();
        }
    }
}
