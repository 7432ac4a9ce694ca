//! All of several locks.

use crate::clerk::{Clerk, Scene};
use crate::kit::{HANG, Process, Role, TempPath, Test, panic_of, until};
use heirlock::select::{lock_all, lock_all_with};
use heirlock::{LockError, LockOptions, Mutex, MutexGuard, Segment, Unusable};
use std::process::Stdio;
use std::ptr;
use std::thread;
use std::time::{Duration, Instant};

pub(crate) const TESTS: &[Test] = &[
    ("two_processes_take_all_in_opposite_orders", in_opposite_orders),
    ("two_processes_take_all_of_two_segments_mapped_the_other_way_round", mapped_the_other_way),
    ("all_of_the_same_lock_twice_is_an_error", twice),
    ("a_timeout_gives_back_what_was_taken", || timed(&Scene::new())),
    ("a_token_gives_back_what_was_taken", || cancelled(&Scene::new())),
    ("who_takes_all_inherits_and_is_told_of_each", || inherited(&Scene::new())),
    ("all_of_none_is_nothing", || assert!(lock_all::<u32>(&[]).is_empty())),
];

pub(crate) const ROLES: &[Role] =
    &[("takes_both", takes_both), ("takes_both_of_two_segments", takes_both_of_two_segments)];

/// How often each of the two has to find the locks taken; and in how many rounds, if the
/// other one has come to its end before.
const MEETINGS: u64 = 100;
const ROUNDS: u64 = 100_000;

fn in_opposite_orders() {
    let path = TempPath::new();
    let segment: Segment<[Mutex<u64>; 2]> = Segment::create(&*path).expect("a segment");
    let path = path.to_str().expect("a path");
    let rounds = play("takes_both", &[&[path, "0"], &[path, "1"]], segment.each_ref());
    assert_eq!([*segment[0].lock(), *segment[1].lock()], [rounds; 2]);
}

fn mapped_the_other_way() {
    let paths = [TempPath::new(), TempPath::new()];
    let segments = paths.each_ref().map(|path| Segment::<Mutex<u64>>::create(&**path).expect("it"));
    let [a, b] = paths.each_ref().map(|path| path.to_str().expect("a path"));
    let locks = segments.each_ref().map(|segment| &**segment);
    let rounds = play("takes_both_of_two_segments", &[&[a, b], &[b, a]], locks);
    assert_eq!(segments.map(|segment| *segment.lock()), [rounds; 2]);
}

/// Two processes, which begin together; how many rounds they have made in all.
fn play(role: &str, args: &[&[&str]; 2], locks: [&Mutex<u64>; 2]) -> u64 {
    let held = lock_all(&locks);
    let mut both =
        args.map(|args| Process::from_command(Process::command(role, args).stdout(Stdio::piped())));
    let waits = |lock: &&Mutex<u64>| heirlock::queue(lock).map_or(0, |queue| queue.len());
    until("both wait", || locks.iter().map(waits).sum::<usize>() == 2);
    drop(held);
    let begin = Instant::now();
    let [first, second] = both.each_mut().map(|process| {
        let said = process.output();
        let (rounds, met) =
            said.trim().split_once(' ').unwrap_or_else(|| panic!("it said {said:?}"));
        (rounds.parse::<u64>().expect("a number"), met.parse::<u64>().expect("a number"))
    });
    println!("in {:?}: {first:?} and {second:?} rounds and meetings", begin.elapsed());
    assert!(first.1.max(second.1) >= MEETINGS, "they did not meet");
    first.0 + second.0
}

fn takes_both(args: &[String]) {
    let segment: Segment<[Mutex<u64>; 2]> = Segment::open(&args[0]).expect("the segment");
    let [one, two] = &*segment;
    add(if args[1] == "0" { [one, two] } else { [two, one] });
}

/// They are in the order of the arguments, by address and in the slice.
fn takes_both_of_two_segments(args: &[String]) {
    let open = |path: &String| Segment::<Mutex<u64>>::open(path).expect("the segment");
    let mut mapped = vec![[open(&args[0]), open(&args[1])]];
    let in_order = |[a, b]: [usize; 2], mapped: &[[Segment<Mutex<u64>>; 2]]| {
        ptr::from_ref(&*mapped[a][0]) < ptr::from_ref(&*mapped[b][1])
    };
    // The second of one time lies behind the first of the next, or of the same.
    let pair = loop {
        let last = mapped.len() - 1;
        let pairs = [[last, last], [last, last.saturating_sub(1)]];
        if let Some(pair) = pairs.into_iter().find(|pair| in_order(*pair, &mapped)) {
            break pair;
        }
        assert!(last < 100, "the first is always behind");
        mapped.push([open(&args[0]), open(&args[1])]);
    };
    let locks: [&Mutex<u64>; 2] = [&mapped[pair[0]][0], &mapped[pair[1]][1]];
    assert!(ptr::from_ref(locks[0]) < ptr::from_ref(locks[1]));
    add(locks);
}

