//! Thousands of deaths anywhere: at random moments, and in roles that were
//! looked for.
#![allow(clippy::disallowed_types, reason = "the test's own books")]

use crate::ground::{CAPACITY, Ground, LOCKS, Phase, THREADS, THROUGHPUT, WORKERS};
use crate::kit::{Process, TempPath, Test};
use crate::worker::{STYLES, Style};
use crate::{hang, is_long, number_from_env};
use fastrand::Rng;
use heirlock::{LockView, Participant, Policy, Segment, Snapshot};
use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::{Duration, Instant};

pub(crate) const TESTS: &[Test] =
    &[("thousands_of_deaths_leave_no_waiter_stuck_and_nothing_wrong", storm)];

/// What a thread was when it died.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Role {
    Owner,
    Head,
    Middle,
    Tail,
    /// Owner, but still inside `lock`.
    Granted,
    Attaching,
    /// Held a queue's guard.
    Editor,
    /// None of these.
    Elsewhere,
    /// Inside `lock`; nobody looked before others had cleared up after it.
    Waiter,
}

/// The roles that are looked for, and how often each must have died among
/// 2,000. Editors are hard to meet: an edit takes less than a microsecond.
const FLOORS: [(Role, u64); 7] = [
    (Role::Owner, 50),
    (Role::Head, 50),
    (Role::Middle, 50),
    (Role::Tail, 50),
    (Role::Granted, 50),
    (Role::Attaching, 50),
    (Role::Editor, 1),
];

/// How many are stopped and looked at before the next best is killed.
const LOOKS: u32 = 30;

/// After so many deaths nobody is killed until everybody has got on.
const BATCH: u64 = 20;

/// What must come of a thread's death: of which locks an heir is told.
struct Verdict {
    serial: u64,
    lock: usize,
    told: bool,
}

struct Storm {
    path: TempPath,
    ground: Segment<Ground>,
    offsets: [u64; LOCKS],
    places: Vec<(Process, Style)>,
    rng: Rng,
    deaths: BTreeMap<Role, u64>,
    kills: u64,
    threads_killed: u64,
    verdicts: Vec<Verdict>,
    owners_checked: u64,
    others_checked: u64,
}

