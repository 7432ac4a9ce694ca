//! What a mutex and its guards can do, wherever the mutex lives.

use crate::kit::sandbox::Refusal;
use crate::kit::{Board, Process, Test, board, in_new_pid_namespace, panic_of, skip, until};
use heirlock::{MappedMutexGuard, Mutex, MutexGuard, Segment, owner, queue};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use nix::unistd::gettid;
use std::cell::RefCell;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

pub(crate) const TESTS: &[Test] = &[
    ("counts_are_exact_in_a_static_on_the_heap_on_the_stack_and_in_a_segment", counts),
    ("a_mutex_may_be_moved_while_it_is_unlocked", moved),
    ("a_mutex_can_be_seen_without_locking_by_who_has_it_alone", faces),
    ("one_thread_may_alternate_between_segments_and_statics", alternating),
    ("segments_that_come_and_go_leave_nothing_behind", || crate::identity::play("many-segments")),
    ("an_address_may_belong_to_a_segment_and_to_private_memory_in_turn", addresses),
    ("map_narrows_a_guard_and_keeps_the_lock", map),
    ("unlocked_lets_others_in_and_relocks_also_on_panic", unlocked),
    ("unlocked_tells_of_what_was_inherited_the_second_time", unlocked_inherits),
    ("bump_lets_a_waiter_go_first_and_comes_back", bump),
    ("unwinding_releases", unwinding),
    ("leak_keeps_the_lock_and_the_value", leak),
    ("a_thread_with_the_tid_of_one_that_leaked_a_guard_waits_for_it", || {
        let can = std::fs::OpenOptions::new().write(true).open(LAST_PID);
        can.unwrap_or_else(|error| skip(format!("cannot write {LAST_PID}: {error}")));
        let process = in_new_pid_namespace(|| Process::spawn("recycled-tid", &[]));
        assert!(process.succeeds(), "see above");
    }),
    ("guards_work_in_the_destructors_of_thread_locals", thread_locals),
    ("a_guard_in_a_thread_local_holds_until_it_is_dropped", || crate::identity::play("late-guard")),
    ("a_guard_in_a_thread_local_holds_until_it_is_dropped_without_get_robust_list", || {
        crate::identity::play_in("late-guard", Refusal::ROBUST_LIST)
    }),
];

const LAST_PID: &str = "/proc/sys/kernel/ns_last_pid";

/// A thread leaks a guard and ends; another one gets its TID. It used to be
/// taken for the owner, by its life word, and told that it holds the lock
/// already.
pub(crate) fn recycled_tid() {
    static LOCK: Mutex<u64> = Mutex::new(0);
    let leaker = thread::spawn(|| {
        MutexGuard::leak(LOCK.lock());
        gettid()
    });
    let tid = leaker.join().expect("join");
    // A join ends a little before the kernel has the number to give again.
    let mut waiter = None;
    until("the TID comes back", || {
        std::fs::write(LAST_PID, (tid.as_raw() - 1).to_string()).expect("say which TID is next");
        let (tell, told) = mpsc::channel();
        let thread = thread::spawn(move || {
            tell.send(gettid() == tid).expect("tell");
            if gettid() == tid {
                drop(LOCK.lock());
            }
        });
        waiter = told.recv().expect("be told").then_some(thread);
        waiter.is_some()
    });
    let waiter = waiter.expect("a thread with that TID");
    until("it waits, or ends", || {
        waiter.is_finished() || queue(&LOCK).is_some_and(|queue| queue.len() == 1)
    });
    assert!(!waiter.is_finished(), "it does not wait: {:?}", waiter.join().err().map(panic_text));
}

fn panic_text(panic: Box<dyn std::any::Any + Send>) -> String {
    panic.downcast_ref::<&str>().map_or("a panic".into(), ToString::to_string)
}

/// A thread that waits for `lock`, then adds one.
fn adder<'scope, 'env>(
    scope: &'scope thread::Scope<'scope, 'env>,
    lock: &'env Mutex<u64>,
) -> thread::ScopedJoinHandle<'scope, ()> {
    let adder = scope.spawn(|| *lock.lock() += 1);
    until("it waits", || queue(lock).is_some_and(|queue| queue.len() == 1));
    adder
}

