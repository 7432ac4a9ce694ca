//! A participant that writes garbage: whatever is in the segment, the others
//! get an error or a panic with a message, never a signal, never a hang. Pages
//! that nobody may touch stand on both sides of each mapping.
#![allow(unsafe_code)]

use crate::kit::{Board, HANG, Role, TempPath, Test};
use crate::snapshot::{lively_image, waiting_image};
use crate::support::{Actor, Counter, Surgery, claim_row, life_word, text};
use heirlock::{AttachError, Condvar, LockError, LockOptions, Segment, Snapshot, Unusable, select};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use std::any::Any;
use std::ffi::c_void;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

pub(crate) const TESTS: &[Test] = &[
    ("a_garbled_segment_is_an_error_or_a_panic_with_a_message", garbled),
    ("a_cycle_of_dead_waiters_is_noticed", cycle_of_the_dead),
    ("a_queue_that_cannot_be_left_is_an_error_and_costs_few_rows", cannot_leave),
    ("a_lock_that_is_not_its_owners_any_more_costs_few_rows", robbed),
];

pub(crate) const ROLES: &[Role] = &[("victim", victim)];

/// How many images a victim opens. A thread that met corruption leaves its row's
/// page and two descriptors to its process for good: so not too many, as often a
/// process may have no more than 1024.
const SHARE: u64 = 400;

/// How many victims there are at a time, at the most: they sleep nearly always.
const VICTIMS: usize = 100;

/// How many images: a million with `HEIRLOCK_LONG=1`, or what `HEIRLOCK_IMAGES` says,
/// in shares.
fn images() -> u64 {
    if let Ok(images) = std::env::var("HEIRLOCK_IMAGES") {
        return images.parse::<u64>().expect("a number").next_multiple_of(SHARE);
    }
    if std::env::var("HEIRLOCK_LONG").as_deref() == Ok("1") { 1_000_000 } else { 20_000 }
}

fn garbled() {
    let images_of = [TempPath::new(), TempPath::new()];
    lively_image(&images_of[0]);
    waiting_image(&images_of[1]);
    let first = std::env::var("HEIRLOCK_SEED").ok().map(|seed| seed.parse().expect("a number"));
    let images = images();
    let victims: Vec<(u64, u64)> = match first {
        // To reproduce one.
        Some(seed) => vec![(seed, 1)],
        None => (0..images / SHARE).map(|at| (at * SHARE, SHARE)).collect(),
    };
    let victims = Mutex::new(victims.into_iter());
    let next = || victims.lock().expect("nobody panics with it").next();
    // All are listened to at once, lest one waits to be heard.
    let tallies = thread::scope(|scope| {
        let run = |_| {
            scope.spawn(|| {
                let mut tallies = Vec::new();
                while let Some((seed, count)) = next() {
                    let image = &images_of[(seed / SHARE % 2) as usize];
                    tallies.push(run_victim(image, seed, count));
                }
                tallies
            })
        };
        let threads: Vec<_> = (0..VICTIMS).map(run).collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().expect("no victim fails"))
            .collect::<Vec<_>>()
    });
    let mut tally = Tally::new();
    for (how, times) in tallies.into_iter().flatten() {
        *tally.entry(how).or_default() += times;
    }
    for (how, times) in &tally {
        eprintln!("{times:6} {how}");
    }
    if first.is_none() {
        let fenced = tally.remove("fenced").unwrap_or(0);
        eprintln!("{images} images; {fenced} had guard pages on both sides");
        assert_eq!(tally.values().sum::<u64>(), images);
        assert!(tally["well"] > images / 20, "much of it works on");
        let opened = images - tally["not opened"];
        assert!(fenced >= opened / 10 * 9, "{fenced} of {opened} had guard pages");
    }
}

/// How often images ended how.
type Tally = std::collections::BTreeMap<String, u64>;

fn run_victim(image: &TempPath, seed: u64, count: u64) -> Tally {
    let args = [text(image), &seed.to_string(), &count.to_string()];
    let mut victim = Actor::spawn("victim", &args);
    let mut tally = Tally::new();
    let mut seed = String::new();
    let mut done = false;
    while let Some(line) = victim.hear_any() {
        match line.split_once(' ') {
            Some(("seed", of)) => seed = of.to_owned(),
            Some(("ended", how)) => *tally.entry(how.to_owned()).or_default() += 1,
            _ if line == "done" => done = true,
            _ => panic!("HEIRLOCK_SEED={seed} (from {:?}) has: {line}", &**image),
        }
    }
    let status = victim.process.wait();
    assert!(done && status.success(), "HEIRLOCK_SEED={seed} ended with {status}");
    tally
}

