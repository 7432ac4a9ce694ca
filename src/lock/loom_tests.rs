//! The lock under loom: every schedule of a few threads, up to a bound of
//! preemptions, with weak memory, and with a death at each step.
//!
//! The code under test is the crate's own down to `sys`, which is simulated (see
//! `sys::simulated`). No heartbeat and no second witness help there: what they
//! would repair is a deadlock, and loom reports it.
//!
//! Run by `ci/loom`. Each test prints how many executions loom tried, and fails
//! if it had fewer to try than when it was written, by a margin: then it no
//! longer tests what it did.

use super::acquisition::Acquisition;
use super::cancel::CancelToken;
use super::condvar::{Outcome, RawCondvar};
use super::park::{park, unpark};
use super::raw::{Failed, RawMutex, reclaim};
use super::wait::Limits;
use super::word::{Editor, Stage as WaitStage};
use crate::memory::map::Mapping;
use crate::participant::attach::{Attachment, attach};
use crate::participant::id::Id;
use crate::participant::lease::Lease;
use crate::sys::atomic::{AtomicU32, Ordering};
use crate::sys::clock::Deadline;
use crate::sys::fault::{Fault, choose};
use crate::sys::simulated::{Killed, become_thread, is_killed, live_for, power_on};
use core::ptr::NonNull;
use loom::cell::UnsafeCell;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

static LOCK: RawMutex = RawMutex::new(super::word::Policy::Fifo);
static TOKEN: CancelToken = CancelToken::new();
static CONDVAR: RawCondvar = RawCondvar::new();

/// One mapping serves every execution: nothing writes to its memory.
static MAPPING: LazyLock<Arc<Mapping>> =
    LazyLock::new(|| Arc::new(Mapping::private().expect("address space")));

/// What one thread of a model does.
type Part = fn(&Stage, &Attachment);

/// A model: what its threads do.
#[derive(Clone, Copy)]
struct Play {
    /// The parts of threads 1 and up.
    parts: &'static [Part],
    /// Thread 1 owns the lock when the threads start.
    owned: bool,
    /// Whether everybody releases with a fence.
    fenced: bool,
    /// How many preemptions loom tries.
    bound: usize,
    /// Which threads are killed: none, one or two.
    victims: &'static [u32],
    fault: Option<Fault>,
}

/// How many steps each victim lives.
type Steps = [u32; 2];

/// What loom tried.
#[derive(Clone, Copy, Debug, Default)]
struct Tried {
    executions: u64,
    /// In how many of them each victim died. (In the others its part was over.)
    deaths: [u64; 2],
}

/// Where the threads of an execution meet, and who checks what they do.
struct Stage {
    /// What the lock protects. loom sees to it that no two accesses race.
    value: UnsafeCell<u32>,
    /// Who is inside: from after it acquired until before it releases.
    inside: Cell<Option<Id>>,
    /// Who was told of whose death.
    told: RefCell<Vec<(Id, Id)>>,
    /// How many threads have not finished.
    running: Cell<u32>,
    /// Which have, as bits.
    ended: Cell<u32>,
    /// What is waited for: read and written inside.
    ready: Cell<bool>,
}

impl Stage {
    /// What an owner does, and checks.
    fn inside(&self, me: &Attachment) {
        let before = self.inside.replace(Some(me.id()));
        let told = LOCK.inheritance(me).map(|inheritance| inheritance.dead);
        if let Some(before) = before {
            assert!(was_killed(before), "two threads are inside: {before:?}, {:?}", me.id());
            assert!(told.is_some(), "an heir was not told of {before:?}");
        }
        if let Some(told) = told {
            assert!(was_killed(told), "a living thread is said to have died: {told:?}");
            let mut all = self.told.borrow_mut();
            let twice = |&(heir, dead): &(Id, Id)| dead == told && !was_killed(heir);
            assert!(!all.iter().any(twice), "the death of {told:?} is told twice");
            all.push((me.id(), told));
        }
        self.value.with_mut(|_| ());
    }

    /// Unlocks, as the owner; `hasty` as `RawMutex::unlock` has it.
    fn unlock(&self, me: &Attachment, hasty: bool) {
        self.inside.set(None);
        LOCK.unlock(me, hasty).expect("the owner unlocks");
    }

    /// Is inside once, if `acquired`, and how.
    fn visit(&self, me: &Attachment, acquired: Result<bool, Failed>) {
        match acquired {
            Ok(hasty) => {
                self.inside(me);
                self.unlock(me, hasty);
            }
            Err(Failed::TimedOut | Failed::Cancelled) => {}
            Err(failed) => panic!("{failed:?}"),
        }
    }

