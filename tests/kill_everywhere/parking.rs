//! Parking at every instruction: kills, unparks and signals at each point of a park,
//! kills and signals at each point of an unpark. There is no recovery to be killed:
//! a token is there or it is not.
#![allow(unsafe_code)]

use crate::kit::{Board, TempPath, until};
use crate::trace::{
    Point, Res, SIGNAL, Traced, fork_child, kill_and_reap, marker, sleeps_in_futex, wrong,
};
use heirlock::thread::{Thread, current, park, park_timeout};
use heirlock::{Participant, Segment};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, sigaction};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, alarm, pause};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// How long one point may take, by the process's alarm clock.
const ALARM: u32 = 40;

/// What took longer was done by a heartbeat.
const SLOW: Duration = Duration::from_millis(900);

/// What happens at point `at` of an operation. Whether that was its last one.
type Trial = fn(&Ground, at: usize) -> Res<bool>;

/// By name, and how many points there are at least.
const TRIALS: &[(&str, Trial, usize)] = &[
    ("park: killed, nobody unparks it before it sleeps", |g, at| g.park_killed(at, false), 200),
    ("park: killed, it has a token", |g, at| g.park_killed(at, true), 50),
    ("park: unparked", Ground::park_unparked, 200),
    ("park: its own signal handler unparks it", Ground::park_signalled, 200),
    ("unpark: killed", Ground::unpark_killed, 30),
    ("unpark: its own signal handler unparks the same", Ground::unpark_signalled, 30),
];

/// Runs the trials whose name contains `filter`; says whether all was well.
pub(crate) fn all(filter: &str) -> bool {
    let (mut points, mut failures) = (0, 0);
    for (name, trial, floor) in TRIALS.iter().filter(|(name, ..)| name.contains(filter)) {
        let start = Instant::now();
        let ground = Ground::new();
        let mut at = 0;
        let failed = loop {
            alarm::set(ALARM);
            match trial(&ground, at) {
                Ok(true) => break None,
                Ok(false) => at += 1,
                Err(fail) => break Some(fail),
            }
        };
        alarm::cancel();
        println!("{name:<50}{at:>8}{:>8.1} s", start.elapsed().as_secs_f64());
        points += at;
        if let Some(fail) = failed {
            println!("FAILED \"{name}\", point {at}: {fail}");
            failures += 1;
        } else if at < *floor {
            println!("  fewer points than the floor, {floor}");
            failures += 1;
        }
    }
    println!("parking points: {points}, failures: {failures}");
    failures == 0
}

/// Whom the handler unparks; each victim has a variable of its own.
static AT_SIGNAL: OnceLock<Thread<'static>> = OnceLock::new();

extern "C" fn unpark_at_signal(_: i32) {
    if let Some(thread) = AT_SIGNAL.get() {
        thread.unpark();
    }
}

