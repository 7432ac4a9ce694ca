//! The condition variable in the places to which chance seldom leads: rows that are
//! used again, two guards at once.

use super::*;
use crate::lock::raw;
use crate::lock::word::Editor;
use crate::memory::layout::Wanted;
use crate::memory::map::{Mapping, Request};
use crate::participant::attach::attach;
use crate::sys::clock::Deadline;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

/// A condition variable, and then two mutexes.
fn ground() -> Arc<Mapping> {
    let wanted = Wanted { capacity: 8, schema: 0, value_size: 48, value_align: 8 };
    let request = Request { wanted, mode: 0o600, init: None };
    request.anonymous().expect("a segment")
}

fn words(mapping: &Mapping, at: usize) -> &LockWords {
    let offset = mapping.layout().value_offset + 16 * at;
    LockWords::named(mapping, offset as u64).expect("inside the value")
}

fn condvar(mapping: &Mapping) -> &RawCondvar {
    // SAFETY: the one is a transparent wrapper of the other.
    unsafe { &*core::ptr::from_ref(words(mapping, 0)).cast::<RawCondvar>() }
}

fn mutex(mapping: &Mapping, at: usize) -> &RawMutex {
    // SAFETY: the one is a transparent wrapper of the other.
    unsafe { &*core::ptr::from_ref(words(mapping, at)).cast::<RawMutex>() }
}

/// Somebody does that, and dies: its row.
fn dead(mapping: &Arc<Mapping>, part: impl FnOnce(&Attachment) + Send) -> u32 {
    let part = || {
        let me = Box::leak(attach(mapping, raw::reclaim, false).expect("a free row"));
        part(me);
        me.mark_dead();
        me.id().index()
    };
    thread::scope(|scope| scope.spawn(part).join().expect("no panic"))
}

/// Is in the queue of the condition variable, and will return to that mutex.
fn queue(me: &Attachment, at: usize) -> WaitState {
    let (row, index) = (me.row(), me.id().index());
    row.lock.store(words(me.mapping(), at).name_in(me.mapping()), SeqCst);
    row.condvar.store(words(me.mapping(), 0).name_in(me.mapping()), SeqCst);
    row.waiting_as.store(me.id().bits(), SeqCst);
    let waiting = WaitState::from_bits(row.state.load(SeqCst)).next_round();
    row.state.store(waiting.bits(), SeqCst);
    Stage::Queued.set(row);
    enter(words(me.mapping(), 0), row, index, |_| Ok(())).expect("not queued yet");
    waiting
}

/// Has that guard, for good.
fn keep_guard(me: &Attachment, at: usize) {
    core::mem::forget(QueueGuard::take(words(me.mapping(), at), me).expect("the guard"));
}

fn await_sleeper(guard: &LockWords, or: impl Fn() -> bool) {
    let start = Instant::now();
    while !Editor::from_bits(guard.guard.load(SeqCst)).is_awaited() && !or() {
        assert!(start.elapsed() < Duration::from_secs(30), "nobody waits for the guard");
        thread::yield_now();
    }
}

#[test]
fn who_uses_the_row_of_one_with_two_guards_gives_the_second_one_back_first() {
    let (done, is_done) = channel();
    let part = move || {
        let mapping = &ground();
        let me = attach(mapping, raw::reclaim, false).expect("a free row");
        dead(mapping, |other| {
            queue(other, 1);
            keep_guard(other, 0);
            keep_guard(other, 1);
        });
        let guard = QueueGuard::take(words(mapping, 0), &me).expect("over the dead");
        thread::scope(|scope| {
            scope.spawn(|| attach(mapping, raw::reclaim, false).expect("its row").detach());
            await_sleeper(words(mapping, 0), || false);
            // It waits for this thread, so this one must not wait for it.
            drop(QueueGuard::take(words(mapping, 1), &me));
            drop(guard);
        });
        assert_eq!(words(mapping, 0).tail.load(SeqCst), 0);
        me.detach();
        done.send(()).expect("somebody listens");
    };
    let thread = thread::spawn(part);
    assert!(is_done.recv_timeout(Duration::from_secs(30)).is_ok(), "each waits for the other");
    thread.join().expect("no panic");
}