    /// After the last thread: the lock still works, whatever became of the
    /// others, and is free afterwards.
    fn audit(&self, auditor: &Attachment) {
        self.visit(auditor, LOCK.lock(auditor, Limits::default()));
        assert_eq!(LOCK.words().owner.latest(), 0, "the lock is not free");
        assert_eq!(LOCK.words().tail.latest(), 0, "somebody is queued");
        // A dead thread may still have the guard, for the next one to take over.
        let editor = Editor::from_bits(LOCK.words().guard.latest()).row();
        assert!(editor == 0 || is_killed(editor), "{editor} edits the queue");
        assert_eq!(CONDVAR.notify_one(auditor), Ok(false), "somebody still waits");
        assert_eq!(CONDVAR.words().tail.latest(), 0, "somebody dead still waits");
    }

    fn has_ended(&self, tid: u32) -> bool {
        self.ended.get() & 1 << tid != 0
    }

    /// Waits inside, as the owner, for a notification, unless it is ready.
    fn wait(&self, me: &Attachment, hasty: &mut bool, limits: Limits) -> Outcome {
        if self.ready.get() {
            return Outcome::Notified;
        }
        self.inside.set(None);
        let waited = CONDVAR.wait(me, &LOCK, *hasty, limits);
        let (outcome, acquired) = waited.expect("a wait with the lock held");
        *hasty = acquired;
        self.inside(me);
        outcome
    }
}

/// Whether the participant was killed: threads join in the order of their
/// numbers, so that row and thread number are one.
fn was_killed(id: Id) -> bool {
    is_killed(id.index())
}

/// With a deadline.
fn until(deadline: Option<Deadline>) -> Limits<'static> {
    Limits { deadline, ..Limits::default() }
}

/// Locks and unlocks.
fn lock(stage: &Stage, me: &Attachment) {
    stage.visit(me, LOCK.lock(me, Limits::default()));
}

/// The same twice.
fn lock_twice(stage: &Stage, me: &Attachment) {
    lock(stage, me);
    lock(stage, me);
}

/// Unlocks what it owns from the start.
fn unlock(stage: &Stage, me: &Attachment) {
    stage.inside(me);
    stage.unlock(me, true);
}

/// The same where nobody may do so without a fence.
fn unlock_with_a_fence(stage: &Stage, me: &Attachment) {
    stage.inside(me);
    stage.unlock(me, false);
}

/// The same, and comes back.
fn unlock_and_lock(stage: &Stage, me: &Attachment) {
    unlock(stage, me);
    lock(stage, me);
}

/// Queues, and gives up at the first look.
fn give_up(stage: &Stage, me: &Attachment) {
    stage.visit(me, LOCK.lock(me, until(Some(Deadline::now()))));
}

/// Queues, and gives up when it has gone to sleep.
fn sleep_and_give_up(stage: &Stage, me: &Attachment) {
    stage.visit(me, LOCK.lock(me, until(Deadline::after(Duration::from_millis(1)))));
}

/// Locks and unlocks, unless cancelled.
fn cancellable(stage: &Stage, me: &Attachment) {
    let Some(ticket) = TOKEN.ticket() else { return };
    stage.visit(me, LOCK.lock(me, Limits { cancelled: Some(ticket), ..Limits::default() }));
}

fn cancel(_: &Stage, _: &Attachment) {
    TOKEN.canceller().cancel();
}

/// The owner unlocks when all others have come to an end: whoever waits for the
/// lock alone, and not for the token, never does.
fn unlock_last(stage: &Stage, me: &Attachment) {
    while stage.running.get() > 1 {
        loom::thread::yield_now();
    }
    unlock(stage, me);
}

loom::thread_local! {
    /// The row of the present thread, for [`begin`].
    static ROW: Cell<Option<NonNull<Attachment>>> = Cell::new(None);
}

/// Begins an acquisition that others sleep for: here nobody but the thread itself, but it
/// tells nobody whom it watches.
fn begin<'m>(me: &Attachment) -> (Acquisition<'m>, bool) {
    ROW.with(|row| row.set(Some(NonNull::from(me))));
    let lend = |_, _| Ok(ROW.with(|row| Lease::of_model(row.get())));
    let begun = Acquisition::begin([&LOCK], Limits::default(), lend, false);
    let (acquisition, acquired) = begun.expect("a beginning");
    (acquisition, acquired.is_some())
}

