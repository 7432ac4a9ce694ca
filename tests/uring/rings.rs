//! Rings of every kind, and the loop of a program that waits for locks in one.

use crate::kit::until;
use heirlock::uring::{self, AsyncAcquire, Entries, Progress};
use heirlock::{LockError, LockOptions, Mutex, MutexGuard};
use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{Builder, IoUring, cqueue, opcode, squeue};
use std::collections::{BTreeMap, VecDeque};
use std::io;

/// A kind of ring.
#[derive(Clone, Copy)]
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    set_up: fn(&mut Builder),
}

/// All kinds that differ in who submits, and who runs what completes a request.
pub(crate) const KINDS: [Kind; 5] = [
    Kind { name: "plain", set_up: |_| {} },
    Kind { name: "SQPOLL", set_up: |ring| _ = ring.setup_sqpoll(20) },
    Kind { name: "COOP_TASKRUN", set_up: |ring| _ = ring.setup_coop_taskrun() },
    Kind { name: "SINGLE_ISSUER", set_up: |ring| _ = ring.setup_single_issuer() },
    Kind {
        name: "SINGLE_ISSUER | DEFER_TASKRUN",
        set_up: |ring| _ = ring.setup_single_issuer().setup_defer_taskrun(),
    },
];

pub(crate) const PLAIN: Kind = KINDS[0];

impl Kind {
    /// A ring with room for that many submissions, and twice as many completions.
    pub(crate) fn ring(self, entries: u32) -> io::Result<IoUring> {
        let mut builder = IoUring::builder();
        (self.set_up)(&mut builder);
        builder.build(entries)
    }
}

/// Ends a test that needs a ring where there is none.
pub(crate) fn require() {
    if let Some(error) = uring::refused() {
        crate::kit::skip(format!("no io_uring with futexes: {error}"));
    }
}

/// Runs `test` with a loop in a ring of each kind that this machine has.
pub(crate) fn with_each(test: impl Fn(Kind)) {
    require();
    for kind in KINDS {
        match kind.ring(2) {
            Ok(_) => test(kind),
            Err(error) => eprintln!("no ring of the kind {}: {error}", kind.name),
        }
    }
}

/// Pushes all of `entries`, or none if there is no room.
#[allow(unsafe_code)]
pub(crate) fn push(ring: &mut IoUring, entries: &[squeue::Entry]) -> bool {
    // SAFETY: entries of acquisitions are good until they are submitted, and the tests push
    // each once; the others refer to nothing.
    unsafe { ring.submission().push_multiple(entries) }.is_ok()
}

/// Begins; once more if a slow machine had the time be over before it looked.
pub(crate) fn start_in_time<'m>(
    mutex: &'m Mutex<u64>,
    options: &LockOptions<'m>,
    name: u64,
) -> (AsyncAcquire<'m, u64>, Progress<'m, u64>) {
    loop {
        match mutex.start_with(options, name) {
            Err(LockError::TimedOut) => {}
            begun => return begun.expect("start"),
        }
    }
}

/// How an acquisition ended.
#[derive(Debug)]
pub(crate) enum Over<'m> {
    Acquired(MutexGuard<'m, u64>),
    TimedOut,
    Cancelled,
}

impl<'m> Over<'m> {
    #[track_caller]
    pub(crate) fn guard(self) -> MutexGuard<'m, u64> {
        match self {
            Self::Acquired(guard) => guard,
            other => panic!("expected the lock, got {other:?}"),
        }
    }
}

/// A ring, and the acquisitions that wait in it, by their `user_data`.
pub(crate) struct Loop<'m> {
    under_way: BTreeMap<u64, AsyncAcquire<'m, u64>>,
    over: VecDeque<(u64, Over<'m>)>,
    /// What completed that belongs to nobody (any more).
    pub(crate) strangers: Vec<cqueue::Entry>,
    /// How many requests were pushed that are not completed.
    pub(crate) in_flight: usize,
    /// How often an acquisition wanted to wait again.
    pub(crate) looks: usize,
    /// How many waits of acquisitions that are under way were woken.
    pub(crate) woken: usize,
    /// Of the waits that are pushed: `IOSQE_ASYNC`, if a thread of the kernel's is to
    /// execute them.
    pub(crate) flags: squeue::Flags,
    last: u64,
    pub(crate) ring: IoUring,
}