fn counts() {
    const EACH: u64 = 50_000;
    const THREADS: u64 = 4;
    static STATIC: Mutex<u64> = Mutex::new(0);
    let heap = Arc::new(Mutex::new(0));
    let stack = Mutex::new(0);
    let segment: Segment<Mutex<u64>> = Segment::anonymous().expect("anonymous");
    for lock in [&STATIC, &*heap, &stack, &segment] {
        thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| (0..EACH).for_each(|_| *lock.lock() += 1));
            }
        });
        assert_eq!(*lock.lock(), THREADS * EACH);
    }
}

fn moved() {
    let mutex = Mutex::new(vec![1]);
    mutex.lock().push(2);
    let boxed = Box::new(mutex);
    boxed.lock().push(3);
    let mut many = Vec::new();
    many.push(*boxed);
    // Moved by every growth.
    for at in 4..100 {
        many[0].lock().push(at);
        many.push(Mutex::new(vec![]));
    }
    let mutex = many.swap_remove(0);
    let back = thread::spawn(move || {
        mutex.lock().push(100);
        mutex
    });
    assert_eq!(back.join().expect("join").into_inner(), (1..=100).collect::<Vec<_>>());
}

fn faces() {
    let mut mutex = Mutex::from(1);
    *mutex.get_mut() += 1;
    assert_eq!(format!("{mutex:?}"), "Mutex { value: 2 }");
    let guard = mutex.lock();
    assert_eq!(format!("{mutex:?}"), "Mutex { value: <locked> }");
    assert_eq!(format!("{guard:?} {guard}"), "2 2");
    assert_eq!(format!("{:?}", MutexGuard::map(guard, |value| value)), "2");
    assert!(!mutex.is_locked());
    assert_eq!(mutex.into_inner(), 2);
    assert_eq!(Mutex::<u8>::default().into_inner(), 0);
    let unsized_value: &Mutex<[u8]> = &Mutex::new([1, 2, 3]);
    unsized_value.lock()[1] = 7;
    assert_eq!(unsized_value.lock()[..], [1, 7, 3]);
}

fn alternating() {
    static STATIC: Mutex<u64> = Mutex::new(0);
    let first: Segment<Mutex<u64>> = Segment::anonymous().expect("anonymous");
    let second: Segment<Mutex<u64>> = Segment::anonymous().expect("anonymous");
    let participants = [&first, &second].map(|segment| Some(segment.attach().expect("attach")));
    let locks: [&Mutex<u64>; 3] = [&first, &second, &STATIC];
    for round in 0..1000 {
        for lock in locks {
            *lock.lock() += 1;
        }
        // Nested, in a different order each time.
        let mut guards: Vec<_> = (0..3).map(|at| locks[(round + at) % 3].lock()).collect();
        assert_eq!([owner(&first), owner(&second)], participants);
        assert!(locks.iter().all(|lock| lock.try_lock().is_none()));
        guards.iter_mut().for_each(|guard| **guard += 1);
        drop(guards.swap_remove(round % 3));
    }
    assert_eq!(locks.map(|lock| *lock.lock()), [2000; 3]);
    assert_eq!(
        [&first, &second].map(|segment| Some(segment.attach().expect("attach"))),
        participants
    );
}

