//! What is said of the C library's robust mutexes where they are compared with this
//! crate's: each sentence seen, beside what the crate does in the same place.
#![allow(unsafe_code)]
#![allow(clippy::disallowed_types, reason = "a note of the test's own")]

use crate::identity::play;
use crate::kit::{
    Process, Role, TempPath, Test, fork, in_new_pid_namespace, until, until_in_syscall,
};
use heirlock::{Condvar, Mutex, MutexGuard, Segment};
use nix::sys::mman::{MapFlags, ProtFlags, mmap};
use std::fs::File;
use std::mem::MaybeUninit;
use std::num::NonZero;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

pub(crate) const TESTS: &[Test] = &[
    ("an_heir_that_says_nothing_breaks_a_robust_mutex_and_not_ours", || play("robust-heir")),
    ("a_robust_mutex_keeps_addresses_in_shared_memory_and_ours_does_not", || {
        play("robust-addresses")
    }),
    ("who_releases_a_robust_mutex_gets_it_again_past_a_waiter_and_not_ours", || {
        play("robust-barging")
    }),
    ("a_robust_mutex_takes_equal_tids_for_one_owner_and_ours_does_not", equal_tids),
    ("locks_are_as_large_as_they_are_said_to_be", sizes),
];

pub(crate) const ROLES: &[Role] = &[
    ("robust-heir", |_| silent_heir()),
    ("robust-addresses", |_| addresses()),
    ("robust-barging", |_| barging()),
    ("robust-owner", |args| own(Path::new(&args[0]), Path::new(&args[1]))),
    ("robust-namesake", |args| meet_the_owner(Path::new(&args[0]), Path::new(&args[1]))),
];

/// A robust, process-shared mutex that says so if the thread that locks it owns it.
struct Robust(NonNull<libc::pthread_mutex_t>);

impl Robust {
    fn mapped(file: &File) -> Self {
        let length = NonZero::new(size_of::<libc::pthread_mutex_t>()).expect("not empty");
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping, wherever there is room, that is never unmapped.
        let memory = unsafe { mmap(None, length, access, MapFlags::MAP_SHARED, file, 0) };
        Self(memory.expect("map").cast())
    }

    fn create(path: &Path) -> Self {
        let file = File::options().read(true).write(true).create_new(true).open(path);
        let file = file.expect("create");
        file.set_len(size_of::<libc::pthread_mutex_t>() as u64).expect("set the length");
        let this = Self::mapped(&file);
        let mut attributes = MaybeUninit::<libc::pthread_mutexattr_t>::uninit();
        let attributes = attributes.as_mut_ptr();
        // SAFETY: the attributes are initialized by the first call; the mutex is zeroed
        // memory of its size, aligned to a page, that nobody uses yet.
        let errors = unsafe {
            [
                libc::pthread_mutexattr_init(attributes),
                libc::pthread_mutexattr_setpshared(attributes, libc::PTHREAD_PROCESS_SHARED),
                libc::pthread_mutexattr_setrobust(attributes, libc::PTHREAD_MUTEX_ROBUST),
                libc::pthread_mutexattr_settype(attributes, libc::PTHREAD_MUTEX_ERRORCHECK),
                libc::pthread_mutex_init(this.0.as_ptr(), attributes),
            ]
        };
        assert_eq!(errors, [0; 5]);
        this
    }

    fn open(path: &Path) -> Self {
        Self::mapped(&File::options().read(true).write(true).open(path).expect("open"))
    }

    fn lock(&self) -> i32 {
        // SAFETY: it was initialized when it was created.
        unsafe { libc::pthread_mutex_lock(self.0.as_ptr()) }
    }

    fn unlock(&self) {
        // SAFETY: as in `lock`.
        assert_eq!(unsafe { libc::pthread_mutex_unlock(self.0.as_ptr()) }, 0);
    }
}

/// The words of a lock, as whoever maps them could read them.
fn words<const N: usize, T>(lock: &T) -> [u64; N] {
    assert_eq!(size_of::<T>(), 8 * N);
    // SAFETY: as many bytes, aligned (a lock has words), of a lock that no other thread
    // touches meanwhile, and any bytes are numbers.
    unsafe { core::ptr::from_ref(lock).cast::<[u64; N]>().read_volatile() }
}

fn sizes() {
    assert_eq!((size_of::<Mutex<()>>(), size_of::<Condvar>()), (16, 16));
    assert_eq!((size_of::<parking_lot::Mutex<()>>(), size_of::<parking_lot::Condvar>()), (1, 8));
    assert_eq!((size_of::<std::sync::Mutex<()>>(), size_of::<std::sync::Condvar>()), (8, 4));
    assert_eq!(size_of::<libc::pthread_mutex_t>(), 40);
    assert_eq!(size_of::<libc::pthread_cond_t>(), 48);
}

