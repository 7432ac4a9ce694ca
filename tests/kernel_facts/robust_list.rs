//! The robust list: the kernel's instant notice of a thread's death.

use std::ffi::c_int;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::thread;

use libtest_mimic::Completion::Completed;
use libtest_mimic::Failed;
use nix::errno::Errno as NixErrno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::fs::ftruncate;
use rustix::mm::MapFlags;
use rustix::thread::futex::{OWNER_DIED, WAITERS};

use crate::support::*;

/// Every thread has a robust list head that the kernel can name, and the C library's offset from a
/// node to its futex word is the one that the memory layout of a row is made for.
pub(crate) fn head_is_registered() -> Verdict {
    let lazily = registered_head().is_null();
    let offset = futex_offset();
    if lazily {
        eprintln!("note: this C library registers the list with a thread's first robust mutex");
    }
    if cfg!(all(target_arch = "x86_64", target_env = "gnu")) {
        ensure!(offset == -32, "futex_offset is {offset}, not -32");
    } else {
        eprintln!("note: futex_offset is {offset}");
    }
    let own = registered_head().addr();
    let other = thread::spawn(|| robust_head().addr()).join().expect("no panic");
    ensure!(own != other, "two threads share one list head");
    Ok(Completed)
}

/// Our nodes and those of `pthread` robust mutexes can be put in front of each other and taken out
/// in any order, and the kernel finds all that are left.
pub(crate) fn foreign_node_coexists_with_robust_mutexes() -> Verdict {
    let mutexes = [(); 3].map(|()| RobustMutex::new());
    let [before, after, released] = mutexes;
    let (life, gone) = (Life::new(), Life::new());
    let mut child = Child::parked(|| {
        before.lock();
        gone.link();
        released.lock();
        life.link();
        after.lock();
        // From the middle, each between two neighbours of the other kind.
        gone.unlink();
        released.unlock();
    })?;
    child.kill()?;
    ensure!(before.owner_died(), "the mutex locked before us was lost");
    ensure!(after.owner_died(), "the mutex locked after us was lost");
    ensure!(!released.owner_died(), "the released mutex was marked");
    life.ensure_dead("our node between two mutexes")?;
    gone.ensure_unmarked("our unlinked node")?;

    // With our node first, last and alone.
    for (position, held) in [("first", true), ("last", true), ("alone", false)] {
        let (life, gone, mutex) = (Life::new(), Life::new(), RobustMutex::new());
        let mut child = Child::parked(|| match position {
            "first" => {
                mutex.lock();
                life.link();
            }
            "last" => {
                gone.link();
                life.link();
                mutex.lock();
                gone.unlink();
            }
            _ => {
                life.link();
                mutex.lock();
                mutex.unlock();
            }
        })?;
        child.kill()?;
        life.ensure_dead(position)?;
        ensure!(mutex.owner_died() == held, "the mutex, our node {position}");
    }
    Ok(Completed)
}

/// Locking or unlocking a robust mutex leaves `list_op_pending` at zero, whatever it was.
pub(crate) fn robust_mutex_clears_pending() -> Verdict {
    let word = shared_words()(0);
    let mutex = RobustMutex::new();
    set_pending(Some(word));
    mutex.lock();
    let locked = pending();
    set_pending(Some(word));
    mutex.unlock();
    let unlocked = pending();
    set_pending(None);
    ensure!(locked == 0 && unlocked == 0, "{locked:#x}, {unlocked:#x}");
    Ok(Completed)
}

/// The next robust mutex writes to the node in front, so a linked node must stay mapped.
pub(crate) fn unmapping_a_linked_node_is_fatal() -> Verdict {
    let (life, mutex) = (Life::new(), RobustMutex::new());
    let mut child = Child::spawn(|| {
        without_core_dump();
        life.link();
        unmap(life.node, page_size());
        mutex.lock();
    })?;
    let outcome = child.outcome()?;
    let expected = WaitStatus::Signaled(child.pid, Signal::SIGSEGV, false);
    ensure!(outcome == expected, "{outcome:?}");
    Ok(Completed)
}

