//! io_uring: the requests that wait for futex words (`IORING_OP_FUTEX_WAITV`, Linux 6.7,
//! with a linked timeout), and whether this process may make them.
#![allow(unsafe_code)]

use super::atomic::{AtomicI32, Ordering};
use super::clock::Deadline;
use super::process;
use io_uring::types::{FutexWaitV, Timespec};
use io_uring::{EnterFlags, IoUring, Probe, cqueue, opcode, squeue};
use rustix::io::Errno;
use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// A 32-bit word that processes share (`FUTEX2_SIZE_U32`, without `FUTEX2_PRIVATE`).
const SHARED_U32: u32 = 2;

/// The bit of a request's `user_data` that tells its timeout from its wait.
pub(crate) const TIMEOUT: u64 = 1 << 63;

/// More words than a wait in one queue is for: so its request never grows.
const FEW: usize = 4;

/// What the kernel reads of a wait, when it is submitted. It must stay where it is until
/// then.
#[derive(Debug)]
pub(crate) struct Request {
    words: Vec<FutexWaitV>,
    within: Timespec,
}

impl Request {
    fn new() -> Self {
        Self { words: Vec::new(), within: Timespec::new() }
    }

    /// Waits until one of the words, each with the value that it has as long as nothing
    /// happens, is woken.
    ///
    /// The kernel gets the time that is left, and not the deadline: that it would take for
    /// one of the machine's clock, also in a time namespace, whose clock is another.
    pub(crate) fn set(&mut self, words: &[(usize, u32)], until: Deadline) {
        if words.len() > self.words.capacity() {
            let larger = Vec::with_capacity(words.len().max(FEW));
            // A ring may still read the former ones.
            std::mem::forget(std::mem::replace(&mut self.words, larger));
        }
        self.words.clear();
        self.words.extend(words.iter().map(|(address, value)| {
            let word = FutexWaitV::new().uaddr(*address as u64).val(u64::from(*value));
            word.flags(SHARED_U32)
        }));
        self.within = until.left().into();
    }

    /// One of the thread's that no ring has to read any more, most probably; see
    /// [`Self::bury`].
    pub(crate) fn take() -> Box<Self> {
        GRAVES
            .try_with(|graves| graves.borrow_mut().take())
            .unwrap_or_else(|_| Box::new(Self::new()))
    }

    /// If it is submitted from now on it waits for nothing: the kernel refuses it. It is
    /// never freed, for that; after a while it is used again, and should a ring be so late
    /// to submit it, then it waits for words of somebody else's choice.
    pub(crate) fn bury(self: Box<Self>) {
        self.keep(Some(Instant::now()));
    }

    /// The same for one that was completed, as far as is known: it is used again at once.
    pub(crate) fn rest(self: Box<Self>) {
        self.keep(None);
    }

    fn keep(self: Box<Self>, since: Option<Instant>) {
        let mut this = Some(self);
        let _ = GRAVES.try_with(|graves| {
            this.take().into_iter().for_each(|this| graves.borrow_mut().keep(this, since));
        });
        std::mem::forget(this);
    }

    /// The wait, and its timeout, which has to be submitted right behind it.
    pub(crate) fn entries(&self, user_data: u64) -> [squeue::Entry; 2] {
        let wait = opcode::FutexWaitV::new(self.words.as_ptr(), self.words.len() as u32);
        let timeout = opcode::LinkTimeout::new(&raw const self.within);
        [
            wait.build().flags(squeue::Flags::IO_LINK).user_data(user_data),
            timeout.build().user_data(user_data | TIMEOUT),
        ]
    }
}

/// How long after a request was given up nobody will submit it any more.
const AT_REST: Duration = Duration::from_secs(5);

/// Requests that nobody uses; and when they were given up, of those that were not
/// completed. On drop the others get them: a ring may read them still.
struct Graves(VecDeque<(Option<Instant>, Box<Request>)>);

/// Those of threads that have ended, and of rings that were closed. A forked child may find
/// it locked for ever: so nobody waits for it.
static ORPHANS: Mutex<Graves> = Mutex::new(Graves::new());

thread_local! {
    static GRAVES: RefCell<Graves> = const { RefCell::new(Graves::new()) };
}

