//! Deadlocks between threads of any processes: who waits for whom in a circle.
//!
//! [`check`] looks at a segment and returns each circle in it, with who is in it, what
//! each waits for and since when; [`check_all`] looks at several segments at once, for
//! circles that pass from one to another. Both take no lock and no row and write
//! nothing, so they can be called from anywhere, by a process that takes no part,
//! and while everything is stuck. They take a few nanoseconds for each row that was ever
//! used, and some more for each thread that sleeps.
//! [`Snapshot::deadlocks`](crate::Snapshot::deadlocks) has the same for a segment whose
//! type is not known.
//!
//! # Having a deadlock end
//!
//! A wait can look by itself, when it has lasted for some time, whether it is part of a
//! deadlock: [`Mutex::lock_checked`](crate::Mutex::lock_checked) and
//! [`LockOptions::detect_deadlocks`](crate::LockOptions::detect_deadlocks) have one wait
//! do so, [`Segment::detect_deadlocks`](crate::Segment::detect_deadlocks) all waits of this
//! process in a segment. Of those in the circle whose waits look, exactly one is
//! chosen: the one that fell asleep last. Its call fails with
//! [`Unusable::Deadlock`](crate::Unusable::Deadlock), or panics with it if it returns no
//! error. The others find that they are not chosen, and wait on: when the chosen one
//! drops what it holds, by unwinding or because it was told to, they proceed. If it
//! tries again without dropping anything it closes a new circle, in which it is
//! chosen again.
//!
//! A wait looks again and again, as somebody whose waits do not may close the circle
//! later. Where nobody waits nothing is different, and a wait that does not last costs
//! two stores more.
//!
//! # What is a deadlock, and what not
//!
//! What is found is certain: each of those in a circle holds the lock that the one
//! before it waits for, and cannot release it before its own wait has ended (the
//! argument is in `src/lock/cycle.rs`). Not counted, and not found:
//!
//! * waits that may end by themselves: with a timeout, a
//!   [token](crate::CancelToken), or [interruptible](crate::Mutex::lock_interruptible);
//!   so none of these looks, either;
//! * waits without a thread that sleeps, those of futures and in a ring, and those for
//!   [any of several locks](crate::select::lock_any); and what the process holds, as
//!   guards of futures do;
//! * a thread that waits for a lock which it holds itself, or waits for in a ring: that
//!   fails at once, with [`Unusable::WouldDeadlock`](crate::Unusable::WouldDeadlock).
//!   (Through a second mapping of the segment it does not, and is a circle of one);
//! * locks outside of every segment, and whatever else threads wait for: other locks,
//!   pipes, conditions, each other's end;
//! * owners that are stopped, or have simply kept a lock for long: they may go on;
//! * circles through segments that were not looked at. A wait looks at all segments that
//!   its own process has mapped: so that the one who is chosen finds the circle,
//!   its process needs to have mapped all segments through which that passes;
//! * circles in which a thread has rows in several segments and `/proc` did not tell
//!   who it is (see [`Member::pid_namespace`]);
//! * a thread that is awake: one that spins falls asleep soon.
//!
//! If somebody in a circle is killed the circle is none any more: the heir of what it
//! held proceeds.
//!
//! # Examples
//!
//! ```
//! use heirlock::{LockError, LockOptions, Mutex, Segment, Unusable, deadlock};
//! use std::time::Duration;
//! let segment: Segment<[Mutex<u64>; 2]> = Segment::anonymous()?;
//! segment.set_name(&segment[0], "accounts")?;
//! segment.set_name(&segment[1], "orders")?;
//!
//! let [accounts, orders] = &*segment;
//! let barrier = std::sync::Barrier::new(2);
//! std::thread::scope(|scope| {
//!     scope.spawn(|| {
//!         let _accounts = accounts.lock();
//!         barrier.wait();
//!         drop(orders.lock()); // waits until the other one has given up
//!     });
//!     let _orders = orders.lock();
//!     barrier.wait();
//!     let options = LockOptions::new().detect_deadlocks(Duration::from_millis(20));
//!     let Err(LockError::Unusable(Unusable::Deadlock(cycle))) = accounts.lock_with(&options)
//!     else {
//!         panic!("the other one holds it, and waits for this one")
//!     };
//!     assert_eq!(cycle.members().len(), 2);
//!     println!("{cycle}");
//!     assert!(cycle.to_string().contains("lock \"accounts\" at offset"));
//! });
//! assert_eq!(deadlock::check(&segment), []);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use crate::lock::cycle::{self, View, cycles};
use crate::participant::table::Identity;
use crate::segment::{Participant, Segment, display_name};
use core::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Every deadlock among the threads that wait for locks in `segment`, each once.
///
/// # Examples
///
/// See [the module](self).
pub fn check<T>(segment: &Segment<T>) -> Vec<Cycle> {
    check_all(&[segment])
}