/// A thread that ends has its word marked by the time it can be joined.
pub(crate) fn dying_thread_marks_its_word() -> Verdict {
    let life = Life::new();
    let alive = thread::spawn(|| {
        life.link();
        life.ensure_unmarked("a living thread").is_ok()
    });
    ensure!(alive.join().expect("no panic"), "the thread was not alive");
    life.ensure_dead("a thread that ended")?;
    Ok(Completed)
}

/// A process that is killed has the words of all its threads marked.
pub(crate) fn killed_process_marks_its_word() -> Verdict {
    let (leader, other) = (Life::new(), Life::new());
    let mut child = Child::parked(|| {
        leader.link();
        thread::spawn(|| {
            other.link();
            park_forever();
        });
        wait_until("the other thread", || other.word.load(SeqCst) != 0).expect("it runs");
    })?;
    leader.ensure_unmarked("the living leader")?;
    other.ensure_unmarked("the living second thread")?;
    child.kill()?;
    leader.ensure_dead("the leader of a killed process")?;
    other.ensure_dead("the second thread of a killed process")?;
    Ok(Completed)
}

/// The kernel compares a word with the dying thread's ID in that thread's own PID namespace.
pub(crate) fn own_tid_is_that_of_its_own_pid_namespace() -> Verdict {
    let (inside, outside) = (Life::new(), Life::new());
    let (denied, number) = (shared_words()(0), shared_words()(0));
    let child = Child::spawn(|| {
        if let Err(error) = unshare(CloneFlags::CLONE_NEWPID) {
            denied.store(error as u32, SeqCst);
            return;
        }
        let mut init = Child::spawn(|| {
            assert_eq!(inside.link(), 1 | WAITERS, "the first thread of a namespace");
            wait_until("the outer number", || number.load(SeqCst) != 0).expect("it comes");
            outside.link_as(number.load(SeqCst) | WAITERS);
            number.store(0, SeqCst);
            park_forever();
        })
        .expect("fork into the namespace");
        number.store(init.pid.as_raw() as u32, SeqCst);
        wait_until("both links", || number.load(SeqCst) == 0).expect("they come");
        init.kill().expect("the first process of the namespace is killed");
    })?;
    child.succeed()?;
    if denied.load(SeqCst) != 0 {
        let error = NixErrno::from_raw(denied.load(SeqCst) as c_int);
        return skip(format!("no PID namespace can be made here: {error}"));
    }
    inside.ensure_dead("the number inside")?;
    outside.ensure_unmarked("the number outside")?;
    Ok(Completed)
}

/// Of several waiters, the kernel wakes one, and leaves the others queued.
pub(crate) fn death_wakes_exactly_one_waiter() -> Verdict {
    let life = Life::new();
    let mut child = Child::parked(|| {
        life.link();
    })?;
    let mut sleepers = Vec::new();
    for _ in 0..4 {
        sleepers.push(Sleeper::on(life.view, SHARED)?);
    }
    child.kill()?;
    life.ensure_dead("the watched process")?;
    let left = queued(life.view, SHARED);
    ensure!(left == 3, "{left} of 4 waiters are still queued, not 3");
    let returned = || sleepers.iter().filter(|sleeper| sleeper.returned()).count();
    wait_until("the woken waiter", || returned() == 1)?;
    ensure!(wake(life.view, SHARED) == 3, "the others were not there to be woken");
    for sleeper in &mut sleepers {
        ensure!(sleeper.result()? == Ok(0), "a waiter was not woken but failed");
    }
    Ok(Completed)
}

/// Without `FUTEX_WAITERS` in the word, the kernel marks it and wakes nobody.
pub(crate) fn death_wakes_nobody_without_the_waiters_bit() -> Verdict {
    let life = Life::new();
    let mut child = Child::parked(|| life.link_as(own_tid()))?;
    let _sleeper = Sleeper::on(life.view, SHARED)?;
    child.kill()?;
    let value = life.view.load(SeqCst);
    ensure!(value == OWNER_DIED, "the word is {value:#x}");
    ensure!(queued(life.view, SHARED) == 1, "the waiter was woken");
    Ok(Completed)
}