impl Graves {
    const fn new() -> Self {
        Self(VecDeque::new())
    }

    fn keep(&mut self, mut request: Box<Request>, since: Option<Instant>) {
        request.words.fill(FutexWaitV::new());
        match since {
            Some(_) => self.0.push_back((since, request)),
            None => self.0.push_front((since, request)),
        }
    }

    /// One that is at rest, or a new one.
    fn take(&mut self) -> Box<Request> {
        let orphan = || ORPHANS.try_lock().ok()?.take_at_rest();
        self.take_at_rest().or_else(orphan).unwrap_or_else(|| Box::new(Request::new()))
    }

    fn take_at_rest(&mut self) -> Option<Box<Request>> {
        let at_rest = |since: &Option<Instant>| since.is_none_or(|since| since.elapsed() > AT_REST);
        self.0.pop_front_if(|(since, _)| at_rest(since)).map(|(_, request)| request)
    }
}

impl Drop for Graves {
    fn drop(&mut self) {
        let mut left = std::mem::take(&mut self.0);
        if let Ok(mut orphans) = ORPHANS.try_lock() {
            orphans.0.append(&mut left);
        }
        std::mem::forget(left);
    }
}

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Woken, or one of the words had changed already, or the kernel had no memory.
    Look,
    /// By a cancellation: its timeout's, or somebody else's.
    Cancelled,
    /// The words are no memory (any more).
    Fault,
    /// The kernel does not know the request, or the ring does not take it.
    Unknown(i32),
}

impl Ended {
    /// What the result of the wait says.
    pub(crate) fn of(result: i32) -> Self {
        const CANCELED: i32 = -Errno::CANCELED.raw_os_error();
        const FAULT: i32 = -Errno::FAULT.raw_os_error();
        const INVAL: i32 = -Errno::INVAL.raw_os_error();
        const OPNOTSUPP: i32 = -Errno::OPNOTSUPP.raw_os_error();
        const ACCESS: i32 = -Errno::ACCESS.raw_os_error();
        match result {
            CANCELED => Self::Cancelled,
            FAULT => Self::Fault,
            INVAL | OPNOTSUPP | ACCESS => Self::Unknown(-result),
            _ => Self::Look,
        }
    }
}

/// How the timeout of a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Timer {
    /// The wait was over before.
    Idle,
    /// The time is over. (`ETIME` by the manual; but what it says when it has cancelled a
    /// wait for a futex is how many it has cancelled, so 1. See "io_uring" in
    /// `kernel-notes.md`.)
    Expired,
    /// It was refused, and the wait has none: the kernel took them apart.
    Refused,
}

impl Timer {
    /// What the result of the timeout says.
    pub(crate) fn of(result: i32) -> Self {
        const CANCELED: i32 = -Errno::CANCELED.raw_os_error();
        const INVAL: i32 = -Errno::INVAL.raw_os_error();
        match result {
            CANCELED => Self::Idle,
            INVAL => Self::Refused,
            _ => Self::Expired,
        }
    }
}

/// A ring whose submitter is one thread, for waits.
pub(crate) fn ring_of_one_thread(entries: u32) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder.setup_single_issuer().setup_defer_taskrun();
    builder.build(entries).or_else(|_| IoUring::new(entries))
}

/// Whether what the kernel says about a ring may be otherwise the next time.
pub(crate) fn is_passing(error: &io::Error) -> bool {
    let passing = [Errno::INTR, Errno::AGAIN, Errno::BUSY, Errno::NOMEM];
    passing.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// Whether a ring takes nothing from the calling thread.
pub(crate) fn is_foreign(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::EXIST.raw_os_error())
}

fn is_interrupted(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::INTR.raw_os_error())
}

/// The bit of `user_data` that tells the waits of [`Waits`] from what else is in the ring.
pub(crate) const OURS: u64 = 1 << 62;

/// Waits that are under way in a ring, each for somebody.
pub(crate) struct Waits<K> {
    ring: IoUring,
    under_way: HashMap<u64, (Box<Request>, K)>,
    /// What is not under way any more, and the ring may still read.
    graves: Graves,
    last: u64,
    /// Whether the kernel has refused a wait as none that this ring can have.
    unfit: bool,
    /// The only thread from which the ring takes anything, once it is known.
    issuer: Option<u32>,
}

