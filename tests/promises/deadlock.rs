//! Deadlocks between processes are found, and nothing else is; one of those in a
//! deadlock gives up, and the others go on. Locks have names.

use crate::kit::{Board, Process, Puppet, Role, TempPath, Test, board, panic_of, until};
use heirlock::deadlock::{self, Cycle};
use heirlock::{LockError, LockOptions, Mutex, MutexGuard, NameError, Segment, Snapshot, Unusable};
use std::fs::OpenOptions;
use std::io::BufRead;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

pub(crate) const TESTS: &[Test] = &[
    ("a_deadlock_of_two_processes_is_found_and_ends_with_a_death", two_processes),
    ("a_deadlock_of_three_processes_is_found", three_processes),
    ("a_deadlock_through_two_segments_is_found_by_who_sees_both", two_segments),
    ("a_deadlock_through_one_segment_mapped_twice_is_found", mapped_twice),
    ("a_deadlock_of_threads_and_processes_is_found", threads_and_processes),
    ("a_wait_that_ends_by_itself_is_no_deadlock", waits_that_end),
    ("a_long_wait_without_a_circle_is_no_deadlock", long_wait),
    ("what_a_thread_left_to_its_process_is_not_its_tids_next_users", left_to_the_process),
    ("one_of_a_deadlock_gives_up_and_the_others_go_on", one_gives_up),
    ("the_last_to_fall_asleep_gives_up_whoever_looks_first", last_gives_up),
    ("lock_panics_with_the_deadlock_where_the_process_wants_that", panics),
    ("lock_checked_says_what_it_was_and_may_be_called_again", checked),
    ("who_unwinds_does_not_panic_again", unwinding),
    ("a_name_is_the_same_for_all_and_stays", names),
    ("of_names_given_at_once_by_processes_one_is_there", racing_names),
    ("a_name_half_given_is_none", half_a_name),
];

pub(crate) const ROLES: &[Role] = &[("dealer", dealer)];

/// How long nothing happens that must not happen: many times as long as the waits
/// that look here look after.
const QUIET: Duration = Duration::from_millis(200);

/// A process that locks on command, in the segments at the paths. `B L` is lock L of
/// segment B, from 0 on.
fn spawn(paths: &[&Path]) -> Puppet {
    let paths: Vec<&str> = paths.iter().map(|path| path.to_str().expect("printable")).collect();
    Puppet::from_command(&mut Process::command("dealer", &paths))
}

fn dealers<const N: usize>(path: &Path) -> [Puppet; N] {
    std::array::from_fn(|_| spawn(&[path]))
}

fn dealer(paths: &[String]) {
    let open = |path: &String| -> &'static Segment<Board> {
        Box::leak(Box::new(Segment::open(path).expect("open")))
    };
    let boards: Vec<&'static Segment<Board>> = paths.iter().map(open).collect();
    println!("participant {}", boards[0].attach().expect("attach").to_bits());
    let mut guards: Vec<((usize, usize), MutexGuard<'static, u64>)> = Vec::new();
    for line in std::io::stdin().lock().lines() {
        let line = line.expect("read a command");
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |at: usize| words[at].parse::<usize>().expect("a number");
        let time = |at: usize| Duration::from_millis(number(at) as u64);
        let place = || (number(1), number(2));
        let lock = || -> &'static Mutex<u64> { &boards[number(1)].locks[number(2)] };
        let with = |options: LockOptions| lock().lock_with(&options);
        let token = &boards[0].tokens[0];
        let checked = |at| LockOptions::new().detect_deadlocks(time(at));
        let got = match words[0] {
            "lock" => match catch_unwind(AssertUnwindSafe(|| lock().lock())) {
                Ok(guard) => Ok(guard),
                Err(panic) => {
                    println!("{}", panic.downcast::<String>().expect("a text").replace('\n', ";"));
                    continue;
                }
            },
            "checked" => with(checked(3)),
            "timed" => with(checked(3).timeout(time(4))),
            "cancellable" => with(checked(3).cancel(token)),
            "interruptible" => with(checked(3).interruptible(true)),
            "leak" => {
                let lock = lock();
                thread::spawn(|| MutexGuard::leak(lock.lock())).join().expect("join");
                println!("ok");
                continue;
            }
            "cancel" => {
                token.canceller().cancel();
                println!("ok");
                continue;
            }
            "detect" => {
                boards[number(1)].detect_deadlocks(Some(time(2)));
                println!("ok");
                continue;
            }
            "name" => {
                println!("{:?}", boards[number(1)].set_name(lock(), words[3]));
                continue;
            }
            "drop" => {
                guards.clear();
                println!("ok");
                continue;
            }
            "unlock" => {
                guards.retain(|(held, _)| *held != place());
                println!("ok");
                continue;
            }
            other => panic!("a dealer does not know {other:?}"),
        };
        match got {
            Ok(guard) => {
                let heir = MutexGuard::inherited(&guard).is_some();
                guards.push((place(), guard));
                println!("{}", if heir { "inherited" } else { "locked" });
            }
            Err(LockError::Unusable(Unusable::Deadlock(cycle))) => {
                println!("deadlock: {}", cycle.to_string().replace('\n', ";"));
            }
            Err(LockError::TimedOut) => println!("timed out"),
            Err(LockError::Cancelled) => println!("cancelled"),
            Err(error) => println!("{error}"),
        }
    }
}