/// Locks and unlocks, as such an acquisition does.
fn acquire(stage: &Stage, me: &Attachment) {
    let (mut acquisition, mut acquired) = begin(me);
    while !acquired {
        acquisition.sleep().expect("a sleep");
        acquired = acquisition.look().expect("a look").is_some();
    }
    stage.visit(me, Ok(false));
}

/// The same, but drops the acquisition if it is not served at once.
fn begin_and_drop(stage: &Stage, me: &Attachment) {
    let (acquisition, acquired) = begin(me);
    if acquired {
        stage.visit(me, Ok(false));
    }
    drop(acquisition);
}

/// The same, and looks once more before it gives up: with the lock, if that comes in the
/// last moment.
fn begin_and_give_up(stage: &Stage, me: &Attachment) {
    let (mut acquisition, mut acquired) = begin(me);
    if !acquired {
        acquired = acquisition.look().expect("a look").is_some();
    }
    if !acquired {
        acquired = acquisition.give_up(Failed::Cancelled).is_ok();
    }
    if acquired {
        stage.visit(me, Ok(false));
    }
}

fn try_lock(stage: &Stage, me: &Attachment) {
    stage.visit(me, LOCK.try_lock(me));
}

/// Parks, and looks at what those have done who unparked it.
fn parked(stage: &Stage, me: &Attachment) {
    park(me, Limits::default()).expect("no limits");
    stage.value.with_mut(|_| ());
}

/// The same, and parks again for as long as it takes to find no token.
fn parked_and_late(stage: &Stage, me: &Attachment) {
    parked(stage, me);
    match park(me, until(Some(Deadline::now()))) {
        Ok(()) | Err(Failed::TimedOut) => {}
        Err(failed) => panic!("{failed:?}"),
    }
    stage.value.with_mut(|_| ());
}

/// Parks until it has gone to sleep: the token may be too late, and is not lost.
fn parked_for_a_while(stage: &Stage, me: &Attachment) {
    match park(me, until(Deadline::after(Duration::from_millis(1)))) {
        Ok(()) => stage.value.with_mut(|_| ()),
        Err(Failed::TimedOut) => parked(stage, me),
        Err(failed) => panic!("{failed:?}"),
    }
}

/// Parks, unless cancelled.
fn parked_or_cancelled(_: &Stage, me: &Attachment) {
    let Some(ticket) = TOKEN.ticket() else { return };
    match park(me, Limits { cancelled: Some(ticket), ..Limits::default() }) {
        Ok(()) | Err(Failed::Cancelled) => {}
        Err(failed) => panic!("{failed:?}"),
    }
}

/// Unparks thread 1, having done what that is to see.
fn unpark_it(stage: &Stage, me: &Attachment) {
    stage.value.with_mut(|_| ());
    unpark_only(stage, me);
}

/// Unparks thread 1.
fn unpark_only(_: &Stage, me: &Attachment) {
    let first = me.table().generation(1).expect("a row").load(Ordering::Relaxed);
    unpark(me.table(), Id::new(1, first));
}

/// Waits until it is ready. Nobody is woken for nothing.
fn await_ready(stage: &Stage, me: &Attachment) {
    let mut hasty = LOCK.lock(me, Limits::default()).expect("the lock");
    stage.inside(me);
    assert_eq!(stage.wait(me, &mut hasty, Limits::default()), Outcome::Notified);
    assert!(stage.ready.get() || anybody_died(stage), "a spurious wake-up");
    stage.unlock(me, hasty);
}

/// The same, as one that lives until it has returned.
fn await_ready_and_live(stage: &Stage, me: &Attachment) {
    let mut hasty = LOCK.lock(me, Limits::default()).expect("the lock");
    stage.inside(me);
    stage.wait(me, &mut hasty, Limits::default());
    live_for(None);
    stage.unlock(me, hasty);
}

/// Waits until it is ready, or gives up at the first look.
fn await_ready_or_give_up(stage: &Stage, me: &Attachment) {
    let mut hasty = LOCK.lock(me, Limits::default()).expect("the lock");
    stage.inside(me);
    stage.wait(me, &mut hasty, until(Some(Deadline::now())));
    stage.unlock(me, hasty);
}

