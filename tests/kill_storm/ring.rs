//! Hundreds of deaths around condition variables: a turn goes round, each place is
//! notified by the one before, and if one notification were lost it would stop.
#![allow(clippy::disallowed_types, reason = "the test's own books")]

use crate::kit::{Process, TempPath, Test};
use crate::{hang, is_long, number_from_env};
use fastrand::Rng;
use heirlock::{Condvar, Mutex, MutexGuard, Segment, Snapshot};
use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};
use zerocopy::FromBytes;

pub(crate) const TESTS: &[Test] =
    &[("hundreds_of_deaths_around_condition_variables_lose_no_notification", storm)];

const PLACES: usize = 4;
/// How many processes each place has. One is enough to take the turn.
const SPARES: usize = 3;

#[derive(FromBytes)]
#[repr(C)]
struct Ring {
    turn: Mutex<u64>,
    places: [Condvar; PLACES],
    stop: AtomicU64,
    inherited: AtomicU64,
    timed_out: AtomicU64,
    waits: AtomicU64,
    /// Waits that ended though it was another's turn: the notification came to more
    /// than one of a place, or passed on.
    in_vain: AtomicU64,
}

impl Ring {
    /// The heir does not know whether the dead one had notified anybody.
    fn repair(&self, turn: &MutexGuard<'_, u64>) {
        if MutexGuard::inherited(turn).is_some() {
            self.inherited.fetch_add(1, SeqCst);
            for place in &self.places {
                place.notify_all();
            }
        }
    }
}

/// `ringer PATH PLACE SEED`
pub(crate) fn play(args: &[String]) {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).expect("prctl");
    let ring = Segment::<Ring>::open(&args[0]).expect("open");
    let place: usize = args[1].parse().expect("a place");
    let mut rng = Rng::with_seed(args[2].parse().expect("a seed"));
    while ring.stop.load(SeqCst) == 0 {
        let mut turn = ring.turn.lock();
        ring.repair(&turn);
        while *turn % PLACES as u64 != place as u64 && ring.stop.load(SeqCst) == 0 {
            ring.waits.fetch_add(1, SeqCst);
            if rng.u32(..16) == 0 {
                let timeout = Duration::from_micros(rng.u64(..2000));
                let timed_out = ring.places[place].wait_for(&mut turn, timeout).timed_out();
                ring.timed_out.fetch_add(timed_out.into(), SeqCst);
            } else {
                ring.places[place].wait(&mut turn);
                let in_vain = *turn % PLACES as u64 != place as u64;
                ring.in_vain.fetch_add(in_vain.into(), SeqCst);
            }
            ring.repair(&turn);
        }
        let linger = rng.u32(..4).saturating_sub(2) * 20_000;
        (0..linger).for_each(|_| std::hint::spin_loop());
        *turn += 1;
        let next = &ring.places[*turn as usize % PLACES];
        // With the lock held: if it were released before, and this process killed in
        // between, nobody would inherit, and nobody would know.
        if rng.u32(..4) == 0 {
            next.notify_all();
        } else {
            next.notify_one();
        }
        (0..linger).for_each(|_| std::hint::spin_loop());
    }
}

/// What somebody was when it died.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Role {
    /// Waited to be notified.
    Waiting,
    /// Was notified, and did not have the lock yet.
    Notified,
    Owner,
    /// Was about to notify somebody.
    Notifying,
    Elsewhere,
}

/// The roles that are looked for, and how often each must have died among 1,000. To
/// notify takes less than a microsecond, and a system call.
const FLOORS: [(Role, u64); 4] =
    [(Role::Waiting, 100), (Role::Notified, 40), (Role::Owner, 60), (Role::Notifying, 0)];

/// How many are stopped and looked at before the next best is killed.
const LOOKS: u32 = 40;

struct Storm {
    path: TempPath,
    ring: Segment<Ring>,
    ringers: Vec<Process>,
    rng: Rng,
    deaths: BTreeMap<Role, u64>,
}