fn storm() {
    let kills = number_from_env("HEIRLOCK_KILLS");
    let kills = kills.unwrap_or(if is_long() { 20_000 } else { 2_000 });
    let seed = number_from_env("HEIRLOCK_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("HEIRLOCK_SEED={seed}");
    let start = Instant::now();
    let mut storm = Storm::new(Rng::with_seed(seed));
    while storm.kills < kills {
        if storm.rng.bool() {
            let wanted = storm.wanted(kills);
            storm.kill_one_that_is(wanted);
        } else {
            storm.kill_at_random();
        }
        if storm.kills.is_multiple_of(BATCH) {
            storm.let_everybody_get_on();
        }
    }
    storm.end();
    storm.report(start.elapsed());
    // A few deaths may miss a role by chance.
    let floors = FLOORS.into_iter().filter(|_| kills >= 2000);
    for (role, floor) in floors {
        let (deaths, floor) = (storm.deaths.get(&role).copied().unwrap_or(0), floor * kills / 2000);
        assert!(deaths >= floor, "of {kills} kills {deaths} hit role {role:?}, less than {floor}");
    }
}

impl Storm {
    fn new(rng: Rng) -> Self {
        let path = TempPath::new();
        let ground: Segment<Ground> =
            Segment::options().capacity(CAPACITY).init(Ground::init).create(&path).expect("create");
        let offset = |lock: usize| ground.offset_of(&ground.locks[lock]).expect("it is inside");
        let offsets = std::array::from_fn(offset);
        let mut storm = Self {
            path,
            ground,
            offsets,
            places: Vec::new(),
            rng,
            deaths: BTreeMap::new(),
            kills: 0,
            threads_killed: 0,
            verdicts: Vec::new(),
            owners_checked: 0,
            others_checked: 0,
        };
        for place in 0..WORKERS {
            let worker = storm.spawn(place);
            storm.places.push(worker);
        }
        storm.let_everybody_get_on();
        storm
    }

    fn spawn(&mut self, place: usize) -> (Process, Style) {
        for soul in &self.ground.workers[place].souls {
            soul.store(0, SeqCst);
        }
        let style = self.rng.usize(..STYLES.len());
        let path = self.path.to_str().expect("a printable path");
        let (at, how, seed) = (place.to_string(), style.to_string(), self.rng.u64(..).to_string());
        (Process::spawn("worker", &[path, &at, &how, &seed]), STYLES[style])
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot::of(self.ground.as_fd(), &self.offsets).expect("a snapshot")
    }

    /// A role that is still to die more often, the furthest from its floor.
    fn wanted(&self, kills: u64) -> Option<Role> {
        let deaths = |role| self.deaths.get(&role).copied().unwrap_or(0);
        let target = |floor: u64| (floor * kills).div_ceil(2000) * 3 / 2 + 5;
        let missing = |(role, floor)| (deaths(role) * 1000 / target(floor), role);
        let (share, role) = FLOORS.map(missing).into_iter().min()?;
        (share < 1000).then_some(role)
    }

    fn fail(&self, what: &str) -> ! {
        eprintln!("{}", self.snapshot());
        for place in 0..WORKERS {
            eprintln!("place {place}: {:?} {:?}", self.places[place].1, self.souls(place));
        }
        panic!("{what} (after {} kills)", self.kills);
    }

    /// Fails if somebody has complained, or ended without being asked to.
    fn check(&self) {
        if let Some(complaint) = self.ground.complaint() {
            self.fail(&complaint);
        }
        for (process, style) in &self.places {
            let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::WNOHANG;
            let status = waitid(Id::Pid(process.pid()), flags).expect("look at a child");
            if status != WaitStatus::StillAlive {
                // It may have complained since.
                thread::sleep(Duration::from_millis(10));
                self.fail(&self.ground.complaint().unwrap_or_else(|| {
                    format!("a worker ({style:?}) ended by itself ({status:?}); see above")
                }));
            }
        }
    }

    /// Polls `condition`; fails if it does not come to hold.
    fn until(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let start = Instant::now();
        while !condition() {
            self.check();
            if start.elapsed() > hang() {
                self.fail(&format!("stuck: waited {:?} in vain until {what}", hang()));
            }
            thread::sleep(Duration::from_micros(200));
        }
    }

    /// Stops a worker, and waits until it has stopped.
    fn stop(&self, place: usize) {
        let process = &self.places[place].0;
        process.signal(Signal::SIGSTOP);
        // The exit status, if it has one, is for `check` and for the reaper.
        let flags = WaitPidFlag::WSTOPPED | WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        let status = waitid(Id::Pid(process.pid()), flags).expect("wait for a stop");
        if !matches!(status, WaitStatus::Stopped(..)) {
            self.check();
        }
    }

    fn souls(&self, place: usize) -> Vec<u64> {
        let souls = self.ground.workers[place].souls.iter();
        souls.map(|soul| soul.load(SeqCst)).filter(|serial| *serial != 0).collect()
    }

    /// What each thread of a worker is, that is stopped or dead.
    fn roles(&self, place: usize, snapshot: &Snapshot) -> Vec<Role> {
        let souls = self.souls(place);
        let role = |serial: &u64| self.role(*serial, snapshot);
        souls.iter().map(role).collect()
    }

    fn role(&self, serial: u64, snapshot: &Snapshot) -> Role {
        let Some(soul) = self.ground.known_soul(serial) else { return Role::Elsewhere };
        if soul.is_attaching() {
            return Role::Attaching;
        }
        let Some(me) = soul.participant() else { return Role::Elsewhere };
        let views = || self.offsets.iter().filter_map(|offset| snapshot.lock(*offset)).enumerate();
        let is_current = snapshot.participant(me.row()).is_some_and(|row| row.participant == me);
        if is_current && views().any(|(_, view)| view.guard == me.row()) {
            return Role::Editor;
        }
        let mut role = Role::Elsewhere;
        for (lock, view) in views() {
            // A lock that it waits for says more than one that it holds.
            match soul.phase(lock) {
                Phase::Locking if view.owner == Some(me) => return Role::Granted,
                Phase::Locking => {
                    return place_in_queue(view, me).unwrap_or(Role::Waiter);
                }
                Phase::Entered => return Role::Granted,
                Phase::Holding => role = Role::Owner,
                Phase::Unlocking if view.owner == Some(me) => role = Role::Owner,
                Phase::Unlocking | Phase::Away => {}
            }
        }
        role
    }

    /// Stops workers until one has a thread in the role wanted, if one is.
    fn kill_one_that_is(&mut self, wanted: Option<Role>) {
        for look in 1.. {
            let place = self.rng.usize(..WORKERS);
            self.stop(place);
            let mut snapshot = self.snapshot();
            let mut roles = self.roles(place, &snapshot);
            if wanted == Some(Role::Granted) && roles.iter().any(is_waiting) {
                // What it waits for comes to it while it is stopped.
                let start = Instant::now();
                while !roles.contains(&Role::Granted) && start.elapsed() < Duration::from_millis(20)
                {
                    thread::sleep(Duration::from_micros(100));
                    snapshot = self.snapshot();
                    roles = self.roles(place, &snapshot);
                }
            }
            if wanted.is_none_or(|role| roles.contains(&role)) || look == LOOKS {
                self.judge(place, &snapshot);
                self.kill(place, Some(roles));
                return;
            }
            self.places[place].0.resume();
        }
    }

    fn kill_at_random(&mut self) {
        let place = self.rng.usize(..WORKERS);
        thread::sleep(Duration::from_micros(self.rng.u64(..2000)));
        self.kill(place, None);
    }

    /// What must come of the death of a worker that is stopped: it owns now
    /// what it owns then, but for what it is waiting for.
    fn judge(&mut self, place: usize, snapshot: &Snapshot) {
        for serial in self.souls(place) {
            let Some(soul) = self.ground.known_soul(serial) else { continue };
            let Some(me) = soul.participant() else { continue };
            for (lock, offset) in self.offsets.iter().enumerate() {
                let Some(view) = snapshot.lock(*offset) else { continue };
                let owns = view.owner == Some(me);
                match soul.phase(lock) {
                    Phase::Locking if !owns => continue,
                    Phase::Entered | Phase::Holding if !owns => {
                        self.fail(&format!("thread {serial} ({me}) holds lock {lock}: {view}"));
                    }
                    _ => self.verdicts.push(Verdict { serial, lock, told: owns }),
                }
            }
        }
    }

    /// Kills a worker and puts another in its place. `roles` are those of its
    /// threads, if they are known.
    fn kill(&mut self, place: usize, roles: Option<Vec<Role>>) {
        self.places[place].0.kill();
        let roles = roles.unwrap_or_else(|| self.roles(place, &self.snapshot()));
        self.kills += 1;
        self.threads_killed += roles.len() as u64;
        for role in roles {
            *self.deaths.entry(role).or_default() += 1;
        }
        self.places[place] = self.spawn(place);
        // Before anybody else is killed: an heir may die before it has taken
        // note of what it was told.
        let owned: Vec<_> = self.verdicts.extract_if(.., |verdict| verdict.told).collect();
        for Verdict { serial, lock, .. } in &owned {
            self.until(&format!("an heir is told that thread {serial} owned lock {lock}"), || {
                self.ground.known_soul(*serial).is_none_or(|soul| soul.was_told_of(*lock))
            });
        }
        self.owners_checked += owned.len() as u64;
        self.check();
    }

    /// Until each thread has finished something, with nobody killed meanwhile
    /// who might stand in the way.
    fn let_everybody_get_on(&mut self) {
        let finished = || {
            let threads = |place: usize| match self.places.get(place) {
                Some((_, Style::Pair)) => THREADS,
                _ => 1,
            };
            let worker = |place: usize| {
                let finished = self.ground.workers[place].finished.iter();
                finished.take(threads(place)).map(|count| count.load(SeqCst)).collect::<Vec<_>>()
            };
            (0..WORKERS).flat_map(worker).collect::<Vec<_>>()
        };
        let before = finished();
        self.until("everybody has got on", || {
            finished().iter().zip(&before).all(|(now, before)| now != before)
        });
        let verdicts = std::mem::take(&mut self.verdicts);
        for Verdict { serial, lock, .. } in &verdicts {
            if self.ground.known_soul(*serial).is_some_and(|soul| soul.was_told_of(*lock)) {
                self.fail(&format!(
                    "thread {serial} did not own lock {lock}, but an heir was told"
                ));
            }
        }
        self.others_checked += verdicts.len() as u64;
    }

    /// Has everybody come to an end, and looks at what they leave.
    fn end(&mut self) {
        self.let_everybody_get_on();
        self.ground.stop.store(1, SeqCst);
        let pids: BTreeSet<_> = self.places.iter().map(|(process, _)| process.pid()).collect();
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::WNOHANG;
        let start = Instant::now();
        for pid in pids {
            while waitid(Id::Pid(pid), flags).expect("look at a child") == WaitStatus::StillAlive {
                if start.elapsed() > hang() {
                    self.fail("stuck: a worker does not come to its end");
                }
                thread::sleep(Duration::from_millis(1));
            }
        }
        for (mut process, style) in std::mem::take(&mut self.places) {
            let status = process.wait();
            assert!(status.success(), "a worker ({style:?}) ended with {status}");
        }
        let mut auditor = Process::spawn("auditor", &[self.path.to_str().expect("printable")]);
        let audited = auditor.wait();
        assert!(audited.success(), "{audited}: {:?}", self.ground.complaint());
        let counters: u64 = self.ground.audit.iter().map(|counter| counter.load(SeqCst)).sum();
        let counted = self.ground.tally.counted.load(SeqCst);
        // Who died may have counted without a note of it here.
        assert!(
            (counted..=counted + self.threads_killed).contains(&counters),
            "{counted} counted, {} died, the counters say {counters}",
            self.threads_killed
        );
        let snapshot = self.snapshot();
        for (at, lock) in self.ground.locks.iter().enumerate() {
            assert_eq!(lock.policy() == Policy::Throughput, at == THROUGHPUT, "lock {at}");
        }
        for view in &snapshot.locks {
            assert!(view.owner.is_none() && view.guard == 0, "in the end: {view}");
            let waits = |waiter: &Participant| {
                snapshot.participant(waiter.row()).is_some_and(|row| row.alive)
            };
            assert!(!view.queue.iter().any(waits), "in the end: {view}");
        }
    }

    fn report(&self, took: Duration) {
        let tally = &self.ground.tally;
        let show = |name: &str, value: &dyn Debug| println!("  {name:<32} {value:?}");
        println!("{} processes killed in {:.1} s:", self.kills, took.as_secs_f64());
        for (role, count) in &self.deaths {
            show(&format!("threads killed as {role:?}"), count);
        }
        show("acquisitions", &tally.acquired);
        show("gave up", &tally.given_up);
        show("inherited", &tally.inherited);
        show("repaired", &tally.repaired);
        show("owners' deaths told, checked", &self.owners_checked);
        show("others' deaths untold, checked", &self.others_checked);
        show("orders checked, by lock", &tally.order_checks);
        show("acquisitions, by lock", &self.ground.progress);
        show("inversions", &0);
        show("longest wait", &Duration::from_micros(tally.longest_wait.load(SeqCst)));
    }
}

fn is_waiting(role: &Role) -> bool {
    matches!(role, Role::Head | Role::Middle | Role::Tail)
}

fn place_in_queue(view: &LockView, me: Participant) -> Option<Role> {
    let place = view.queue.iter().position(|waiter| *waiter == me)?;
    Some(match place {
        0 => Role::Head,
        last if last + 1 == view.queue.len() => Role::Tail,
        _ => Role::Middle,
    })
}