/// Waits until the dealer sleeps in the queue of lock `lock`.
fn until_asleep(dealer: &Puppet, path: &Path, offset: u64) {
    until("a dealer sleeps in a queue", || {
        let snapshot = Snapshot::read(path, &[]).expect("read");
        snapshot.participants.iter().any(|view| {
            view.pid == dealer.pid()
                && view
                    .busy_with
                    .as_ref()
                    .is_some_and(|wait| wait.lock == offset && wait.state == "parked")
        })
    });
}

fn offset(segment: &Segment<Board>, lock: usize) -> u64 {
    segment.offset_of(&segment.locks[lock]).expect("it is inside")
}

/// Each takes lock n and then waits for lock n + 1, the last for the first one's, in
/// this order. `wait` is the command.
fn close(segment: &Segment<Board>, path: &Path, ring: &mut [Puppet], wait: &[&str]) {
    for (at, dealer) in ring.iter_mut().enumerate() {
        assert_eq!(dealer.tell(&format!("lock 0 {at}")), "locked");
    }
    let len = ring.len();
    for (at, dealer) in ring.iter_mut().enumerate() {
        let next = (at + 1) % len;
        let wait = wait[at % wait.len()];
        let (command, more) = wait.split_once(' ').unwrap_or((wait, ""));
        dealer.start(&format!("{command} 0 {next} {more}"));
        until_asleep(dealer, path, offset(segment, next));
    }
}