fn storm() {
    // A third of what the storm at the locks has.
    let kills = number_from_env("HEIRLOCK_KILLS").unwrap_or(if is_long() { 20_000 } else { 2_000 });
    let kills = kills.div_ceil(3);
    let seed = number_from_env("HEIRLOCK_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("HEIRLOCK_SEED={seed}");
    let start = Instant::now();
    let path = TempPath::new();
    let ring = Segment::options().capacity(64).create(&path).expect("create");
    let rng = Rng::with_seed(seed);
    let mut storm = Storm { path, ring, ringers: Vec::new(), rng, deaths: BTreeMap::new() };
    for at in 0..PLACES * SPARES {
        let ringer = storm.spawn(at);
        storm.ringers.push(ringer);
    }
    for _ in 0..kills {
        let wanted = storm.wanted(kills);
        let at = storm.kill_one_that_is(wanted);
        // Before anybody comes who would find by himself whose turn it is.
        storm.let_the_turn_go_round();
        storm.ringers[at] = storm.spawn(at);
    }
    storm.end();
    storm.report(kills, start.elapsed());
    for (role, floor) in FLOORS.into_iter().filter(|_| kills >= 500) {
        let (deaths, floor) = (storm.deaths.get(&role).copied().unwrap_or(0), floor * kills / 1000);
        assert!(deaths >= floor, "of {kills} kills {deaths} hit role {role:?}, less than {floor}");
    }
}

impl Storm {
    fn spawn(&mut self, at: usize) -> Process {
        let path = self.path.to_str().expect("a printable path");
        let (place, seed) = ((at / SPARES).to_string(), self.rng.u64(..).to_string());
        Process::spawn("ringer", &[path, &place, &seed])
    }

    fn snapshot(&self) -> Snapshot {
        let lock = self.ring.offset_of(&self.ring.turn).expect("it is inside");
        Snapshot::of(self.ring.as_fd(), &[lock]).expect("a snapshot")
    }

    /// A role that is still to die more often, the furthest from its floor.
    fn wanted(&self, kills: u64) -> Option<Role> {
        let deaths = |role| self.deaths.get(&role).copied().unwrap_or(0);
        let missing = |(role, floor): (Role, u64)| {
            (deaths(role) * 1000 / ((floor * kills).div_ceil(1000) * 3 / 2 + 2), role)
        };
        let (share, role) = FLOORS.map(missing).into_iter().min()?;
        (share < 1000).then_some(role)
    }

    fn role(&self, at: usize) -> Role {
        let pid = self.ringers[at].pid().as_raw() as u32;
        let snapshot = self.snapshot();
        let Some(view) = snapshot.participants.iter().find(|view| view.alive && view.pid == pid)
        else {
            return Role::Elsewhere;
        };
        if snapshot.locks.iter().any(|lock| lock.owner == Some(view.participant)) {
            return Role::Owner;
        }
        match &view.busy_with {
            Some(busy) if busy.condvar.is_some() && busy.lock == 0 => Role::Notifying,
            Some(busy) if busy.notified => Role::Notified,
            Some(busy) if busy.condvar.is_some() => Role::Waiting,
            _ => Role::Elsewhere,
        }
    }

    /// Stops processes until one is in the role wanted, and kills it. Which one.
    fn kill_one_that_is(&mut self, wanted: Option<Role>) -> usize {
        for look in 1.. {
            let at = self.rng.usize(..self.ringers.len());
            self.ringers[at].signal(Signal::SIGSTOP);
            let flags = WaitPidFlag::WSTOPPED | WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
            let status = waitid(Id::Pid(self.ringers[at].pid()), flags).expect("wait for a stop");
            if !matches!(status, WaitStatus::Stopped(..)) {
                self.fail(&format!("a process of the ring ended: {status:?}"));
            }
            let role = self.role(at);
            if wanted.is_none_or(|wanted| wanted == role) || look == LOOKS {
                self.ringers[at].kill();
                *self.deaths.entry(role).or_default() += 1;
                // Somebody has to come by, for nobody may wait for the lock.
                let turn = self.ring.turn.try_lock_for(hang());
                match turn {
                    Some(turn) => self.ring.repair(&turn),
                    None => self.fail("stuck: nobody inherits the lock"),
                }
                return at;
            }
            self.ringers[at].resume();
        }
        unreachable!("the last look is the last")
    }

    fn fail(&self, what: &str) -> ! {
        eprintln!("{}", self.snapshot());
        panic!("{what} (after {} kills)", self.deaths.values().sum::<u64>());
    }

    fn let_the_turn_go_round(&self) {
        let read = || match self.ring.turn.try_lock_for(hang()) {
            Some(turn) => *turn,
            None => self.fail("stuck: the lock does not come free"),
        };
        let (begin, start) = (read(), Instant::now());
        while read() < begin + 2 * PLACES as u64 {
            if start.elapsed() > hang() {
                self.fail("stuck: the turn does not go round");
            }
            thread::sleep(Duration::from_micros(200));
        }
    }

    fn end(&mut self) {
        self.let_the_turn_go_round();
        let turn = self.ring.turn.lock();
        self.ring.stop.store(1, SeqCst);
        for place in &self.ring.places {
            place.notify_all();
        }
        drop(turn);
        for mut ringer in std::mem::take(&mut self.ringers) {
            let start = Instant::now();
            let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::WNOHANG;
            while waitid(Id::Pid(ringer.pid()), flags).expect("look") == WaitStatus::StillAlive {
                if start.elapsed() > hang() {
                    self.fail("stuck: a process does not come to its end");
                }
                thread::sleep(Duration::from_millis(1));
            }
            let status = ringer.wait();
            assert!(status.success(), "a process of the ring ended with {status}");
        }
        for place in &self.ring.places {
            assert!(!place.notify_one(), "in the end somebody waits: {}", self.snapshot());
        }
        let snapshot = self.snapshot();
        for lock in &snapshot.locks {
            assert!(lock.owner.is_none() && lock.guard == 0, "in the end: {lock}");
        }
    }

    fn report(&self, kills: u64, took: Duration) {
        let show = |name: &str, value: u64| println!("  {name:<32} {value}");
        println!("{kills} processes killed in {:.1} s:", took.as_secs_f64());
        for (role, count) in &self.deaths {
            show(&format!("killed as {role:?}"), *count);
        }
        show("turns", *self.ring.turn.lock());
        show("waits", self.ring.waits.load(SeqCst));
        show("timed out", self.ring.timed_out.load(SeqCst));
        show("notified out of turn", self.ring.in_vain.load(SeqCst));
        show("inherited", self.ring.inherited.load(SeqCst));
    }
}
