//! Hundreds of deaths among those who wait asleep, in rings, for any of several locks, and
//! as futures, for the same three locks.
#![allow(clippy::disallowed_types, reason = "the test's own books")]

use crate::kit::{Process, TempPath, Test};
use crate::{hang, is_long, number_from_env};
use fastrand::Rng;
use heirlock::future::AsyncMutexGuard;
use heirlock::uring::{self, AsyncAcquire, Progress};
use heirlock::{LockError, LockOptions, Mutex, MutexGuard, Segment, Snapshot, select};
use io_uring::IoUring;
use nix::sys::signal::Signal;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::task::{Context, Waker};
use std::thread;
use std::time::{Duration, Instant};
use zerocopy::FromBytes;

pub(crate) const TESTS: &[Test] = &[("hundreds_of_deaths_among_waits_of_all_kinds", storm)];

const LOCKS: usize = 3;
/// Two processes of each kind.
const SWIMMERS: usize = 8;
/// How many acquisitions are under way in a ring.
const IN_FLIGHT: u64 = 6;
/// For how long a wake may be lost that a ring took along.
const HEARTBEAT_MS: u64 = 2000;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Asleep,
    Ring,
    Any,
    Future,
}

const KINDS: [Kind; 4] = [Kind::Asleep, Kind::Ring, Kind::Any, Kind::Future];

/// Equal, unless somebody died between the two.
#[derive(FromBytes)]
#[repr(C)]
struct Twins {
    first: u64,
    second: u64,
}

#[derive(FromBytes)]
#[repr(C)]
struct Pool {
    locks: [Mutex<Twins>; LOCKS],
    stop: AtomicU64,
    /// How often each of the processes had a lock.
    had: [AtomicU64; SWIMMERS],
    by_kind: [AtomicU64; KINDS.len()],
    dropped: AtomicU64,
    cancelled: AtomicU64,
    timed_out: AtomicU64,
    inherited: AtomicU64,
    torn: AtomicU64,
}

/// One of the processes: `swimmer PATH AT SEED`.
struct Swimmer<'p> {
    pool: &'p Pool,
    at: usize,
    kind: Kind,
}

pub(crate) fn play(args: &[String]) {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).expect("prctl");
    let pool = Segment::<Pool>::open(&args[0]).expect("open");
    let at: usize = args[1].parse().expect("a place");
    let seed: u64 = args[2].parse().expect("a seed");
    let swimmer = Swimmer { pool: &pool, at, kind: KINDS[at % KINDS.len()] };
    let threads = if swimmer.kind == Kind::Ring { 1 } else { 2 };
    thread::scope(|scope| {
        for number in 0..threads {
            let (swimmer, rng) = (&swimmer, Rng::with_seed(seed.wrapping_add(number)));
            scope.spawn(move || match swimmer.kind {
                Kind::Asleep => swimmer.asleep(rng),
                Kind::Ring => swimmer.ring(rng),
                Kind::Any => swimmer.any(rng),
                Kind::Future => swimmer.futures(rng),
            });
        }
    });
}

/// Without a limit, or with a short one.
fn patience(rng: &mut Rng) -> LockOptions<'static> {
    match rng.u32(..4) {
        0 => LockOptions::new().timeout(Duration::from_micros(rng.u64(100..3000))),
        _ => LockOptions::new(),
    }
}

impl<'p> Swimmer<'p> {
    fn goes_on(&self) -> bool {
        self.pool.stop.load(SeqCst) == 0
    }