/// The role of a process in which nobody else maps or opens anything.
pub(crate) fn many_segments() {
    fn used() -> (usize, usize) {
        let maps = std::fs::read_to_string("/proc/self/maps").expect("the maps");
        let files = std::fs::read_dir("/proc/self/fd").expect("the descriptors");
        (maps.lines().count(), files.count())
    }
    fn once() {
        let (path, segment) = board();
        let again: Segment<Board> = Segment::open(&path).expect("open");
        let anonymous: Segment<Mutex<u64>> = Segment::anonymous().expect("anonymous");
        *segment.locks[0].lock() += 1;
        *again.locks[0].lock() += 1;
        thread::scope(|scope| {
            // Joined: a scope does not wait until its threads have left.
            let others =
                [&again.locks[0], &*anonymous].map(|lock| scope.spawn(move || *lock.lock() += 1));
            for other in others {
                other.join().expect("join");
            }
        });
        assert_eq!((*segment.locks[0].lock(), *anonymous.lock()), (3, 1));
    }
    (0..20).for_each(|_| once());
    let (maps, files) = used();
    (0..300).for_each(|_| once());
    let (maps_now, files_now) = used();
    // The allocator, and the C library's stacks, may have grown by some.
    assert!(maps_now <= maps + 20, "{maps} mappings became {maps_now}");
    assert_eq!(files_now, files, "descriptors");
}

/// Runs `test` on a mutex in private memory at `address`; `false` if there is
/// something else.
#[allow(unsafe_code)]
fn with_private(address: usize, len: usize, offset: usize, test: fn(&Mutex<u64>)) -> bool {
    let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_FIXED_NOREPLACE;
    let (place, len) = (NonZeroUsize::new(address), NonZeroUsize::new(len).expect("not empty"));
    // SAFETY: a new mapping, which replaces nothing.
    let mapped =
        unsafe { mmap_anonymous(place, len, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, flags) };
    let Ok(mapped) = mapped else { return false };
    // SAFETY: zeros are an unlocked mutex; the callers' offset is inside, and
    // aligned; the reference ends with the call, before the memory is unmapped.
    test(unsafe { mapped.byte_add(offset).cast::<Mutex<u64>>().as_ref() });
    // SAFETY: nothing refers to the mapping any more.
    unsafe { munmap(mapped, len.get()) }.expect("munmap");
    true
}

fn addresses() {
    let check = |lock: &Mutex<u64>| {
        for _ in 0..3 {
            *lock.lock() += 1;
        }
        let guard = lock.lock();
        assert!(thread::scope(|s| s.spawn(|| lock.try_lock().is_none()).join().expect("join")));
        assert_eq!(MutexGuard::inherited(&guard), None);
    };
    let mut both = 0;
    // Other threads of this process map as well, so places may be lost.
    for _ in 0..100 {
        let (path, segment) = board();
        let address = std::ptr::from_ref(&segment.locks[0]).addr();
        let offset = segment.offset_of(&segment.locks[0]).expect("it is inside") as usize;
        let len = std::fs::metadata(&path).expect("a file").len() as usize;
        check(&segment.locks[0]);
        let me = segment.attach().expect("attach");
        drop(segment);
        let private = with_private(address - offset, len, offset, check);
        let segment: Segment<Board> = Segment::open(&path).expect("open");
        check(&segment.locks[0]);
        let again = segment.attach().expect("attach");
        assert!(again.generation() > me.generation() || again.row() != me.row());
        assert_eq!(*segment.locks[0].lock(), 6);
        both += usize::from(private && std::ptr::from_ref(&segment.locks[0]).addr() == address);
    }
    eprintln!("{both} addresses were a segment's, private and a segment's again");
    if both == 0 {
        skip("the kernel chose another address each time");
    }
}

fn map() {
    static LOCK: Mutex<[(u64, u64); 2]> = Mutex::new([(1, 2), (3, 4)]);
    let pair = MutexGuard::map(LOCK.lock(), |pairs| &mut pairs[1]);
    let mut second = MappedMutexGuard::map(pair, |pair| &mut pair.1);
    *second += 10;
    assert!(LOCK.is_locked());
    assert_eq!(MappedMutexGuard::inherited(&second), None);
    drop(second);
    assert_eq!(LOCK.lock()[1], (3, 14));
    // A panic on the way releases, and an inheritance is not lost on it.
    let tid = thread::spawn(|| {
        std::mem::forget(LOCK.lock());
        nix::unistd::gettid().as_raw() as u32
    });
    let tid = tid.join().expect("join");
    let guard = LOCK.lock();
    assert_eq!(MutexGuard::inherited(&guard).expect("it died").tid(), tid);
    panic_of(|| MutexGuard::map(guard, |_| -> &mut u64 { panic!("on purpose") }));
    let first = MutexGuard::map(LOCK.lock(), |pairs| &mut pairs[0]);
    let dead = MappedMutexGuard::inherited(&first).expect("it is told again");
    assert_eq!(dead.tid(), tid);
    let first = MappedMutexGuard::map(first, |pair| &mut pair.0);
    assert_eq!(MappedMutexGuard::inherited(&first), Some(dead));
    drop(first);
    assert_eq!(MutexGuard::inherited(&LOCK.lock()), None);
}