/// The same, once it has gone to sleep.
fn await_ready_or_wake_up(stage: &Stage, me: &Attachment) {
    let mut hasty = LOCK.lock(me, Limits::default()).expect("the lock");
    stage.inside(me);
    stage.wait(me, &mut hasty, until(Deadline::after(Duration::from_millis(1))));
    stage.unlock(me, hasty);
}

fn anybody_died(stage: &Stage) -> bool {
    (1..=3).any(|tid| stage.has_ended(tid) && is_killed(tid)) || (1..=3).any(is_killed)
}

/// Makes it ready, and then calls `tell`, with the lock held or not.
fn make_ready(stage: &Stage, me: &Attachment, held: bool, tell: impl Fn()) {
    let hasty = LOCK.lock(me, Limits::default()).expect("the lock");
    stage.inside(me);
    stage.ready.set(true);
    if held {
        tell();
    }
    stage.unlock(me, hasty);
    if !held {
        tell();
    }
}

/// As `Condvar::notify_one` does.
fn tell_one(me: &Attachment) {
    if CONDVAR.has_queue() {
        CONDVAR.notify_one(me).expect("notify");
    }
}

/// As `Condvar::notify_all` does.
fn tell_all(me: &Attachment) {
    if CONDVAR.has_queue() {
        CONDVAR.notify_all(me).expect("notify");
    }
}

fn notify_one(stage: &Stage, me: &Attachment) {
    make_ready(stage, me, false, || tell_one(me));
}

fn notify_one_inside(stage: &Stage, me: &Attachment) {
    make_ready(stage, me, true, || tell_one(me));
}

fn notify_all(stage: &Stage, me: &Attachment) {
    make_ready(stage, me, true, || tell_all(me));
}

fn notify_one_twice(stage: &Stage, me: &Attachment) {
    make_ready(stage, me, true, || {
        tell_one(me);
        tell_one(me);
    });
}

/// Once thread 2 has ended, which was to notify: notifies all if it was killed
/// before it did, or if the lock is left to be inherited.
fn notify_in_its_stead(stage: &Stage, me: &Attachment) {
    while !stage.has_ended(2) {
        loom::thread::yield_now();
    }
    if !is_killed(2) {
        return;
    }
    let stage_of_1 = me.table().row(1).expect("a row").stage.latest();
    if stage_of_1 <= WaitStage::Queued as u32 {
        notify_all(stage, me);
    }
}

/// Notifies one of the threads 1 and 2. If one of them consumed that, notifies the
/// other; if thread 1 was killed, inherits from it what is to be inherited.
fn notify_one_and_inherit(stage: &Stage, me: &Attachment) {
    notify_one(stage, me);
    while !stage.has_ended(1) && !stage.has_ended(2) {
        loom::thread::yield_now();
    }
    if stage.has_ended(2) || !is_killed(1) {
        tell_all(me);
    } else {
        let hasty = LOCK.lock(me, Limits::default()).expect("the lock");
        stage.inside(me);
        if LOCK.inheritance(me).is_some() {
            tell_all(me);
        }
        stage.unlock(me, hasty);
    }
}

/// One execution: sets the scene, and starts the threads.
fn execute(play: Play, steps: Steps, tried: &Arc<Mutex<Tried>>) {
    let threads = play.parts.len() as u32;
    let auditor = threads + 1;
    power_on(auditor);
    choose(None);
    let mut attachments: Vec<_> = (1..=auditor)
        .map(|tid| {
            become_thread(tid);
            let attachment = attach(&MAPPING, reclaim, false).expect("a free row");
            assert_eq!(attachment.id().index(), tid);
            let row = attachment.row();
            row.waiting_as.touch();
            row.prev.touch();
            row.next.touch();
            row.state.touch();
            row.token.touch();
            row.stage.touch();
            row.condvar.touch();
            row.lock.touch();
            row.edits.touch();
            attachment
        })
        .collect();
    LOCK.words().owner.touch();
    LOCK.words().tail.touch();
    LOCK.words().head.touch();
    LOCK.words().guard.touch();
    CONDVAR.words().owner.touch();
    CONDVAR.words().tail.touch();
    CONDVAR.words().head.touch();
    CONDVAR.words().guard.touch();
    assert!(!TOKEN.is_cancelled());
    if play.fenced {
        attachments[0].demand_fences();
    }
    if play.owned {
        LOCK.lock(&attachments[0], Limits::default()).expect("nobody else is there");
    }
    choose(play.fault);
    let auditor = (auditor, Rc::new(attachments.pop().expect("the auditor")));
    let stage = Rc::new(Stage {
        value: UnsafeCell::new(0),
        inside: Cell::new(None),
        told: RefCell::default(),
        running: Cell::new(threads),
        ended: Cell::new(0),
        ready: Cell::new(false),
    });
    for (tid, (attachment, part)) in (1..).zip(attachments.into_iter().zip(play.parts)) {
        let (stage, auditor) = (Rc::clone(&stage), auditor.clone());
        let victim = play.victims.iter().position(|victim| *victim == tid);
        let tried = Arc::clone(tried);
        loom::thread::spawn(move || {
            become_thread(tid);
            live_for(victim.map(|victim| steps[victim]));
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| part(&stage, &attachment))) {
                match victim {
                    Some(victim) if panic.is::<Killed>() => {
                        tried.lock().expect("one thread").deaths[victim] += 1;
                    }
                    _ => resume_unwind(panic),
                }
            }
            live_for(None);
            // What is left of the threads' own views does not matter to the
            // audit: let it see everything.
            loom::sync::atomic::fence(Ordering::SeqCst);
            stage.running.set(stage.running.get() - 1);
            stage.ended.set(stage.ended.get() | 1 << tid);
            if stage.running.get() == 0 {
                become_thread(auditor.0);
                stage.audit(&auditor.1);
            }
        });
    }
}