/// Opens and uses garbled images, each in a thread of its own.
fn victim(args: &[String]) {
    let image = fs::read(&args[0]).expect("read the image");
    let snapshot = Snapshot::read(&args[0], &[]).expect("the image is of a segment");
    let first: u64 = args[1].parse().expect("a seed");
    let count: u64 = args[2].parse().expect("a count");
    let verbose = count == 1;
    if !verbose {
        std::panic::set_hook(Box::new(|_| {}));
    }
    let (alive, watch) = mpsc::channel::<()>();
    thread::spawn(move || {
        // Each row can look alive, and be found not to be by a heartbeat: so an
        // image may take as many seconds as there are rows.
        while watch.recv_timeout(4 * HANG) == Ok(()) {}
        println!("a hang");
        std::process::exit(1);
    });
    for seed in first..first + count {
        println!("seed {seed}");
        let garbled = garble(&image, &snapshot, seed);
        let result = thread::spawn(move || catch_unwind(|| use_it(&garbled, seed))).join();
        alive.send(()).expect("the watchdog is there");
        match result {
            Ok(Ok(how)) => println!("ended {how}"),
            Ok(Err(panic)) => match message(&*panic) {
                Some(message) if message.starts_with("heirlock: ") => println!("ended {message}"),
                message => println!("a panic: {message:?}"),
            },
            Err(panic) => println!("a panic at the end of a thread: {:?}", message(&*panic)),
        }
    }
    println!("done");
    std::process::exit(0);
}

fn message(panic: &(dyn Any + Send)) -> Option<&str> {
    let string = panic.downcast_ref::<String>().map(String::as_str);
    string.or_else(|| panic.downcast_ref::<&str>().copied())
}

/// The image with some of its words replaced: words that mean something by
/// others that mean something, for the most part.
fn garble(image: &[u8], snapshot: &Snapshot, seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut image = image.to_vec();
    let rows = snapshot.capacity;
    let mut put = |offset: u64, bytes: &[u8]| {
        let offset = offset as usize;
        image[offset..offset + bytes.len()].copy_from_slice(bytes);
    };
    let index = |random: &mut fastrand::Rng| match random.u8(0..10) {
        0 => rows + 1,
        1 => 0xffff,
        2 => random.u32(..),
        3 => 0,
        _ => random.u32(1..=rows),
    };
    let id = |random: &mut fastrand::Rng| {
        let generation = if random.bool() { random.u64(0..3) } else { random.u64(..) };
        let flags = if random.u8(0..4) == 0 { u64::from(random.u8(..)) & 0xf } else { 0 };
        generation << 20 | flags << 16 | u64::from(index(random) & 0xffff)
    };
    let condvars = snapshot.value_offset + std::mem::offset_of!(Board, condvars) as u64;
    let density = *random.choice(&[0, 1, 2, 4, 8]).expect("not empty");
    // Cycles and chains of rows, all of them dead or alike.
    let chained = random.u8(0..8) == 0;
    let common_life: Option<u32> =
        random.bool().then(|| *random.choice(&[0, 0xc000_0000, 0x8000_0001]).expect("not empty"));
    for row in 1..=rows {
        let at = 4096 + 64 * u64::from(row);
        let lock = match random.u8(0..8) {
            0 => random.u64(..),
            1 => condvars + 16 * random.u64(0..4),
            2 | 3 => snapshot.value_offset + random.u64(0..snapshot.value_size + 16),
            _ => snapshot.value_offset + 24 * random.u64(0..8),
        };
        if random.u8(0..8) < density {
            put(at, &lock.to_ne_bytes());
        }
        if random.u8(0..8) < density {
            put(at + 8, &id(&mut random).to_ne_bytes());
        }
        if random.u8(0..8) < density {
            let generation = if random.bool() { random.u64(0..3) } else { random.u64(..) };
            put(life_word(snapshot, row) - 8, &generation.to_ne_bytes());
        }
        if chained {
            put(at + 16, &((row % rows + 1) as u16).to_ne_bytes());
        } else if random.u8(0..8) < density {
            put(at + 16, &(index(&mut random) as u16).to_ne_bytes());
        }
        if random.u8(0..8) < density {
            put(at + 18, &(index(&mut random) as u16).to_ne_bytes());
        }
        if random.u8(0..8) < density {
            let state = if random.bool() { random.u32(0..16) } else { random.u32(..) };
            put(at + 20, &state.to_ne_bytes());
        }
        // What a wait says of itself to who looks for deadlocks.
        for (field, len) in [(40, 8), (48, 4)] {
            if random.u8(0..8) < density {
                let value = if random.bool() { random.u64(0..4) } else { random.u64(..) };
                put(at + field, &value.to_ne_bytes()[..len]);
            }
        }
        if random.u8(0..8) < density {
            let stage = if random.u8(0..4) == 0 { random.u32(..) } else { random.u32(0..4) };
            put(at + 28, &stage.to_ne_bytes());
        }
        if random.u8(0..8) < density {
            let condvar = match random.u8(0..4) {
                0 => lock,
                1 => condvars + random.u64(0..64),
                _ => condvars + 16 * random.u64(0..4),
            };
            put(at + 32, &condvar.to_ne_bytes());
        }
        if let Some(life) = common_life {
            put(life_word(snapshot, row), &life.to_ne_bytes());
        } else if random.u8(0..8) < density {
            let life = match random.u8(0..4) {
                0 => 0,
                1 => 0xc000_0000,
                2 => random.u32(1..1000) | 0x8000_0000,
                _ => random.u32(..),
            };
            put(life_word(snapshot, row), &life.to_ne_bytes());
        }
    }
    let locks = (0..8).map(|lock| snapshot.value_offset + 24 * lock);
    for at in locks.chain((0..4).map(|condvar| condvars + 16 * condvar)) {
        if random.u8(0..8) < density {
            let everybody = at >= condvars && random.bool();
            let owner = if everybody { u64::MAX } else { id(&mut random) };
            put(at, &owner.to_ne_bytes());
        }
        if random.u8(0..8) < density {
            put(at + 8, &(index(&mut random) as u16).to_ne_bytes());
        }
        if random.u8(0..8) < density {
            put(at + 10, &(index(&mut random) as u16).to_ne_bytes());
        }
        if random.u8(0..16) < density {
            let flags = random.u32(0..4) << 30;
            put(at + 12, &(index(&mut random) | flags).to_ne_bytes());
        }
    }
    for name in 0..62 {
        if random.u8(0..32) < density {
            let offset = snapshot.value_offset + 24 * random.u64(0..9);
            put(128 + 64 * name, &offset.to_ne_bytes());
        }
        for word in 1..8 {
            if random.u8(0..16) < density {
                put(128 + 64 * name + 8 * word, &random.u64(..).to_ne_bytes());
            }
        }
    }
    match random.u8(0..12) {
        0 => put(44, &random.u32(..).to_ne_bytes()),
        1 => put(44, &random.u32(0..=rows).to_ne_bytes()),
        2 => put(random.u64(0..128), &[random.u8(..)]),
        3 => put(48, &random.u64(..).to_ne_bytes()),
        _ => {}
    }
    image
}

