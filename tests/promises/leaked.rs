//! What the process keeps of threads that ended, in the last moment even; and what is left
//! of that when the process has ended, and in a forked child.

use crate::kit::sandbox::Refusal;
use crate::kit::{HANG, Process, Role, Test, board, fork, panic_of, until};
use heirlock::{Mutex, MutexGuard, Segment};
use std::cell::RefCell;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

pub(crate) const TESTS: &[Test] = &[
    ("what_a_thread_leaks_when_it_ends_is_its_processs", || leaked(None)),
    ("what_a_thread_leaks_when_it_ends_is_its_processs_without_get_robust_list", || {
        leaked(Some(Refusal::ROBUST_LIST))
    }),
    ("a_child_that_is_forked_when_a_thread_ends_is_a_new_participant", || {
        crate::identity::play("fork-late")
    }),
    #[cfg(feature = "lock_api")]
    ("threads_that_lock_when_they_end_leave_their_rows", || crate::identity::play("lock-late")),
    #[cfg(feature = "io-uring")]
    ("threads_that_release_a_row_on_lease_when_they_end_leave_it", || {
        crate::identity::play("lease-late")
    }),
];

pub(crate) const ROLES: &[Role] = &[
    ("leak-late", leak_late),
    ("fork-late", |_| fork_late()),
    #[cfg(feature = "lock_api")]
    ("lock-late", |_| lock_late()),
    #[cfg(feature = "io-uring")]
    ("lease-late", |_| lease_late()),
];

static STATICS: [Mutex<u64>; 3] = [const { Mutex::new(0) }; 3];

/// Does what it has, and drops it, when it is dropped.
struct Late(Option<Box<dyn FnOnce()>>);

impl Drop for Late {
    fn drop(&mut self) {
        self.0.take().expect("it is dropped once")();
    }
}

/// Has a thread do `first` and then end, and `last` after it has left its segments.
fn thread_with_late<R: 'static>(
    first: impl FnOnce() -> R + Send + 'static,
    last: impl FnOnce(R) + Send + 'static,
) -> thread::JoinHandle<()> {
    thread_local! {
        static LATE: RefCell<Late> = const { RefCell::new(Late(None)) };
    }
    thread::spawn(move || {
        // Registered before the thread joins, so destroyed after it has left.
        LATE.with(|_| ());
        let result = first();
        LATE.with(|late| late.borrow_mut().0 = Some(Box::new(move || last(result))));
    })
}

type Leaked = Sender<&'static mut u64>;

/// Leaks a guard of a thread that has left.
fn in_a_destructor(lock: &'static Mutex<u64>, tell: Leaked) {
    let leak = move |()| tell.send(MutexGuard::leak(lock.lock())).expect("tell");
    thread_with_late(|| drop(STATICS[2].lock()), leak).join().expect("join");
}

/// Leaks one that the thread had when it left.
fn in_a_destructor_too(lock: &'static Mutex<u64>, tell: Leaked) {
    let leak = move |guard| tell.send(MutexGuard::leak(guard)).expect("tell");
    thread_with_late(|| lock.lock(), leak).join().expect("join");
}

/// Leaks one, and ends so that nothing of the C library's knows: the kernel marks the row,
/// as if it had been killed alone.
#[allow(unsafe_code)]
fn at_once(lock: &'static Mutex<u64>, tell: Leaked) {
    let (tell_tid, tid) = channel();
    thread::spawn(move || {
        tell.send(MutexGuard::leak(lock.lock())).expect("tell");
        drop(tell);
        tell_tid.send(nix::unistd::gettid()).expect("tell");
        // SAFETY: it ends the thread; nobody joins it, and it holds nothing of others.
        unsafe { libc::syscall(libc::SYS_exit, 0) };
    });
    let task = format!("/proc/self/task/{}", tid.recv().expect("be told"));
    until("the thread has ended", || !std::path::Path::new(&task).exists());
}