/// Has loom try all executions of `play` whose victims live for `steps`. On an
/// OS thread of its own, so that a failure leaves nothing behind.
fn explore(play: Play, steps: Steps) -> std::thread::Result<Tried> {
    let model = move || {
        let tried: Arc<Mutex<Tried>> = Arc::default();
        let mut loom = loom::model::Builder::new();
        loom.preemption_bound = Some(play.bound + *EXTRA_BOUND);
        loom.max_branches = 20_000;
        loom.max_threads = play.parts.len() + 1;
        let counting = Arc::clone(&tried);
        loom.check(move || {
            counting.lock().expect("one thread").executions += 1;
            execute(play, steps, &counting);
        });
        let tried = tried.lock().expect("one thread");
        *tried
    };
    std::thread::spawn(model).join()
}

/// Preemptions on top of each model's bound, for a run by hand that takes its
/// time: `HEIRLOCK_LOOM_EXTRA_BOUND`.
static EXTRA_BOUND: LazyLock<usize> = LazyLock::new(|| {
    let extra = std::env::var("HEIRLOCK_LOOM_EXTRA_BOUND").unwrap_or_default();
    extra.parse().unwrap_or(0)
});

impl Play {
    const fn of(parts: &'static [Part]) -> Self {
        Self { parts, owned: false, fenced: false, bound: 3, victims: &[], fault: None }
    }

    /// Somebody has joined who is refused the fence for all.
    const fn fenced(self) -> Self {
        Self { fenced: true, ..self }
    }

    /// Thread 1 owns the lock already.
    const fn owned(self) -> Self {
        Self { owned: true, ..self }
    }

    const fn bound(self, bound: usize) -> Self {
        Self { bound, ..self }
    }

    /// These are killed, at every step of theirs.
    const fn kills(self, victims: &'static [u32]) -> Self {
        Self { victims, ..self }
    }

    const fn broken(self, fault: Fault) -> Self {
        Self { fault: Some(fault), ..self }
    }

    /// Tries everything, once for each step (and pair of steps) at which the
    /// victims may die. How many executions, and how many such deaths.
    fn all(self) -> std::thread::Result<(u64, u64)> {
        let (mut executions, mut deaths) = (0, 0);
        for first in 0.. {
            let mut died = false;
            for second in 0.. {
                let tried = explore(self, [first, second])?;
                executions += tried.executions;
                died |= tried.deaths[0] > 0;
                deaths += u64::from(tried.deaths != [0; 2]);
                if tried.deaths[1] == 0 {
                    break;
                }
            }
            if !died {
                break;
            }
        }
        Ok((executions, deaths))
    }

    /// Holds, in at least `floor` executions.
    #[track_caller]
    fn holds(self, name: &str, floor: u64) {
        let start = Instant::now();
        let (executions, deaths) = self.all().unwrap_or_else(|panic| resume_unwind(panic));
        let time = start.elapsed().as_secs_f64();
        println!(
            "loom: {name}: {executions} executions, {deaths} ways to die, \
             preemption bound {}, {time:.1} s",
            self.bound + *EXTRA_BOUND
        );
        assert!(executions >= floor, "{name}: {executions} executions, expected {floor}");
    }