/// Has this process unpark `thread` at [`SIGNAL`].
fn handle(thread: Thread<'static>) {
    AT_SIGNAL.get_or_init(|| thread);
    let handler = SigHandler::Handler(unpark_at_signal);
    let action = SigAction::new(handler, SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler reads an initialized cell and unparks, which is
    // async-signal-safe.
    unsafe { sigaction(SIGNAL, &action) }.expect("sigaction");
}

/// A process that parks over and over; killed and reaped when dropped.
struct Parked {
    pid: Pid,
    thread: Thread<'static>,
}

impl Drop for Parked {
    fn drop(&mut self) {
        kill_and_reap(self.pid);
    }
}

/// The segment. Its first value is who has joined last, its second how many parks
/// have returned.
struct Ground {
    segment: &'static Segment<Board>,
    file: File,
    parked: OnceLock<Parked>,
}

impl Ground {
    fn new() -> Self {
        let path = TempPath::new();
        let segment = Segment::options().capacity(8).create(&*path).expect("create");
        let file = File::open(&*path).expect("open");
        // Those who are forked from this process have it where it is here.
        Self { segment: Box::leak(Box::new(segment)), file, parked: OnceLock::new() }
    }

    /// Joins, and says who it is.
    fn join(segment: &'static Segment<Board>) -> Thread<'static> {
        let me = current(segment).expect("join");
        *segment.locks[0].lock() = me.participant().to_bits();
        me
    }

    fn joined(&self) -> Thread<'static> {
        let last = Participant::from_bits(*self.segment.locks[0].lock());
        Thread::of(self.segment, last.expect("a participant"))
    }

    fn woken(&self) -> u64 {
        *self.segment.locks[1].lock()
    }

    /// Whether a thread has a token: a bit of a word of its row.
    fn has_token(&self, thread: Thread) -> bool {
        let mut word = [0; 4];
        let at = 4096 + 64 * u64::from(thread.participant().row()) + 52;
        self.file.read_exact_at(&mut word, at).expect("read");
        u32::from_ne_bytes(word) & 1 != 0
    }

    /// A process that is parked, asleep, and has no token.
    fn parked(&self) -> &Parked {
        let parked = self.parked.get_or_init(|| {
            let segment = self.segment;
            let pid = fork_child(|| {
                Self::join(segment);
                loop {
                    park(segment);
                    *segment.locks[1].lock() += 1;
                }
            });
            until("a child has joined", || *segment.locks[0].lock() != 0);
            Parked { pid, thread: self.joined() }
        });
        self.settle(parked);
        parked
    }

    fn settle(&self, parked: &Parked) {
        until("a child is parked", || sleeps_in_futex(parked.pid));
    }

    /// A victim that parks between its markers.
    fn parking(&self) -> Res<(Traced, Thread<'static>)> {
        let segment = self.segment;
        let victim = Traced::start(|| {
            handle(Self::join(segment));
            marker();
            park(segment);
            marker();
            pause();
        })?;
        Ok((victim, self.joined()))
    }

    /// A victim that unparks somebody between its markers.
    fn unparking(&self, parked: Thread<'static>) -> Res<Traced> {
        Traced::start(|| {
            handle(parked);
            marker();
            parked.unpark();
            marker();
            pause();
        })
    }

    /// Whoever re-uses the row of a dead thread has no token.
    fn check_next(&self, dead: Thread) -> Res<()> {
        let segment = self.segment;
        let next = fork_child(|| {
            Self::join(segment);
            assert!(!park_timeout(segment, Duration::ZERO), "a token of the dead");
        });
        let status = waitpid(next, None);
        if status != Ok(WaitStatus::Exited(next, 0)) {
            return wrong(format!("the next user of the row: {status:?}"));
        }
        if self.joined().participant().row() != dead.participant().row() {
            return wrong("the row was not used again");
        }
        Ok(())
    }

    fn park_killed(&self, at: usize, early: bool) -> Res<bool> {
        let (mut victim, thread) = self.parking()?;
        if early && !thread.unpark() {
            return wrong("the living is said to be dead");
        }
        let last = advance(&mut victim, at, || {
            thread.unpark();
        })?;
        if early && matches!(victim.point, Point::Asleep(_)) {
            return wrong("it sleeps, and has a token");
        }
        victim.kill();
        if thread.unpark() {
            return wrong("the dead was unparked");
        }
        self.check_next(thread)?;
        Ok(last)
    }

    fn park_unparked(&self, at: usize) -> Res<bool> {
        self.park_told(at, |_, thread| match thread.unpark() {
            true => Ok(()),
            false => wrong("the living is said to be dead"),
        })
    }

    fn park_signalled(&self, at: usize) -> Res<bool> {
        self.park_told(at, |victim, _| {
            victim.signal()?;
            victim.deliver()?;
            victim.handle()
        })
    }

    /// The token comes at point `at`, by `give`: the park returns.
    fn park_told(&self, at: usize, give: fn(&mut Traced, Thread) -> Res<()>) -> Res<bool> {
        let (mut victim, thread) = self.parking()?;
        let mut tokens = 1;
        let last = advance(&mut victim, at, || {
            // Or else there were no points behind the sleep.
            thread.unpark();
            tokens += 1;
        })?;
        if last {
            victim.kill();
            return Ok(true);
        }
        let start = Instant::now();
        give(&mut victim, thread)?;
        while !victim.run(None)? {}
        if start.elapsed() > SLOW {
            return wrong("a heartbeat had to help");
        }
        if tokens == 1 && self.has_token(thread) {
            return wrong("it has returned, and still has the token");
        }
        victim.kill();
        self.check_next(thread)?;
        Ok(false)
    }

    fn unpark_killed(&self, at: usize) -> Res<bool> {
        let parked = self.parked();
        let before = self.woken();
        let mut victim = self.unparking(parked.thread)?;
        let last = advance(&mut victim, at, || ())?;
        victim.kill();
        self.settle(parked);
        let (given, woken) = (self.has_token(parked.thread), self.woken() - before);
        match (given, woken) {
            (false, 0) if last => return wrong("it has unparked, and nobody was woken"),
            (false, 0 | 1) => {}
            // Killed before the wake. Another unpark wakes; the heartbeat would, too.
            (true, 0) if !last => {
                let start = Instant::now();
                if at.is_multiple_of(2) && !parked.thread.unpark() {
                    return wrong("the living is said to be dead");
                }
                until("the token is taken", || self.woken() > before);
                if at.is_multiple_of(2) && start.elapsed() > SLOW {
                    return wrong("a heartbeat had to help");
                }
                self.settle(parked);
                if self.woken() != before + 1 || self.has_token(parked.thread) {
                    return wrong("two unparks were not one token");
                }
            }
            _ => return wrong(format!("woken {woken} times, a token left: {given}")),
        }
        Ok(last)
    }

    fn unpark_signalled(&self, at: usize) -> Res<bool> {
        let parked = self.parked();
        let before = self.woken();
        let mut victim = self.unparking(parked.thread)?;
        let last = advance(&mut victim, at, || ())?;
        if !last {
            victim.signal()?;
            victim.deliver()?;
            victim.handle()?;
            while !victim.run(None)? {}
        }
        victim.kill();
        self.settle(parked);
        let woken = self.woken() - before;
        if !(1..=2).contains(&woken) || self.has_token(parked.thread) {
            return wrong(format!("woken {woken} times, or a token is left"));
        }
        Ok(last)
    }
}

/// Brings the victim to point `at`, or to the end of its operation; whether it is
/// there. `asleep` is what ends a sleep on the way.
fn advance(victim: &mut Traced, at: usize, mut asleep: impl FnMut()) -> Res<bool> {
    for _ in 0..at {
        if matches!(victim.point, Point::Asleep(_)) {
            asleep();
        }
        victim.step()?;
        if victim.at_end() {
            return Ok(true);
        }
    }
    Ok(false)
}