/// A thread that dies with `list_op_pending` at a word without an owner wakes one waiter of it: so
/// a watcher that has consumed a death notice passes it on when it is killed itself.
pub(crate) fn pending_relays_a_wake() -> Verdict {
    let word = || {
        let word = shared_words()(0);
        word.store(OWNER_DIED | WAITERS, SeqCst);
        word
    };
    let woken_by_a_death = |word: &'static AtomicU32, published: bool| -> Result<usize, Failed> {
        let _sleepers = [Sleeper::on(word, SHARED)?, Sleeper::on(word, SHARED)?];
        let mut child = Child::parked(|| set_pending(published.then_some(word)))?;
        child.kill()?;
        Ok(2 - queued(word, SHARED))
    };
    // By trial, as it was brought to the stable series of older kernels as well.
    if woken_by_a_death(word(), true)? == 0 && !kernel_at_least(6, 2)? {
        return skip(
            "this kernel relays only a word that is 0 altogether; 6.2 or 5.10.163 does more",
        );
    }
    for published in [true, false] {
        for round in 0..20 {
            let word = word();
            let woken = woken_by_a_death(word, published)?;
            ensure!(
                woken == usize::from(published),
                "round {round}: {woken} woken, pending published: {published}"
            );
            ensure!(word.load(SeqCst) == OWNER_DIED | WAITERS, "the word has changed");
        }
    }

    // The whole story: an owner, its watcher, which is first in the queue, and a second watcher.
    let life = Life::new();
    let mut owner = Child::parked(|| {
        life.link();
    })?;
    let woken = shared_words()(0);
    let mut watcher = Child::spawn(|| {
        set_pending(Some(life.word));
        let value = life.word.load(SeqCst);
        let result = wait_for(Call::WaitBitset, life.word, value, SHARED, None);
        assert_eq!(result, Ok(0));
        woken.store(1, SeqCst);
        park_forever();
    })?;
    wait_until("the first watcher", || queued(life.view, SHARED) == 1)?;
    let mut second = Sleeper::on(life.view, SHARED)?;
    owner.kill()?;
    wait_until("the death notice", || woken.load(SeqCst) == 1)?;
    ensure!(queued(life.view, SHARED) == 1, "the second watcher was woken as well");
    watcher.kill()?;
    ensure!(queued(life.view, SHARED) == 0, "the notice died with its receiver");
    ensure!(second.result()? == Ok(0), "the second watcher");
    Ok(Completed)
}

/// `list_op_pending` at a word with one's own number marks it, although it was never linked: so a
/// watcher must not publish a word of a thread that has the same number elsewhere.
pub(crate) fn pending_on_own_tid_is_a_false_death() -> Verdict {
    let word = shared_words()(0);
    let mut child = Child::parked(|| {
        word.store(own_tid() | WAITERS, SeqCst);
        set_pending(Some(word));
    })?;
    child.kill()?;
    let value = word.load(SeqCst);
    ensure!(value == OWNER_DIED | WAITERS, "the word is {value:#x}");
    Ok(Completed)
}

/// Whatever the parent has linked is none of the child's: its exit marks nothing. What the kernel
/// gives a child is no list at all; the C library registers an empty one.
pub(crate) fn fork_empties_the_robust_list() -> Verdict {
    let life = Life::new();
    let (seen, word) = (shared_words(), shared_words()(0));
    let _sleeper = Sleeper::on(word, SHARED)?;
    let parent = Child::spawn(|| {
        life.link();
        set_pending(Some(word));
        let head = robust_head();
        let child = Child::spawn(|| {
            let (first, is_own) = (first_entry(), robust_head() == head);
            assert!(is_own, "the C library moved the head");
            assert!(first == head.addr(), "the child's list is not empty");
            seen(0).store(u32::from(pending() != 0), SeqCst);
            set_pending(None);
        });
        child.expect("fork").succeed().expect("an empty list");
        life.ensure_unmarked("the parent of a child that has exited").expect("it lives");
        assert_eq!(queued(word, SHARED), 1, "the child cleared pending, but woke somebody");

        // SAFETY: no flags but the signal to send, no new stack: a fork without the C library.
        // The child makes two system calls and uses no lock.
        let pid = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
        if pid == 0 {
            let code = c_int::from(!registered_head().is_null());
            // SAFETY: ends the process at once, without destructors.
            unsafe { libc::_exit(code) }
        }
        let status = waitpid(Pid::from_raw(pid as i32), None).expect("waitpid");
        assert!(matches!(status, WaitStatus::Exited(_, 0)), "the kernel kept the list: {status:?}");
        life.ensure_unmarked("the parent of a bare child").expect("it lives");

        // A child that does not clear what it has inherited.
        Child::spawn(|| ()).expect("fork").succeed().expect("it exits");
        seen(1).store(1 - queued(word, SHARED) as u32, SeqCst);
        set_pending(None);
    })?;
    parent.succeed()?;
    let (inherited, woken) = (seen(0).load(SeqCst), seen(1).load(SeqCst));
    if inherited == 0 {
        eprintln!("note: this C library clears list_op_pending in a forked child");
    }
    ensure!(
        inherited == woken,
        "inherited pending: {inherited}, woken by the child's end: {woken}"
    );
    Ok(Completed)
}