/// Does everything to a segment that a user can do; says how it ended.
fn use_it(image: &[u8], seed: u64) -> &'static str {
    let file = File::from(memfd_create("garbled", MemfdFlags::CLOEXEC).expect("memfd"));
    file.write_all_at(image, 0).expect("write the image");
    if let Ok(snapshot) = Snapshot::of(file.as_fd(), &[]) {
        assert!(!snapshot.to_string().is_empty());
    }
    let fences = Fences::with_gap(image.len());
    let segment: Segment<Board> = match Segment::from_fd(file.try_clone().expect("dup").into()) {
        Ok(segment) => segment,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return "not opened";
        }
    };
    if fences.enclose(&segment) {
        println!("ended fenced");
    }
    look_for_deadlocks(&segment);
    for lock in &segment.locks {
        let name = segment.name_of(lock);
        assert!(name.is_none_or(|name| name.len() < 200 && !name.contains(char::is_control)));
        if let Err(error) = segment.set_name(lock, "a lock") {
            assert!(!error.to_string().is_empty());
        }
    }
    match segment.attach() {
        Ok(me) => assert!(heirlock::is_alive(&segment, me)),
        Err(AttachError::Corrupted { what }) => {
            assert!(!what.is_empty());
            return "not attached: corrupted";
        }
        Err(AttachError::Full { .. }) => return "not attached: full",
        Err(error) => panic!("{error}"),
    }
    if seed.is_multiple_of(20) {
        // Nobody lives of whom the image tells, so this ends, if only when the
        // second witness has been asked of one after the other.
        drop(segment.locks[0].lock());
    }
    if seed.is_multiple_of(3) {
        for (condvar, lock) in segment.condvars.iter().zip(&segment.locks) {
            use_condvar(condvar, lock);
        }
    }
    for lock in &segment.locks {
        use_lock(&segment, lock);
    }
    if seed.is_multiple_of(5) {
        use_without_sleep(&segment);
    }
    Snapshot::of(file.as_fd(), &[]).expect("it can still be shown");
    look_for_deadlocks(&segment);
    "well"
}