    fn lock(&self, rng: &mut Rng) -> &'p Mutex<Twins> {
        &self.pool.locks[rng.usize(..LOCKS)]
    }

    /// With a lock held, of which somebody else was told to have `died`.
    fn visit(&self, twins: &mut Twins, died: bool, rng: &mut Rng) {
        if died {
            self.pool.inherited.fetch_add(1, SeqCst);
            self.pool.torn.fetch_add((twins.first != twins.second).into(), SeqCst);
            twins.second = twins.first;
        }
        assert_eq!(twins.first, twins.second, "two at a time, or a death that nobody was told of");
        twins.first += 1;
        std::sync::atomic::compiler_fence(SeqCst);
        (0..rng.u32(..2) * 10_000).for_each(|_| std::hint::spin_loop());
        std::sync::atomic::compiler_fence(SeqCst);
        twins.second += 1;
        self.pool.had[self.at].fetch_add(1, SeqCst);
        self.pool.by_kind[self.at % KINDS.len()].fetch_add(1, SeqCst);
    }

    fn visit_as_thread(&self, mut guard: MutexGuard<'_, Twins>, rng: &mut Rng) {
        let died = MutexGuard::inherited(&guard).is_some();
        self.visit(&mut guard, died, rng);
    }

    fn late(&self, error: &LockError) {
        assert!(matches!(error, LockError::TimedOut), "{error}");
        self.pool.timed_out.fetch_add(1, SeqCst);
    }

    fn asleep(&self, mut rng: Rng) {
        while self.goes_on() {
            match self.lock(&mut rng).lock_with(&patience(&mut rng)) {
                Ok(guard) => self.visit_as_thread(guard, &mut rng),
                Err(error) => self.late(&error),
            }
        }
    }

    fn any(&self, mut rng: Rng) {
        let locks = self.pool.locks.each_ref();
        while self.goes_on() {
            let first = rng.usize(..LOCKS);
            let some = if rng.bool() { &locks[..] } else { &locks[first..] };
            match select::lock_any_with(some, &patience(&mut rng)) {
                Ok((_, guard)) => self.visit_as_thread(guard, &mut rng),
                Err(error) => self.late(&error),
            }
        }
    }

    fn futures(&self, mut rng: Rng) {
        while self.goes_on() {
            let mut waiting = Box::pin(self.lock(&mut rng).lock_async_with(&patience(&mut rng)));
            if rng.u32(..8) == 0 {
                // It takes its place, and leaves.
                drop(waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())));
                self.pool.dropped.fetch_add(1, SeqCst);
                continue;
            }
            match pollster::block_on(waiting) {
                Ok(mut guard) => {
                    let died = AsyncMutexGuard::inherited(&guard).is_some();
                    self.visit(&mut guard, died, &mut rng);
                }
                Err(error) => self.late(&error),
            }
        }
    }

    fn ring(&self, mut rng: Rng) {
        let mut ring = IoUring::new(64).expect("a ring");
        let mut under_way: BTreeMap<u64, AsyncAcquire<'p, Twins>> = BTreeMap::new();
        let mut last = 0;
        while self.goes_on() {
            while (under_way.len() as u64) < IN_FLIGHT {
                last += 1;
                match self.lock(&mut rng).start_with(&patience(&mut rng), last) {
                    Ok((acquire, progress)) => {
                        under_way.insert(last, acquire);
                        self.go_on(last, progress, &mut under_way, &mut ring, &mut rng);
                    }
                    Err(error) => self.late(&error),
                }
            }
            match rng.u32(..16) {
                0 => {
                    drop(under_way.pop_first());
                    self.pool.dropped.fetch_add(1, SeqCst);
                }
                1 => {
                    let (name, mut acquire) = under_way.pop_last().expect("some are under way");
                    let progress = acquire.cancel().expect("cancel");
                    self.go_on(name, progress, &mut under_way, &mut ring, &mut rng);
                }
                _ => {}
            }
            ring.submit_and_wait(1).expect("wait");
            let completed: Vec<_> = ring.completion().collect();
            for done in completed {
                let name = uring::user_data(&done);
                if let Some(acquire) = under_way.get_mut(&name) {
                    let progress = acquire.complete(&done).expect("complete");
                    self.go_on(name, progress, &mut under_way, &mut ring, &mut rng);
                }
            }
        }
    }

    #[allow(unsafe_code)]
    fn go_on(
        &self,
        name: u64,
        progress: Progress<'p, Twins>,
        under_way: &mut BTreeMap<u64, AsyncAcquire<'p, Twins>>,
        ring: &mut IoUring,
        rng: &mut Rng,
    ) {
        match progress {
            Progress::Pending => return,
            Progress::Again(entries) => {
                // SAFETY: entries are good until they are submitted, and pushed once.
                while unsafe { ring.submission().push_multiple(&entries) }.is_err() {
                    ring.submit().expect("submit");
                }
                return;
            }
            Progress::Acquired(guard) => self.visit_as_thread(guard, rng),
            Progress::TimedOut => drop(self.pool.timed_out.fetch_add(1, SeqCst)),
            Progress::Cancelled => drop(self.pool.cancelled.fetch_add(1, SeqCst)),
        }
        under_way.remove(&name);
    }
}

struct Storm {
    path: TempPath,
    pool: Segment<Pool>,
    swimmers: Vec<Process>,
    rng: Rng,
    kills: u64,
}