fn until_found(segments: &[&dyn deadlock::AnySegment]) -> Cycle {
    let mut found = Vec::new();
    until("a deadlock is found", || {
        found = deadlock::check_all(segments);
        !found.is_empty()
    });
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

fn two_processes() {
    let (path, segment) = board();
    segment.set_name(&segment.locks[0], "accounts").expect("a name");
    let mut ring = dealers::<2>(&path);
    close(&segment, &path, &mut ring, &["lock"]);
    let cycle = until_found(&[&segment]);
    assert_eq!(deadlock::check(&segment).len(), 1);
    let [first, second] = cycle.members() else { panic!("{cycle}") };
    let order = if first.pid == ring[0].pid() { [first, second] } else { [second, first] };
    for (at, member) in order.into_iter().enumerate() {
        assert_eq!(member.participant, ring[at].participant);
        assert_eq!((member.pid, member.tid), (ring[at].pid(), ring[at].pid()));
        assert!(member.pid_namespace != 0);
        assert_eq!(member.lock, offset(&segment, 1 - at));
        assert_eq!(member.lock_name.as_deref(), (at == 1).then_some("accounts"));
        assert_eq!(member.segment.as_deref(), Some(&*path));
        assert!(!member.thread_name.is_empty() && member.waited < crate::kit::HANG);
    }
    let text = cycle.to_string();
    assert_eq!(text.lines().count(), 3, "{text}");
    let pids = [ring[0].pid(), ring[1].pid()];
    for what in [
        format!("thread {} ", pids[0]),
        format!("of process {} has waited ", pids[1]),
        format!("lock \"accounts\" at offset {} of {}", offset(&segment, 0), path.display()),
        format!("the lock at offset {}", offset(&segment, 1)),
        format!("which thread {} of process {} holds", pids[0], pids[0]),
    ] {
        assert!(text.contains(&what), "no {what:?} in {text}");
    }
    // By who knows nothing of what is in the segment, too.
    let snapshot = Snapshot::read(&path, &[]).expect("read");
    let pids_of = |cycle: &Cycle| {
        let mut pids: Vec<_> = cycle.members().iter().map(|member| member.pid).collect();
        pids.sort_unstable();
        pids
    };
    assert_eq!(snapshot.deadlocks.len(), 1);
    assert_eq!(pids_of(&snapshot.deadlocks[0]), pids_of(&cycle));
    assert!(snapshot.to_string().contains("a deadlock of 2 threads"), "{snapshot}");
    // By who has mapped it twice, too, and only once.
    let again: Segment<Board> = Segment::open(&path).expect("open");
    assert_eq!(deadlock::check_all(&[&segment, &again]).len(), 1);

    let [dead, mut heir] = ring;
    dead.kill();
    assert_eq!(heir.answer(), "inherited");
    assert_eq!(deadlock::check(&segment), []);
    assert_eq!(heir.tell("drop"), "ok");
}

fn three_processes() {
    let (path, segment) = board();
    let mut ring = dealers::<3>(&path);
    close(&segment, &path, &mut ring, &["lock"]);
    // Who waits behind one of them is no part of it.
    let mut other = spawn(&[&path]);
    other.start("lock 0 0");
    until_asleep(&other, &path, offset(&segment, 0));
    let cycle = until_found(&[&segment]);
    assert_eq!(cycle.members().len(), 3);
    let place = |pid| ring.iter().position(|dealer| dealer.pid() == pid).expect("one of them");
    let order: Vec<usize> = cycle.members().iter().map(|member| place(member.pid)).collect();
    assert!(order.windows(2).all(|pair| pair[1] == (pair[0] + 1) % 3), "{order:?}");

    let [first, mut second, mut third] = ring;
    second.process.kill();
    assert_eq!(deadlock::check(&segment), []);
    // The first waited for the second's lock, and has the one for which the third waits.
    let mut first = first;
    assert_eq!(first.answer(), "inherited");
    assert_eq!(first.tell("drop"), "ok");
    assert_eq!(third.answer(), "locked");
    assert_eq!(third.tell("drop"), "ok");
    assert_eq!(other.answer(), "locked");
}

fn two_segments() {
    let ((path, one), (other_path, other)) = (board(), board());
    let paths: [&Path; 2] = [&path, &other_path];
    let mut ring = [spawn(&paths), spawn(&paths)];
    assert_eq!(ring[0].tell("lock 0 3"), "locked");
    assert_eq!(ring[1].tell("lock 1 5"), "locked");
    ring[0].start("checked 1 5 300000");
    until_asleep(&ring[0], &other_path, offset(&other, 5));
    ring[1].start("checked 0 3 30");
    let answer = ring[1].answer();
    assert!(answer.starts_with("deadlock: a deadlock of 2 threads"), "{answer}");
    ring[1].start("lock 0 3");
    let cycle = until_found(&[&one, &other]);
    let mut segments: Vec<_> = cycle.members().iter().map(|one| one.segment.as_deref()).collect();
    segments.sort_unstable();
    let mut expected = paths.map(Some);
    expected.sort_unstable();
    assert_eq!(segments, expected);
    // Each for itself shows none.
    assert_eq!((deadlock::check(&one), deadlock::check(&other)), (vec![], vec![]));
    let [dead, mut heir] = ring;
    dead.kill();
    assert_eq!(heir.answer(), "inherited");
}

fn mapped_twice() {
    let (path, segment) = board();
    let mut ring = [spawn(&[&path, &path]), spawn(&[&path, &path])];
    assert_eq!(ring[0].tell("lock 0 0"), "locked");
    assert_eq!(ring[1].tell("lock 1 1"), "locked");
    // Each through the other mapping, and so from another row, than it holds through.
    ring[0].start("lock 1 1");
    until_asleep(&ring[0], &path, offset(&segment, 1));
    ring[1].start("checked 0 0 30");
    let answer = ring[1].answer();
    assert!(answer.starts_with("deadlock: a deadlock of 2 threads"), "{answer}");
    assert_eq!(ring[1].tell("drop"), "ok");
    assert_eq!(ring[0].answer(), "locked");
}

fn threads_and_processes() {
    let (path, segment) = board();
    let segment = &segment;
    let mut dealer = spawn(&[&path]);
    assert_eq!(dealer.tell("lock 0 0"), "locked");
    let checked = LockOptions::new().detect_deadlocks(Duration::from_millis(30));
    let locks = &segment.locks;
    thread::scope(|scope| {
        let (tell, told) = mpsc::channel();
        scope.spawn(move || {
            let _second = locks[1].lock();
            tell.send(()).expect("tell");
            drop(locks[0].lock());
        });
        told.recv().expect("be told");
        let third = locks[2].lock();
        dealer.start("lock 0 2");
        until_asleep(&dealer, &path, offset(segment, 2));
        // The dealer waits for this thread, this thread for the other one, that for
        // the dealer.
        let found = locks[1].lock_with(&checked);
        let Err(LockError::Unusable(Unusable::Deadlock(cycle))) = found else {
            panic!("it was no deadlock")
        };
        let pids: Vec<u32> = cycle.members().iter().map(|member| member.pid).collect();
        assert_eq!(pids.len(), 3);
        assert_eq!(pids.iter().filter(|pid| **pid == std::process::id()).count(), 2);
        drop(third);
        assert_eq!(dealer.answer(), "locked");
        assert_eq!(dealer.tell("drop"), "ok");
    });
    assert_eq!(deadlock::check(segment), []);
}

fn waits_that_end() {
    for command in ["timed 10 2000", "cancellable 10", "interruptible 10"] {
        let (path, segment) = board();
        let mut ring = dealers::<2>(&path);
        close(&segment, &path, &mut ring, &["checked 10", command]);
        // They look, and many times.
        let start = std::time::Instant::now();
        while start.elapsed() < QUIET {
            assert_eq!(deadlock::check(&segment), [], "{command}");
            thread::sleep(Duration::from_millis(1));
        }
        let [mut patient, mut other] = ring;
        match command.split_once(' ').expect("two words").0 {
            "timed" => assert_eq!(other.answer(), "timed out"),
            "cancellable" => {
                assert_eq!(patient_cancels(&path), "ok");
                assert_eq!(other.answer(), "cancelled");
            }
            _ => {
                other.process.kill();
                assert_eq!(patient.answer(), "inherited");
                continue;
            }
        }
        assert_eq!(other.tell("drop"), "ok");
        assert_eq!(patient.answer(), "locked");
    }
}

fn patient_cancels(path: &Path) -> String {
    spawn(&[path]).tell("cancel")
}

fn long_wait() {
    let (path, segment) = board();
    let mut chain = dealers::<3>(&path);
    for (at, dealer) in chain.iter_mut().enumerate() {
        assert_eq!(dealer.tell(&format!("lock 0 {at}")), "locked");
    }
    // The last one owns what the second waits for, and waits for nothing.
    for (at, dealer) in chain.iter_mut().enumerate().take(2) {
        dealer.start(&format!("checked 0 {} 5", at + 1));
        until_asleep(dealer, &path, offset(&segment, at + 1));
    }
    let start = std::time::Instant::now();
    while start.elapsed() < QUIET {
        assert_eq!(deadlock::check(&segment), []);
        thread::sleep(Duration::from_millis(1));
    }
    let [mut first, mut second, mut third] = chain;
    assert_eq!(third.tell("drop"), "ok");
    assert_eq!(second.answer(), "locked");
    assert_eq!(second.tell("drop"), "ok");
    assert_eq!(first.answer(), "locked");
}

/// The owner's TID is free again, and could be that of a thread which waits.
fn left_to_the_process() {
    let (path, segment) = board();
    let mut ring = dealers::<2>(&path);
    assert_eq!(ring[0].tell("leak 0 0"), "ok");
    assert_eq!(ring[0].tell("lock 0 2"), "locked");
    assert_eq!(ring[1].tell("lock 0 1"), "locked");
    ring[1].start("lock 0 0");
    ring[0].start("lock 0 1");
    until_asleep(&ring[1], &path, offset(&segment, 0));
    until_asleep(&ring[0], &path, offset(&segment, 1));
    // As if the thread that waits had the TID of the one that ended.
    let [mut waiter, mut other] = ring;
    let snapshot = Snapshot::read(&path, &[]).expect("read");
    let of = |tid: bool| {
        let view = snapshot.participants.iter().find(|view| {
            view.pid == waiter.pid() && (view.participant == waiter.participant) == tid
        });
        view.expect("two threads have joined").participant
    };
    let (leaver, sleeper) = (of(false), of(true));
    let record = |of: heirlock::Participant| {
        let life_offset = (snapshot.value_offset + snapshot.value_size).next_multiple_of(4096);
        let page = life_offset + 4096 * u64::from(of.row() - 1);
        page + 64 + 64 * (of.generation() % 32)
    };
    let file = OpenOptions::new().read(true).write(true).open(&path).expect("open");
    let mut tid = [0; 4];
    file.read_exact_at(&mut tid, record(sleeper) + 12).expect("read");
    assert_eq!(u32::from_ne_bytes(tid), waiter.pid());
    file.write_all_at(&tid, record(leaver) + 12).expect("write");
    assert_eq!(deadlock::check(&segment), []);
    waiter.process.kill();
    assert_eq!(other.answer(), "inherited");
}

fn one_gives_up() {
    for round in 0..6 {
        let (path, segment) = board();
        let ring = dealers::<3>(&path);
        let mut ring = Vec::from(ring);
        for dealer in &mut ring {
            assert_eq!(dealer.tell("detect 0 20"), "ok");
        }
        for (at, dealer) in ring.iter_mut().enumerate() {
            assert_eq!(dealer.tell(&format!("lock 0 {at}")), "locked");
        }
        // All at once; by the call in some rounds, as the process wants it in others.
        let command = |next| match round % 2 {
            0 => format!("checked 0 {next} 20"),
            _ => format!("lock 0 {next}"),
        };
        for (at, dealer) in ring.iter_mut().enumerate() {
            dealer.start(&command((at + 1) % 3));
        }
        let (tell, told) = mpsc::channel();
        thread::scope(|scope| {
            let (drops, dropping): (Vec<_>, Vec<_>) = (0..3).map(|_| mpsc::channel::<()>()).unzip();
            for (at, (dealer, drop)) in ring.iter_mut().zip(dropping).enumerate() {
                let tell = tell.clone();
                scope.spawn(move || {
                    tell.send((at, dealer.answer())).expect("tell");
                    if drop.recv().is_ok() {
                        assert_eq!(dealer.tell("drop"), "ok");
                    }
                });
            }
            let next = || told.recv_timeout(crate::kit::HANG).expect("somebody proceeds");
            let (victim, answer) = next();
            assert!(answer.contains("a deadlock of 3 threads"), "{answer}");
            thread::sleep(QUIET);
            assert!(told.try_recv().is_err(), "two gave up, or went on too early");
            let mut at = victim;
            for _ in 0..2 {
                drops[at].send(()).expect("drop");
                // Who waited for its lock, which is the one before it.
                at = (at + 2) % 3;
                assert_eq!(next(), (at, "locked".to_owned()));
            }
        });
        assert_eq!(deadlock::check(&segment), []);
    }
}

fn last_gives_up() {
    for _ in 0..3 {
        let (path, segment) = board();
        let mut ring = dealers::<3>(&path);
        // The first two look all the time, and long before the last one does.
        close(&segment, &path, &mut ring, &["checked 5", "checked 5", "checked 400"]);
        until("the deadlock has ended", || deadlock::check(&segment).is_empty());
        for (at, dealer) in ring.iter().take(2).enumerate() {
            let queue = heirlock::queue(&segment.locks[at + 1]).expect("it stands still");
            assert_eq!(queue, [dealer.participant], "who looked first, but came first, gave up");
        }
        let answer = ring[2].answer();
        assert!(answer.starts_with("deadlock: "), "{answer}");
        assert_eq!(ring[2].tell("drop"), "ok");
        assert_eq!(ring[1].answer(), "locked");
        assert_eq!(ring[1].tell("drop"), "ok");
        assert_eq!(ring[0].answer(), "locked");
    }
    // One who does not look is not chosen, though it came last.
    let (path, segment) = board();
    let mut ring = dealers::<2>(&path);
    close(&segment, &path, &mut ring, &["checked 200", "lock"]);
    assert!(ring[0].answer().starts_with("deadlock: "));
    assert_eq!(ring[0].tell("drop"), "ok");
    assert_eq!(ring[1].answer(), "locked");
}

fn panics() {
    let (path, segment) = board();
    segment.set_name(&segment.locks[0], "accounts").expect("a name");
    segment.set_name(&segment.locks[1], "orders of today").expect("a name");
    let mut ring = dealers::<2>(&path);
    assert_eq!(ring[1].tell("detect 0 100"), "ok");
    close(&segment, &path, &mut ring, &["lock"]);
    let answer = ring[1].answer();
    assert!(answer.starts_with("heirlock: this thread was chosen to end a deadlock"), "{answer}");
    for what in ["lock \"accounts\" at", "lock \"orders of today\" at", "of process"] {
        assert!(answer.contains(what), "no {what:?} in {answer}");
    }
    for dealer in &ring {
        assert!(answer.contains(&dealer.pid().to_string()), "{answer}");
    }
    assert_eq!(ring[1].tell("drop"), "ok");
    assert_eq!(ring[0].answer(), "locked");
}

fn checked() {
    let (path, segment) = board();
    let mut dealer = spawn(&[&path]);
    assert_eq!(dealer.tell("lock 0 0"), "locked");
    let mine = segment.locks[1].lock();
    dealer.start("lock 0 1");
    until_asleep(&dealer, &path, offset(&segment, 1));
    for _ in 0..2 {
        match segment.locks[0].lock_checked() {
            Err(Unusable::Deadlock(cycle)) => {
                assert_eq!(cycle.members().len(), 2);
                let own = cycle.members().iter().find(|one| one.pid == std::process::id());
                assert!(own.expect("it is in it").waited > Duration::ZERO);
            }
            other => panic!("{other:?}"),
        }
    }
    drop(mine);
    assert_eq!(dealer.answer(), "locked");
    assert_eq!(dealer.tell("drop"), "ok");
    assert!(segment.locks[0].lock_checked().is_ok());
    let held = segment.locks[0].lock();
    assert!(matches!(segment.locks[0].lock_checked(), Err(Unusable::WouldDeadlock)));
    drop(held);
}

fn unwinding() {
    let (path, segment) = board();
    segment.detect_deadlocks(Some(Duration::from_millis(10)));
    let mut dealer = spawn(&[&path]);
    assert_eq!(dealer.tell("lock 0 0"), "locked");
    let mine = segment.locks[1].lock();
    dealer.start("checked 0 1 300");
    until_asleep(&dealer, &path, offset(&segment, 1));
    /// Locks while the thread unwinds: a second panic would abort.
    struct Late<'a>(&'a Mutex<u64>);
    impl Drop for Late<'_> {
        fn drop(&mut self) {
            assert!(thread::panicking());
            *self.0.lock() += 1;
        }
    }
    thread::scope(|scope| {
        scope.spawn(|| {
            // The dealer is the only one to look, and makes room.
            assert!(dealer.answer().starts_with("deadlock: "));
            assert_eq!(dealer.tell("drop"), "ok");
        });
        let message = panic_of(|| {
            let _late = Late(&segment.locks[0]);
            panic!("on purpose");
        });
        assert_eq!(message, "on purpose");
    });
    drop(mine);
    assert_eq!(*segment.locks[0].lock(), 1);
}