fn unlocked() {
    let segment: Segment<Mutex<u64>> = Segment::anonymous().expect("anonymous");
    let me = segment.attach().expect("attach");
    let lock: &Mutex<u64> = &segment;
    let mut guard = lock.lock();
    let result = MutexGuard::unlocked(&mut guard, || {
        assert!(!lock.is_locked());
        // By others, and by this very thread.
        thread::scope(|scope| {
            scope.spawn(|| *lock.lock() += 1);
        });
        *lock.lock() += 1;
        "result"
    });
    assert_eq!((result, *guard, owner(lock)), ("result", 2, Some(me)));
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        MutexGuard::unlocked(&mut guard, || {
            *lock.lock() += 1;
            resume_unwind(Box::new("on purpose"))
        })
    }));
    assert_eq!(panicked.expect_err("it panicked").downcast_ref(), Some(&"on purpose"));
    assert_eq!((*guard, owner(lock)), (3, Some(me)));
    assert!(thread::scope(|s| s.spawn(|| lock.try_lock().is_none()).join().expect("join")));
    // Those who waited go first.
    thread::scope(|scope| {
        let waiter = adder(scope, lock);
        MutexGuard::unlocked(&mut guard, || ());
        assert_eq!(*guard, 4);
        waiter.join().expect("join");
    });
    drop(guard);
    assert!(!lock.is_locked());
}

fn unlocked_inherits() {
    static LOCK: Mutex<u64> = Mutex::new(0);
    let forget = || thread::spawn(|| std::mem::forget(LOCK.lock())).join().expect("join");
    let mut guard = LOCK.lock();
    assert_eq!(MutexGuard::inherited(&guard), None);
    MutexGuard::unlocked(&mut guard, forget);
    let first = MutexGuard::inherited(&guard).expect("it died");
    MutexGuard::unlocked(&mut guard, forget);
    let second = MutexGuard::inherited(&guard).expect("it died");
    assert_ne!(first.tid(), second.tid());
    // What was inherited the first time was told, and a release is its end.
    MutexGuard::unlocked(&mut guard, || {
        assert_eq!(MutexGuard::inherited(&LOCK.lock()), None);
    });
    assert_eq!(MutexGuard::inherited(&guard), None);
}

fn bump() {
    let segment: Segment<Mutex<u64>> = Segment::anonymous().expect("anonymous");
    let me = segment.attach().expect("attach");
    let lock: &Mutex<u64> = &segment;
    let mut guard = lock.lock();
    MutexGuard::bump(&mut guard);
    assert_eq!((*guard, owner(lock)), (0, Some(me)));
    thread::scope(|scope| {
        for round in 1..=100 {
            let waiter = adder(scope, lock);
            MutexGuard::bump(&mut guard);
            assert_eq!((*guard, owner(lock)), (round, Some(me)));
            waiter.join().expect("join");
        }
    });
    drop(guard);
    assert!(!lock.is_locked());
}