    /// Fails, with a message that contains `message`.
    #[track_caller]
    fn fails(self, name: &str, message: &str) {
        let Err(panic) = self.all() else { panic!("{name}: loom did not see the fault") };
        let text = panic.downcast_ref::<String>().cloned().unwrap_or_else(|| {
            panic.downcast_ref::<&str>().map(ToString::to_string).unwrap_or_default()
        });
        assert!(text.contains(message), "{name}: another failure: {text}");
        println!("loom: {name}: seen ({message})");
    }
}

/// Runs `model` under loom, on an OS thread of its own.
fn check(model: impl Fn() + Send + Sync + 'static) -> std::thread::Result<()> {
    std::thread::spawn(move || loom::model(model)).join()
}

/// Whether loom finds an execution of "store mine, then look at yours" in which
/// neither of two threads sees the other, if the stores have that order.
fn both_miss(order: Ordering) -> bool {
    let found: Arc<Mutex<bool>> = Arc::default();
    let finding = Arc::clone(&found);
    let model = move || {
        power_on(2);
        let words = Rc::new([AtomicU32::new(0), AtomicU32::new(0)]);
        words.iter().for_each(AtomicU32::touch);
        let missed = Rc::new(Cell::new(0));
        for mine in 0..2 {
            let (words, missed, found) = (Rc::clone(&words), Rc::clone(&missed), finding.clone());
            loom::thread::spawn(move || {
                words[mine].store(1, order);
                if words[1 - mine].load(Ordering::SeqCst) == 0 {
                    missed.set(missed.get() + 1);
                    *found.lock().expect("one thread") |= missed.get() == 2;
                }
            });
        }
    };
    check(model).expect("nothing to fail");
    let found = found.lock().expect("one thread");
    *found
}

/// Whether loom finds a data race if one thread writes data and sets a flag with
/// that order, and the other one reads the data if it sees the flag.
fn races(order: Ordering) -> bool {
    let model = move || {
        power_on(2);
        let flag = Rc::new(AtomicU32::new(0));
        flag.touch();
        let data = Rc::new(UnsafeCell::new(0));
        let theirs = (Rc::clone(&flag), Rc::clone(&data));
        loom::thread::spawn(move || {
            data.with_mut(|_| ());
            flag.store(1, order);
        });
        loom::thread::spawn(move || {
            let (flag, data) = theirs;
            if flag.load(Ordering::SeqCst) == 1 {
                data.with(|_| ());
            }
        });
    };
    check(model).is_err()
}

#[test]
fn the_simulated_memory_is_as_strong_as_each_access_asks_for() {
    assert!(!both_miss(Ordering::SeqCst));
    assert!(both_miss(Ordering::Release));
    assert!(!races(Ordering::SeqCst));
    assert!(!races(Ordering::Release));
    assert!(races(Ordering::Relaxed));
}

#[test]
fn uncontended() {
    Play::of(&[lock_twice]).holds("uncontended", 1);
    Play::of(&[try_lock]).holds("uncontended try_lock", 1);
    Play::of(&[give_up]).holds("uncontended with a deadline", 1);
}

#[test]
fn two_contend() {
    Play::of(&[lock_twice, lock_twice]).holds("two contend, twice each", 7000);
}

#[test]
fn three_contend() {
    Play::of(&[lock, lock, lock]).holds("three contend", 50000);
    Play::of(&[unlock_and_lock, lock, lock]).owned().bound(2).holds("an owner comes back", 60000);
}

#[test]
fn unlock_and_park() {
    Play::of(&[unlock, lock]).owned().bound(9).holds("unlock and park", 4800);
    Play::of(&[unlock, lock, lock]).owned().bound(2).holds("unlock and two park", 9000);
    Play::of(&[unlock_with_a_fence, lock])
        .owned()
        .fenced()
        .bound(9)
        .holds("unlock with a fence and park", 4500);
}

#[test]
fn hand_over_and_giving_up() {
    Play::of(&[unlock, give_up]).owned().holds("hand-over and giving up", 160);
    Play::of(&[unlock, sleep_and_give_up]).owned().holds("hand-over and waking up late", 500);
    Play::of(&[unlock, give_up, lock]).owned().holds("hand-over, giving up, and another", 20000);
    Play::of(&[unlock, sleep_and_give_up, lock])
        .owned()
        .holds("hand-over, waking up late, and another", 40000);
}

