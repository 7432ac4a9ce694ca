//! What befalls the C library's condition variable when a waiter is killed, and what
//! does not befall this crate's: the same scene with both.
#![allow(unsafe_code)]
#![allow(clippy::disallowed_types, reason = "counters of the tests' own")]

use crate::kit::{Forked, HANG, Process, Role, Test, fork, skip, until, until_in_syscall};
use heirlock::{Condvar, Mutex, Segment};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
use std::cell::UnsafeCell;
use std::ffi::CStr;
use std::io::{BufRead, BufReader};
use std::mem::MaybeUninit;
use std::num::NonZero;
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};
use zerocopy::FromBytes;

pub(crate) const TESTS: &[Test] = &[
    ("a_killed_waiter_breaks_pthread_cond_signal_and_not_notify_one", || compare("one")),
    ("a_killed_waiter_breaks_pthread_cond_broadcast_and_not_notify_all", || compare("all")),
];

pub(crate) const ROLES: &[Role] = &[
    ("waiter-killed-pthread", |args| scene(&Pthreads::new(), &args[0])),
    ("waiter-killed-heirlock", |args| {
        scene(&Segment::<Ours>::anonymous().expect("anonymous"), &args[0]);
    }),
];

/// How long the C library may take to do what it does in microseconds if it does it.
const PATIENCE: Duration = Duration::from_secs(4);

/// What the scene says if all goes well.
const WELL: [&str; 3] = ["the other one is woken", "a newcomer is woken", "notified once more"];

fn compare(how: &str) {
    assert_eq!(watch("waiter-killed-heirlock", how, HANG), WELL);
    let theirs = watch("waiter-killed-pthread", how, PATIENCE);
    let version = libc_version();
    let lacks: Vec<_> = WELL.iter().filter(|line| !theirs.contains(&line.to_string())).collect();
    if lacks.is_empty() {
        skip(format!("the C library, {version}, does not show it here"));
    }
    eprintln!("notify {how}: {version} did {theirs:?}, and in {PATIENCE:?} not {lacks:?}");
}

/// What the role says, until it has said nothing for so long.
fn watch(role: &str, how: &str, patience: Duration) -> Vec<String> {
    let mut process = Process::from_command(
        Process::command(role, &[how]).stdin(Stdio::piped()).stdout(Stdio::piped()),
    );
    let (_stdin, stdout) = process.pipes();
    let (tell, told) = mpsc::channel();
    let reader = thread::spawn(move || {
        BufReader::new(stdout).lines().map_while(Result::ok).for_each(|line| {
            let _ = tell.send(line);
        });
    });
    let mut said = Vec::new();
    // Longer than the scene itself waits for somebody to be woken.
    while let Ok(line) = told.recv_timeout(2 * patience) {
        said.push(line);
    }
    // With it those end who hold the pipe open.
    process.kill();
    reader.join().expect("join");
    said
}

fn libc_version() -> String {
    #[cfg(target_env = "gnu")]
    // SAFETY: it returns a string that lives for ever.
    let version = unsafe { CStr::from_ptr(libc::gnu_get_libc_version()) };
    #[cfg(not(target_env = "gnu"))]
    let version = c"of another kind";
    format!("glibc {}", version.to_str().unwrap_or("?"))
}

/// A condition variable and its mutex, in memory that forked children share.
trait Pair {
    /// Runs `before` with the lock held, and then waits once.
    fn wait(&self, before: impl FnOnce());
    fn locked(&self, f: impl FnOnce());
    fn notify_one(&self);
    fn notify_all(&self);
    /// How long something may take.
    fn patience(&self) -> Duration;
    /// The call in which a waiter sleeps.
    fn until_asleep(&self, waiters: &[&Forked]);
}

/// Two wait, one of them is killed. What becomes of the next notifications?
fn scene(pair: &impl Pair, how: &str) {
    let waiting: Segment<AtomicU32> = Segment::anonymous().expect("anonymous");
    let waiter = || {
        let before = waiting.load(SeqCst);
        let child = fork(|| {
            pair.wait(|| {
                waiting.fetch_add(1, SeqCst);
            });
        });
        until("it waits", || waiting.load(SeqCst) > before);
        // It has released the lock, so it is among those that can be notified.
        pair.locked(|| {});
        child
    };
    let notify = || match how {
        "one" => pair.notify_one(),
        _ => pair.notify_all(),
    };
    let (mut victim, other) = (waiter(), waiter());
    pair.until_asleep(&[&victim, &other]);
    victim.kill();
    notify();
    tell_if_woken(pair, other, "the other one is woken");
    let newcomer = waiter();
    pair.until_asleep(&[&newcomer]);
    notify();
    tell_if_woken(pair, newcomer, "a newcomer is woken");
    notify();
    println!("notified once more");
}