fn silent_heir() {
    let path = TempPath::new();
    let theirs = Robust::create(&path);
    fork(|| assert_eq!(theirs.lock(), 0)).succeed();
    assert_eq!(theirs.lock(), libc::EOWNERDEAD);
    theirs.unlock();
    assert_eq!(theirs.lock(), libc::ENOTRECOVERABLE, "for good");

    let ours: Segment<Mutex<u64>> = Segment::anonymous().expect("anonymous");
    fork(|| std::mem::forget(ours.lock())).succeed();
    let guard = ours.lock();
    assert!(MutexGuard::inherited(&guard).is_some());
    drop(guard);
    assert!(ours.try_lock().is_some());
}

fn addresses() {
    let path = TempPath::new();
    let theirs = Robust::create(&path);
    assert_eq!(theirs.lock(), 0);
    // SAFETY: the mutex is mapped, and has been initialized.
    let bytes = words::<5, _>(unsafe { theirs.0.as_ref() });
    let maps = std::fs::read_to_string("/proc/self/maps").expect("maps");
    let is_address = |word: &u64| {
        maps.lines().any(|line| {
            let range = line.split_once(' ').and_then(|(range, _)| range.split_once('-'));
            let number = |text| u64::from_str_radix(text, 16).expect("a number");
            // The lowest bit says what kind of entry it is.
            range.is_some_and(|(from, to)| (number(from)..number(to)).contains(&(word & !1)))
        })
    };
    assert!(bytes.iter().any(is_address), "no address of this process in {bytes:x?}");
    theirs.unlock();

    let ours: Segment<Mutex<()>> = Segment::anonymous().expect("anonymous");
    let guard = ours.lock();
    let bytes = words::<2, _>(&*ours);
    assert!(!bytes.iter().any(is_address), "{bytes:x?}");
    drop(guard);
}

fn barging() {
    let path = TempPath::new();
    let theirs = Robust::create(&path);
    let served: Segment<AtomicU32> = Segment::anonymous().expect("anonymous");
    let passed = (1..=100).find(|_| {
        assert_eq!(theirs.lock(), 0);
        served.store(0, SeqCst);
        let waiter = fork(|| {
            assert_eq!(theirs.lock(), 0);
            served.store(1, SeqCst);
            theirs.unlock();
        });
        until_in_syscall(waiter.pid, libc::SYS_futex);
        theirs.unlock();
        assert_eq!(theirs.lock(), 0);
        let passed = served.load(SeqCst) == 0;
        theirs.unlock();
        waiter.succeed();
        passed
    });
    println!("a robust mutex went past its waiter at try {passed:?}");
    assert!(passed.is_some(), "it never did");

    let ours: Segment<Mutex<u64>> = Segment::anonymous().expect("anonymous");
    let mut guard = ours.lock();
    let waiter = fork(|| *ours.lock() = 7);
    until("it waits", || heirlock::queue(&ours).is_some_and(|queue| queue.len() == 1));
    *guard = 1;
    drop(guard);
    assert_eq!(*ours.lock(), 7, "whoever came first was first");
    waiter.succeed();
}

/// Two processes that are both the first one of their PID namespace.
fn equal_tids() {
    let (path, told) = (TempPath::new(), TempPath::new());
    Robust::create(&path);
    let args = [path.to_str().expect("printable"), told.to_str().expect("printable")];
    let _owner = in_new_pid_namespace(|| Process::spawn("robust-owner", &args));
    until("the owner has the lock", || told.exists());
    let namesake = in_new_pid_namespace(|| Process::spawn("robust-namesake", &args));
    assert!(namesake.succeeds(), "see above");
}

fn own(path: &Path, told: &Path) {
    assert_eq!(Robust::open(path).lock(), 0);
    let ours: Segment<Mutex<u64>> = Segment::create(told).expect("create");
    let _guard = ours.lock();
    loop {
        std::thread::park();
    }
}

fn meet_the_owner(path: &Path, told: &Path) {
    assert_eq!(nix::unistd::gettid().as_raw(), 1);
    let error = Robust::open(path).lock();
    assert_eq!(error, libc::EDEADLK, "another one's lock is taken for this thread's own");
    let ours: Segment<Mutex<u64>> = Segment::open(told).expect("open");
    until("the owner has the lock", || ours.is_locked());
    let me = ours.attach().expect("attach");
    assert_ne!(heirlock::owner(&*ours), Some(me));
    assert!(ours.try_lock_for(std::time::Duration::from_millis(1)).is_none());
}