#[test]
fn trying() {
    Play::of(&[lock, try_lock]).holds("lock and try_lock", 140);
    Play::of(&[try_lock, try_lock]).holds("two try_locks", 30);
    Play::of(&[unlock, lock, try_lock]).owned().holds("unlock, lock and try_lock", 5000);
}

#[test]
fn cancelling() {
    Play::of(&[unlock_last, cancellable, cancel]).owned().holds("cancelling a wait", 1000);
    Play::of(&[unlock, cancellable, cancel]).owned().holds("hand-over and cancelling", 5000);
    Play::of(&[unlock_last, cancellable, cancel])
        .owned()
        .kills(&[2])
        .bound(2)
        .holds("a waiter that is cancelled is killed", 10000);
}

#[test]
fn a_killed_owner() {
    Play::of(&[lock, lock]).kills(&[1]).holds("a locker is killed, one waits", 11000);
    Play::of(&[unlock, lock]).owned().kills(&[1]).holds("an owner is killed, one waits", 8000);
    Play::of(&[unlock, lock, lock])
        .owned()
        .kills(&[1])
        .bound(1)
        .holds("an owner is killed, two wait", 22000);
    Play::of(&[unlock, give_up, lock])
        .owned()
        .kills(&[1])
        .bound(1)
        .holds("an owner is killed, one waits and one gives up", 13000);
    Play::of(&[unlock, try_lock]).owned().kills(&[1]).holds("an owner is killed, one tries", 160);
}

#[test]
fn a_killed_waiter() {
    Play::of(&[unlock, lock]).owned().kills(&[2]).holds("a waiter is killed", 7500);
    Play::of(&[unlock, lock, lock])
        .owned()
        .kills(&[2])
        .bound(1)
        .holds("one of two waiters is killed", 33000);
    Play::of(&[unlock, give_up, lock])
        .owned()
        .kills(&[2])
        .bound(1)
        .holds("a waiter that gives up is killed", 22000);
}

/// The second one may be whom the kernel told of the first death.
#[test]
fn a_killed_owner_and_a_killed_waiter() {
    Play::of(&[unlock, lock])
        .owned()
        .kills(&[1, 2])
        .bound(2)
        .holds("an owner and the waiter are killed", 120000);
    Play::of(&[unlock, lock, lock])
        .owned()
        .kills(&[1, 2])
        .bound(0)
        .holds("an owner and one of two waiters are killed", 1300);
}

/// Both may be at the queue's guard, and the third one behind them.
#[test]
fn a_killed_owner_and_a_killed_editor() {
    Play::of(&[unlock, give_up, lock])
        .owned()
        .kills(&[1, 2])
        .bound(0)
        .holds("an owner and one who gives up are killed, one waits", 1400);
}

/// Who does not sleep for itself is served like any other.
#[test]
fn acquisitions() {
    Play::of(&[acquire, acquire]).holds("two acquire", 450);
    Play::of(&[unlock, acquire]).owned().bound(5).holds("unlock and acquire", 4000);
    Play::of(&[unlock, acquire, lock]).owned().bound(2).holds("unlock, acquire and lock", 11000);
    Play::of(&[unlock, begin_and_drop, lock]).owned().bound(2).holds("dropping, and another", 8000);
    Play::of(&[unlock, begin_and_give_up, acquire])
        .owned()
        .bound(1)
        .holds("giving up, and another", 600);
}

/// The same with deaths: nobody but those who come behind need notice.
#[test]
fn acquisitions_and_deaths() {
    Play::of(&[unlock, acquire])
        .owned()
        .kills(&[1])
        .bound(2)
        .holds("an owner is killed, one acquires", 3700);
    Play::of(&[unlock, acquire, lock])
        .owned()
        .kills(&[2])
        .bound(1)
        .holds("one who acquires is killed, one waits", 40000);
    Play::of(&[unlock, acquire, acquire])
        .owned()
        .kills(&[1, 2])
        .bound(0)
        .holds("an owner and one of two who acquire are killed", 700);
}

/// A token is never lost, and what was done before the unpark is seen.
#[test]
fn parking() {
    Play::of(&[parked, unpark_it]).holds("one parks, one unparks", 15);
    Play::of(&[parked_for_a_while, unpark_it]).holds("one parks for a while, one unparks", 36);
    Play::of(&[parked_and_late, unpark_only, unpark_only]).holds("two unpark one", 700);
    Play::of(&[parked_or_cancelled, cancel]).holds("a park is cancelled", 45);
}