/// There may be some: what an image says of its threads can be anything.
fn look_for_deadlocks(segment: &Segment<Board>) {
    for cycle in heirlock::deadlock::check(segment) {
        assert!((1..=segment.capacity() as usize).contains(&cycle.members().len()));
        assert!(cycle.to_string().lines().count() == cycle.members().len() + 1);
    }
}

/// Two pages that nobody may touch, with a gap between them that fits a mapping
/// exactly. The kernel puts a mapping into the highest gap in which it has room,
/// and this was the highest for one that is two pages larger.
struct Fences {
    first: *mut c_void,
    gap: usize,
}

const PAGE: usize = 4096;

impl Fences {
    fn with_gap(gap: usize) -> Self {
        let anywhere = std::ptr::null_mut();
        let none = ProtFlags::empty();
        // SAFETY: the kernel chooses a place where nothing is.
        let all = unsafe { mmap_anonymous(anywhere, PAGE + gap + PAGE, none, MapFlags::PRIVATE) };
        let fences = Self { first: all.expect("room"), gap };
        // SAFETY: it was mapped just now, and nobody uses it.
        unsafe { munmap(fences.first.wrapping_byte_add(PAGE), gap) }.expect("munmap");
        fences
    }

    /// Whether the segment is where it was to be.
    fn enclose(&self, segment: &Segment<Board>) -> bool {
        let value = std::ptr::from_ref::<Board>(segment).addr();
        let base = value - segment.offset_of::<Board>(segment).expect("it is inside") as usize;
        base == self.first.addr() + PAGE
    }
}

impl Drop for Fences {
    fn drop(&mut self) {
        for fence in [self.first, self.first.wrapping_byte_add(PAGE + self.gap)] {
            // SAFETY: `with_gap` mapped the page, and nobody can have used it.
            unsafe { munmap(fence, PAGE) }.expect("munmap");
        }
    }
}

fn use_lock(segment: &Segment<Board>, lock: &Counter) {
    if let Some(owner) = heirlock::owner(lock) {
        heirlock::is_alive(segment, owner);
    }
    if let Some(guard) = lock.try_lock() {
        heirlock::MutexGuard::inherited(&guard);
    }
    let start = Instant::now();
    if let Some(mut guard) = lock.try_lock_for(Duration::from_millis(5)) {
        *guard = 1;
    }
    assert!(start.elapsed() < HANG);
    if heirlock::owner(lock).is_none() && heirlock::queue(lock) == Some(vec![]) {
        let mut guard = lock.lock();
        heirlock::MutexGuard::bump(&mut guard);
    }
}

/// In rows on lease. (Not of the process: they live as long as that, and a guard that names
/// one of them is waited for.)
fn use_without_sleep(segment: &Segment<Board>) {
    let start = Instant::now();
    let options = LockOptions::new().timeout(Duration::from_millis(2));
    let ended = |error: LockError| match error {
        LockError::TimedOut => {}
        LockError::Unusable(unusable) => assert!(!unusable.to_string().is_empty()),
        error => panic!("{error}"),
    };
    for pair in segment.locks.chunks(2) {
        let [one, two] = pair else { unreachable!("there are eight") };
        select::lock_any_with(&[one, two], &options).map(drop).unwrap_or_else(ended);
        #[cfg(feature = "io-uring")]
        match one.start(1) {
            Ok((mut acquire, _)) => drop(acquire.look()),
            Err(unusable) => assert!(!unusable.to_string().is_empty()),
        }
    }
    assert!(start.elapsed() < 4 * HANG);
}

fn use_condvar(condvar: &Condvar, lock: &Counter) {
    let start = Instant::now();
    heirlock::waiters(condvar);
    condvar.notify_one();
    if let Some(mut guard) = lock.try_lock_for(Duration::from_millis(5)) {
        let options = LockOptions::new().timeout(Duration::from_millis(2));
        // Notified, too, by whoever takes it for a waiter that is to be.
        match condvar.wait_with(&mut guard, &options) {
            Ok(()) | Err(LockError::TimedOut) => *guard = 2,
            Err(LockError::Unusable(unusable)) => assert!(!unusable.to_string().is_empty()),
            Err(error) => panic!("{error}"),
        }
    }
    let notified = condvar.notify_all();
    assert!(notified <= 7, "there are no more rows than that");
    heirlock::waiters(condvar);
    assert!(start.elapsed() < HANG);
}