/// Every deadlock among the threads that wait for locks in the segments, each once,
/// also those that pass through several of them.
///
/// # Examples
///
/// ```
/// use heirlock::{Mutex, Segment, deadlock};
/// let one: Segment<Mutex<u64>> = Segment::anonymous()?;
/// let other: Segment<[Mutex<u8>; 3]> = Segment::anonymous()?;
/// assert_eq!(deadlock::check_all(&[&one, &other]), []);
/// # Ok::<(), heirlock::SegmentError>(())
/// ```
pub fn check_all(segments: &[&dyn AnySegment]) -> Vec<Cycle> {
    let views: Vec<&dyn View> = segments.iter().map(|segment| segment.view().0).collect();
    cycles(&views).into_iter().map(Cycle::from).collect()
}

/// A [`Segment`], whatever is in it.
///
/// # Examples
///
/// See [`check_all`].
pub trait AnySegment: sealed::Sealed {}

impl<T> AnySegment for Segment<T> {}

impl<T> sealed::Sealed for Segment<T> {
    fn view(&self) -> sealed::Viewed<'_> {
        sealed::Viewed(self.mapping())
    }
}

mod sealed {
    /// So that the trait below names nothing private.
    #[allow(missing_debug_implementations, reason = "nobody sees it")]
    pub struct Viewed<'a>(pub(super) &'a dyn super::View);

    pub trait Sealed {
        fn view(&self) -> Viewed<'_>;
    }
}

/// A deadlock: threads of which each waits for a lock that the next one holds, and
/// the last for one that the first holds.
///
/// Its `Display` has a line for each of them.
///
/// # Examples
///
/// See the [module](self).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cycle {
    members: Vec<Member>,
}

/// A thread in a [`Cycle`].
///
/// # Examples
///
/// See the [module](self).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Member {
    /// Its row, and the how-manyth user of the row it is, in the segment of the lock
    /// for which it waits.
    pub participant: Participant,
    /// The ID of its process, in its own PID namespace; 0 if unknown.
    pub pid: u32,
    /// The ID of its thread, in its own PID namespace; 0 if unknown.
    pub tid: u32,
    /// The inode of its PID namespace; 0 if unknown.
    pub pid_namespace: u64,
    /// The name of its thread when it joined.
    pub thread_name: String,
    /// The path of the segment, as it was when this process opened it; `None` if it was
    /// opened without.
    pub segment: Option<PathBuf>,
    /// The lock for which it waits, as [`Segment::offset_of`] names it.
    pub lock: u64,
    /// What the lock is called, if it has been given a name; see [`Segment::set_name`].
    pub lock_name: Option<String>,
    /// For how long it has slept for the lock.
    pub waited: Duration,
}

impl Cycle {
    /// Who is in it: each waits for a lock that the next one holds, the last for
    /// one that the first one holds. Two at the least.
    ///
    /// # Examples
    ///
    /// See the [module](self).
    pub fn members(&self) -> &[Member] {
        &self.members
    }
}

impl From<cycle::Cycle> for Cycle {
    fn from(cycle: cycle::Cycle) -> Self {
        Self { members: cycle.0.into_iter().map(Member::from).collect() }
    }
}

impl From<cycle::Member> for Member {
    fn from(member: cycle::Member) -> Self {
        let Identity { pid, tid, pid_namespace, name, .. } = member.identity;
        Self {
            participant: Participant(member.id),
            pid,
            tid,
            pid_namespace,
            thread_name: display_name(&name),
            segment: member.path,
            lock: member.lock,
            lock_name: member.name,
            waited: member.waited,
        }
    }
}

impl fmt::Display for Cycle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let threads = if self.members.len() == 1 { "thread" } else { "threads" };
        write!(f, "a deadlock of {} {threads}:", self.members.len())?;
        let next = self.members.iter().cycle().skip(1);
        for (member, next) in self.members.iter().zip(next) {
            write!(f, "\n  {member}, which thread {} of process {} holds", next.tid, next.pid)?;
        }
        Ok(())
    }
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "thread {} \"{}\" of process {} has waited {:.1?} for ",
            self.tid, self.thread_name, self.pid, self.waited,
        )?;
        match &self.lock_name {
            Some(name) => write!(f, "lock \"{name}\" at offset {}", self.lock)?,
            None => write!(f, "the lock at offset {}", self.lock)?,
        }
        match self.segment.as_deref().map(Path::display) {
            Some(path) => write!(f, " of {path}"),
            None => Ok(()),
        }
    }
}
