//! io_uring: the requests that wait for futex words (`IORING_OP_FUTEX_WAITV`, Linux 6.7,
//! with a linked timeout), and whether this process may make them.
#![allow(unsafe_code)]

use super::atomic::{AtomicI32, Ordering};
use super::clock::Deadline;
use io_uring::types::{FutexWaitV, TimeoutFlags, Timespec};
use io_uring::{EnterFlags, IoUring, Probe, cqueue, opcode, squeue};
use rustix::io::Errno;
use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::mem::ManuallyDrop;
use std::time::{Duration, Instant};

/// A 32-bit word that processes share (`FUTEX2_SIZE_U32`, without `FUTEX2_PRIVATE`).
const SHARED_U32: u32 = 2;

/// The bit of a request's `user_data` that tells its timeout from its wait.
pub(crate) const TIMEOUT: u64 = 1 << 63;

/// What the kernel reads of a wait, when it is submitted. It must stay where it is until
/// then.
#[derive(Debug)]
pub(crate) struct Request {
    words: Vec<FutexWaitV>,
    until: Timespec,
}

impl Request {
    pub(crate) fn new() -> Self {
        Self { words: Vec::new(), until: Timespec::new() }
    }

    /// Waits until one of the words, each with the value that it has as long as nothing
    /// happens, is woken.
    pub(crate) fn set(&mut self, words: &[(usize, u32)], until: Deadline) {
        self.words.clear();
        self.words.extend(words.iter().map(|(address, value)| {
            let word = FutexWaitV::new().uaddr(*address as u64).val(u64::from(*value));
            word.flags(SHARED_U32)
        }));
        let until = until.timespec();
        self.until = Timespec::new().sec(until.tv_sec as u64).nsec(until.tv_nsec as u32);
    }