#[test]
fn who_finishes_for_the_dead_is_found_in_its_own_queue_all_the_time() {
    let mapping = &ground();
    let me = attach(mapping, raw::reclaim, false).expect("a free row");
    let (moved, is_moved) = channel();
    let (end, ended) = channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            let waiter = attach(mapping, raw::reclaim, false).expect("a free row");
            queue(&waiter, 2);
            // Somebody was about to move it.
            Stage::One.set(waiter.row());
            moved.send(waiter.id().index()).expect("somebody listens");
            let _ = ended.recv();
            raw::reclaim(&waiter).expect("a place in the queue");
            waiter.detach();
        });
        let waiter = is_moved.recv().expect("a waiter");
        dead(mapping, |notifier| keep_guard(notifier, 0));
        let guard = QueueGuard::take(words(mapping, 2), &me).expect("the guard");
        let (name, told) = channel();
        let heir = scope.spawn(move || {
            let heir = attach(mapping, |_| Ok(()), false).expect("a free row");
            let lock = words(mapping, 1).name_in(mapping);
            heir.row().lock.store(lock, SeqCst);
            name.send(heir.id().index()).expect("somebody listens");
            drop(condvar(mapping).edit(&heir).expect("over the dead"));
            heir.row().lock.store(0, SeqCst);
            heir.detach();
        });
        let heir_row = me.table().row(told.recv().expect("an heir")).expect("its row");
        await_sleeper(words(mapping, 2), || false);
        assert_eq!(heir_row.lock.load(SeqCst), words(mapping, 1).name_in(mapping));
        assert_eq!(heir_row.edits.load(SeqCst), words(mapping, 2).name_in(mapping));
        drop(guard);
        heir.join().expect("no panic");
        assert_eq!(heir_row.edits.load(SeqCst), 0);
        assert_eq!(words(mapping, 0).tail.load(SeqCst), 0);
        assert_eq!(words(mapping, 2).tail.load(SeqCst), waiter);
        drop(end);
    });
    me.detach();
}

#[test]
fn a_dead_waiter_whose_row_has_a_new_user_is_neither_notified_nor_minded() {
    let mapping = &ground();
    let me = attach(mapping, raw::reclaim, false).expect("a free row");
    let row = dead(mapping, |other| _ = queue(other, 1));
    let (joined, has_joined) = channel();
    let (go_on, goes_on) = channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            // It has yet to clear up.
            let user = attach(mapping, |_| Ok(()), false).expect("the row");
            joined.send(user.id().index()).expect("somebody listens");
            let _ = goes_on.recv();
            raw::reclaim(&user).expect("what was left");
            user.detach();
        });
        assert_eq!(has_joined.recv(), Ok(row));
        let over = Limits { deadline: Some(Deadline::now()), ..Limits::default() };
        let hasty = mutex(mapping, 2).lock(&me, Limits::default()).expect("a free lock");
        let waited = condvar(mapping).wait(&me, mutex(mapping, 2), hasty, over);
        let (outcome, hasty) = waited.expect("nobody waits with another mutex");
        assert_eq!(outcome, Outcome::TimedOut);
        mutex(mapping, 2).unlock(&me, hasty).expect("it is held");
        assert_eq!(condvar(mapping).notify_one(&me), Ok(false));
        assert_eq!(words(mapping, 0).tail.load(SeqCst), 0);
        drop(go_on);
    });
    assert_eq!(Stage::of(me.table().row(row).expect("a row")), Stage::None);
    me.detach();
}

#[test]
fn what_is_left_to_be_passed_on_is_gone_with_the_guard() {
    let mapping = &ground();
    let row = dead(mapping, |other| {
        other.row().condvar.store(words(mapping, 0).name_in(mapping), SeqCst);
        other.row().waiting_as.store(other.id().bits(), SeqCst);
        Stage::One.set(other.row());
    });
    let look = |me: &Attachment| {
        reclaim(words(me.mapping(), 0), me)?;
        assert_eq!(Stage::of(me.row()), Stage::None);
        raw::reclaim(me)
    };
    let part = || {
        let me = attach(mapping, look, false).expect("the row");
        assert_eq!(me.id().index(), row);
        me.detach();
    };
    thread::scope(|scope| scope.spawn(part).join().expect("no panic"));
}

#[test]
fn who_comes_to_the_head_while_all_are_notified_does_not_sleep() {
    let mapping = &ground();
    let me = attach(mapping, raw::reclaim, false).expect("a free row");
    let guard = QueueGuard::take(words(mapping, 0), &me).expect("the guard");
    words(mapping, 0).owner.store(News::All.bits(), SeqCst);
    thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            let waiter = attach(mapping, raw::reclaim, false).expect("a free row");
            let waiting = queue(&waiter, 1);
            let look = condvar(mapping).look(&waiter, waiting).expect("nothing is wrong");
            let looks_again = matches!(look, Look::Again);
            raw::reclaim(&waiter).expect("a place in the queue");
            waiter.detach();
            looks_again
        });
        await_sleeper(words(mapping, 0), || waiter.is_finished());
        let queued = words(mapping, 0).tail.load(SeqCst);
        condvar(mapping).transfer_all(&me, &guard, queued).expect("a waiter");
        drop(guard);
        assert!(waiter.join().expect("no panic"), "it goes to sleep behind nobody");
    });
    me.detach();
}