/// Whoever is killed: the one who is parked, or one of two who unpark it, also
/// between the token and the wake.
#[test]
fn parking_and_deaths() {
    Play::of(&[parked, unpark_only]).kills(&[1]).holds("one parks and is killed, one unparks", 90);
    Play::of(&[parked, unpark_only, unpark_only])
        .kills(&[2])
        .bound(2)
        .holds("one of two who unpark is killed", 600);
}

#[test]
fn waiting_for_a_condition() {
    Play::of(&[await_ready, notify_one]).bound(2).holds("wait and notify", 300);
    Play::of(&[await_ready, notify_one_inside]).bound(2).holds("wait and notify inside", 1000);
    Play::of(&[await_ready, await_ready, notify_all])
        .bound(1)
        .holds("two wait, all are notified", 7000);
    Play::of(&[await_ready, await_ready, notify_one_twice])
        .bound(1)
        .holds("two wait, each is notified", 20000);
    Play::of(&[await_ready_or_give_up, notify_one]).bound(2).holds("notify and giving up", 280);
    Play::of(&[await_ready_or_wake_up, notify_one])
        .bound(2)
        .holds("notify and waking up late", 400);
    Play::of(&[await_ready_or_wake_up, await_ready, notify_one_twice])
        .bound(1)
        .holds("notify, waking up late, and another", 3600);
}

#[test]
fn a_killed_notifier() {
    Play::of(&[await_ready, notify_one, notify_in_its_stead])
        .kills(&[2])
        .bound(0)
        .holds("a notifier is killed", 600);
    Play::of(&[await_ready, notify_all, notify_in_its_stead])
        .kills(&[2])
        .bound(0)
        .holds("a notifier of all is killed", 850);
    Play::of(&[await_ready_and_live, notify_one, notify_in_its_stead])
        .kills(&[1, 2])
        .bound(0)
        .holds("a notifier and the waiter are killed", 50000);
}

#[test]
fn a_killed_waiter_for_a_condition() {
    Play::of(&[await_ready_and_live, await_ready, notify_one_and_inherit])
        .kills(&[1])
        .bound(0)
        .holds("one of two waiters for a condition is killed", 900);
}

/// The tests can see: each of these breaks the lock on purpose.
#[test]
fn loom_sees() {
    let lost = "deadlock";
    let parks = Play::of(&[unlock, lock]).owned();
    Play::of(&[unlock_with_a_fence, lock])
        .owned()
        .fenced()
        .broken(Fault::WeakUnlock)
        .fails("unlock's store is not SeqCst", lost);
    parks.broken(Fault::NoNudge).fails("a waiter found late is not nudged", lost);
    parks.broken(Fault::NoWake).fails("a hand-over does not wake", lost);
    parks.kills(&[1]).broken(Fault::NoDeathCheck).fails("a dead owner counts as alive", lost);
    let queue = Play::of(&[unlock, lock, give_up]).owned().bound(2);
    Play::of(&[unlock_last, cancellable, cancel])
        .owned()
        .broken(Fault::NoCancelWake)
        .fails("cancelling does not wake", "maximum number of branches");
    Play::of(&[parked, unpark_it])
        .broken(Fault::NoUnparkWake)
        .fails("an unpark does not wake", lost);
    queue.kills(&[1]).broken(Fault::NoRelay).fails("a death is told to one watcher only", lost);
    let acquires = Play::of(&[unlock, acquire]).owned();
    acquires.broken(Fault::NoNudge).fails("an acquisition found late is not nudged", lost);
    acquires.broken(Fault::NoWake).fails("a hand-over does not wake an acquisition", lost);
    let waits = Play::of(&[await_ready, notify_one]).bound(2);
    waits.broken(Fault::LateToQueue).fails("a wait queues after it released", lost);
    waits.broken(Fault::NoNudgeOnNotify).fails("who is moved is not told to look", lost);
    let killed = Play::of(&[await_ready, notify_one, notify_in_its_stead]).kills(&[2]).bound(1);
    killed
        .broken(Fault::NoRepair)
        .fails("what a dead notifier began stays so", "return to no mutex");
    killed.broken(Fault::NoLookAtGuard).fails("a waiter sleeps under a notifier's eyes", lost);
    Play::of(&[await_ready_and_live, await_ready, notify_one_and_inherit])
        .kills(&[1])
        .bound(0)
        .broken(Fault::NoPassingOn)
        .fails("a dead waiter keeps its notification", lost);
}