fn storm() {
    if let Some(refused) = uring::refused() {
        crate::kit::skip(format!("no io_uring with futexes: {refused}"));
    }
    let kills = number_from_env("HEIRLOCK_KILLS").unwrap_or(if is_long() { 20_000 } else { 2_000 });
    let kills = kills.div_ceil(4);
    let seed = number_from_env("HEIRLOCK_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("HEIRLOCK_SEED={seed}");
    let start = Instant::now();
    let path = TempPath::new();
    let pool = Segment::options().capacity(512).create(&path).expect("create");
    let mut storm = Storm { path, pool, swimmers: Vec::new(), rng: Rng::with_seed(seed), kills: 0 };
    for at in 0..SWIMMERS {
        let swimmer = storm.spawn(at);
        storm.swimmers.push(swimmer);
    }
    let mut longest = storm.everybody_gets_on();
    while storm.kills < kills {
        let at = storm.rng.usize(..SWIMMERS);
        thread::sleep(Duration::from_micros(storm.rng.u64(..2000)));
        storm.swimmers[at].kill();
        storm.kills += 1;
        storm.swimmers[at] = storm.spawn(at);
        longest = longest.max(storm.everybody_gets_on());
    }
    storm.end();
    storm.report(start.elapsed(), longest);
    let read = |counter: &AtomicU64| counter.load(SeqCst);
    let pool = &storm.pool;
    // (Each process has had a lock after each kill, or it was stuck.)
    for counter in [&pool.dropped, &pool.cancelled, &pool.timed_out] {
        assert!(read(counter) >= kills / 2, "too few gave up: {}", read(counter));
    }
    assert!(read(&pool.inherited) >= kills / 20, "{} were inherited", read(&pool.inherited));
}

impl Storm {
    fn spawn(&mut self, at: usize) -> Process {
        let path = self.path.to_str().expect("a printable path");
        let (place, seed) = (at.to_string(), self.rng.u64(..).to_string());
        let mut command = Process::command("swimmer", &[path, &place, &seed]);
        // What a ring takes along the heartbeat makes up for, which may be put off here.
        let heartbeat = number_from_env("HEIRLOCK_HEARTBEAT_MS").unwrap_or(HEARTBEAT_MS);
        command.env("HEIRLOCK_HEARTBEAT_MS", heartbeat.min(HEARTBEAT_MS).to_string());
        Process::from_command(&mut command)
    }

    /// Waits until each of the processes has had a lock, which takes how long?
    fn everybody_gets_on(&mut self) -> Duration {
        let had = |pool: &Pool| pool.had.each_ref().map(|had| had.load(SeqCst));
        let (before, start) = (had(&self.pool), Instant::now());
        while had(&self.pool).iter().zip(&before).any(|(now, before)| now <= before) {
            if let Some(at) = (0..SWIMMERS).find(|at| self.swimmers[*at].has_ended()) {
                self.fail(&format!("process {at} has ended"));
            }
            if start.elapsed() > hang() {
                self.fail("stuck: somebody gets no lock");
            }
            thread::sleep(Duration::from_micros(500));
        }
        start.elapsed()
    }

    fn snapshot(&self) -> Snapshot {
        let offset = |lock| self.pool.offset_of(lock).expect("it is inside");
        let locks: Vec<u64> = self.pool.locks.iter().map(offset).collect();
        Snapshot::of(self.pool.as_fd(), &locks).expect("a snapshot")
    }

    fn fail(&self, what: &str) -> ! {
        eprintln!("{}", self.snapshot());
        panic!("{what} (after {} kills)", self.kills);
    }

    fn end(&mut self) {
        self.pool.stop.store(1, SeqCst);
        for mut swimmer in std::mem::take(&mut self.swimmers) {
            let start = Instant::now();
            while !swimmer.has_ended() {
                if start.elapsed() > hang() {
                    self.fail("stuck: a process does not come to its end");
                }
                thread::sleep(Duration::from_millis(1));
            }
            let status = swimmer.wait();
            assert!(status.success(), "a process ended with {status}");
        }
        for lock in &self.pool.locks {
            let Some(mut twins) = lock.try_lock_for(hang()) else {
                self.fail("stuck: in the end somebody has the lock")
            };
            if MutexGuard::inherited(&twins).is_some() {
                twins.second = twins.first;
            }
            assert_eq!(twins.first, twins.second);
        }
        for lock in &self.snapshot().locks {
            assert!(lock.owner.is_none() && lock.guard == 0, "in the end: {lock}");
        }
    }

    fn report(&self, took: Duration, longest: Duration) {
        let show = |name: &str, value: u64| println!("  {name:<32} {value}");
        println!("{} processes killed in {:.1} s:", self.kills, took.as_secs_f64());
        for (kind, had) in KINDS.iter().zip(&self.pool.by_kind) {
            show(&format!("had a lock, waiting {kind:?}"), had.load(SeqCst));
        }
        show("dropped", self.pool.dropped.load(SeqCst));
        show("cancelled", self.pool.cancelled.load(SeqCst));
        show("timed out", self.pool.timed_out.load(SeqCst));
        show("inherited", self.pool.inherited.load(SeqCst));
        show("of them torn", self.pool.torn.load(SeqCst));
        show("rows used", self.snapshot().rows_used.into());
        show("all got on within (ms)", longest.as_millis() as u64);
    }
}