fn unwinding() {
    static LOCK: Mutex<u64> = Mutex::new(0);
    let message = panic_of(|| {
        let mut guard = LOCK.lock();
        *guard = 1;
        panic!("on purpose");
    });
    assert_eq!(message, "on purpose");
    let guard = LOCK.try_lock().expect("it was released");
    assert_eq!((*guard, MutexGuard::inherited(&guard)), (1, None));
    drop(guard);
    // Locks that are taken and released while a thread unwinds are, too.
    struct Locks;
    impl Drop for Locks {
        fn drop(&mut self) {
            *LOCK.lock() += 1;
        }
    }
    panic_of(|| {
        let _locks = Locks;
        panic!("on purpose");
    });
    assert_eq!(*LOCK.lock(), 2);
    // An heir that is told while it unwinds has been told.
    thread::spawn(|| std::mem::forget(LOCK.lock())).join().expect("join");
    panic_of(|| {
        let _locks = Locks;
        panic!("on purpose");
    });
    let guard = LOCK.lock();
    assert_eq!((*guard, MutexGuard::inherited(&guard)), (3, None));
}

fn leak() {
    static LOCK: Mutex<u64> = Mutex::new(1);
    let (tell, told) = mpsc::channel();
    thread::spawn(move || tell.send(MutexGuard::leak(LOCK.lock())).expect("tell"))
        .join()
        .expect("join");
    let value: &'static mut u64 = told.recv().expect("be told");
    *value += 1;
    assert!(LOCK.is_locked());
    assert!(LOCK.try_lock().is_none());
    assert!(LOCK.try_lock_for(Duration::from_millis(1500)).is_none());
    assert_eq!(*value, 2);
}

fn thread_locals() {
    static EARLY: Mutex<u64> = Mutex::new(0);
    static LATE: Mutex<u64> = Mutex::new(0);
    static AGAIN: Mutex<u64> = Mutex::new(0);
    struct Locks(Option<MutexGuard<'static, u64>>);
    impl Drop for Locks {
        fn drop(&mut self) {
            if let Some(guard) = &mut self.0 {
                **guard += 1;
            }
            *AGAIN.lock() += 1;
        }
    }
    thread_local! {
        static FIRST: RefCell<Locks> = const { RefCell::new(Locks(None)) };
        static LAST: RefCell<Locks> = const { RefCell::new(Locks(None)) };
    }
    for round in 1..=20 {
        let run = || {
            // One is registered before the thread joins, the other after.
            FIRST.with(|_| ());
            let early = EARLY.lock();
            FIRST.with(|first| first.borrow_mut().0 = Some(early));
            LAST.with(|last| last.borrow_mut().0 = Some(LATE.lock()));
        };
        thread::spawn(run).join().expect("join");
        for lock in [&EARLY, &LATE] {
            let guard = lock.try_lock().expect("it was released");
            assert_eq!((*guard, MutexGuard::inherited(&guard)), (round, None));
        }
        assert_eq!(*AGAIN.lock(), 2 * round);
    }
}

/// The last to go may be a thread-local that holds a guard: until then it has
/// the value for itself, although the thread has left its segments already.
pub(crate) fn late_guard() {
    static LOCK: Mutex<u64> = Mutex::new(0);
    struct Late(Option<MutexGuard<'static, u64>>);
    impl Drop for Late {
        fn drop(&mut self) {
            let guard = self.0.as_mut().expect("it was put here");
            let before = **guard;
            thread::sleep(Duration::from_millis(100));
            assert_eq!(**guard, before, "somebody else has the value, too");
            **guard += 10;
        }
    }
    thread_local! {
        static LATE: RefCell<Late> = const { RefCell::new(Late(None)) };
    }
    let (tell, told) = mpsc::channel();
    let owner = thread::spawn(move || {
        // Registered before the thread joins, so destroyed after it has left.
        LATE.with(|_| ());
        let guard = LOCK.lock();
        LATE.with(|late| late.borrow_mut().0 = Some(guard));
        tell.send(()).expect("tell");
        until("somebody waits", || queue(&LOCK).is_some_and(|queue| queue.len() == 1));
    });
    told.recv().expect("be told");
    let contender = thread::spawn(|| {
        let mut guard = LOCK.lock();
        assert_eq!(MutexGuard::inherited(&guard), None);
        *guard += 1;
    });
    owner.join().expect("join");
    contender.join().expect("join");
    assert_eq!(*LOCK.lock(), 11);
}