fn add(locks: [&Mutex<u64>; 2]) {
    let (mut rounds, mut met) = (0, 0);
    while met < MEETINGS && rounds < ROUNDS {
        rounds += 1;
        met += u64::from(locks.iter().any(|lock| lock.is_locked()));
        let [one, two] = &mut lock_all(&locks)[..] else { unreachable!() };
        let values = (**one, **two);
        // The other one comes in between, if it can.
        thread::yield_now();
        (**one, **two) = (values.0 + 1, values.1 + 1);
    }
    println!("{rounds} {met}");
}

fn twice() {
    let path = TempPath::new();
    let segment: Segment<[Mutex<u64>; 3]> = Segment::create(&*path).expect("a segment");
    let again: Segment<[Mutex<u64>; 3]> = Segment::open(&*path).expect("the segment");
    let [one, two, three] = &*segment;
    // Also where it is mapped a second time.
    for locks in [[one, two, one], [two, two, one], [one, three, &again[0]]] {
        let error = lock_all_with(&locks, &LockOptions::new()).map(drop).unwrap_err();
        assert!(matches!(error, LockError::Unusable(Unusable::WouldDeadlock)), "{error:?}");
        let message = panic_of(|| lock_all(&locks).len());
        assert!(message.contains("this thread holds the lock already"), "{message}");
        assert!(segment.iter().all(|lock| !lock.is_locked()));
    }
    // What the thread holds has the same end, and leaves nothing behind.
    let held = two.lock();
    let error = lock_all_with(&[one, three, two], &LockOptions::new()).map(drop).unwrap_err();
    assert!(matches!(error, LockError::Unusable(Unusable::WouldDeadlock)), "{error:?}");
    assert!(!one.is_locked() && !three.is_locked());
    drop(held);
    // The guards are in the order of the slice.
    lock_all(&[three, one, two]).into_iter().zip(1..).for_each(|(mut guard, n)| *guard = n);
    assert_eq!([one, two, three].map(|lock| *lock.lock()), [2, 3, 1]);
}

fn timed(scene: &Scene) {
    let mut clerk = scene.clerk();
    // Whatever the order is, each is once the one that is not to be had.
    for busy in 0..3 {
        let held = scene.lock(busy).lock();
        let start = Instant::now();
        assert_eq!(clerk.tell("all/50 2 0 1"), "timed out");
        assert!(start.elapsed() >= Duration::from_millis(50));
        drop(held);
        for number in 0..3 {
            assert!(!scene.lock(number).is_locked(), "{number}, as {busy} was busy");
            assert_eq!(scene.queue(number), []);
        }
    }
    assert_eq!(clerk.tell("all/50 2 0 1"), "all");
    assert!((0..3).all(|number| scene.lock(number).try_lock().is_none()));
    clerk.unlock();
}

fn cancelled(scene: &Scene) {
    let mut clerk = scene.clerk();
    for busy in 0..3 {
        let held = scene.lock(busy).lock();
        clerk.start("all/token 2 0 1");
        scene.until_queued(busy, 1);
        scene.segment.token.canceller().cancel();
        assert_eq!(clerk.answer(), "cancelled");
        scene.segment.token.reset();
        drop(held);
        assert!((0..3).all(|number| !scene.lock(number).is_locked()), "as {busy} was busy");
    }
}

fn inherited(scene: &Scene) {
    let mut owners: [Clerk; 2] = [scene.clerk(), scene.clerk()];
    assert_eq!(owners[0].tell("lock 0"), "0 locked");
    assert_eq!(owners[1].tell("future 2"), "2 locked");
    thread::scope(|scope| {
        let heir = scope.spawn(|| {
            let options = LockOptions::new().timeout(HANG);
            let all = [0, 1, 2].map(|number| scene.lock(number));
            let guards = lock_all_with(&all, &options).expect("all of them");
            let dead = guards.iter().map(MutexGuard::inherited);
            dead.map(|dead| dead.map(|dead| dead.pid() as i32)).collect::<Vec<_>>()
        });
        scene.until_queued(0, 1);
        owners.iter_mut().for_each(|owner| owner.process.kill());
        let pids = owners.each_ref().map(|owner| owner.process.pid().as_raw());
        let told = heir.join().expect("it takes all");
        assert_eq!(told, [Some(pids[0]), None, Some(pids[1])]);
    });
    for number in 0..3 {
        assert!(MutexGuard::inherited(&scene.lock(number).lock()).is_none(), "told twice");
    }
}