impl<K> Waits<K> {
    pub(crate) fn new(ring: IoUring) -> Self {
        let (under_way, graves) = (HashMap::new(), Graves::new());
        Self { ring, under_way, graves, last: 0, unfit: false, issuer: None }
    }

    pub(crate) fn ring(&mut self) -> &mut IoUring {
        &mut self.ring
    }

    /// Whether the ring is known to be none for waits: older than Linux 6.7, restricted, or
    /// for polled I/O.
    pub(crate) fn is_unfit(&self) -> bool {
        self.unfit
    }

    /// For whom everything is that is under way; it is not waited for any more.
    pub(crate) fn give_up(&mut self) -> impl Iterator<Item = K> {
        let Self { under_way, graves, .. } = self;
        under_way.drain().map(|(_, (request, whom))| {
            graves.keep(request, Some(Instant::now()));
            whom
        })
    }

    /// Begins to wait, on behalf of `whom`. `Err` if the kernel does not take it.
    pub(crate) fn add(
        &mut self,
        whom: K,
        words: &[(usize, u32)],
        until: Deadline,
    ) -> io::Result<()> {
        if self.issuer.is_some_and(|issuer| issuer != process::tid()) {
            return Err(Errno::EXIST.into());
        }
        self.queue(whom, words, until)?;
        self.submit_all().inspect_err(|_| {
            // It may be taken later all the same: then it is refused.
            if let Some((request, _)) = self.under_way.remove(&(self.last | OURS)) {
                self.graves.keep(request, Some(Instant::now()));
            }
        })
    }