fn names() {
    let (path, segment) = board();
    let lock = &segment.locks;
    let longest = "n".repeat(56);
    segment.set_name(&lock[0], &longest).expect("56 bytes");
    segment.set_name(&lock[0], &longest).expect("the same again");
    segment.set_name(&lock[1], "größte Liste").expect("UTF-8");
    let error = |lock, name: &str| segment.set_name(lock, name).unwrap_err();
    let too_long = format!("{longest}n");
    assert_eq!(error(&lock[2], &too_long), NameError::TooLong { found: 57, max: 56 });
    for name in ["", "a\0b", "a\nb", "\u{1b}[1m"] {
        assert_eq!(error(&lock[2], name), NameError::NotPrintable, "{name:?}");
    }
    assert_eq!(segment.set_name(&0u64, "elsewhere"), Err(NameError::Elsewhere));
    let another = NameError::Another { name: Some(longest.clone()) };
    assert_eq!(error(&lock[0], "other"), another);
    assert_eq!(error(&lock[0], &longest[..55]), another);
    assert!(another.to_string().contains(&longest));
    assert_eq!(segment.name_of(&lock[2]), None);

    // Whoever comes finds them.
    let mut dealer = spawn(&[&path]);
    assert_eq!(dealer.tell(&format!("name 0 0 {longest}")), "Ok(())");
    assert!(dealer.tell("name 0 0 other").contains("Another"));
    let again: Segment<Board> = Segment::open(&path).expect("open");
    assert_eq!(again.name_of(&again.locks[0]), Some(longest.clone()));
    assert_eq!(again.name_of(&again.locks[1]).as_deref(), Some("größte Liste"));
    let snapshot = Snapshot::read(&path, &[offset(&segment, 0), offset(&segment, 2)]);
    let snapshot = snapshot.expect("read");
    let name = |lock| snapshot.lock(offset(&segment, lock)).expect("asked for").name.clone();
    assert_eq!((name(0), name(2)), (Some(longest.clone()), None));
    assert!(snapshot.to_string().contains(&longest), "{snapshot}");

    // There are 62, for whatever is in the value.
    let path = TempPath::new();
    let many: Segment<[Mutex<u32>; 70]> = Segment::create(&path).expect("create");
    for (number, lock) in many.iter().enumerate().take(62) {
        many.set_name(lock, &format!("lock {number}")).expect("a name");
    }
    assert_eq!(many.set_name(&many[62], "one more"), Err(NameError::Full));
    many.set_name(&many[61], "lock 61").expect("it has that name");
    assert_eq!(many.name_of(&many[61]).as_deref(), Some("lock 61"));
}