const WAYS: [fn(&'static Mutex<u64>, Leaked); 3] = [in_a_destructor, in_a_destructor_too, at_once];

fn leaked(refusal: Option<Refusal>) {
    refusal.iter().for_each(Refusal::require);
    let (path, segment) = board();
    let processes = [0, 1, 2].map(|way: usize| {
        let args = [path.to_str().expect("a path"), &way.to_string()];
        let mut command = Process::command("leak-late", &args);
        refusal.iter().for_each(|refusal| refusal.impose(&mut command));
        Process::from_command(command.stdin(Stdio::piped()).stdout(Stdio::piped()))
    });
    for (mut process, lock) in processes.into_iter().zip(&segment.locks) {
        let ((_stdin, stdout), mut said) = (process.pipes(), String::new());
        BufReader::new(stdout).read_line(&mut said).expect("read from a child");
        assert_eq!(said, "kept\n");
        assert!(lock.try_lock().is_none(), "the process lives");
        process.kill();
        let guard = lock.try_lock_for(HANG).expect("the process has ended");
        let dead = MutexGuard::inherited(&guard).expect("it died");
        assert_eq!((dead.pid(), *guard), (process.pid().as_raw() as u32, 7));
    }
}

fn leak_late(args: &[String]) {
    let segment: &'static Segment<crate::kit::Board> =
        Box::leak(Box::new(Segment::open(&args[0]).expect("the segment")));
    let way: usize = args[1].parse().expect("a number");
    let locks = [&STATICS[0], &segment.locks[way]];
    for lock in locks {
        let (tell, told) = channel();
        WAYS[way](lock, tell);
        let value = told.recv().expect("be told");
        assert!(lock.try_lock().is_none(), "it is leaked");
        // Its row is not used again, either.
        let others: Vec<_> = (0..8).map(|_| thread::spawn(|| joins(lock, segment))).collect();
        assert!(others.into_iter().all(|other| other.join().expect("join")), "somebody has it");
        // Nor does who waits, and looks for the dead each second, take it.
        let waits = thread::spawn(|| lock.try_lock_for(Duration::from_millis(2500)).is_none());
        assert!(waits.join().expect("join"), "somebody has it");
        *value = 7;
    }
    // In a child nobody has what is private.
    let child = fork(|| {
        let guard = locks[0].try_lock_for(HANG).expect("nobody has it here");
        assert!(MutexGuard::inherited(&guard).is_some(), "it was not told");
        assert_eq!(*guard, 7);
        assert!(locks[1].try_lock().is_none(), "the parent lives");
    });
    child.succeed();
    println!("kept");
    thread::sleep(4 * HANG);
}

/// Takes a row, and whether somebody else has the lock.
fn joins(lock: &Mutex<u64>, segment: &Segment<crate::kit::Board>) -> bool {
    drop((STATICS[2].lock(), segment.locks[7].try_lock()));
    lock.try_lock().is_none()
}

/// The child has neither what other threads held of private memory, nor the guard of the
/// one that forked it.
fn fork_late() {
    let held = STATICS[0].lock();
    let ending = thread_with_late(
        || {
            // Whatever the thread needs to fork goes before it forks the second time.
            fork(|| ()).succeed();
            STATICS[1].lock()
        },
        |guard| {
            let child = fork(|| {
                let message = panic_of(|| *guard);
                assert!(message.contains("copied by fork"), "{message}");
                for lock in &STATICS[..2] {
                    let inherits = lock.try_lock_for(HANG).expect("nobody has it here");
                    assert!(MutexGuard::inherited(&inherits).is_some(), "it was not told");
                }
            });
            child.succeed();
            assert_eq!(*guard, 0);
        },
    );
    ending.join().expect("join");
    assert!(STATICS[1].try_lock().is_some(), "the parent's guard was dropped");
    drop(held);
}

/// A lock of `lock_api`'s would be kept by the process if it were held to the end.
#[cfg(feature = "lock_api")]
fn lock_late() {
    use heirlock::RawMutex;
    use lock_api::RawMutex as _;
    const CAPACITY: u32 = 16;
    let segment: Segment<RawMutex> =
        Segment::options().capacity(CAPACITY).anonymous().expect("a segment");
    let segment: &'static _ = Box::leak(Box::new(segment));
    for _ in 0..3 * CAPACITY {
        let (tell, told) = channel();
        let last = move |()| {
            let guard = segment.lock();
            // SAFETY: it is this acquisition's.
            #[allow(unsafe_code)]
            unsafe {
                segment.unlock(guard);
            }
            tell.send(()).expect("tell");
        };
        thread_with_late(|| drop(STATICS[2].lock()), last).join().expect("join");
        told.recv().expect("it was locked");
    }
}

/// What is not left stays mapped for as long as the process lives.
#[cfg(feature = "io-uring")]
fn lease_late() {
    use heirlock::uring::Progress;
    let (path, segment) = board();
    let path = path.to_str().expect("a path").to_owned();
    let segment: &'static Segment<crate::kit::Board> = Box::leak(Box::new(segment));
    let lock = &segment.locks[0];
    let mapped = || {
        let maps = std::fs::read_to_string("/proc/self/maps").expect("the maps");
        maps.lines().filter(|line| line.contains(&path)).count()
    };
    let acquire = || match lock.start(1).expect("start") {
        (_, Progress::Acquired(guard)) => guard,
        (_, other) => panic!("{other:?}"),
    };
    let before = mapped();
    for _ in 0..20 {
        thread_with_late(acquire, drop).join().expect("join");
    }
    assert!(mapped() <= before + 2, "{} mappings, {before} before", mapped());
}