impl<'m> Loop<'m> {
    pub(crate) fn new(kind: Kind) -> Self {
        Self::of(kind.ring(64).expect("a ring"))
    }

    pub(crate) fn of(ring: IoUring) -> Self {
        Self {
            under_way: BTreeMap::new(),
            over: VecDeque::new(),
            strangers: Vec::new(),
            in_flight: 0,
            looks: 0,
            woken: 0,
            flags: squeue::Flags::empty(),
            last: 0,
            ring,
        }
    }

    pub(crate) fn start(&mut self, mutex: &'m Mutex<u64>) -> u64 {
        self.start_with(mutex, &LockOptions::new())
    }

    /// Begins, and submits what there is to be.
    pub(crate) fn start_with(&mut self, mutex: &'m Mutex<u64>, options: &LockOptions<'m>) -> u64 {
        self.last += 1;
        let begun = start_in_time(mutex, options, self.last);
        self.take_on(begun);
        self.submit();
        self.last
    }

    fn take_on(&mut self, (acquire, progress): (AsyncAcquire<'m, u64>, Progress<'m, u64>)) {
        self.under_way.insert(self.last, acquire);
        self.go_on(self.last, progress);
    }

    pub(crate) fn get(&mut self, id: u64) -> &mut AsyncAcquire<'m, u64> {
        self.under_way.get_mut(&id).expect("it is under way")
    }

    /// Takes an acquisition out, which somebody else goes on with, or drops.
    pub(crate) fn take(&mut self, id: u64) -> AsyncAcquire<'m, u64> {
        self.under_way.remove(&id).expect("it is under way")
    }

    pub(crate) fn push(&mut self, entries: &Entries) {
        let [wait, timeout] = &**entries else { panic!("a wait and its timeout") };
        self.push_all(&[wait.clone().flags(self.flags), timeout.clone()]);
    }

    /// Pushes all of `entries`, or waits for room.
    pub(crate) fn push_all(&mut self, entries: &[squeue::Entry]) {
        while !push(&mut self.ring, entries) {
            self.submit();
        }
        self.in_flight += entries.len();
    }

    /// Cancels the request of that `user_data`, by a request of its own.
    pub(crate) fn cancel_request(&mut self, user_data: u64, flags: squeue::Flags) {
        let cancel = opcode::AsyncCancel::new(user_data).build();
        self.push_all(&[cancel.flags(flags).user_data(CANCEL)]);
        self.submit();
    }

    pub(crate) fn submit(&self) {
        self.ring.submit().expect("submit");
    }

    /// Waits until the kernel has read what was submitted, which may be a thread of its own
    /// that does.
    pub(crate) fn until_taken(&mut self) {
        self.submit();
        until("all is submitted", || self.ring.submission().is_empty());
    }

    fn go_on(&mut self, id: u64, progress: Progress<'m, u64>) {
        let over = match progress {
            Progress::Again(entries) => {
                self.looks += 1;
                return self.push(&entries);
            }
            Progress::Pending => return,
            Progress::Acquired(guard) => Over::Acquired(guard),
            Progress::TimedOut => Over::TimedOut,
            Progress::Cancelled => Over::Cancelled,
        };
        self.under_way.remove(&id);
        self.over.push_back((id, over));
    }

    /// Submits, waits until something is completed, and goes on with all that is.
    pub(crate) fn turn(&mut self) {
        self.ring.submit_and_wait(1).expect("wait for a completion");
        self.look();
    }

    /// Takes out what is completed, as soon as it is so much, and does not go on with it.
    pub(crate) fn completed(&mut self, count: usize) -> Vec<cqueue::Entry> {
        self.until_completed(count);
        self.ring.completion().collect()
    }

    /// Waits until so much is completed, and does not look at it.
    pub(crate) fn until_completed(&mut self, count: usize) {
        while self.ring.completion().len() < count {
            self.ring.submit_and_wait(count).expect("wait for completions");
        }
    }

    /// Goes on with what is completed by now.
    pub(crate) fn look(&mut self) {
        // Some kinds complete only in a call that waits.
        let now = SubmitArgs::new();
        let none = Timespec::new();
        let _ = self.ring.submitter().submit_with_args(1, &now.timespec(&none));
        let done: Vec<_> = self.ring.completion().collect();
        for done in done {
            self.complete(&done);
        }
        self.submit();
    }

    pub(crate) fn complete(&mut self, done: &cqueue::Entry) {
        self.in_flight -= 1;
        let id = uring::user_data(done);
        match self.under_way.get_mut(&id) {
            Some(acquire) => {
                self.woken += usize::from(done.user_data() == id && done.result() >= 0);
                let progress = acquire.complete(done).expect("complete");
                self.go_on(id, progress);
            }
            None => self.strangers.push(done.clone()),
        }
    }

    /// The next acquisition that is over.
    pub(crate) fn next(&mut self) -> (u64, Over<'m>) {
        loop {
            match self.over.pop_front() {
                Some(over) => return over,
                None => self.turn(),
            }
        }
    }

    /// The end of one of them.
    pub(crate) fn end_of(&mut self, id: u64) -> Over<'m> {
        loop {
            if let Some(at) = self.over.iter().position(|(over, _)| *over == id) {
                return self.over.remove(at).expect("it is there").1;
            }
            self.turn();
        }
    }

    /// Goes on with what was begun elsewhere, with this `user_data`, to its end.
    pub(crate) fn run(
        &mut self,
        (mut acquire, mut progress): (AsyncAcquire<'m, u64>, Progress<'m, u64>),
    ) -> Over<'m> {
        loop {
            match progress {
                Progress::Again(entries) => self.push(&entries),
                Progress::Pending => {}
                Progress::Acquired(guard) => return Over::Acquired(guard),
                Progress::TimedOut => return Over::TimedOut,
                Progress::Cancelled => return Over::Cancelled,
            }
            progress = self.step(&mut acquire);
        }
    }

    /// Waits for one completion, and has `acquire`, whose it is the only one in the ring,
    /// go on with it.
    pub(crate) fn step(&mut self, acquire: &mut AsyncAcquire<'m, u64>) -> Progress<'m, u64> {
        self.ring.submit_and_wait(1).expect("wait for a completion");
        let done = self.ring.completion().next().expect("there is one");
        self.in_flight -= 1;
        acquire.complete(&done).expect("complete")
    }

    /// Drops the acquisitions of a copy that a forked child has. It has no part in the ring,
    /// whose memory the kernel has not given to it.
    pub(crate) fn abandon(self) {
        drop((self.under_way, self.over));
        std::mem::forget(self.ring);
    }

    /// Whether something is over that nobody has asked for yet.
    pub(crate) fn is_over(&self, id: u64) -> bool {
        self.over.iter().any(|(over, _)| *over == id)
    }

    pub(crate) fn count(&self) -> usize {
        self.under_way.len()
    }

    /// Goes on until everything that was pushed is completed.
    pub(crate) fn until_quiet(&mut self) {
        while self.in_flight > 0 {
            self.turn();
        }
    }

    /// What completes for nobody, and is not the end of a timeout, or a cancellation.
    pub(crate) fn stray_waits(&self) -> impl Iterator<Item = &cqueue::Entry> {
        let wait = |done: &&cqueue::Entry| {
            done.user_data() & uring::TIMEOUT == 0 && done.user_data() != CANCEL
        };
        self.strangers.iter().filter(wait)
    }
}

/// The `user_data` of cancellations.
pub(crate) const CANCEL: u64 = 1 << 50;