    fn submit_all(&mut self) -> io::Result<()> {
        loop {
            match self.ring.submit() {
                // There a thread of the kernel's takes what there is.
                Ok(_) if self.ring.params().is_setup_sqpoll() => return Ok(()),
                Ok(submitted) => {
                    self.note_issuer(submitted);
                    if self.ring.submission().is_empty() {
                        return Ok(());
                    }
                    if submitted == 0 {
                        return Err(Errno::BUSY.into());
                    }
                }
                Err(error) if is_interrupted(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The calling thread has submitted so much.
    fn note_issuer(&mut self, submitted: usize) {
        if submitted > 0 && self.ring.params().is_setup_single_issuer() {
            self.issuer = Some(process::tid());
        }
    }

    /// Begins to wait, on behalf of `whom`, with the next submission.
    pub(crate) fn queue(
        &mut self,
        whom: K,
        words: &[(usize, u32)],
        until: Deadline,
    ) -> io::Result<()> {
        let mut request = self.graves.take();
        request.set(words, until);
        self.last = self.last.wrapping_add(1) & !(OURS | TIMEOUT);
        let name = self.last | OURS;
        let entries = request.entries(name);
        // Before they are pushed: from then on the ring may read it.
        self.under_way.insert(name, (request, whom));
        // SAFETY: what the entries point to is kept until the wait is over.
        while unsafe { self.ring.submission().push_multiple(&entries) }.is_err() {
            // All of it is taken, unless the completions overflow: then it has to be
            // emptied first.
            let refused = match self.ring.submit() {
                Ok(submitted) if submitted > 0 => continue,
                Err(error) if is_interrupted(&error) => continue,
                Ok(_) => Errno::BUSY.into(),
                Err(error) => error,
            };
            if let Some((request, _)) = self.under_way.remove(&name) {
                // It was not pushed.
                self.graves.keep(request, None);
            }
            return Err(refused);
        }
        Ok(())
    }

    /// Has the kernel take what was added, and complete what it has put off until somebody
    /// comes by (`IORING_SETUP_DEFER_TASKRUN`).
    pub(crate) fn submit(&mut self) -> io::Result<()> {
        if self.ring.params().is_setup_sqpoll() {
            return self.ring.submit().map(drop);
        }
        let flags = EnterFlags::GETEVENTS.bits();
        loop {
            let waiting = self.ring.submission().len();
            // SAFETY: it waits for nothing, and the entries were pushed under the contract of
            // that.
            let enter =
                unsafe { self.ring.submitter().enter::<()>(waiting as u32, 0, flags, None) };
            let submitted = enter?;
            self.note_issuer(submitted);
            // It stops at an entry that is wrong, and completes nothing then.
            if submitted == 0 || submitted >= waiting {
                return Ok(());
            }
        }
    }

    /// The same, and sleeps until something is over.
    pub(crate) fn sleep(&self) -> io::Result<()> {
        self.ring.submit_and_wait(1).map(drop)
    }

    /// For whom something is over, each with whether the kernel has done with it; and what
    /// else is completed in the ring.
    pub(crate) fn over(&mut self) -> (Vec<(K, bool)>, Vec<cqueue::Entry>) {
        let (mut over, mut others) = (Vec::new(), Vec::new());
        for done in self.ring.completion() {
            let name = done.user_data();
            if name & OURS == 0 {
                others.push(done);
                continue;
            }
            let is_timeout = name & TIMEOUT != 0;
            if is_timeout && Timer::of(done.result()) != Timer::Refused {
                continue;
            }
            if let Some((request, whom)) = self.under_way.remove(&(name & !TIMEOUT)) {
                self.unfit |= !is_timeout && matches!(Ended::of(done.result()), Ended::Unknown(_));
                // If it has no timeout it still waits.
                self.graves.keep(request, is_timeout.then(Instant::now));
                over.push((whom, !is_timeout));
            }
        }
        (over, others)
    }
}

impl<K> Drop for Waits<K> {
    fn drop(&mut self) {
        // What was not submitted yet the kernel may be about to read.
        self.give_up().for_each(drop);
    }
}

/// Why this process cannot wait for futexes in a ring; `None` if it can.
/// `kernel.io_uring_disabled` (`EPERM`), a seccomp filter (mostly `EPERM`), and Linux
/// before 6.7 (`EOPNOTSUPP`) each refuse it.
pub(crate) fn refused() -> Option<io::Error> {
    /// 0 before anybody asked, then 1, or what the kernel says, negative. (A `Once` would
    /// have a forked child wait for a thread that does not exist in it.)
    static ANSWER: AtomicI32 = AtomicI32::new(0);
    let ask = || {
        let ring = IoUring::new(2)?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        let known = probe.is_supported(opcode::FutexWaitV::CODE);
        if known { Ok(()) } else { Err(io::Error::from(Errno::OPNOTSUPP)) }
    };
    // Relaxed: whoever does not see the answer asks again.
    let mut answer = ANSWER.load(Ordering::Relaxed);
    if answer == 0 {
        let refused = |error: io::Error| error.raw_os_error().map_or(-1, |code| -code);
        answer = ask().map_or_else(refused, |()| 1);
        // What there is too little of now there may be later.
        let scarce = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::AGAIN];
        if scarce.iter().all(|errno| answer != -errno.raw_os_error()) {
            ANSWER.store(answer, Ordering::Relaxed);
        }
    }
    (answer < 0).then(|| io::Error::from_raw_os_error(-answer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_used_again_but_where_they_may_be_read() {
        let at = |request: &Request| std::ptr::from_ref(request).addr();
        let left = std::thread::spawn(move || {
            let requests = [(); 8].map(|()| Request::take());
            let at = requests.each_ref().map(|request| at(request));
            requests.into_iter().for_each(Request::rest);
            at
        });
        // What a thread leaves another one uses.
        let mut left = left.join().expect("join");
        let mut found = [(); 8].map(|()| Request::take()).map(|request| at(&request));
        left.sort_unstable();
        found.sort_unstable();
        assert_eq!(left, found);
        // What was given up is not used at once.
        let mut request = Request::take();
        request.set(&[(8, 1)], Deadline::now());
        let (at, words) = (std::ptr::from_ref(&*request).addr(), request.words.as_ptr());
        // It moves elsewhere, and leaves what was there.
        request.set(&[(8, 1); 128], Deadline::now());
        assert_ne!(request.words.as_ptr(), words);
        request.bury();
        let others = [(); 8].map(|()| Request::take());
        assert!(others.iter().all(|other| std::ptr::from_ref(&**other).addr() != at));
    }
}