fn tell_if_woken(pair: &impl Pair, mut waiter: Forked, what: &str) {
    let start = Instant::now();
    while start.elapsed() < pair.patience() {
        if waiter.has_ended() {
            return println!("{what}");
        }
        thread::sleep(Duration::from_millis(1));
    }
    // It waits on, until this process ends.
    std::mem::forget(waiter);
}

#[derive(FromBytes)]
#[repr(C)]
struct Ours {
    lock: Mutex<u64>,
    condvar: Condvar,
}

impl Pair for Segment<Ours> {
    fn wait(&self, before: impl FnOnce()) {
        let mut guard = self.lock.lock();
        before();
        self.condvar.wait(&mut guard);
    }

    fn locked(&self, f: impl FnOnce()) {
        let _guard = self.lock.lock();
        f();
    }

    fn notify_one(&self) {
        self.condvar.notify_one();
    }

    fn notify_all(&self) {
        self.condvar.notify_all();
    }

    fn patience(&self) -> Duration {
        HANG
    }

    fn until_asleep(&self, waiters: &[&Forked]) {
        until("they wait", || {
            heirlock::waiters(&self.condvar).is_some_and(|queue| queue.len() == waiters.len())
        });
    }
}

/// Both made for sharing between processes; the mutex is robust, which a condition
/// variable cannot be.
struct Pthreads {
    mutex: UnsafeCell<libc::pthread_mutex_t>,
    condvar: UnsafeCell<libc::pthread_cond_t>,
}

impl Pthreads {
    fn new() -> &'static Self {
        let length = NonZero::new(size_of::<Self>()).expect("not empty");
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping, wherever there is room.
        let memory = unsafe { mmap_anonymous(None, length, access, MapFlags::MAP_SHARED) };
        // SAFETY: zeroed memory of its size, aligned to a page, that is never unmapped.
        let this: &'static Self = unsafe { memory.expect("map").cast().as_ref() };
        let mut of_mutex = MaybeUninit::<libc::pthread_mutexattr_t>::uninit();
        let mut of_condvar = MaybeUninit::<libc::pthread_condattr_t>::uninit();
        let (of_mutex, of_condvar) = (of_mutex.as_mut_ptr(), of_condvar.as_mut_ptr());
        let shared = libc::PTHREAD_PROCESS_SHARED;
        // SAFETY: the attributes are initialized before they are changed and used; what
        // is initialized with them is known to nobody else yet, and never moves.
        let errors = unsafe {
            [
                libc::pthread_mutexattr_init(of_mutex),
                libc::pthread_mutexattr_setpshared(of_mutex, shared),
                libc::pthread_mutexattr_setrobust(of_mutex, libc::PTHREAD_MUTEX_ROBUST),
                libc::pthread_mutex_init(this.mutex.get(), of_mutex),
                libc::pthread_condattr_init(of_condvar),
                libc::pthread_condattr_setpshared(of_condvar, shared),
                libc::pthread_cond_init(this.condvar.get(), of_condvar),
            ]
        };
        assert_eq!(errors, [0; 7]);
        this
    }

    fn lock(&self) {
        // SAFETY: `new` initialized it.
        let error = unsafe { libc::pthread_mutex_lock(self.mutex.get()) };
        // Nobody is killed who has it.
        assert_eq!(error, 0);
    }

    fn unlock(&self) {
        // SAFETY: as in `lock`; this thread holds it.
        assert_eq!(unsafe { libc::pthread_mutex_unlock(self.mutex.get()) }, 0);
    }
}

impl Pair for &'static Pthreads {
    fn wait(&self, before: impl FnOnce()) {
        self.lock();
        before();
        // SAFETY: `new` initialized both, and this thread holds the mutex.
        let error = unsafe { libc::pthread_cond_wait(self.condvar.get(), self.mutex.get()) };
        assert_eq!(error, 0);
        self.unlock();
    }

    fn locked(&self, f: impl FnOnce()) {
        self.lock();
        f();
        self.unlock();
    }

    fn notify_one(&self) {
        // SAFETY: `new` initialized it.
        assert_eq!(unsafe { libc::pthread_cond_signal(self.condvar.get()) }, 0);
    }

    fn notify_all(&self) {
        // SAFETY: `new` initialized it.
        assert_eq!(unsafe { libc::pthread_cond_broadcast(self.condvar.get()) }, 0);
    }

    fn patience(&self) -> Duration {
        PATIENCE
    }

    fn until_asleep(&self, waiters: &[&Forked]) {
        for waiter in waiters {
            until_in_syscall(waiter.pid, libc::SYS_futex);
        }
    }
}