    /// One that no ring has to read any more, most probably; see [`Self::bury`].
    pub(crate) fn take() -> Box<Self> {
        let buried = GRAVES.try_with(|graves| {
            let mut graves = graves.borrow_mut();
            graves.pop_front_if(|(since, _)| since.is_none_or(|since| since.elapsed() > AT_REST))
        });
        buried.ok().flatten().map_or_else(|| Box::new(Self::new()), |(_, request)| request)
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

    fn keep(mut self: Box<Self>, since: Option<Instant>) {
        self.words.fill(FutexWaitV::new());
        let mut this = Some(self);
        let _ = GRAVES.try_with(|graves| {
            let mut graves = graves.borrow_mut();
            if let Some(request) = this.take() {
                match since {
                    Some(_) => graves.push_back((since, request)),
                    None => graves.push_front((since, request)),
                }
            }
        });
        std::mem::forget(this);
    }

    /// The wait, and its timeout, which has to be submitted right behind it.
    pub(crate) fn entries(&self, user_data: u64) -> [squeue::Entry; 2] {
        let wait = opcode::FutexWaitV::new(self.words.as_ptr(), self.words.len() as u32);
        let timeout = opcode::LinkTimeout::new(&raw const self.until).flags(TimeoutFlags::ABS);
        [
            wait.build().flags(squeue::Flags::IO_LINK).user_data(user_data),
            timeout.build().user_data(user_data | TIMEOUT),
        ]
    }
}

/// How long after a request was given up nobody will submit it any more.
const AT_REST: Duration = Duration::from_secs(5);

/// Requests that nobody uses; and when they were given up, of those that were not completed.
type Graves = VecDeque<(Option<Instant>, Box<Request>)>;

thread_local! {
    /// The calling thread's. Without a destructor.
    static GRAVES: ManuallyDrop<RefCell<Graves>> =
        const { ManuallyDrop::new(RefCell::new(VecDeque::new())) };
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
    /// The kernel does not know the request.
    Unknown(i32),
}

impl Ended {
    /// What the result of the wait says.
    pub(crate) fn of(result: i32) -> Self {
        const CANCELED: i32 = -Errno::CANCELED.raw_os_error();
        const FAULT: i32 = -Errno::FAULT.raw_os_error();
        const INVAL: i32 = -Errno::INVAL.raw_os_error();
        const OPNOTSUPP: i32 = -Errno::OPNOTSUPP.raw_os_error();
        match result {
            CANCELED => Self::Cancelled,
            FAULT => Self::Fault,
            INVAL | OPNOTSUPP => Self::Unknown(-result),
            _ => Self::Look,
        }
    }
}

/// Whether the result of a timeout says that the time was over: anything but that it was
/// cancelled, because the wait had ended. (`ETIME` by the manual; but what it says when it
/// has cancelled a wait for a futex is how many it has cancelled, so 1. See "io_uring" in
/// `kernel-notes.md`.)
pub(crate) fn timed_out(result: i32) -> bool {
    result != -Errno::CANCELED.raw_os_error()
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

/// The bit of `user_data` that tells the waits of [`Waits`] from what else is in the ring.
pub(crate) const OURS: u64 = 1 << 62;

/// Waits that are under way in a ring, each for somebody.
pub(crate) struct Waits<K> {
    ring: IoUring,
    under_way: HashMap<u64, (Box<Request>, K)>,
    last: u64,
}

impl<K> Waits<K> {
    pub(crate) fn new(ring: IoUring) -> Self {
        Self { ring, under_way: HashMap::new(), last: 0 }
    }

    pub(crate) fn ring(&mut self) -> &mut IoUring {
        &mut self.ring
    }

    /// For whom everything is that is under way; it is not waited for any more.
    pub(crate) fn give_up(&mut self) -> impl Iterator<Item = K> {
        self.under_way.drain().map(|(_, (request, whom))| {
            request.bury();
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
        self.queue(whom, words, until)?;
        self.submit_all().inspect_err(|_| {
            // It may be taken later all the same: then it is refused.
            if let Some((request, _)) = self.under_way.remove(&(self.last | OURS)) {
                request.bury();
            }
        })
    }

    fn submit_all(&mut self) -> io::Result<()> {
        loop {
            match self.ring.submit() {
                // There a thread of the kernel's takes what there is.
                Ok(_) if self.ring.params().is_setup_sqpoll() => return Ok(()),
                Ok(_) if self.ring.submission().is_empty() => return Ok(()),
                Ok(0) => return Err(Errno::BUSY.into()),
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(Errno::INTR.raw_os_error()) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Begins to wait, on behalf of `whom`, with the next submission.
    pub(crate) fn queue(
        &mut self,
        whom: K,
        words: &[(usize, u32)],
        until: Deadline,
    ) -> io::Result<()> {
        let mut request = Box::new(Request::new());
        request.set(words, until);
        self.last = self.last.wrapping_add(1) & !(OURS | TIMEOUT);
        let name = self.last | OURS;
        let entries = request.entries(name);
        // SAFETY: what the entries point to is kept until the wait is over.
        while unsafe { self.ring.submission().push_multiple(&entries) }.is_err() {
            // All of it is taken, unless the completions overflow: then it has to be
            // emptied first.
            match self.ring.submit() {
                Ok(submitted) if submitted > 0 => {}
                Err(error) if error.raw_os_error() == Some(Errno::INTR.raw_os_error()) => {}
                Ok(_) => return Err(Errno::BUSY.into()),
                Err(error) => return Err(error),
            }
        }
        self.under_way.insert(name, (request, whom));
        Ok(())
    }

    /// Has the kernel take what was added, and complete what it has put off until somebody
    /// comes by (`IORING_SETUP_DEFER_TASKRUN`).
    pub(crate) fn submit(&mut self) -> io::Result<()> {
        if self.ring.params().is_setup_sqpoll() {
            return self.ring.submit().map(drop);
        }
        let waiting = self.ring.submission().len() as u32;
        let flags = EnterFlags::GETEVENTS.bits();
        // SAFETY: it waits for nothing, and the entries were pushed under the contract of
        // that.
        unsafe { self.ring.submitter().enter::<()>(waiting, 0, flags, None) }.map(drop)
    }

    /// The same, and sleeps until something is over.
    pub(crate) fn sleep(&self) -> io::Result<()> {
        self.ring.submit_and_wait(1).map(drop)
    }

    /// For whom something is over, and what else is completed in the ring.
    pub(crate) fn over(&mut self) -> (Vec<K>, Vec<cqueue::Entry>) {
        let (mut over, mut others) = (Vec::new(), Vec::new());
        for done in self.ring.completion() {
            let name = done.user_data();
            if name & OURS == 0 {
                others.push(done);
            } else if name & TIMEOUT == 0
                && let Some((_, whom)) = self.under_way.remove(&name)
            {
                over.push(whom);
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