/// Its guard names a row that is none, so nobody can edit it. Who is too late says so, and
/// does not join anew with each attempt: eight times, the thread and the process.
fn cannot_leave() {
    let path = TempPath::new();
    let segment: Segment<Board> = Segment::options().capacity(64).create(&path).expect("create");
    let lock = &segment.locks[0];
    let at = segment.offset_of(lock).expect("it is inside");
    // They cannot be released, either, and go with the process.
    std::mem::forget(lock.lock());
    Surgery::on(&path).write(at + 12, &65u32.to_ne_bytes());
    let options = LockOptions::new().timeout(Duration::from_millis(1));
    let any = || select::lock_any_with(&[lock, &segment.locks[1]], &options).map(drop);
    let future = || pollster::block_on(lock.lock_async_with(&options)).map(drop);
    std::mem::forget(segment.locks[1].lock());
    thread::scope(|scope| {
        let attempts = scope.spawn(|| {
            for attempt in 0..100 {
                for ended in [any(), future()] {
                    let corrupted = match &ended {
                        Err(LockError::Unusable(Unusable::Corrupted { .. })) => true,
                        // From the ninth attempt on.
                        Err(LockError::Unusable(Unusable::Attach(refused))) => {
                            matches!(refused, AttachError::Corrupted { .. })
                        }
                        _ => false,
                    };
                    // A slow machine may have the time be over before it queues.
                    let late = matches!(ended, Err(LockError::TimedOut));
                    assert!(corrupted || late && attempt > 0, "{ended:?}");
                }
            }
        });
        attempts.join().expect("join");
    });
    let used = Snapshot::read(&path, &[]).expect("a snapshot").rows_used;
    assert!(used < 24, "{used} rows");
}

/// Somebody writes another owner into the lock while it is held by a row on lease.
fn robbed() {
    let path = TempPath::new();
    let segment: Segment<Board> = Segment::options().capacity(64).create(&path).expect("create");
    let lock = &segment.locks[0];
    let at = segment.offset_of(lock).expect("it is inside");
    let mut refused = 0;
    for _ in 0..20 {
        match select::lock_any_with(&[lock], &LockOptions::new()) {
            Ok((_, guard)) => {
                Surgery::on(&path).write(at, &0u64.to_ne_bytes());
                let panic =
                    catch_unwind(AssertUnwindSafe(|| drop(guard))).expect_err("not its own");
                assert!(message(&*panic).is_some_and(|message| message.contains("corrupted")));
            }
            Err(error) => {
                assert!(error.to_string().contains("corrupted"), "{error}");
                refused += 1;
            }
        }
    }
    assert!(refused > 0);
    let used = Snapshot::read(&path, &[]).expect("a snapshot").rows_used;
    assert!(used < 12, "{used} rows");
}

/// Two rows whose threads are dead, each in front of the other in the queue of
/// a lock: whoever queues behind them steps over one dead after the other, and
/// must come to an end. The same with one that stands behind whoever looks.
fn cycle_of_the_dead() {
    for second_is_behind in [1u32, 3] {
        let path = TempPath::new();
        let segment: Segment<Board> = Segment::options().capacity(3).create(&path).expect("create");
        let lock = segment.offset_of(&segment.locks[0]).expect("it is inside");
        drop(segment);
        let snapshot = Snapshot::read(&path, &[]).expect("read");
        let file = Surgery::on(&path);
        file.write(44, &2u32.to_ne_bytes());
        for (row, prev) in [(1u32, 2u32), (2, second_is_behind)] {
            let at = 4096 + 64 * u64::from(row);
            file.write(life_word(&snapshot, row), &0xc000_0000u32.to_ne_bytes());
            file.write(life_word(&snapshot, row) - 8, &1u64.to_ne_bytes());
            file.write(at + 16, &(prev as u16).to_ne_bytes());
        }
        file.write(lock + 8, &1u32.to_ne_bytes());
        // So that nobody uses the two rows again.
        let claims = [1, 2].map(|row| claim_row(&path, row));
        let (done, wait) = mpsc::channel();
        let opened: Segment<Board> = Segment::open(&path).expect("open");
        thread::spawn(move || {
            let row = opened.attach().expect("attach").row();
            let result = catch_unwind(AssertUnwindSafe(|| drop(opened.locks[0].lock())));
            let panic = result.map_err(|panic| message(&*panic).map(str::to_owned));
            let _ = done.send((row, panic));
        });
        let (row, result) = wait.recv_timeout(HANG).expect("it comes to an end");
        assert_eq!(row, 3);
        let panic = result.expect_err("it is corrupted").expect("a message");
        assert!(panic.starts_with("heirlock: the segment is corrupted"), "{panic}");
        drop(claims);
    }
}