fn racing_names() {
    for round in 0..20 {
        let (path, segment) = board();
        let mut dealers = if round == 0 { Vec::from(dealers::<4>(&path)) } else { Vec::new() };
        let at_once = if round == 0 { dealers.len() } else { 4 };
        let name = |at: usize| ["a-name-for-all", "a-name", "a-name-for-one", "other"][at];
        let given: Vec<bool> = if round == 0 {
            for (at, dealer) in dealers.iter_mut().enumerate() {
                dealer.start(&format!("name 0 0 {}", name(at)));
            }
            dealers.iter_mut().map(|dealer| dealer.answer() == "Ok(())").collect()
        } else {
            let again = || -> Segment<Board> { Segment::open(&path).expect("open") };
            let mappings: Vec<Segment<Board>> = (0..at_once).map(|_| again()).collect();
            thread::scope(|scope| {
                let give = |(at, board): (usize, &Segment<Board>)| {
                    board.set_name(&board.locks[0], name(at)).is_ok()
                };
                let threads = mappings.iter().enumerate().map(|one| scope.spawn(move || give(one)));
                let threads: Vec<_> = threads.collect();
                threads.into_iter().map(|thread| thread.join().expect("join")).collect()
            })
        };
        assert_eq!(given.iter().filter(|given| **given).count(), 1, "{given:?}");
        let winner = given.iter().position(|given| *given).expect("one");
        assert_eq!(segment.name_of(&segment.locks[0]).as_deref(), Some(name(winner)));
    }
}

/// A namer that is killed may leave any number of the words of its name.
fn half_a_name() {
    let name = "accounts of the customers in the north-west of the town!";
    assert_eq!(name.len(), 56);
    for words in 0..=7usize {
        let (path, segment) = board();
        let file = OpenOptions::new().write(true).open(&path).expect("open");
        file.write_all_at(&offset(&segment, 3).to_ne_bytes(), 128).expect("write");
        file.write_all_at(&name.as_bytes()[..8 * words], 136).expect("write");
        let lock = &segment.locks[3];
        assert_eq!(segment.name_of(lock).as_deref(), (words == 7).then_some(name));
        if words > 0 {
            assert!(matches!(segment.set_name(lock, "other"), Err(NameError::Another { .. })));
        }
        // Others get theirs.
        segment.set_name(&segment.locks[2], "orders").expect("a name");
        assert_eq!(spawn(&[&path]).tell("name 0 2 orders"), "Ok(())");
        segment.set_name(lock, name).expect("whoever gives the same name finishes it");
        assert_eq!(segment.name_of(lock).as_deref(), Some(name));
    }
}