/// `execve` from the first thread of a process ends its robust list like an exit.
pub(crate) fn execve_from_the_leader_marks_its_word() -> Verdict {
    let life = Life::new();
    let mut child = Child::spawn(|| {
        life.link();
        become_sleep();
    })?;
    child.replaced()?;
    life.ensure_dead("the leader that called execve")?;
    Ok(Completed)
}

/// `execve` from any other thread leaves that thread's word as it is, for ever: the thread has
/// taken over the leader's number before the kernel compares. The others are marked.
pub(crate) fn execve_from_another_thread_does_not_mark_its_word() -> Verdict {
    let (life, leader) = (Life::new(), Life::new());
    let mut child = Child::spawn(|| {
        leader.link();
        thread::spawn(|| {
            life.link();
            become_sleep();
        });
        park_forever();
    })?;
    child.replaced()?;
    leader.ensure_dead("the leader")?;
    life.ensure_unmarked("the thread that called execve")?;
    child.kill()?;
    life.ensure_unmarked("the thread that called execve, after the end of its process")?;
    Ok(Completed)
}

/// A node that the kernel cannot read hides those behind it, and pending, but not those in front.
pub(crate) fn bad_node_ends_the_walk() -> Verdict {
    let (front, behind) = (Life::new(), Life::new());
    let (mutex, word) = (RobustMutex::new(), shared_words()(0));
    let _sleeper = Sleeper::on(word, SHARED)?;
    let mut child = Child::parked(|| {
        behind.link();
        mutex.lock();
        front.link();
        set_pending(Some(word));
        unmap(mutex.0.expose_provenance(), page_size());
    })?;
    child.kill()?;
    front.ensure_dead("our node in front of the bad one")?;
    behind.ensure_unmarked("our node behind the bad one")?;
    ensure!(queued(word, SHARED) == 1, "the walk was cut short, but pending relayed");
    Ok(Completed)
}

/// A word that the kernel cannot write is not marked and ends the walk, without harm to anybody.
pub(crate) fn truncated_or_read_only_word_is_not_marked() -> Verdict {
    for truncated in [true, false] {
        let [front, lost, behind] = [(); 3].map(|()| Life::new());
        let mut child = Child::parked(|| {
            behind.link();
            lost.link();
            front.link();
            if !truncated {
                make_read_only(lost.node - page_size(), page_size());
            }
        })?;
        let file = lost.file.as_ref().expect("a memfd");
        if truncated {
            ftruncate(file, 0)?;
        }
        child.kill()?;
        front.ensure_dead("the word in front")?;
        behind.ensure_unmarked("the word behind")?;
        if truncated {
            ftruncate(file, page_size() as u64)?;
            ensure!(lost.view.load(SeqCst) == 0, "a truncated word came back");
        } else {
            lost.ensure_unmarked("the word mapped read-only")?;
        }
    }
    Ok(Completed)
}

/// The kernel looks at 2048 nodes and no further.
pub(crate) fn walk_is_bounded() -> Verdict {
    const SLOT: usize = 64;
    for (in_front, reached) in [(2047, true), (2048, false)] {
        let life = Life::new();
        let others = map(in_front * SLOT, MapFlags::PRIVATE, None);
        let mut child = Child::parked(|| {
            life.link();
            for index in 0..in_front {
                link_node(others + index * SLOT + SLOT / 2);
            }
        })?;
        child.kill()?;
        let marked = life.view.load(SeqCst) & OWNER_DIED != 0;
        ensure!(marked == reached, "behind {in_front} nodes: marked is {marked}");
    }
    Ok(Completed)
}
